//! `sheep store`: a store looked at without a cluster.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::kept::{KEPT, assert_kept, is_in_table, sheep_with_kept};
use sheepdog_testkit::loopfs::{LoopDevice, SmallFs};
use sheepdog_testkit::process::{Ended, run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn offline(words: &[&str]) -> Ended {
    run(Command::new(bin("sheep")).arg("store").args(words), b"")
}

fn json(ended: &Ended) -> serde_json::Value {
    serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|e| panic!("{e}: {:?} {}", ended.stdout, ended.stderr))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// A stopped store as it may be found: in its place, copied, on a mount that cannot be written.
#[test]
fn a_stopped_store_is_listed_checked_and_exported() {
    let (mut sheep, mut content) = sheep_with_kept();
    let dog = sheep.dog();
    let _ = dog.run(&["vdi", "create", "odd", "10000001"]).ok();
    let _ = dog.feed(&["vdi", "write", "odd", "9999000"], &[5; 1001]).ok();
    // Killed in the middle: what is not home yet is in the log only.
    let mut patch = vec![0; 12_288];
    Rng::new(3).fill(&mut patch);
    let _ = dog.feed(&["vdi", "write", "kept", "4194304", "12288"], &patch).ok();
    content[4 << 20..(4 << 20) + 12_288].copy_from_slice(&patch);
    let store = path(sheep.store()).to_owned();
    let busy = offline(&["check", &store]);
    assert_eq!((busy.code, busy.stderr.lines().count()), (2, 1), "{}", busy.stderr);
    assert!(busy.stderr.contains("a sheep is using"), "{}", busy.stderr);
    sheep.stop();
    sheep.start();
    let _ = sheep.dog().feed(&["vdi", "write", "kept", "0", "4096"], &patch[..4096]).ok();
    content[..4096].copy_from_slice(&patch[..4096]);
    sheep.kill();

    let home = tempfile::tempdir().expect("a directory");
    let copy = home.path().join("copy");
    fs::create_dir(&copy).expect("make a directory");
    for name in ["data", "log", "table", "identity"] {
        fs::copy(sheep.store().join(name), copy.join(name)).expect(name);
    }
    for dir in [&store, path(&copy)] {
        let before = fs::read(sheep.store().join("log")).expect("the log");
        let list = offline(&["list", dir, "--json"]);
        assert_eq!(list.code, 0, "{}", list.stderr);
        let list = json(&list);
        let of = |name: &str| {
            let vdis = list["vdis"].as_array().expect("a list");
            vdis.iter().find(|vdi| vdi["name"] == name).unwrap_or_else(|| panic!("{list}")).clone()
        };
        assert_eq!(of("kept")["stored"], KEPT);
        assert_eq!((&of("odd")["size"], &of("odd")["stored"]), (&10_000_001.into(), &4096.into()));
        let check = offline(&["check", dir]);
        assert_eq!(check.code, 0, "{}{}", check.stdout.escape_ascii(), check.stderr);
        assert!(check.text().ends_with("nothing is wrong\n"));
        let image = home.path().join("image");
        let export = offline(&["export", dir, "kept", path(&image)]);
        assert_eq!((export.code, export.stdout.len(), export.stderr.as_str()), (0, 0, ""));
        assert!(fs::read(&image).expect("the image") == content);
        let again = offline(&["export", dir, "kept", path(&image)]);
        assert_eq!(again.code, 1);
        assert!(again.stderr.contains("--force"), "{}", again.stderr);
        let export = offline(&["export", dir, "odd", path(&image), "--force", "--json"]);
        assert_eq!((json(&export)["written"].clone(), export.code), (1665.into(), 0));
        let odd = fs::read(&image).expect("the image");
        assert_eq!(odd.len(), 10_000_001);
        let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        assert!(zeros(&odd[..9_999_000]) && odd[9_999_000..].iter().all(|byte| *byte == 5));
        let again = offline(&["export", dir, "kept", path(&image), "--json"]);
        let line = format!("{} exists; --force replaces it", image.display());
        assert_eq!((json(&again), again.code), (serde_json::json!({ "error": line }), 1));
        // An image of some length is no stream, nor whatever a device holds.
        let mut targets = vec![("/dev/stdout", "a device or a pipe"), ("/dev/zero", "a device")];
        targets.push((path(home.path()), "a directory"));
        let device = LoopDevice::new(16 << 20);
        if let Some(device) = &device {
            targets.push((path(device.path()), "a device"));
        }
        for (target, what) in targets {
            for force in [&["--force"][..], &[]] {
                let refused = offline(&[&["export", dir, "kept", target], force].concat());
                let line = format!("{target} is {what}");
                assert!(refused.stderr.starts_with(&line), "{}", refused.stderr);
                let lines = refused.stderr.lines().count();
                assert_eq!((refused.code, lines, refused.stdout.len()), (1, 1, 0));
            }
        }
        let missing = offline(&["export", dir, "nobody", path(&home.path().join("no"))]);
        assert_eq!((missing.code, missing.stderr.lines().count()), (1, 1), "{}", missing.stderr);
        fs::remove_file(&image).expect("remove");
        assert!(before == fs::read(sheep.store().join("log")).expect("the log"), "it was written");
    }
    sheep.start();
    let _ = sheep.dog().run(&["vdi", "delete", "odd"]).ok();
    assert_kept(&sheep, &content);
}

#[test]
fn damage_is_named_with_its_place_and_owner_and_the_rest_is_saved() {
    let (mut sheep, content) = sheep_with_kept();
    sheep.stop();
    let data = sheep.store().join("data");
    let file = fs::File::options().read(true).write(true).open(&data).expect("the data");
    // Where the block at 5 MiB of the disk lies.
    let bytes = fs::read(&data).expect("the data");
    let block = &content[5 << 20..(5 << 20) + 4096];
    let at = bytes.chunks(4096).position(|found| found == block).expect("it is at home") * 4096;
    file.write_all_at(b"rot", at as u64 + 100).expect("damage it");
    let store = path(sheep.store());
    let check = offline(&["check", store]);
    assert_eq!(check.code, 1);
    let text = check.text();
    assert!(text.contains("bad blocks: kept: 4096 bytes at 5242880: "), "{text}");
    let check = json(&offline(&["check", store, "--json"]));
    assert_eq!(
        (&check["good"], check["bad_blocks"].as_array().map(Vec::len)),
        (&false.into(), Some(1))
    );
    let home = tempfile::tempdir().expect("a directory");
    let image = home.path().join("image");
    let export = offline(&["export", store, "kept", path(&image)]);
    assert_eq!(export.code, 1);
    assert!(export.stderr.contains("lost: 4096 bytes at 5242880"), "{}", export.stderr);
    let mut expected = content.clone();
    expected[5 << 20..(5 << 20) + 4096].fill(0);
    assert!(fs::read(&image).expect("the image") == expected, "the rest is whole");

    // Each block of the data area that is no client's, one after the other: a line, and no panic.
    let blocks: Vec<usize> = (3..bytes.len() / 4096)
        .filter(|at| {
            let found = &bytes[at * 4096..(at + 1) * 4096];
            found.iter().any(|byte| *byte != 0) && !content.chunks(4096).any(|c| c == found)
        })
        .collect();
    assert!(blocks.len() >= 4, "{blocks:?}");
    file.write_all_at(block, at as u64).expect("mend it");
    for at in blocks {
        file.write_all_at(b"rot", at as u64 * 4096 + 20).expect("damage it");
        let check = offline(&["check", store]);
        assert!(check.code <= 1 && !check.stdout.is_empty(), "{at}: {}", check.stderr);
        let _ = offline(&["export", store, "kept", path(&image), "--force"]);
        file.write_all_at(&bytes[at * 4096..(at + 1) * 4096], at as u64 * 4096).expect("mend it");
    }
    assert_eq!(offline(&["check", store]).code, 0);
    // Without the copy of the table the blocks can still be checked.
    fs::write(sheep.store().join("table"), b"nonsense").expect("damage it");
    let check = offline(&["check", store]);
    assert_eq!(check.code, 1);
    assert!(check.text().contains("table is damaged"), "{}", check.text());
    assert_eq!(offline(&["list", store]).code, 1);
    sheep.start();
    assert_kept(&sheep, &content);
    sheep.stop();
    assert_eq!(offline(&["check", store_of(&sheep)]).code, 0, "the table was written anew");
}

#[test]
fn an_image_does_not_take_the_place_of_a_store() {
    let (mut sheep, content) = sheep_with_kept();
    sheep.stop();
    let store = store_of(&sheep);
    let home = tempfile::tempdir_in(sheep.store().parent().expect("a parent")).expect("a place");
    let link = home.path().join("link");
    fs::hard_link(sheep.store().join("data"), &link).expect("link");
    for file in [sheep.store().join("data"), sheep.store().join("new"), link] {
        let export = offline(&["export", store, "kept", path(&file), "--force"]);
        assert_eq!(export.code, 1, "{}", export.stderr);
        assert!(export.stderr.contains("choose another file"), "{}", export.stderr);
    }
    assert!(!sheep.store().join("new").exists());
    sheep.start();
    assert_kept(&sheep, &content);
    sheep.stop();
}

fn store_of(sheep: &Sheep) -> &str {
    path(sheep.store())
}

#[test]
fn a_mount_that_cannot_be_written_is_enough() {
    let Some(disk) = SmallFs::new(256 << 20) else {
        return;
    };
    let store = disk.path().join("store");
    let mut sheep = Sheep::at(&store, &["-j", "size=64M"]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "1M"]).ok();
    wait_until("the VDI is in the store's copy of the table", || is_in_table(&store, "disk"));
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[9; 1 << 20]).ok();
    sheep.kill();
    disk.set_read_only(true);
    assert_eq!(offline(&["check", path(&store)]).code, 0);
    let home = tempfile::tempdir().expect("a directory");
    let image = home.path().join("image");
    assert_eq!(offline(&["export", path(&store), "disk", path(&image)]).code, 0);
    assert!(fs::read(&image).expect("the image") == [9; 1 << 20]);
    disk.set_read_only(false);
}

#[test]
fn words_that_make_no_sense_are_refused() {
    for (words, says) in [
        (&["check"][..], "'check' needs DIR[,DIR...]"),
        (&["export", "dir"], "'export' needs VDI[@TAG]"),
        (&["export", "dir", "vdi"], "'export' needs FILE"),
        (&["export", "dir", "vdi", "-"], "'-' is not supported: the image goes to a file"),
        (&["check", "dir", "other"], "Unexpected 'other' behind 'check'"),
        (&["check", "dir", "--force"], "'check' has no --force"),
        (&["list", "dir", "--what"], "Unknown option '--what'"),
        (&["--json"], "Please say what to do"),
        (&["frobnicate", "dir"], "Unknown command 'frobnicate'"),
        (&["check", "/a,,/b"], "PATH '/a,,/b' has an empty part"),
        (&["check", ""], "the path of the store is empty"),
    ] {
        let ended = offline(words);
        assert_eq!(ended.code, 64, "{words:?}");
        assert!(ended.stderr.starts_with(says), "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("Usage: sheep store"), "{}", ended.stderr);
    }
    // A program reads the line where it reads results.
    for (words, code) in [
        (&["check", "/nonexistent", "--json"][..], 2),
        (&["list", "--json", "/nonexistent"], 2),
        (&["export", "/nonexistent", "vdi", "file", "--json"], 2),
        (&["export", "/nonexistent", "--json"], 64),
        (&["frobnicate", "--json"], 64),
    ] {
        let ended = offline(words);
        let line = ended.stderr.lines().next().expect("a line");
        assert_eq!(json(&ended), serde_json::json!({ "error": line }), "{words:?}");
        assert_eq!(ended.code, code, "{words:?}");
    }
    assert_eq!(offline(&["--help"]).code, 0);
    let none = offline(&["check", "/nonexistent"]);
    assert_eq!((none.code, none.stderr.lines().count()), (2, 1), "{}", none.stderr);
}

/// Puts bytes into a file; what they replace.
fn patch(path: &Path, at: u64, bytes: &[u8]) -> Vec<u8> {
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let mut before = vec![0; bytes.len()];
    file.read_exact_at(&mut before, at).expect("read");
    file.write_all_at(bytes, at).expect("write");
    before
}

#[test]
fn what_is_wrong_with_a_store_is_said_with_its_path() {
    let (mut sheep, content) = sheep_with_kept();
    sheep.stop();
    let store = path(sheep.store()).to_owned();
    let data = sheep.store().join("data");
    let checked = |code: i32| {
        let ended = offline(&["check", &store]);
        assert_eq!(ended.code, code, "{}{}", ended.text(), ended.stderr);
        ended.text()
    };
    // One slot of two is what a crash may leave.
    let before = patch(&data, 4096, b"rot");
    let text = checked(0);
    let line = format!("note: {store}: slot 1 of the two checkpoint slots cannot be read");
    assert!(text.starts_with(&line) && text.ends_with("nothing is wrong\n"), "{text}");
    let of_second = patch(&data, 8192, b"rot");
    let text = checked(1);
    assert!(text.starts_with(&format!("damage: {store}: ")), "{text}");
    assert!(text.contains("slot") && text.ends_with(" read: damaged\n"), "{text}");
    let json = json(&offline(&["check", &store, "--json"]));
    assert!(json["good"] == false && json["missing"][0].is_null(), "{json}");
    patch(&data, 8192, &of_second);
    // A start mends it.
    sheep.start();
    sheep.stop();
    assert!(!checked(0).contains("note"));
    assert_ne!(before, b"rot");
    let before = patch(&data, 0, &[0; 512]);
    let text = checked(1);
    assert!(text.starts_with(&format!("damage: {store}: ")), "{text}");
    assert!(text.contains("superblock") && text.ends_with(" read: damaged\n"), "{text}");
    let image = sheep.store().join("image");
    let words = ["export", &store, "kept", path(&image)];
    let refused = offline(&words);
    assert_eq!((refused.code, refused.stderr.lines().count()), (2, 1), "{}", refused.stderr);
    assert!(refused.stderr.contains("superblock") && !image.exists(), "{}", refused.stderr);
    patch(&data, 0, &before);

    for part in ["data", "log"] {
        let part = sheep.store().join(part);
        let refused = offline(&["check", path(&part)]);
        let line = format!("{} is only a part of a store: name the directory ", part.display());
        assert_eq!((refused.code, refused.stderr.lines().count()), (2, 1), "{}", refused.stderr);
        assert!(refused.stderr.starts_with(&line), "{}", refused.stderr);
    }
    let identity = sheep.store().join("identity");
    let kept = fs::read(&identity).expect("the identity");
    fs::write(&identity, b"nonsense").expect("damage it");
    let text = checked(1);
    assert!(text.contains(&format!("damage: {} is damaged", identity.display())), "{text}");
    fs::remove_file(&identity).expect("remove");
    let text = checked(1);
    assert!(text.contains(&format!("damage: {} is not there", identity.display())), "{text}");
    fs::write(&identity, kept).expect("bring it back");
    let table = sheep.store().join("table");
    let away = table.with_extension("away");
    fs::rename(&table, &away).expect("rename");
    let text = checked(1);
    let line = format!("a copy of the VDI table, a file 'table' in {store}: bring one back");
    assert!(text.contains(&format!("missing: {line}")), "{text}");
    let listed = offline(&["list", &store]);
    assert_eq!((listed.code, listed.stderr.lines().count()), (1, 1), "{}", listed.stderr);
    assert!(listed.stderr.contains(&line), "{}", listed.stderr);
    fs::rename(&away, &table).expect("rename");
    let log = sheep.store().join("log");
    fs::rename(&log, &away).expect("rename");
    assert!(checked(1).contains(&format!("damage: {store} has data but no log")));
    fs::rename(&away, &log).expect("rename");
    sheep.start();
    assert_kept(&sheep, &content);
}

/// Nobody writes to these pipes: who looks does not wait for that.
#[test]
fn what_holds_no_store_is_refused_at_once() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let home = tempfile::tempdir().expect("a directory");
    let pipe = home.path().join("pipe");
    mkfifoat(CWD, &pipe, Mode::RWXU).expect("a pipe");
    for words in [&["check", path(&pipe)], &["list", path(&pipe)], &["check", "/dev/zero"]] {
        let ended = offline(words);
        let says = format!("{} is neither a directory, nor a block device", words[1]);
        assert_eq!((ended.code, ended.stderr.lines().count()), (2, 1), "{}", ended.stderr);
        assert!(ended.stderr.starts_with(&says), "{}", ended.stderr);
    }
    // Nor for those in a store's place.
    let store = home.path().join("store");
    fs::create_dir(&store).expect("a directory");
    for name in ["lock", "identity", "table", "data"] {
        fs::rename(&pipe, store.join(name)).expect("rename");
        let ended = offline(&["list", path(&store)]);
        assert_eq!((ended.code, ended.stderr.lines().count()), (2, 1), "{name}: {}", ended.stderr);
        fs::rename(store.join(name), &pipe).expect("rename");
    }
}

/// A page of the index that is gone: whose it was, and not what follows from it.
#[test]
fn a_damaged_page_is_told_with_disk_owner_and_place() {
    let (mut sheep, _) = sheep_with_kept();
    sheep.stop();
    let data = sheep.store().join("data");
    let bytes = fs::read(&data).expect("the data");
    let pages =
        bytes.chunks(4096).enumerate().skip(3).filter(|(_, page)| page.starts_with(b"PFDS"));
    let pages: Vec<usize> = pages.map(|(at, _)| at).collect();
    assert!(!pages.is_empty());
    for at in pages {
        let _ = patch(&data, at as u64 * 4096 + 100, b"rot");
    }
    let store = store_of(&sheep);
    let check = offline(&["check", store]);
    let text = check.text();
    for at in [0, 4 << 20] {
        let line = format!(
            "damage: {store}: nothing of 4194304 bytes at {at} of kept can be read: page of fragment "
        );
        assert!(text.contains(&line), "{text}");
    }
    assert_eq!((check.code, text.lines().count()), (1, 3), "{text}");
}

/// Whether the last batch is torn or what it wrote was lost nothing tells.
#[test]
fn a_last_write_whose_data_is_gone_may_be_damaged() {
    let mut sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk", "0", "1M"], &[7; 1 << 20]).ok();
    sheep.kill();
    let data = fs::File::options().write(true).open(sheep.store().join("data")).expect("the data");
    data.set_len(64 << 10).expect("cut it short");
    let text = offline(&["check", store_of(&sheep)]).text();
    let note = "note: the log ends with a write that was never acknowledged, or is damaged\n";
    assert!(text.contains(note), "{text}");
}

/// What was acknowledged since would be gone without a line.
#[test]
fn a_log_put_back_from_a_copy_is_told() {
    let mut sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "8M"]).ok();
    sheep.stop();
    let (log, older) = (sheep.store().join("log"), sheep.store().join("older"));
    fs::copy(&log, &older).expect("copy");
    sheep.start();
    let _ = sheep.dog().feed(&["vdi", "write", "disk", "0", "4096"], &[7; 4096]).ok();
    sheep.kill();
    fs::rename(&log, sheep.store().join("newest")).expect("rename");
    fs::rename(&older, &log).expect("rename");
    let check = offline(&["check", store_of(&sheep)]);
    let text = check.text();
    assert_eq!(check.code, 1, "{text}");
    let line = "the log is older than the data (opening 1, the data knows 2): it was put back";
    assert!(text.contains(line) && text.contains("damage: "), "{text}");
    let (_, said) = sheep.try_start().expect_err("it must not start");
    assert!(said.contains(line) && said.lines().count() == 1, "{said}");
    fs::rename(sheep.store().join("newest"), &log).expect("rename");
    sheep.start();
    let read = sheep.dog().run(&["vdi", "read", "disk", "0", "4096"]).ok().stdout;
    assert!(read == [7; 4096]);
}
