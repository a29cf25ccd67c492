//! A registry that went back in time, as somebody restored an older copy: what the stores know of
//! it must keep the cluster from giving ids and versions a second time.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::process::run;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: usize = 1 << 20;

/// A sheep whose registry can be copied and put back.
struct Home {
    dir: tempfile::TempDir,
    sheep: Sheep,
}

impl Home {
    /// Started, and not formatted.
    fn new(disk: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut sheep = Sheep::at(&dir.path().join("store"), &["-j", "size=64M"]);
        if disk {
            sheep.set_disks(&[&dir.path().join("disk")]);
        }
        sheep.start();
        Self { dir, sheep }
    }

    fn format(&self) {
        let _ = self.sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    }

    fn create(&self, vdi: &str) {
        let _ = self.sheep.dog().run(&["vdi", "create", vdi, "64M"]).ok();
    }

    fn write(&self, vdi: &str, seed: u64) {
        let _ = self.sheep.dog().feed(&["vdi", "write", vdi], &bytes(seed)).ok();
    }

    #[track_caller]
    fn assert_holds(&self, vdi: &str, expected: &[u8]) {
        let read = self.sheep.dog().run(&["vdi", "read", vdi, "0", "1M"]).ok().stdout;
        assert!(read == expected, "{vdi} holds something else");
    }

    fn registry(&self) -> PathBuf {
        self.dir.path().join(".sheepdog-local")
    }

    /// The registry under another name; the sheep is stopped.
    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        copy_files(&self.registry(), &copy);
        copy
    }

    fn put_back(&self, copy: &Path) {
        fs::remove_dir_all(self.registry()).expect("remove the registry");
        copy_files(copy, &self.registry());
    }

    /// What it said when it was refused, and that nothing in its store was changed for that.
    #[track_caller]
    fn refused(&mut self) -> String {
        let tables = || ["store/table", "disk/table"].map(|at| fs::read(self.dir.path().join(at)));
        let before = tables().map(Result::ok);
        let identity = || fs::read(self.dir.path().join("store/identity")).expect("the identity");
        let was = identity();
        let (status, said) = self.sheep.try_start().expect_err("it must not start");
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("Put the newer one back"), "{said}");
        assert!(tables().map(Result::ok) == before, "a copy of the VDI table was changed");
        assert!(identity() == was);
        said
    }
}

fn bytes(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

/// All but locks and sockets.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a directory");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_file() {
            let _ = fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
        }
    }
}

#[test]
fn an_older_registry_put_back_is_refused() {
    let mut home = Home::new(false);
    home.sheep.stop();
    let unformatted = home.copy("unformatted");
    home.sheep.start();
    home.format();
    home.sheep.stop();
    let empty = home.copy("empty");
    home.sheep.start();
    home.create("secret");
    home.write("secret", 1);
    home.sheep.stop();
    let newest = home.copy("newest");
    let store = home.sheep.store().display().to_string();
    for older in [&unformatted, &empty] {
        home.put_back(older);
        // Starts that are refused do not bring it any closer.
        for _ in 0..6 {
            let said = home.refused();
            assert!(said.contains("registry.db is older (revision "), "{said}");
            assert!(said.contains(&format!("VDI table in {store} (revision ")), "{said}");
        }
    }
    // What it says can be done.
    home.put_back(&newest);
    home.sheep.start();
    home.assert_holds("secret", &bytes(1));
    // A cluster formatted again is the same registry going on.
    let _ = home.sheep.dog().run(&["cluster", "format", "-f", "-c", "1"]).ok();
    home.sheep.kill();
    home.sheep.start();
    home.sheep.stop();
    // A damaged copy, or none, says nothing.
    let table = home.sheep.store().join("table");
    fs::write(&table, b"nonsense").expect("damage it");
    home.sheep.start();
    home.sheep.stop();
    fs::remove_file(&table).expect("remove it");
    home.sheep.start();
    home.sheep.stop();
    assert!(table.is_file());
}

#[test]
fn any_disk_of_the_node_remembers() {
    let mut home = Home::new(true);
    home.format();
    home.sheep.stop();
    let older = home.copy("older");
    home.sheep.start();
    home.create("secret");
    home.sheep.stop();
    home.put_back(&older);
    fs::remove_file(home.sheep.store().join("table")).expect("remove it");
    let said = home.refused();
    let disk = home.dir.path().join("disk");
    assert!(said.contains(&format!("VDI table in {} (revision ", disk.display())), "{said}");
    // Even if it is not there for the moment, the start goes on with those that are.
    fs::remove_file(disk.join("table")).expect("remove it");
    home.sheep.start();
    home.sheep.stop();
}

#[test]
fn versions_grow_though_nobody_remembers_the_registry() {
    let mut home = Home::new(false);
    home.format();
    home.create("disk");
    home.write("disk", 1);
    home.sheep.stop();
    let older = home.copy("older");
    for seed in 2..6 {
        home.sheep.start();
        home.write("disk", seed);
        // In the index the one time, in the log only the other.
        if seed % 2 == 0 {
            home.sheep.stop();
        } else {
            home.sheep.kill();
        }
    }
    home.put_back(&older);
    fs::remove_file(home.sheep.store().join("table")).expect("remove it");
    // As the kill left it.
    let _ = fs::remove_file(home.sheep.store().join("table.new"));
    home.sheep.start();
    home.assert_holds("disk", &bytes(5));
    home.write("disk", 6);
    home.assert_holds("disk", &bytes(6));
    home.sheep.kill();
    let log = home.sheep.store().join("sheep.log");
    let warned = || {
        let log = fs::read_to_string(&log).expect("the log");
        log.matches("the registry went back in time").count()
    };
    assert_eq!(warned(), 1);
    home.sheep.start();
    home.write("disk", 7);
    home.assert_holds("disk", &bytes(7));
    assert_eq!(warned(), 1, "the registry knows the raised interval");
}

#[test]
fn no_new_vdi_shows_what_another_wrote() {
    let mut home = Home::new(false);
    home.format();
    home.sheep.stop();
    let older = home.copy("older");
    home.sheep.start();
    home.create("secret");
    home.write("secret", 1);
    home.sheep.stop();
    home.put_back(&older);
    fs::remove_file(home.sheep.store().join("table")).expect("remove it");
    home.sheep.start();
    home.create("public");
    home.assert_holds("public", &vec![0; MIB]);
    let log = fs::read_to_string(home.sheep.store().join("sheep.log")).expect("the log");
    assert!(log.contains("which the registry would give out again"), "{log}");
}

#[test]
fn a_registry_that_lost_its_contents_is_refused() {
    let mut home = Home::new(false);
    home.sheep.stop();
    let empty = home.copy("empty");
    home.sheep.start();
    home.format();
    home.create("disk");
    home.write("disk", 1);
    home.sheep.stop();
    let whole = home.copy("whole");
    home.put_back(&empty);
    let table = home.sheep.store().join("table");
    fs::rename(&table, home.dir.path().join("table")).expect("rename");
    for _ in 0..2 {
        let (status, said) = home.sheep.try_start().expect_err("it must not start");
        assert_eq!((status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("knows of no formatted cluster"), "{said}");
        assert!(said.contains("Put the whole registry back"), "{said}");
    }
    home.put_back(&whole);
    // A refused start opened the disk, which the registry need not know.
    home.sheep.start();
    home.assert_holds("disk", &bytes(1));
}

#[test]
fn a_store_put_back_under_its_registry_is_refused() {
    let mut home = Home::new(false);
    home.format();
    home.create("disk");
    home.sheep.stop();
    let (store, aside) = (home.sheep.store().to_owned(), home.dir.path().join("aside"));
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([&store, &aside]).status();
    assert!(copied.expect("cp").success());
    home.sheep.start();
    home.write("disk", 1);
    home.sheep.stop();
    let newest = home.dir.path().join("newest");
    fs::rename(&store, &newest).expect("rename");
    fs::rename(&aside, &store).expect("rename");
    for _ in 0..2 {
        let (status, said) = home.sheep.try_start().expect_err("it must not start");
        assert_eq!((status.code(), said.lines().count()), (Some(1), 1), "{said}");
        let line = format!(
            "the data in {} is older than when it was used last (opening 1, the registry knows 2)",
            store.display()
        );
        assert!(said.contains(&line), "{said}");
    }
    fs::rename(&store, &aside).expect("rename");
    fs::rename(&newest, &store).expect("rename");
    home.sheep.start();
    home.assert_holds("disk", &bytes(1));
}

#[test]
fn a_copy_of_a_running_registry_is_recognised_too() {
    let mut home = Home::new(false);
    home.format();
    let running = home.copy("running");
    home.create("secret");
    home.sheep.kill();
    home.put_back(&running);
    // The first start ends the session of the sheep that ran then, which is a change like the one
    // that is missing.
    for _ in 0..3 {
        let _ = home.refused();
    }
    let said = home.refused();
    assert!(said.contains("registry.db lacks changes"), "{said}");
}

#[test]
fn what_was_acknowledged_is_in_the_copy_of_the_table() {
    let mut home = Home::new(true);
    home.format();
    home.sheep.kill();
    let list = |home: &Home| {
        let mut command = Command::new(bin("sheep"));
        let disks = ["store", "disk"].map(|at| home.dir.path().join(at).display().to_string());
        let listed = run(command.args(["store", "list", &disks.join(",")]), b"");
        assert_eq!(listed.code, 0, "{}", listed.stderr);
        listed.text()
    };
    for dir in ["store", "disk"] {
        // Under the one name or the other, before and after it is durable.
        let there = |name: &str| home.dir.path().join(dir).join(name).is_file();
        assert!(there("table") || there("table.new"), "{dir}");
    }
    let _ = list(&home);
    home.sheep.start();
    // Each but the first within the pause after the one before.
    for name in ["first", "second", "third"] {
        home.create(name);
    }
    home.sheep.kill();
    let listed = list(&home);
    assert!(["first", "second", "third"].iter().all(|name| listed.contains(name)), "{listed}");
    home.sheep.start();
    let _ = home.sheep.dog().run(&["vdi", "delete", "second"]).ok();
    home.sheep.kill();
    let listed = list(&home);
    // Its record goes when its space is swept.
    let state = |name: &str| {
        let line = listed.lines().find(|line| line.ends_with(name));
        line.and_then(|line| line.split_whitespace().nth(3)).unwrap_or("deleted").to_owned()
    };
    assert_eq!([state("second"), state("third")], ["deleted", "working"], "{listed}");
}
