//! The mark: a log or data put back from a copy of an earlier opening is refused, and a power
//! failure at any instant of an opening leaves what opens.

use crate::model::disk::SimDisk;
use crate::model::run::Run;
use crate::seeds;
use sheepdog_storelog::io::{Area, DiskOp};
use sheepdog_storelog::{Effect, Opening};

/// What is known of a store that is put back in parts.
struct Copies {
    run: Run,
    /// After each opening, in order, with what was written then.
    disks: Vec<SimDisk>,
}

impl Copies {
    fn new(seed: u64) -> Self {
        let mut run = Run::small(seed);
        let mut disks = Vec::new();
        for _ in 0..4 {
            run.open();
            for _ in 0..run.rng.below(200) {
                run.step();
            }
            run.settle();
            disks.push(run.close().0);
        }
        Self { run, disks }
    }

    /// Why the newest disk does not open with an area of an earlier one.
    fn put_back(&mut self, area: Area, from: usize) -> String {
        let mut disk = self.disks[3].clone();
        disk.put_back(area, &self.disks[from]);
        let refused = self.run.open_copy(&mut disk).map(|(records, _)| records);
        refused.expect_err("it was put back").full().to_string()
    }
}

#[test]
fn a_log_or_data_of_an_earlier_opening_is_refused() {
    for seed in seeds(20) {
        println!("seed {seed}");
        let mut copies = Copies::new(seed);
        for from in 0..3 {
            let why = copies.put_back(Area::Log, from);
            assert!(why.contains("the log is older than the data"), "{why}");
            let why = copies.put_back(Area::Data, from);
            assert!(why.contains("the data is older than the log"), "{why}");
        }
        // Both, as a copy of the whole disk, are what they were.
        for from in 0..4 {
            let mut disk = copies.disks[from].clone();
            assert!(copies.run.open_copy(&mut disk).is_ok());
        }
    }
}

/// Opens a copy of the disk as far as so many operations; whether it was open before.
fn open_partly(run: &mut Run, ops: u64) -> bool {
    let mut effects = Vec::new();
    let mut opening = Opening::start(run.limits, &mut effects);
    for _ in 0..ops {
        for effect in effects.drain(..) {
            if let Effect::Disk(id, op) = effect {
                run.disk.submit(id, op);
            }
        }
        let done = run.disk.complete_any(&mut run.rng).expect("opening goes on");
        if let Some(opened) = opening.completed(done, &mut effects) {
            assert!(opened.is_ok());
            return true;
        }
    }
    for effect in effects.drain(..) {
        if let Effect::Disk(id, op) = effect {
            run.disk.submit(id, op);
        }
    }
    false
}

#[test]
fn a_cut_at_any_instant_of_an_opening_leaves_what_opens() {
    let mut cuts = 0;
    for seed in seeds(6) {
        println!("seed {seed}");
        let mut run = Run::small(seed);
        run.open();
        for _ in 0..150 + run.rng.below(100) {
            run.step();
        }
        for ops in 0.. {
            let mut ended = false;
            // What is in flight then may be there, or not, or be torn: for some rounds.
            for _ in 0..30 {
                let seed = run.rng.next();
                let mut cut = run.fork(seed);
                cut.disk.crash(&mut cut.rng);
                // Twice: what the first one left is not what it found.
                ended = open_partly(&mut cut, ops);
                cut.disk.crash(&mut cut.rng);
                open_partly(&mut cut, ops);
                cut.lose_power();
                cuts += 1;
            }
            if ended {
                break;
            }
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 1000, "{cuts}");
}

/// While the owner block may be torn, the end of the log says that it is the same one.
#[test]
fn a_log_replaced_where_its_owner_may_be_torn_is_refused() {
    let mut torn = 0;
    for seed in seeds(20) {
        println!("seed {seed}");
        let mut run = Run::small(seed);
        run.open();
        for _ in 0..200 {
            run.step();
        }
        run.settle();
        for fragment in 0..run.fragments {
            run.write_all_of(fragment);
            run.rest();
        }
        let (mut disk, records) = run.close();
        let sectors = run.superblock.log_bytes / 512;
        // Cut where both slots say that the owner block is being written.
        let mut effects = Vec::new();
        let mut opening = Opening::start(run.limits, &mut effects);
        let mut written = 0;
        while written < 3 {
            for effect in effects.drain(..) {
                if let Effect::Disk(id, op) = effect {
                    written += u64::from(matches!(op, DiskOp::Write { .. }));
                    disk.submit(id, op);
                }
            }
            if written < 3 {
                let done = disk.complete_any(&mut run.rng).expect("opening goes on");
                assert!(opening.completed(done, &mut effects).is_none());
            }
        }
        disk.kill();
        disk.rot(Area::Log, sectors, &mut run.rng);
        let (replayed, _) = run.open_copy(&mut disk.clone()).expect("a torn owner block");
        assert_eq!(replayed, records);
        disk.put_back(Area::Log, &SimDisk::default());
        match run.open_copy(&mut disk).map(|(replayed, _)| replayed) {
            Err(why) => assert!(why.full().contains("the log is damaged"), "{}", why.full()),
            Ok(_) => assert_eq!(records, 0, "what was acknowledged is gone"),
        }
        torn += u64::from(records > 0);
    }
    assert!(torn > 5, "{torn}");
}
