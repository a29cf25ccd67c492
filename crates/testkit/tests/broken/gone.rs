//! A disk that does not answer, or is no longer there.

use sheepdog_testkit::broken::{EIO, Patient, patient};
use sheepdog_testkit::brokenfs::{Fault, Mode, Op};
use sheepdog_testkit::loopfs::SmallFs;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::verify::{Plan, Progress, Writer};

const BLOCKS: u64 = 4096;

fn plan() -> Plan {
    let seed = Rng::fresh_seed();
    eprintln!("seed {seed}");
    Plan { seed, blocks: BLOCKS, depth: 32, longest: 64 }
}

/// Under load the disk is gone: clients get errors, the sheep says it and lives, and ends.
fn without_its_disk(patient: &mut Patient, writer: &mut Writer) {
    writer.tolerate(&[EIO]);
    assert_eq!(writer.run_until_refused(200), Ok(Progress::Reached));
    writer.drain().expect("answers");
    patient.wait_for_word(" failed: ");
    patient.assert_alive();
    assert_eq!(patient.end().code(), Some(1), "{}", patient.said());
}

#[test]
fn a_disk_that_is_gone_takes_nothing_with_it() {
    for mode in Mode::ALL {
        let Some((disk, mut patient)) = patient(mode, BLOCKS) else {
            return;
        };
        let mut writer = patient.writer(plan());
        assert_eq!(writer.run(300), Ok(Progress::Reached));
        let gone = disk.inject(Fault::gone());
        without_its_disk(&mut patient, &mut writer);
        let (_, said) = patient.sheep.try_start().expect_err("there is no disk to start on");
        assert!(said.contains("not connected"), "{said}");
        drop(gone);
        patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        assert_eq!(writer.run(100), Ok(Progress::Reached));
        writer.drain().expect("answers");
        assert!(patient.end().success());
    }
}

#[test]
fn a_file_system_that_shuts_down_takes_nothing_with_it() {
    for kind in ["ext4", "xfs"] {
        let Some(mut disk) = SmallFs::of_kind(kind, 512 << 20) else {
            return;
        };
        let mut patient = Patient::new(disk.path(), BLOCKS, &[]);
        let mut writer = patient.writer(plan());
        for round in 0..2 {
            assert_eq!(writer.run(500), Ok(Progress::Reached), "{kind}");
            disk.shut_down();
            without_its_disk(&mut patient, &mut writer);
            let said = patient.said();
            assert_eq!(said.matches(" failed: ").count(), round + 1, "{kind}: {said}");
            disk.mount_again();
            patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{kind}: {e}"));
        }
        assert!(patient.end().success());
    }
}

#[test]
fn a_log_that_does_not_answer_is_given_up() {
    is_given_up(Mode::AsAsked, "log", Op::Sync, "write the log");
}

#[test]
fn a_read_that_is_not_answered_is_given_up() {
    is_given_up(Mode::Bypass, "data", Op::Read, "read");
}

fn is_given_up(mode: Mode, file: &str, op: Op, what: &str) {
    let Some((disk, mut patient)) = patient(mode, BLOCKS) else {
        return;
    };
    let mut writer = patient.writer(plan());
    assert_eq!(writer.run(300), Ok(Progress::Reached));
    writer.drain().expect("answers");
    if op == Op::Read {
        // Nothing in memory.
        writer.disconnect().expect("goodbye");
        assert!(patient.end().success());
        patient.start_and_verify(&mut writer).expect("it is well");
    }
    // An answer that is late is an answer.
    let stalled = disk.inject(Fault::stall().on(file).ops(&[op]));
    if op == Op::Read {
        // Not every read is of bytes that are on the disk.
        assert_eq!(writer.run_until(|_| stalled.hits() > 0), Ok(Progress::Reached));
    } else {
        writer.fill(u64::MAX).expect("send");
        stalled.wait_for_hits(1);
    }
    drop(stalled);
    writer.drain().expect("answers");
    assert!(!patient.said().contains(" failed: "), "{}", patient.said());
    // No answer is none, and nobody waits for it for ever.
    let stalled = disk.inject(Fault::stall().on(file).ops(&[op]));
    writer.tolerate(&[EIO]);
    let ran = writer.run_until_refused(100);
    assert_eq!(ran, Ok(Progress::Reached), "{mode:?} {file}");
    writer.drain().expect("answers");
    assert!(stalled.hits() > 0);
    patient.wait_for_word(" failed: ");
    let said = patient.said();
    let line = said.lines().find(|line| line.contains(" failed: ")).unwrap_or_default();
    assert!(line.contains(what) && line.contains(": the disk does not answer"), "{line}");
    patient.assert_alive();
    drop(stalled);
    assert_eq!(patient.end().code(), Some(1), "{}", patient.said());
    patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{mode:?} {file}: {e}"));
    assert!(patient.end().success());
}
