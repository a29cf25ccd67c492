//! A node with several disks: fragments spread over them, one lost, all lost, lists that changed.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::kept::is_in_table;
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::process::{run, wait_until};
use sheepdog_testkit::sheep::Sheep;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const FRAGMENT: usize = 4 << 20;
const FRAGMENTS: usize = 24;

struct Node {
    sheep: Sheep,
    disks: Vec<PathBuf>,
    home: tempfile::TempDir,
}

/// A formatted node on so many disks of its own.
fn node(count: usize) -> Node {
    node_in(tempfile::tempdir().expect("directory"), count, "size=64M")
}

/// The same with its logs as told.
fn node_in(home: tempfile::TempDir, count: usize, logs: &str) -> Node {
    let disks: Vec<PathBuf> = (0..count).map(|at| home.path().join(format!("disk{at}"))).collect();
    let mut sheep = Sheep::at(&home.path().join("store"), &["-j", logs]);
    let mut node = Node {
        disks,
        home,
        sheep: {
            sheep.set_disks(&[]);
            sheep
        },
    };
    node.name_disks(|_| true);
    node.sheep.start();
    let _ = node.sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    node
}

impl Node {
    fn name_disks(&mut self, keep: impl Fn(usize) -> bool) {
        let disks = self.disks.iter().enumerate().filter(|(at, _)| keep(*at));
        self.sheep.set_disks(&disks.map(|(_, disk)| disk.as_path()).collect::<Vec<_>>());
    }

    fn md_info(&self) -> serde_json::Value {
        let info = self.sheep.dog().run(&["node", "md", "info", "--json"]).ok().text();
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        info["nodes"][0]["disks"].clone()
    }

    fn client(&self) -> Client {
        Client::connect(self.sheep.socket(), "disk").expect("connect")
    }

    /// Fragments that can be read, all with the right bytes.
    fn readable(&self) -> Vec<usize> {
        let mut client = self.client();
        (0..FRAGMENTS)
            .filter(|at| match client.read((at * FRAGMENT) as u64, FRAGMENT as u32) {
                Ok(bytes) => {
                    assert!(bytes == content(*at), "fragment {at} has other bytes");
                    true
                }
                Err(error) => {
                    assert_eq!(error.to_string(), "the server reports error 5");
                    false
                }
            })
            .collect()
    }

    fn refused(&mut self) -> String {
        let (status, said) = self.sheep.try_start().expect_err("it must not start");
        assert_eq!(status.code(), Some(1), "{said}");
        said
    }
}

fn content(at: usize) -> Vec<u8> {
    let mut bytes = vec![at as u8 + 1; FRAGMENT];
    bytes[..8].copy_from_slice(&(at as u64).to_le_bytes());
    bytes
}

fn filled(count: usize) -> Node {
    fill(node(count))
}

fn fill(node: Node) -> Node {
    let _ = node.sheep.dog().run(&["vdi", "create", "disk", "96M"]).ok();
    let mut client = node.client();
    for at in 0..FRAGMENTS {
        client.write((at * FRAGMENT) as u64, &content(at)).expect("write");
    }
    node
}

/// Another way of losing a disk than a failing one: it is not mounted.
fn hide(disk: &Path) -> PathBuf {
    let hidden = disk.with_extension("away");
    fs::rename(disk, &hidden).expect("rename");
    hidden
}

#[test]
fn fragments_are_spread_and_one_lost_disk_takes_only_its_own() {
    let mut node = filled(3);
    let info = node.md_info();
    for at in 0..3 {
        let used = info[at]["used"].as_u64().expect("a number");
        assert!(used > 2 * FRAGMENT as u64, "disk {at} holds its share: {info:#}");
        assert_eq!(info[at]["path"], node.disks[at].to_str().expect("UTF-8"));
    }
    assert!(!node.sheep.store().join("data").exists(), "the store itself holds no data");
    node.sheep.kill();
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS);
    node.sheep.stop();

    let away = hide(&node.disks[1]);
    let (mut all, mut lost) = (Vec::new(), 0);
    // With the disk in the list and without it; an empty directory is a mount that is late.
    for round in 0..3 {
        if round == 2 {
            fs::create_dir(&node.disks[1]).expect("mount point");
        }
        node.name_disks(|at| at != 1 || round != 1);
        node.sheep.start();
        all = node.readable();
        lost = FRAGMENTS - all.len();
        let info = node.md_info();
        assert!(info[1]["lost"].as_str().is_some_and(|why| !why.is_empty()), "{info:#}");
        assert!(info[0]["lost"].is_null() && info[2]["lost"].is_null(), "{info:#}");
        let name = node.disks[1].to_str().expect("UTF-8");
        let shown = node.sheep.dog().run(&["node", "md", "info"]).ok().text();
        assert!(shown.contains(&format!("lost: {name}: ")), "{shown}");
        let log = fs::read_to_string(node.sheep.store().join("sheep.log")).expect("the log");
        assert!(log.contains(&format!("the disk {name} is lost: ")), "{log}");
        // dog is refused what lies there, with the disk's name, and that is no news to the log.
        let at = (0..FRAGMENTS).find(|at| !all.contains(at)).expect("one is lost");
        let from = (at * FRAGMENT).to_string();
        let wrote = node.sheep.dog().feed(&["vdi", "write", "disk", &from, "4M"], &content(at));
        let read = node.sheep.dog().run(&["vdi", "read", "disk", &from, "4M"]);
        assert_eq!((wrote.code, read.code), (1, 1), "{}{}", wrote.stderr, read.stderr);
        let log = fs::read_to_string(node.sheep.store().join("sheep.log")).expect("the log");
        let errors = log.lines().filter(|line| line.contains("ERROR")).count();
        assert_eq!(errors, round + 1, "one for each start: {log}");
        let said = node.sheep.log();
        let lines = said.matches(&format!("the disk {name} is lost: ")).count();
        assert_eq!(lines, round + 1, "one for each start: {said}");
        // The rest goes on being written and read; VDIs come and go.
        let mut client = node.client();
        let at = all[0];
        client.write((at * FRAGMENT) as u64, &content(at)).expect("a disk that is there");
        let _ = node.sheep.dog().run(&["vdi", "create", "other", "8M"]).ok();
        let _ = node.sheep.dog().run(&["vdi", "delete", "other"]).ok();
        node.sheep.stop();
        assert!(round != 2 || fs::read_dir(&node.disks[1]).expect("there").next().is_none());
    }
    assert!(lost > 2 && all.len() > 8, "{lost} lost, {} there", all.len());
    fs::remove_dir(&node.disks[1]).expect("remove");
    fs::rename(away, &node.disks[1]).expect("rename");
    node.name_disks(|_| true);
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS, "it is back");
    node.sheep.stop();
}

#[test]
fn a_disk_put_back_from_a_copy_is_lost() {
    let mut node = filled(2);
    node.sheep.stop();
    let (disk, older) = (&node.disks[1], node.home.path().join("older"));
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([disk, &older]).status();
    assert!(copied.expect("cp").success());
    node.sheep.start();
    let all = node.readable();
    node.sheep.kill();
    let newest = hide(&node.disks[1]);
    fs::rename(&older, &node.disks[1]).expect("rename");
    for _ in 0..2 {
        node.sheep.start();
        let info = node.md_info();
        let why = info[1]["lost"].as_str().expect("it is lost");
        assert!(why.contains("older than when it was used last"), "{why}");
        assert!(info[0]["lost"].is_null(), "{info:#}");
        let left = node.readable();
        assert!(!left.is_empty() && left.len() < all.len(), "{left:?}");
        assert!(node.sheep.log().contains("older than when it was used last"));
        node.sheep.stop();
    }
    fs::remove_dir_all(&node.disks[1]).expect("remove");
    fs::rename(&newest, &node.disks[1]).expect("rename");
    node.sheep.start();
    assert_eq!(node.readable(), all);
}

#[test]
fn without_any_disk_the_node_is_a_gateway() {
    let mut node = filled(2);
    node.sheep.stop();
    let away: Vec<PathBuf> = node.disks.iter().map(|disk| hide(disk)).collect();
    node.sheep.start();
    assert!(node.readable().is_empty());
    let nodes = node.sheep.dog().run(&["node", "list", "-r"]).ok().text();
    assert_eq!(nodes.split(' ').nth(2), Some("0"), "a gateway has no weight: {nodes}");
    let info = node.sheep.dog().run(&["cluster", "info"]).ok().text();
    assert!(info.contains(":0]"), "{info}");
    let listed = node.sheep.dog().run(&["vdi", "list", "-r"]).ok().text();
    assert!(listed.contains(" disk "), "what the registry knows is there: {listed}");
    node.sheep.stop();
    for (from, to) in away.iter().zip(&node.disks) {
        fs::rename(from, to).expect("rename");
    }
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS);
    let nodes = node.sheep.dog().run(&["node", "list", "-r"]).ok().text();
    assert_eq!(nodes.split(' ').nth(2), Some("128"), "{nodes}");
    node.sheep.stop();
}

#[test]
fn a_changed_list_is_refused_and_nothing_is_touched() {
    let mut node = filled(2);
    node.sheep.stop();
    let names: Vec<String> = node.disks.iter().map(|disk| disk.display().to_string()).collect();
    node.name_disks(|at| at == 0);
    let said = node.refused();
    assert!(said.contains(&format!("{} is missing from PATH", names[1])), "{said}");
    node.name_disks(|_| false);
    let said = node.refused();
    assert!(said.contains(&format!("{} is missing from PATH", names[0])), "{said}");

    let third = node.home.path().join("third");
    let disks: Vec<&Path> = node.disks.iter().chain([&third]).map(PathBuf::as_path).collect();
    node.sheep.set_disks(&disks);
    let said = node.refused();
    assert!(said.contains(&format!("{} is not a disk of the store", third.display())), "{said}");
    assert!(!third.exists(), "nothing was made");

    // Swapped mounts are found by what is on them.
    let (a, b) = (node.disks[0].clone(), node.disks[1].clone());
    let away = hide(&a);
    fs::rename(&b, &a).expect("rename");
    fs::rename(&away, &b).expect("rename");
    node.name_disks(|_| true);
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS);
    node.sheep.stop();

    // A disk of this node is not taken by another one, nor started as a store.
    let mut other = Sheep::at(&node.home.path().join("other/store"), &[]);
    fs::create_dir(node.home.path().join("other")).expect("directory");
    other.set_disks(&[&a]);
    let (_, said) = other.try_start().expect_err("it is somebody's");
    assert!(said.contains("is a disk of another node and holds data"), "{said}");
    let mut alone = Sheep::at(&a, &[]);
    let (_, said) = alone.try_start().expect_err("it is somebody's");
    assert!(said.contains("is a disk of another store"), "{said}");
    // And a store is not taken as a disk.
    let store = node.sheep.store().to_owned();
    other.set_disks(&[&store]);
    let (_, said) = other.try_start().expect_err("it is a store");
    assert!(said.contains("is a store of its own"), "{said}");
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS);
    node.sheep.stop();
}

/// The store's own memory, and all that a refused start is not to touch.
#[test]
fn a_lost_identity_is_what_is_missing() {
    let mut node = filled(2);
    node.sheep.stop();
    let identity = node.sheep.store().join("identity");
    let away = hide(&identity);
    let entries = |dir: &Path| -> Vec<_> {
        let entry = |found: std::io::Result<fs::DirEntry>| {
            let found = found.expect("an entry");
            (found.file_name(), found.metadata().expect("stat").modified().expect("a time"))
        };
        let mut all: Vec<_> = fs::read_dir(dir).expect("list").map(entry).collect();
        all.sort();
        all
    };
    let dirs = [node.sheep.store(), &node.disks[0], &node.disks[1]].map(Path::to_owned);
    let before = dirs.each_ref().map(|dir| entries(dir));
    let said = node.refused();
    assert!(said.contains(&format!("{} is missing", identity.display())), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(dirs.each_ref().map(|dir| entries(dir)), before, "nothing was written");
    fs::rename(away, &identity).expect("bring it back");
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS);
    node.sheep.stop();
}

#[test]
fn a_damaged_disk_is_lost_and_the_others_serve() {
    let mut node = filled(2);
    node.sheep.stop();
    let data = fs::File::options().read(true).write(true).open(node.disks[1].join("data"));
    let data = data.expect("open");
    let mut good = vec![0; 1 << 20];
    data.read_exact_at(&mut good, 0).expect("read");
    data.write_all_at(&vec![0; 1 << 20], 0).expect("damage it");
    node.sheep.start();
    let left = node.readable();
    assert!(!left.is_empty() && left.len() < FRAGMENTS);
    let info = node.md_info();
    assert!(info[1]["lost"].is_string(), "{info:#}");
    node.sheep.stop();
    // With the other one not there somebody should look first.
    let away = hide(&node.disks[0]);
    let said = node.refused();
    assert!(said.contains("superblock"), "{said}");
    fs::rename(away, &node.disks[0]).expect("rename");
    data.write_all_at(&good, 0).expect("mend it");
    node.sheep.start();
    assert_eq!(node.readable().len(), FRAGMENTS);
    node.sheep.stop();
}

/// What is wrong with one disk is no reason to refuse the others, unless somebody else uses it.
#[test]
fn a_disk_that_cannot_be_opened_is_lost_unless_there_is_no_other() {
    let home = tempfile::tempdir().expect("directory");
    let logs = home.path().join("logs");
    fs::create_dir(&logs).expect("directory");
    let mut node = fill(node_in(home, 2, &format!("size=64M,dir={}", logs.display())));
    node.sheep.stop();
    let disks = node.disks.clone();
    let log_of = |disk: &Path| fs::read_link(disk.join("log")).expect("a link");
    let lock_in_the_way = |disk: &Path| {
        fs::remove_file(disk.join("lock")).expect("remove");
        fs::create_dir(disk.join("lock")).expect("directory");
    };
    let lock_out_of_the_way = |disk: &Path| fs::remove_dir(disk.join("lock")).expect("remove");
    let hide_log = |disk: &Path| {
        hide(&log_of(disk));
    };
    let show_log = |disk: &Path| {
        let log = log_of(disk);
        fs::rename(log.with_extension("away"), log).expect("rename");
    };
    let move_log = |disk: &Path| {
        let (log, link) = (log_of(disk), disk.join("log"));
        let moved = disk.join(log.file_name().expect("a name"));
        fs::rename(&log, &moved).expect("rename");
        fs::remove_file(&link).expect("remove");
        std::os::unix::fs::symlink(moved, link).expect("link");
    };
    let move_log_back = |disk: &Path| {
        let (log, link) = (log_of(disk), disk.join("log"));
        let moved = logs.join(log.file_name().expect("a name"));
        fs::rename(&log, &moved).expect("rename");
        fs::remove_file(&link).expect("remove");
        std::os::unix::fs::symlink(moved, link).expect("link");
    };
    type Change<'a> = &'a dyn Fn(&Path);
    let hide_identity = |disk: &Path| {
        hide(&disk.join("identity"));
    };
    let show_identity = |disk: &Path| {
        fs::rename(disk.join("identity.away"), disk.join("identity")).expect("rename");
    };
    let faults: [(&str, Change<'_>, Change<'_>); 4] = [
        ("/identity is missing: bring that file back", &hide_identity, &show_identity),
        ("which is not there: bring it back", &hide_log, &show_log),
        ("cannot write to", &lock_in_the_way, &lock_out_of_the_way),
        ("not in", &move_log, &move_log_back),
    ];
    for (says, harm, mend) in faults {
        harm(&disks[1]);
        node.sheep.start();
        let left = node.readable().len();
        assert!((1..FRAGMENTS).contains(&left), "{says}: {left}");
        let info = node.md_info();
        let why = info[1]["lost"].as_str().unwrap_or_default();
        assert!(why.contains(says) && info[0]["lost"].is_null(), "{says}: {info:#}");
        let log = fs::read_to_string(node.sheep.store().join("sheep.log")).expect("the log");
        let line = format!("the disk {} is lost: {why}", disks[1].display());
        assert!(log.contains(&line), "{says}: {log}");
        node.sheep.stop();
        harm(&disks[0]);
        let said = node.refused();
        assert!(said.contains(says), "{said}");
        disks.iter().for_each(|disk| mend(disk));
        node.sheep.start();
        assert_eq!(node.readable().len(), FRAGMENTS, "{says}");
        node.sheep.stop();
    }
    let held = fs::File::open(disks[1].join("lock")).expect("open");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    let said = node.refused();
    let line = format!("another sheep daemon is using {}", disks[1].display());
    assert!(said.contains(&line), "{said}");
    drop(held);
    node.sheep.start();
    node.sheep.stop();
}

#[test]
fn a_vdi_is_saved_from_the_disks_that_are_left() {
    let mut node = filled(2);
    wait_until("the VDI is in every copy of the table", || {
        node.disks.iter().all(|disk| is_in_table(disk, "disk"))
    });
    let offline = |words: &[&str]| run(Command::new(bin("sheep")).arg("store").args(words), b"");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (store, a, b) = (path(node.sheep.store()), path(&node.disks[0]), path(&node.disks[1]));
    for names in [&store, &a, &format!("{store},{a}"), &format!("{a},{b}")] {
        let busy = offline(&["check", names]);
        assert_eq!((busy.code, busy.stderr.lines().count()), (2, 1), "{names}: {}", busy.stderr);
        assert!(busy.stderr.contains("a sheep is using"), "{names}: {}", busy.stderr);
    }
    node.sheep.kill();
    let image = path(&node.home.path().join("image"));
    let all = format!("{store},{a},{b}");
    let whole: Vec<u8> = (0..FRAGMENTS).flat_map(content).collect();
    let saved = offline(&["export", &all, "disk", &image]).ok();
    assert_eq!((saved.text().as_str(), saved.stderr.as_str()), ("", ""));
    assert!(fs::read(&image).expect("the image") == whole);
    let list = offline(&["list", &all]).ok().text();
    assert!(list.contains(&format!(" {} ", FRAGMENT * FRAGMENTS)), "{list}");
    let checked = offline(&["check", &all]).ok().text();
    assert!(checked.contains("24576 blocks of 24 fragments read: nothing is wrong"), "{checked}");
    // One disk alone, with and without the store that knows of the other.
    for (names, says) in [(a.clone(), "other disks"), (format!("{store},{a}"), b.as_str())] {
        let part = offline(&["export", &names, "disk", &image, "--force"]);
        assert_eq!(part.code, 1);
        assert!(
            part.stderr.starts_with("missing: ") && part.stderr.contains(says),
            "{}",
            part.stderr
        );
        let part = fs::read(&image).expect("the image");
        let there = (0..FRAGMENTS).filter(|at| {
            let bytes = &part[at * FRAGMENT..(at + 1) * FRAGMENT];
            assert!(bytes == content(*at) || bytes.iter().all(|byte| *byte == 0));
            bytes == content(*at)
        });
        assert!((1..FRAGMENTS).contains(&there.count()));
        // Nobody is to believe that this is all.
        let checked = offline(&["check", &names]);
        let text = checked.text();
        assert!(text.starts_with("missing: ") && text.contains(says), "{text}");
        assert!(
            text.ends_with("nothing is wrong with what is here, but something is missing\n"),
            "{text}"
        );
        let json = offline(&["check", &names, "--json"]);
        let shown: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert!(shown["good"] == false && shown["missing"][0].is_string(), "{shown}");
        let listed = offline(&["list", &names]);
        assert!(listed.text().contains("missing: "), "{}", listed.text());
        assert_eq!((checked.code, json.code, listed.code), (1, 1, 1));
    }
    let twice = offline(&["check", &format!("{store},{a},{b},{a}/")]);
    assert_eq!((twice.code, twice.stderr), (2, format!("{a}/ is named twice\n")));
    // One that is named and cannot be opened is missing too.
    let gone = path(&node.home.path().join("gone"));
    let checked = offline(&["check", &format!("{store},{a},{gone}")]);
    assert_eq!(checked.code, 1);
    assert!(checked.text().contains(&format!("missing: cannot open {gone}")), "{}", checked.text());
    // A disk that is not where it was is one line.
    let away = hide(&node.disks[1]);
    let checked = offline(&["check", &all]).text();
    assert!(checked.starts_with(&format!("missing: cannot open {b}")), "{checked}");
    assert_eq!(checked.lines().count(), 2, "{checked}");
    fs::rename(away, &node.disks[1]).expect("rename");
    // One that is there and damaged is not missing.
    let damaged = |says: &str| {
        let checked = offline(&["check", &all]);
        let text = checked.text();
        assert!(checked.code == 1 && text.starts_with("damage: ") && text.contains(says), "{text}");
        assert!(!text.contains("missing") && text.ends_with(" read: damaged\n"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        // What is left is saved all the same.
        let part = offline(&["export", &all, "disk", &image, "--force"]);
        assert!(part.code == 1 && part.stderr.starts_with("damage: "), "{}", part.stderr);
    };
    for dir in [&b, &store] {
        let identity = format!("{dir}/identity");
        let kept = fs::read(&identity).expect("the identity");
        fs::write(&identity, b"nonsense").expect("damage it");
        damaged(&format!("{identity} is damaged"));
        fs::remove_file(&identity).expect("remove");
        damaged(&format!("{identity} is not there"));
        fs::write(&identity, kept).expect("bring it back");
    }
    let data = fs::File::options().read(true).write(true).open(node.disks[1].join("data"));
    let (data, mut good) = (data.expect("open"), vec![0; 12_288]);
    data.read_exact_at(&mut good, 0).expect("read");
    for at in [0, 4096] {
        data.write_all_at(&vec![0; 12_288 - at], at as u64).expect("damage it");
        damaged(&format!("damage: {b}: "));
        data.write_all_at(&good, 0).expect("mend it");
    }
    let none = offline(&["list", &store]);
    assert_eq!(none.code, 2);
    assert!(none.stderr.contains(&format!("name them too ({a}, {b})")), "{}", none.stderr);
}

/// Nothing of the node is written, by whatever name, named or not, there or not.
#[test]
fn an_image_does_not_take_the_place_of_anything_of_the_node() {
    let home = tempfile::tempdir().expect("directory");
    let logs = home.path().join("logs");
    fs::create_dir(&logs).expect("directory");
    let mut node = node_in(home, 2, &format!("size=64M,dir={}", logs.display()));
    let _ = node.sheep.dog().run(&["vdi", "create", "disk", "1M"]).ok();
    wait_until("the VDI is in every copy of the table", || {
        node.disks.iter().all(|disk| is_in_table(disk, "disk"))
    });
    node.sheep.stop();
    let (home, store) = (node.home.path().to_owned(), node.sheep.store().to_owned());
    let (a, b) = (node.disks[0].clone(), node.disks[1].clone());
    let log = fs::read_link(b.join("log")).expect("a link");
    let registry = home.join(".sheepdog-local/registry.db");
    let hard = home.join("hard");
    fs::hard_link(store.join("identity"), &hard).expect("link");
    let soft = home.join("soft");
    std::os::unix::fs::symlink(store.join("later"), &soft).expect("link");
    let files = [
        store.join("identity"),
        store.join("table"),
        store.join("new"),
        store.join("../store/new"),
        a.join("table"),
        b.join("identity"),
        b.join("new"),
        registry.clone(),
        registry.with_file_name("new"),
        log.clone(),
        logs.join("new"),
        soft,
        hard,
    ];
    let before: Vec<_> = files.iter().map(|file| fs::read(file).ok()).collect();
    // The store knows of the disk that is not named, a disk of the store.
    for names in [vec![&store, &a, &b], vec![&store, &a], vec![&a, &b]] {
        let whole = names.len() > 2;
        let names: Vec<_> = names.iter().map(|path| path.display().to_string()).collect();
        let names = names.join(",");
        // Of other names of the store's files only the store tells.
        let known = files.len() - usize::from(!names.contains("store"));
        for file in &files[..known] {
            for force in [&["--force"][..], &[]] {
                let mut export = Command::new(bin("sheep"));
                export.args(["store", "export", &names, "disk"]).arg(file).args(force);
                let ended = run(&mut export, b"");
                let says = "which is only read: choose another file";
                assert_eq!(ended.code, 1, "{names} {}: {}", file.display(), ended.stderr);
                assert!(ended.stderr.contains(says), "{names}: {}", ended.stderr);
            }
        }
        let image = home.join("image");
        let mut export = Command::new(bin("sheep"));
        export.args(["store", "export", &names, "disk", "--force"]).arg(&image);
        let ended = run(&mut export, b"");
        assert_eq!(ended.code, i32::from(!whole), "{}", ended.stderr);
        assert!(fs::read(&image).expect("the image") == [0; 1 << 20]);
    }
    let after: Vec<_> = files.iter().map(|file| fs::read(file).ok()).collect();
    assert!(before == after, "something was written");
    assert!(!store.join("later").exists());
    node.sheep.start();
    node.sheep.stop();
}

/// A copy of the directories alone still leads to the logs of the originals, which go on.
#[test]
fn a_copy_without_its_logs_is_refused() {
    let home = tempfile::tempdir().expect("directory");
    let logs = home.path().join("logs");
    fs::create_dir(&logs).expect("directory");
    let mut node = fill(node_in(home, 1, &format!("size=64M,dir={}", logs.display())));
    let (disk, store) = (node.disks[0].clone(), node.sheep.store().to_owned());
    wait_until("the VDI is in the copy of the table", || is_in_table(&disk, "disk"));
    node.sheep.stop();
    let copy = node.home.path().join("copy");
    fs::create_dir(&copy).expect("directory");
    let _ = run(Command::new("cp").args(["-a", "--"]).args([&store, &disk, &copy]), b"").ok();
    let copied = copy.join("disk0");
    let names = format!("{},{}", copy.join("store").display(), copied.display());
    let log = fs::read_link(disk.join("log")).expect("a link");
    let line = format!(
        "the log of {0} is {1}, which belongs to {2}: copy that too and let {0}/log lead to it",
        copied.display(),
        log.canonicalize().expect("the log").display(),
        disk.canonicalize().expect("the disk").display()
    );
    let offline = |words: &[&str]| run(Command::new(bin("sheep")).arg("store").args(words), b"");
    let mut other = Sheep::at(&copy.join("store"), &[]);
    other.set_disks(&[&copied]);
    for round in 0..2 {
        let image = node.home.path().join("image");
        for words in
            [&["check", &names][..], &["export", &names, "disk", image.to_str().expect("UTF-8")]]
        {
            let refused = offline(words);
            assert_eq!(
                (refused.code, refused.stderr.lines().count()),
                (2, 1),
                "{round}: {}",
                refused.stderr
            );
            assert!(refused.stderr.contains(&line), "{line}: {}", refused.stderr);
        }
        assert!(!image.exists());
        if round == 0 {
            node.sheep.start();
            node.client().write(0, &[9; 8192]).expect("write");
        }
    }
    // A link from before there were any: nobody looks at the log while it is written.
    let back = log.with_added_extension("store");
    fs::remove_file(&back).expect("the link");
    let busy = offline(&["check", &names]);
    assert_eq!((busy.code, busy.stderr.lines().count()), (2, 1), "{}", busy.stderr);
    assert!(
        busy.stderr.contains(&format!("a sheep is using {}", log.display())),
        "{}",
        busy.stderr
    );
    node.sheep.stop();
    node.sheep.start();
    assert!(back.exists(), "a start brings it back");
    node.sheep.stop();
    let registry = node.home.path().join(".sheepdog-local");
    let _ = run(Command::new("cp").args(["-a", "--"]).args([&registry, &copy]), b"").ok();
    let (_, said) = other.try_start().expect_err("its log is another's");
    assert!(said.contains("which belongs to"), "{said}");
    // With its log it is a store.
    let own = copy.join("a log");
    fs::copy(&log, &own).expect("copy");
    fs::copy(disk.join("data"), copied.join("data")).expect("copy");
    fs::remove_file(copied.join("log")).expect("remove");
    std::os::unix::fs::symlink(&own, copied.join("log")).expect("link");
    let checked = offline(&["check", &names]);
    assert!(checked.text().ends_with("nothing is wrong\n"), "{}{}", checked.text(), checked.stderr);
    // A log that is not there.
    fs::remove_file(&own).expect("remove");
    let gone = offline(&["check", &names]);
    let line = format!("the log of {} is {}, which is not there", copied.display(), own.display());
    assert!(gone.code == 2 && gone.stderr.contains(&line), "{}", gone.stderr);
}

/// Formats, with a VDI that has something on each of two disks.
fn make_v(sheep: &Sheep) {
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "v", "16M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "v"], &[5; 16 << 20]).ok();
}

/// It is there.
fn assert_v(sheep: &Sheep) {
    assert!(sheep.dog().run(&["vdi", "read", "v"]).ok().stdout == [5; 16 << 20]);
}

#[test]
fn before_the_format_any_list_will_do() {
    let mut node = node(1);
    let home = node.home.path().to_owned();
    let mut sheep = Sheep::at(&home.join("new/store"), &["-j", "size=64M"]);
    fs::create_dir(home.join("new")).expect("directory");
    let disks: Vec<PathBuf> = (0..2).map(|at| home.join(format!("new/d{at}"))).collect();
    let all: Vec<&Path> = disks.iter().map(PathBuf::as_path).collect();
    for list in [&[][..], &all[..], &all[..1], &[], &all[1..], &all[..]] {
        sheep.set_disks(list);
        sheep.start();
        let info = sheep.dog().run(&["node", "list", "--json"]).ok().text();
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        let disks = info["nodes"][0]["disks"].as_array().map(Vec::len);
        assert_eq!(disks, Some(list.len().max(1)), "{info}");
        sheep.stop();
    }
    assert!(!sheep.store().join("data").exists());
    sheep.start();
    make_v(&sheep);
    sheep.kill();
    sheep.start();
    assert_v(&sheep);
    sheep.stop();
    node.sheep.stop();
    wait_until("it is gone", || !node.sheep.socket().exists());
}

/// The disks remember the cluster before their node does. A format that ends in between leaves
/// disks that hold nothing: the node takes them again, and so does another one later.
#[test]
fn a_format_that_came_to_nothing_keeps_nobody_from_starting() {
    let home = tempfile::tempdir().expect("directory");
    let disks = ["a", "b"].map(|name| home.path().join(name));
    let mut sheep = Sheep::at(&home.path().join("store"), &["-j", "size=64M"]);
    sheep.set_disks(&disks.each_ref().map(PathBuf::as_path));
    sheep.start();
    let obstacle = disks[1].join("identity.new");
    fs::create_dir(&obstacle).expect("an obstacle");
    let ended = sheep.dog().run(&["cluster", "format", "-c", "1"]);
    assert_ne!(ended.code, 0, "{}", ended.stderr);
    sheep.stop();
    fs::remove_dir(&obstacle).expect("remove");
    let remembers = |dir: &Path| {
        let text = fs::read_to_string(dir.join("identity")).expect("identity");
        text.lines().any(|line| line.starts_with("cluster = "))
    };
    assert!(remembers(&disks[0]) && !remembers(&disks[1]) && !remembers(sheep.store()));
    sheep.start();
    assert!(!remembers(&disks[0]), "what came to nothing is forgotten");
    make_v(&sheep);
    sheep.kill();
    sheep.start();
    assert_v(&sheep);
    sheep.stop();
}

/// An identity of before the format, put back by mistake, takes no disk's data.
#[test]
fn an_old_identity_of_the_store_takes_no_data() {
    let home = tempfile::tempdir().expect("directory");
    let disks = ["a", "b"].map(|name| home.path().join(name));
    let mut sheep = Sheep::at(&home.path().join("store"), &["-j", "size=64M"]);
    sheep.set_disks(&disks.each_ref().map(PathBuf::as_path));
    sheep.start();
    sheep.stop();
    let identity = sheep.store().join("identity");
    let old = fs::read(&identity).expect("identity");
    sheep.start();
    make_v(&sheep);
    sheep.stop();
    let new = fs::read(&identity).expect("identity");
    fs::write(&identity, &old).expect("write");
    let third = home.path().join("third");
    let lists: [&[&Path]; 3] = [&[&third, &disks[0], &disks[1]], &[&disks[1]], &[]];
    for list in lists {
        sheep.set_disks(list);
        let (status, said) = sheep.try_start().expect_err("there is data");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(" holds data, but its identity knows of no cluster: "), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!third.exists(), "nothing was made");
        assert_eq!(fs::read(&identity).expect("identity"), old, "nothing was written");
    }
    fs::write(&identity, &new).expect("write");
    sheep.set_disks(&disks.each_ref().map(PathBuf::as_path));
    sheep.start();
    assert_v(&sheep);
    sheep.stop();
}

/// New disks are told apart before they are made, and none of them is in another.
#[test]
fn a_new_list_names_each_disk_once_and_none_in_another() {
    let home = tempfile::tempdir().expect("directory");
    let at = |name: &str| home.path().join(name);
    fs::create_dir(at("b")).expect("directory");
    for (link, to) in [("l", "a"), ("m", "l"), ("c", "d"), ("d", "c")] {
        std::os::unix::fs::symlink(to, at(link)).expect("a link");
    }
    let mut sheep = Sheep::at(&at("store"), &["-j", "size=64M"]);
    let is_in = "must be beside each other";
    for (disks, says) in [
        (["a", "b/../a"], "b/../a twice"),
        (["a", "l"], "/l twice"),
        (["m", "a"], "/a twice"),
        (["a", "store/../a/x/.."], "x/.. twice"),
        (["a", "store/x"], is_in),
        (["a", ""], is_in),
        (["a", "a/x"], is_in),
        (["l/x", "a"], is_in),
        (["a", "b/../store/x"], is_in),
        (["a", "c"], "/c: "),
    ] {
        let paths = disks.map(|name| if name.is_empty() { home.path().into() } else { at(name) });
        sheep.set_disks(&paths.each_ref().map(PathBuf::as_path));
        let (status, said) = sheep.try_start().expect_err("no list");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(says) && said.lines().count() == 1, "{disks:?}: {said}");
        assert!(!at("a").exists(), "{disks:?}");
    }
    // A longer name that begins like another is another directory.
    let paths = [at("a"), at("a2")];
    sheep.set_disks(&paths.each_ref().map(PathBuf::as_path));
    sheep.start();
    sheep.stop();
}
