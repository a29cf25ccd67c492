//! The power fails between any two disk operations: several stores work side by side, and after
//! each operation that begins or ends on any of their disks, all of them are cut at that instant.
//! What is left of each opens, holds what was acknowledged, goes on, and is cut again.
//!
//! The stores themselves never notice: a cut is made of copies of the disks, and what was not
//! flushed is decided for the copies only, each sector old, new or garbage.

use crate::model::disk::Rng;
use crate::model::run::{Counts, Run};
use crate::seeds;

/// Cuts after which what is left goes on for a while and is cut again: one of so many.
const GO_ON: u64 = 5;
/// Cuts after which, at the end of all, every unit of space must be accounted for.
const BOOKS: u64 = 100;

/// Stores that lose power together.
struct Side {
    rng: Rng,
    runs: Vec<Run>,
    counts: Counts,
}

impl Side {
    fn new(seed: u64) -> Self {
        let mut runs: Vec<Run> = (0..2 + seed % 2).map(|n| Run::small(seed * 4 + n)).collect();
        runs.iter_mut().for_each(Run::open);
        Self { rng: Rng(seed), runs, counts: Counts::default() }
    }

    /// One event of one of them, and a cut if a disk knows of it.
    fn step(&mut self, draining: bool) {
        let chosen = self.rng.below(self.runs.len() as u64) as usize;
        let run = &mut self.runs[chosen];
        let before = run.disk.events();
        if draining {
            run.step_to_rest();
        } else {
            run.step();
        }
        if run.disk.events() != before {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let seed = self.rng.next();
        for (at, run) in self.runs.iter().enumerate() {
            let mut left = run.fork(seed ^ at as u64);
            left.lose_power();
            if seed.is_multiple_of(GO_ON) {
                for _ in 0..20 + left.rng.below(40) {
                    left.step();
                }
                left.lose_power();
            }
            if seed.is_multiple_of(BOOKS) {
                left.check_space();
            }
            self.counts += left.counts;
        }
        self.counts.cuts += 1 + u64::from(seed.is_multiple_of(GO_ON));
    }

    /// Work for a while, then until all is answered: only then the past is no longer in question.
    fn round(&mut self) {
        for _ in 0..60 + self.rng.below(200) {
            self.step(false);
        }
        while !self.runs.iter().all(Run::is_quiet) {
            self.step(true);
        }
        self.runs.iter_mut().for_each(Run::settle);
    }
}

#[test]
fn stores_side_by_side_survive_a_cut_after_any_operation() {
    let seeds = seeds(6);
    let many = seeds.end - seeds.start >= 6;
    let mut total = Counts::default();
    for seed in seeds {
        println!("seed {seed}");
        let mut side = Side::new(seed);
        for _ in 0..3 {
            side.round();
        }
        for run in &mut side.runs {
            run.check_space();
            side.counts.checkpoints += run.store.as_ref().map_or(0, |s| s.stats().checkpoints);
            side.counts.acked += run.counts.acked;
        }
        total += side.counts;
    }
    println!("{total:?}");
    if many {
        assert!(total.cuts > 2000 && total.torn > 50 && total.replayed > 5000, "{total:?}");
        assert!(total.checkpoints > 20 && total.acked > 300, "{total:?}");
    }
}
