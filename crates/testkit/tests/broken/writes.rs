//! Writes and flushes that fail fail the disk: nothing of it is tried again, clients get errors, the
//! sheep stays and says why. Writes cut short are nobody's business but the disk's.

use sheepdog_testkit::broken::{EIO, Patient, patient};
use sheepdog_testkit::brokenfs::{BrokenFs, Fault, Mode, Op};
use sheepdog_testkit::process::wait_until;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::verify::{Plan, Progress};

const BLOCKS: u64 = 4096;

fn plan() -> Plan {
    let seed = Rng::fresh_seed();
    eprintln!("seed {seed}");
    Plan { seed, blocks: BLOCKS, depth: 32, longest: 64 }
}

/// All that reached the disk's files so far.
fn touched(disk: &BrokenFs) -> Vec<u64> {
    let ops = [Op::Write, Op::Sync, Op::Punch, Op::Allocate, Op::Resize];
    let all = ["data", "log"].iter().flat_map(|file| ops.map(|op| disk.count(file, op)));
    all.collect()
}

/// One fault of the disk under load, which is over at once; the disk must stay failed until the
/// sheep is started again.
fn fails_the_disk(mode: Mode, fault: Fault, why: &[&str]) {
    let Some((disk, mut patient)) = patient(mode, BLOCKS) else {
        return;
    };
    let mut writer = patient.writer(plan());
    assert_eq!(writer.run(300), Ok(Progress::Reached));
    writer.tolerate(&[EIO]);
    let broken = disk.inject(fault.times(1));
    assert_eq!(writer.run_until_refused(200), Ok(Progress::Reached), "{mode:?}");
    assert_eq!(broken.hits(), 1);
    drop(broken);
    writer.drain().expect("answers");
    patient.wait_for_word(" failed: ");
    let said = patient.said();
    let line = said.lines().find(|line| line.contains(" failed: ")).unwrap_or_default();
    assert!(why.iter().any(|why| line.contains(why)), "{mode:?}: {line}");
    assert!(line.contains("ERROR") && line.contains("Input/output error"), "{line}");
    // What was on its way lands; then nothing is tried again, whatever clients ask for.
    let mut before = Vec::new();
    wait_until("the disk is left alone", || {
        std::mem::replace(&mut before, touched(&disk)) == touched(&disk)
    });
    let acknowledged = writer.counts().acknowledged;
    assert_eq!(writer.run_until_refused(200), Ok(Progress::Reached), "{mode:?}");
    writer.drain().expect("answers");
    assert_eq!(writer.counts().acknowledged, acknowledged, "a failed disk acknowledged");
    patient.assert_alive();
    assert_eq!(touched(&disk), before, "{mode:?}: a failed disk was written to");
    assert_eq!(patient.said().matches(" failed: ").count(), 1, "{}", patient.said());
    let status = patient.end();
    assert_eq!(status.code(), Some(1), "{}", patient.said());
    patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
    assert_eq!(writer.run(300), Ok(Progress::Reached));
    writer.drain().expect("answers");
    writer.verify().expect("it is well");
    assert!(patient.end().success());
}

#[test]
fn a_failed_write_of_the_log_fails_the_disk() {
    for mode in Mode::ALL {
        // The page cache tells at the flush.
        let fault = Fault::eio().on("log").ops(&[Op::Write]).after(5);
        fails_the_disk(mode, fault, &["write the log: write log at "]);
    }
}

#[test]
fn a_failed_flush_of_the_log_fails_the_disk_and_is_not_tried_again() {
    for mode in Mode::ALL {
        let fault = Fault::eio().on("log").ops(&[Op::Sync]).after(5);
        fails_the_disk(mode, fault, &["write the log: write log at ", "write the log: sync log"]);
    }
}

#[test]
fn a_failed_write_of_data_fails_the_disk() {
    for mode in [Mode::AsAsked, Mode::Bypass] {
        let fault = Fault::eio().on("data").ops(&[Op::Write]).after(5);
        let why = ["write an extent: write data at ", "write a checkpoint: write data at "];
        fails_the_disk(mode, fault, &why);
    }
}

#[test]
fn a_failed_flush_of_data_fails_the_disk_and_is_not_tried_again() {
    for mode in Mode::ALL {
        let fault = Fault::eio().on("data").ops(&[Op::Sync]).after(3);
        let why = ["write the log: sync data", "write a checkpoint: "];
        fails_the_disk(mode, fault, &why);
    }
}

#[test]
fn clients_do_not_see_writes_that_are_cut_short() {
    // Where the kernel hands the short count on: by plain system calls past the page cache. For a short
    // write of a ring on FUSE it writes the rest to where the beginning went (6.18), and elsewhere it
    // makes an error of it.
    let Some(disk) = BrokenFs::new(Mode::Bypass) else {
        return;
    };
    let mut patient = Patient::new(disk.path(), BLOCKS, &["--io", "blocking"]);
    let broken = disk.inject(Fault::short());
    let mut writer = patient.writer(plan());
    assert_eq!(writer.run(500), Ok(Progress::Reached));
    writer.drain().expect("answers");
    assert!(broken.hits() > 100, "{}", broken.hits());
    writer.verify().expect("all is there");
    // The checkpoint of a clean end too is written in pieces.
    assert!(patient.end().success(), "{}", patient.said());
    patient.start_and_verify(&mut writer).expect("all is there");
    drop(broken);
    assert!(!patient.said().contains("ERROR"), "{}", patient.said());
}
