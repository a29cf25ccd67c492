//! A real virtual machine on a sheep: it boots from an imported image, works on a second VDI, its
//! sheep is killed under it, and everything that it was promised is there.

use sheepdog_testkit::Server;
use sheepdog_testkit::guest::{Disk, Machine, root};
use sheepdog_testkit::process::run;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::tools::command;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What the guest was promised: files that were synced and not removed, with their checksums.
#[derive(Default)]
struct Promises(BTreeMap<u32, String>);

impl Promises {
    /// Notes a report of the guest; the number of the file that is being written, if any.
    fn note(&mut self, report: &str) -> Option<u32> {
        let words: Vec<&str> = report.split(' ').collect();
        let number = |word: &str| word.parse::<u32>().expect("a number");
        match words.as_slice() {
            ["writing", file] => return Some(number(file)),
            ["synced", file, sum] => {
                self.0.insert(number(file), (*sum).to_owned());
                // The one before goes now, before the guest says so.
                if number(file).is_multiple_of(3) {
                    self.0.remove(&(number(file) - 1));
                }
            }
            _ => {}
        }
        None
    }
}

fn disks(sheep: &Sheep) -> [Disk; 2] {
    ["root", "data"].map(|vdi| Disk { socket: sheep.socket().to_owned(), export: vdi.to_owned() })
}

fn sheep_with_disks(home: &Path) -> Sheep {
    let sheep = Sheep::new();
    let image = root::make(home);
    let image = image.to_str().expect("a plain path");
    let _ = sheep.dog().run(&["vdi", "import", "root", image]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "data", "256M"]).ok();
    sheep
}

/// Exports the VDIs, lets `fsck` judge them and compares the files with what was promised. After a
/// crash of the guest its journals are replayed first, as at a boot.
fn judge(sheep: &Sheep, home: &Path, promises: &Promises, crashed: bool) {
    for vdi in ["root", "data"] {
        let image = home.join(format!("{vdi}.raw"));
        let path = image.to_str().expect("a plain path");
        let _ = sheep.dog().run(&["vdi", "export", vdi, path]).ok();
        if crashed {
            let mut replay = command("e2fsck");
            replay.args(["-E", "journal_only", "-y"]).arg(&image);
            let replay = run(&mut replay, b"");
            assert!(replay.code <= 1, "{}{}", replay.text(), replay.stderr);
        }
        let _ = run(command("e2fsck").arg("-fn").arg(&image), b"").ok();
    }
    let files = home.join("files");
    std::fs::create_dir(&files).expect("make a directory");
    let dump = format!("rdump / {}", files.display());
    let _ = run(command("debugfs").args(["-R", &dump]).arg(home.join("data.raw")), b"").ok();
    for (file, sum) in &promises.0 {
        let path = files.join(format!("file{file}"));
        let found = run(Command::new("sha256sum").arg(&path), b"").ok().text();
        assert_eq!(found.split(' ').next(), Some(sum.as_str()), "file{file}");
    }
}

#[test]
fn a_guest_keeps_its_data_while_its_sheep_is_killed() {
    const FILES: u32 = 40;
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut sheep = sheep_with_disks(home.path());
    let seed = Rng::fresh_seed();
    let mut rng = Rng::new(seed);
    let mut kills: Vec<u32> = (0..3).map(|_| 2 + u32::try_from(rng.below(35)).unwrap()).collect();
    kills.sort_unstable();
    kills.dedup();
    println!("seed {seed}: killed at files {kills:?}");

    let mut promises = Promises::default();
    let mut killed = 0;
    let mut machine = Machine::boot(home.path(), &disks(&sheep), &format!("write files={FILES}"));
    while let Some(report) = machine.report() {
        // The file is in the guest's memory and it syncs now.
        if promises.note(&report).is_some_and(|file| kills.contains(&file)) {
            sheep.kill();
            sheep.start();
            killed += 1;
        }
    }
    machine.wait_off();
    assert_eq!(killed, kills.len(), "{}", machine.said());
    assert_eq!(promises.0.len() as u32, FILES - FILES / 3);
    judge(&sheep, home.path(), &promises, false);

    // And it boots again from a sheep that was stopped and started.
    sheep.stop();
    sheep.start();
    let mut machine = Machine::boot(home.path(), &disks(&sheep), "check");
    let mut intact = String::new();
    while let Some(report) = machine.report() {
        intact = report;
    }
    machine.wait_off();
    assert_eq!(intact, format!("intact {}", promises.0.len()));
}

#[test]
fn a_guest_and_its_sheep_lose_power_together() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut sheep = sheep_with_disks(home.path());
    let mut promises = Promises::default();
    let mut machine = Machine::boot(home.path(), &disks(&sheep), "write files=1000");
    loop {
        let report = machine.report().expect("it is writing");
        if promises.note(&report).is_some_and(|file| file >= 20) {
            break;
        }
    }
    sheep.kill();
    drop(machine);
    sheep.start();
    judge(&sheep, home.path(), &promises, true);
}
