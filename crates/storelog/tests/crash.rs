//! Random work, cut anywhere: contents are always those of a prefix of each fragment's writes that
//! holds all acknowledged ones, and no space is lost.

#[path = "crash/cuts.rs"]
mod cuts;
#[path = "crash/each.rs"]
mod each;
#[path = "crash/faults.rs"]
mod faults;
#[path = "crash/marks.rs"]
mod marks;
mod model;
#[path = "crash/replica.rs"]
mod replica;
#[path = "crash/rot.rs"]
mod rot;

use model::run::{Counts, Run};

/// `SHEEPDOG_SEED` is the first of `SHEEPDOG_SEEDS` seeds; without them the first `few`.
#[expect(clippy::disallowed_methods, reason = "the one who runs the test says how long")]
fn seeds(few: u64) -> std::ops::Range<u64> {
    let number = |name: &str, default: u64| {
        let value = std::env::var(name).ok();
        value.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let first = number("SHEEPDOG_SEED", 1);
    first..first + number("SHEEPDOG_SEEDS", few)
}

fn one(seed: u64, deaths: u32) -> Counts {
    let mut run = Run::new(seed);
    run.open();
    for _ in 0..deaths {
        for _ in 0..50 + run.rng.below(400) {
            run.step();
        }
        if run.rng.chance(20) {
            run.settle();
        }
        run.die();
    }
    run.check_space();
    run.counts
}

#[test]
fn crashes_anywhere_keep_acknowledged_writes_and_space() {
    let seeds = seeds(70);
    let many = seeds.end - seeds.start >= 70;
    let mut total = Counts::default();
    for seed in seeds {
        println!("seed {seed}");
        let counts = one(seed, 12);
        total += counts;
    }
    println!("{total:?}");
    if many {
        // The run met what it is about.
        assert!(total.crashes > 500 && total.kills > 100, "{total:?}");
        assert!(total.torn > 20 && total.replayed > 1000, "{total:?}");
        assert!(total.checkpoints > 300 && total.acked > 10_000 && total.reads > 5000, "{total:?}");
        assert!(total.completed > 100 && total.conflicts > 500 && total.copied > 500, "{total:?}");
    }
}
