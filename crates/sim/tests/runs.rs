//! Whole runs: a seed is one run and no other, and the core stands what happens in some hundred.

use sheepdog_sim::{Plan, World};

#[test]
fn a_seed_names_one_run_exactly() {
    for seed in [3, 14, 15, 92] {
        let (first, second) = (World::new(Plan::of(seed)).run(), World::new(Plan::of(seed)).run());
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.story, second.story, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
    }
    let other = World::new(Plan::of(4)).run();
    assert_ne!(World::new(Plan::of(3)).run().digest, other.digest);
}

#[test]
fn the_core_stands_some_seeds() {
    let (mut written, mut faults) = (0, 0);
    for seed in 1..=40 {
        let outcome = World::new(Plan::of(seed)).run();
        assert!(outcome.findings.is_empty(), "seed {seed}: {:?}", outcome.findings);
        assert_eq!(outcome.counts.of("runs settled"), 1, "seed {seed}");
        written += outcome.counts.of("writes done");
        faults += outcome.faults;
    }
    assert!(written > 5_000 && faults > 150, "{written} writes, {faults} faults");
}
