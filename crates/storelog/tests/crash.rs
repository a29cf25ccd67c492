//! Random work, cut anywhere: contents are always those of a prefix of each fragment's writes that
//! holds all acknowledged ones, and no space is lost.

mod model;

use model::run::{Counts, Run};

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
    let first: u64 = std::env::var("SHEEPDOG_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let seeds: u64 = std::env::var("SHEEPDOG_SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(300);
    let mut total = Counts::default();
    for seed in first..first + seeds {
        println!("seed {seed}");
        let counts = one(seed, 12);
        total.crashes += counts.crashes;
        total.kills += counts.kills;
        total.acked += counts.acked;
        total.reads += counts.reads;
        total.checkpoints += counts.checkpoints;
        total.torn += counts.torn;
        total.replayed += counts.replayed;
    }
    println!("{total:?}");
    if seeds >= 100 {
        // The run met what it is about.
        assert!(total.crashes > 500 && total.kills > 100, "{total:?}");
        assert!(total.torn > 20 && total.replayed > 1000, "{total:?}");
        assert!(
            total.checkpoints > 300 && total.acked > 10_000 && total.reads > 5000,
            "{total:?}"
        );
    }
}
