//! File systems that others fill: under the log, under the registry, under the log file. The sheep
//! never exits for it, and deletes and restarts still work.

use sheepdog_testkit::Server;
use sheepdog_testkit::broken::{Patient, VDI};
use sheepdog_testkit::loopfs::SmallFs;
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::process::wait_until;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::verify::{Plan, Progress};

const BLOCKS: u64 = 4096;
const MIB: u64 = 1 << 20;

fn plan() -> Plan {
    let seed = Rng::fresh_seed();
    eprintln!("seed {seed}");
    Plan { seed, blocks: BLOCKS, depth: 32, longest: 64 }
}

#[test]
fn a_log_does_not_mind_that_its_file_system_is_full() {
    let Some(disk) = SmallFs::new(128 << 20) else {
        return;
    };
    let home = tempfile::tempdir().expect("a temporary directory");
    let journal = format!("size=64M,dir={}", disk.path().display());
    // The lines of the log file go to the same place: they are lost, and nobody waits for them.
    let lines = format!("dir={}", disk.path().display());
    let mut patient = Patient::new(home.path(), BLOCKS, &["-j", &journal, "-l", &lines]);
    disk.fill_to_the_brim();
    let mut writer = patient.writer(plan());
    for round in 0..3 {
        // Several times around the log.
        assert_eq!(writer.run(1500), Ok(Progress::Reached), "{round}");
        let dog = patient.sheep.dog();
        let _ = dog.run(&["vdi", "create", "other", "8M"]).ok();
        let _ = dog.feed(&["vdi", "write", "other"], &[9; 8 << 20]).ok();
        let _ = dog.run(&["vdi", "delete", "other"]).ok();
        patient.assert_alive();
        writer.fill(u64::MAX).expect("send");
        if round == 1 {
            writer.drain().expect("answers");
            assert!(patient.end().success());
        } else {
            patient.sheep.kill();
        }
        disk.fill_to_the_brim();
        patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{round}: {e}"));
    }
    assert!(patient.end().success());
}

#[test]
fn a_new_log_that_does_not_fit_is_refused_and_leaves_nothing() {
    let Some(disk) = SmallFs::new(128 << 20) else {
        return;
    };
    let home = tempfile::tempdir().expect("a temporary directory");
    let journal = format!("size=64M,dir={}", disk.path().display());
    let mut patient = Patient::unborn(home.path(), &["-j", &journal]);
    let names = || {
        let names =
            std::fs::read_dir(disk.path()).expect("list").map(|e| e.expect("list").file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    disk.fill(32 << 20);
    let before = names();
    for _ in 0..2 {
        let (status, said) = patient.sheep.try_start().expect_err("32 MiB hold no log of 64");
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("the log needs 64"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(names(), before);
    }
    std::fs::remove_file(disk.path().join("filler")).expect("make room");
    patient.sheep.start();
    patient.format(BLOCKS);
    patient.client().write(0, &[1; 4096]).expect("write");
    assert!(patient.end().success());
}

#[test]
fn a_registry_on_a_full_disk_still_deletes_and_still_starts() {
    let Some(disk) = SmallFs::new(64 << 20) else {
        return;
    };
    let home = tempfile::tempdir().expect("a temporary directory");
    let registry = format!("local:{}", disk.path().join("registry.db").display());
    let mut patient = Patient::new(home.path(), BLOCKS, &["-c", &registry]);
    let dog = patient.sheep.dog();
    let others: Vec<String> = (0..4).map(|number| format!("other{number}")).collect();
    for name in &others {
        let _ = dog.run(&["vdi", "create", name, "8M"]).ok();
        let _ = dog.feed(&["vdi", "write", name], &[9; 8 << 20]).ok();
    }
    let mut writer = patient.writer(plan());
    for (round, name) in others.iter().enumerate() {
        disk.fill_to_the_brim();
        // Clients do not notice.
        assert_eq!(writer.run(300), Ok(Progress::Reached), "{round}");
        // Where there is no space for a new VDI, that is said, and nothing half-made stays.
        let mut refused = None;
        for number in 0..2000 {
            let made = dog.run(&["vdi", "create", &format!("more{round}.{number}"), "8M"]);
            if made.code != 0 {
                refused = Some(made);
                break;
            }
            disk.fill_to_the_brim();
        }
        if let Some(made) = refused {
            assert!(made.stderr.to_lowercase().contains("space"), "{}", made.stderr);
            assert_eq!(made.stderr.lines().count(), 1, "{}", made.stderr);
        }
        patient.assert_alive();
        let before = used(&patient.sheep);
        let _ = dog.run(&["vdi", "delete", name]).ok();
        wait_until("its space is back", || used(&patient.sheep) + 7 * MIB < before);
        assert!(Client::connect(patient.sheep.socket(), name).is_err());
        if round % 2 == 0 {
            writer.fill(u64::MAX).expect("send");
            patient.sheep.kill();
            disk.fill_to_the_brim();
        } else {
            writer.drain().expect("answers");
            assert!(patient.end().success(), "{}", patient.said());
        }
        patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{round}: {e}"));
        let listed = dog.run(&["vdi", "list", "-r"]).ok().text();
        assert!(listed.contains(&format!(" {VDI} ")), "{listed}");
        assert!(!listed.contains(&format!(" {name} ")), "it came back: {listed}");
    }
    // With space again everything works again.
    std::fs::remove_file(disk.path().join("brim")).expect("make room");
    let _ = dog.run(&["vdi", "create", "new", "8M"]).ok();
    let _ = dog.feed(&["vdi", "write", "new"], &[3; 8 << 20]).ok();
    assert!(patient.end().success());
}

/// Bytes that sheep says it uses.
fn used(sheep: &Sheep) -> u64 {
    let info = sheep.dog().run(&["node", "info", "-r"]).ok().text();
    let used = info.lines().next().and_then(|line| line.split(' ').nth(2));
    used.expect("a line").parse().expect("a number")
}
