//! The decisions of a new primary in small random clusters: a fragment, three to five replicas,
//! primaries that live on after they were replaced, crashes, wiped disks. Nothing acknowledged may
//! be lost, and copies at one version must be equal. Rules left out are found.

mod model;

use model::{Rule, run};

/// Schedules that must pass, and among which each left out rule must fail.
const SEEDS: u64 = 20_000;

#[test]
fn nothing_acknowledged_is_lost() {
    let (mut acknowledged, mut decided, mut waited) = (0, 0, 0);
    for seed in 0..SEEDS {
        let world = run(seed, None).unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        acknowledged += world.acknowledged.len();
        decided += world.decided;
        waited += world.waited;
    }
    // It would be easy to lose nothing.
    assert!(acknowledged > 50_000, "{acknowledged} writes were acknowledged");
    assert!(decided > 20_000 && waited > 10_000, "{decided} decided, {waited} waited");
}

#[test]
fn every_rule_is_needed() {
    for rule in Rule::ALL {
        let found = (0..SEEDS).find_map(|seed| Some((seed, run(seed, Some(rule)).err()?)));
        let (seed, broken) = found.unwrap_or_else(|| panic!("nobody needs {rule:?}"));
        eprintln!("{rule:?}: seed {seed}: {broken}");
    }
}
