//! Random work on disks that run full and fail: what was acknowledged stays, wrong bytes are
//! never given, and a store that may go on does.

use crate::model::faults::Faults;
use crate::model::run::{Counts, Run};
use crate::seeds;
use sheepdog_storelog::{Command, ZeroKind};

fn all(few: u64, one: impl Fn(u64) -> Counts) -> Counts {
    let mut total = Counts::default();
    for seed in seeds(few) {
        println!("seed {seed}");
        total += one(seed);
    }
    println!("{total:?}");
    total
}

#[test]
fn without_space_writes_are_refused_and_nothing_is_lost() {
    let total = all(40, |seed| {
        let mut run = Run::new(seed);
        run.open();
        for round in 0..8 {
            run.disk.faults.no_space = [0, 5, 50, 300][run.rng.below(4) as usize];
            for _ in 0..50 + run.rng.below(400) {
                run.step();
            }
            if round % 2 == 0 {
                // The host has space again, and says so: the store goes on.
                run.disk.faults = Faults::default();
                run.tell_free();
                run.settle();
                run.command(Command::Checkpoint);
                run.settle();
                let refused = run.counts.refused;
                run.write_somewhere();
                run.settle();
                assert_eq!(run.counts.refused, refused, "there is space again");
            }
            if run.rng.chance(50) {
                run.disk.faults = Faults::default();
                run.die();
            }
        }
        run.check_space();
        run.counts
    });
    if total.acked > 3000 {
        assert!(total.refused > 100 && total.abandoned > 10, "{total:?}");
    }
}

/// Random work in less space than it wants. The host tells what it has free before the last write.
fn work_in_little_space(set_limit: impl Fn(&mut Run)) {
    let total = all(40, |seed| {
        let mut run = Run::new(seed);
        set_limit(&mut run);
        run.open();
        for _ in 0..4 {
            for _ in 0..100 + run.rng.below(800) {
                run.step();
            }
            run.settle();
            if run.rng.chance(50) {
                run.die();
            }
            if run.rng.chance(30) {
                run.delete_all();
                run.settle();
            }
        }
        run.delete_all();
        run.check_space();
        run.tell_free();
        let refused = run.counts.refused;
        run.write_somewhere();
        run.settle();
        assert_eq!(run.counts.refused, refused, "there is space again");
        run.check_space();
        run.counts
    });
    if total.acked > 3000 {
        assert!(total.refused > 100, "{total:?}");
    }
    assert_eq!(total.abandoned, 0, "space for checkpoints is kept: {total:?}");
}

#[test]
fn a_full_host_refuses_writes_early_and_never_deletes() {
    work_in_little_space(|run| {
        // The index of many fragments with little in them is larger than what they hold.
        let capacity = 150 + run.rng.below(300) + 6 * run.fragments;
        run.disk.capacity = Some(capacity as usize);
    });
}

#[test]
fn a_full_device_refuses_writes_early_and_never_deletes() {
    work_in_little_space(|run| {
        let units = 60 + run.rng.below(150) + 3 * run.fragments;
        run.on_device(units as u32);
    });
}

#[test]
fn space_once_given_can_be_written_when_somebody_else_fills_the_host() {
    let total = all(40, |seed| {
        let mut run = Run::new(seed);
        run.keep_spare(40);
        let fragments = fill_after_reserving(&mut run);
        for _ in 0..4 {
            for _ in 0..40 {
                let fragment = run.rng.below(fragments);
                run.write_all_of(fragment);
                if run.rng.chance(30) {
                    run.settle();
                }
                if run.rng.chance(10) {
                    run.tell_free();
                }
            }
            run.settle();
            if run.rng.chance(50) {
                run.die();
                run.tell_free();
            }
        }
        assert_eq!(run.counts.refused, 0, "all of it had its space");
        run.check_space();
        run.counts
    });
    assert_eq!(total.abandoned, 0, "pages have their space: {total:?}");
}

/// Reserves space for some fragments, has it written in part, and lets somebody else take the rest.
/// Gives how many they are.
fn fill_after_reserving(run: &mut Run) -> u64 {
    run.open();
    run.tell_free();
    let fragments = 4 + run.rng.below(20);
    for fragment in 0..fragments {
        run.reserve_all_of(fragment);
        if run.rng.chance(30) {
            run.write_all_of(fragment);
        }
    }
    run.settle();
    run.command(Command::Checkpoint);
    run.settle();
    assert_eq!(run.counts.refused, 0);
    run.fill_host();
    fragments
}

#[test]
fn pages_keep_their_space_when_somebody_else_takes_the_rest_after_each_crash() {
    let total = all(12, |seed| {
        let mut run = Run::new(seed);
        run.keep_spare(40);
        let fragments = fill_after_reserving(&mut run);
        for _ in 0..10 {
            for _ in 0..run.rng.below(60) {
                let fragment = run.rng.below(fragments);
                run.write_all_of(fragment);
                if run.rng.chance(10) {
                    run.command(Command::Checkpoint);
                }
                for _ in 0..run.rng.below(30) {
                    run.step_to_rest();
                }
                if run.rng.chance(10) {
                    run.tell_free();
                }
            }
            run.die();
            run.fill_host();
            if run.rng.chance(70) {
                run.tell_free();
            }
            if run.rng.chance(50) {
                run.command(Command::Checkpoint);
                run.settle();
            }
        }
        assert_eq!(run.counts.refused, 0, "all of it had its space");
        run.delete_all();
        run.check_space();
        run.counts
    });
    assert_eq!(total.abandoned, 0, "pages have their space: {total:?}");
}

#[test]
fn a_reservation_that_waits_for_pages_keeps_no_fragment_dirty_for_ever() {
    all(20, |seed| {
        let mut run = Run::new(seed);
        run.keep_spare(0);
        run.open();
        run.write_all_of(0);
        run.write_all_of(1);
        run.settle();
        run.command(Command::Checkpoint);
        run.settle();
        // The host says that nothing is left: one fragment may be dirty, no more.
        run.fill_host();
        run.tell_free();
        run.disk.capacity = None;
        run.zero(0, 0, ZeroKind::Remove);
        run.settle();
        // The second waits for the first fragment to be clean. It is not while it has space to give
        // back, and that is not given back while a reservation counts on it.
        run.zero(1, 0, ZeroKind::Remove);
        run.zero(0, 1, ZeroKind::Reserve);
        run.settle();
        run.check_space();
        run.counts
    });
}

#[test]
fn disk_errors_are_told_and_do_no_damage() {
    let total = all(60, |seed| {
        let mut run = Run::new(seed);
        run.open();
        for _ in 0..8 {
            run.disk.faults.read = [0, 3, 10][run.rng.below(3) as usize];
            run.disk.faults.write = [0, 1, 10][run.rng.below(3) as usize];
            for _ in 0..50 + run.rng.below(400) {
                run.step();
            }
            if run.rng.chance(30) {
                run.disk.faults.write = 0;
                run.settle();
            }
            run.disk.faults.write = 0;
            if run.failure().is_some() || run.rng.chance(20) {
                run.die();
            }
        }
        run.check_space();
        run.counts
    });
    if total.acked > 3000 {
        assert!(total.unread > 50 && total.given_up > 20, "{total:?}");
    }
}

#[test]
fn the_same_events_have_the_same_effects() {
    for seed in seeds(10) {
        let trace = |seed| {
            let mut run = Run::new(seed);
            run.trace = Some(0);
            run.disk.faults.no_space = seed % 3 * 10;
            run.open();
            for _ in 0..3 {
                for _ in 0..300 {
                    run.step();
                }
                run.die();
            }
            run.trace.expect("asked for")
        };
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}

#[test]
fn zeros_of_every_kind_survive() {
    let mut run = Run::new(3);
    run.open();
    for kind in [ZeroKind::Reserve, ZeroKind::Marker, ZeroKind::Remove] {
        run.write_somewhere();
        run.zero_somewhere(kind);
        run.settle();
        run.die();
    }
    run.check_space();
}
