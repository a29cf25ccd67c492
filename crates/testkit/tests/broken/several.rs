//! One of several disks is lost under load: clients get errors for what is on it and for nothing
//! else, and it comes back with all that was acknowledged.

use sheepdog_testkit::Server;
use sheepdog_testkit::broken::{EIO, Patient, VDI};
use sheepdog_testkit::loopfs::SmallFs;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::verify::{Plan, Progress};
use std::path::PathBuf;

const FRAGMENT: u64 = 4 << 20;
const FRAGMENTS: u64 = 24;

/// Which disks are lost.
fn lost(patient: &Patient) -> Vec<bool> {
    let info = patient.sheep.dog().run(&["node", "md", "info", "--json"]).ok().text();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let disks = info["nodes"][0]["disks"].as_array().expect("disks");
    disks.iter().map(|disk| disk["lost"].is_string()).collect()
}

/// Fragments that give errors.
fn unreadable(patient: &Patient) -> Vec<u64> {
    let mut client = patient.client();
    (0..FRAGMENTS).filter(|at| client.read(at * FRAGMENT, 4096).is_err()).collect()
}

#[test]
fn a_disk_that_is_lost_under_load_takes_only_its_own_with_it() {
    // As large as each other: fragments are spread by that.
    let places = [(); 3].map(|()| SmallFs::new(512 << 20));
    let [Some(first), Some(mut fragile), Some(last)] = places else {
        return;
    };
    let home = tempfile::tempdir().expect("a directory");
    let mut patient = Patient::unborn(home.path(), &[]);
    let disks = [&first, &fragile, &last].map(|place| place.path().join("disk"));
    patient.sheep.set_disks(&disks.each_ref().map(PathBuf::as_path));
    patient.sheep.start();
    patient.format(FRAGMENTS * FRAGMENT / 4096);
    let seed = Rng::fresh_seed();
    eprintln!("seed {seed}");
    let blocks = FRAGMENTS * FRAGMENT / 4096;
    let mut writer = patient.writer(Plan { seed, blocks, depth: 32, longest: 64 });
    for round in 1..3 {
        assert_eq!(writer.run(700), Ok(Progress::Reached));
        assert_eq!(unreadable(&patient), [0; 0]);
        fragile.shut_down();
        writer.tolerate(&[EIO]);
        assert_eq!(writer.run_until_refused(100), Ok(Progress::Reached));
        // The others take writes as before.
        assert_eq!(writer.run(700), Ok(Progress::Reached));
        writer.drain().expect("answers");
        patient.assert_alive();
        assert_eq!(lost(&patient), [false, true, false]);
        let gone = unreadable(&patient);
        assert!((1..FRAGMENTS as usize).contains(&gone.len()), "{gone:?}");
        let said = patient.said();
        let lines = said.lines().filter(|line| line.contains(" failed: "));
        let lines: Vec<&str> =
            lines.filter(|line| line.contains(&disks[1].display().to_string())).collect();
        assert_eq!(lines.len(), round, "it is named once: {said}");
        if round == 1 {
            let _ = patient.end();
        } else {
            patient.sheep.kill();
        }
        // It starts without the disk, and says so.
        writer.disconnect().expect("goodbye");
        patient.sheep.start();
        assert_eq!(lost(&patient), [false, true, false]);
        assert_eq!(unreadable(&patient), gone);
        writer.connect(patient.sheep.socket(), VDI).expect("connect");
        assert_eq!(writer.run(300), Ok(Progress::Reached));
        writer.drain().expect("answers");
        let _ = patient.end();
        fragile.mount_again();
        patient.start_and_verify(&mut writer).unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(lost(&patient), [false; 3]);
    }
    assert!(patient.end().success());
}
