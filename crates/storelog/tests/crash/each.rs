//! A fault at each single disk operation of fixed work: run once to count the operations, then
//! again and again with one of them failing. Whatever fails, and whether the rest works: what was
//! acknowledged stays, reads give right bytes or an error, and after the next start everything is
//! there.

use crate::model::faults::{Faults, OpKind, Planned, Reach};
use crate::model::run::{Counts, Run};
use crate::seeds;
use sheepdog_storelog::Command;
use sheepdog_storelog::io::{Area, DiskErrorKind};

/// Work until it is done, or the disk is given up.
fn work(seed: u64, planned: Option<Planned>) -> Run {
    let mut run = Run::small(seed);
    run.disk.faults.planned = planned;
    run.open();
    for part in 0..3 {
        for _ in 0..60 {
            if run.failure().is_none() {
                run.step();
            }
        }
        if run.failure().is_none() {
            run.rest();
        }
        if part < 2 && run.failure().is_none() {
            run.command(Command::Checkpoint);
        }
        if run.failure().is_none() {
            run.rest();
        }
    }
    run
}

/// The next start, with a sound disk.
fn come_back(run: &mut Run) {
    run.disk.faults = Faults::default();
    // A checkpoint gives up what it cannot read back from the log after some tries, as it does with
    // rot: else the log would never be empty again.
    run.lost = run.store.as_ref().is_some_and(|store| store.stats().checksum_errors > 0);
    run.die();
    if !run.lost {
        run.check_space();
    }
    run.counts.faults += 1;
}

/// Does the work once, then with each fault that `plan` makes of an operation; `check` looks at what
/// became of the store before the next start.
fn each(
    plan: impl Fn(u64, OpKind, Option<(Area, u64)>) -> Option<Planned>,
    check: impl Fn(&mut Run, OpKind),
) {
    let mut total = Counts::default();
    for seed in seeds(5) {
        println!("seed {seed}");
        let ended = work(seed, None).disk.ended;
        for (at, (kind, place)) in (0..).zip(ended) {
            let Some(planned) = plan(at, kind, place) else {
                continue;
            };
            let mut run = work(seed, Some(planned));
            check(&mut run, kind);
            come_back(&mut run);
            total += run.counts;
        }
    }
    println!("{total:?}");
    assert!(total.faults > 50, "{total:?}");
}

const fn io(at: u64, reach: Reach) -> Planned {
    Planned { at, kind: DiskErrorKind::Io, reach }
}

/// A write or a flush that fails is the end, whatever it was for; it is not tried again (the run
/// sees to that). A read that fails is not.
fn ends_with_a_write(run: &mut Run, kind: OpKind) {
    // Opening is begun again.
    if run.counts.opened_again == 0 {
        assert_eq!(run.failure().is_some(), kind != OpKind::Read, "{kind:?}: {:?}", run.failure());
    }
    assert!(run.failure().is_some() || run.is_quiet(), "everything is answered");
}

#[test]
fn no_space_once_at_each_operation_never_fails_the_disk() {
    each(
        |at, kind, _| {
            let planned = Planned { at, kind: DiskErrorKind::NoSpace, reach: Reach::Once };
            (kind == OpKind::Space).then_some(planned)
        },
        |run, _| {
            assert_eq!(run.failure(), None);
            // The host says that it has space: the store goes on.
            run.tell_free();
            run.settle();
            let (refused, abandoned) = (run.counts.refused, run.counts.abandoned);
            run.command(Command::Checkpoint);
            run.settle();
            run.write_somewhere();
            run.settle();
            assert_eq!((refused, abandoned), (run.counts.refused, run.counts.abandoned));
        },
    );
}

#[test]
fn no_space_from_each_operation_on_never_fails_the_disk() {
    each(
        |at, kind, _| {
            let planned = Planned { at, kind: DiskErrorKind::NoSpace, reach: Reach::Always };
            (kind == OpKind::Space).then_some(planned)
        },
        |run, _| {
            assert_eq!(run.failure(), None);
            // Discards may wait for a checkpoint; once there is space they are answered.
            run.disk.faults = Faults::default();
            run.tell_free();
            run.settle();
        },
    );
}

#[test]
fn an_error_once_at_each_operation() {
    each(|at, _, _| Some(io(at, Reach::Once)), ends_with_a_write);
}

#[test]
fn errors_from_each_operation_on() {
    each(|at, _, _| Some(io(at, Reach::Always)), |_, _| {});
}

#[test]
fn errors_of_one_region_from_each_operation_on() {
    each(
        |at, _, place| {
            let (area, offset) = place?;
            Some(io(at, Reach::Region(area, offset)))
        },
        |_, _| {},
    );
}
