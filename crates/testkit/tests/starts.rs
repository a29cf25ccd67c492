//! Starts that must fail: each says one clear line where it was started, exits 1 and leaves nothing
//! that is in the way of the next.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::kept::{assert_kept, sheep_with_kept};
use sheepdog_testkit::loopfs::SmallFs;
use sheepdog_testkit::nbd::{self, Client};
use sheepdog_testkit::process::{run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

#[track_caller]
fn assert_refused(sheep: &mut Sheep, says: &str) {
    assert_refused_with_any(sheep, &[says]);
}

#[track_caller]
fn assert_refused_with_any(sheep: &mut Sheep, says: &[&str]) {
    let (status, said) = sheep.try_start().expect_err("it must not start");
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(says.iter().any(|s| said.contains(s)), "expected any of {says:?}, got {said}");
}

#[test]
fn sheep_refuses_paths_it_cannot_use() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let file = home.path().join("file");
    std::fs::write(&file, b"not a store").expect("write");
    assert_refused(&mut Sheep::at(&file, &[]), "file");
    assert_eq!(std::fs::read(&file).expect("read"), b"not a store");
    assert_refused(&mut Sheep::at(&file.join("below"), &[]), "below");
    assert_refused(&mut Sheep::at(&home.path().join("a/b/c"), &[]), "a/b/c");

    let (mut sheep, content) = sheep_with_kept();
    let store = sheep.store().to_owned();
    assert_refused(&mut Sheep::at(&store, &[]), "another sheep daemon is using");
    assert_kept(&sheep, &content);
    sheep.stop();
}

#[test]
fn a_start_with_an_unfit_disk_leaves_nothing() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| home.path().join(name);
    let null = Path::new("/dev/null").to_owned();
    std::fs::write(path("file"), b"not a disk").expect("write");
    for (bad, says) in [
        (null, "/dev/null is not a directory, nor a block device"),
        (path("file"), "file is not a directory"),
        (path("a/b"), "a/b"),
    ] {
        let mut sheep = Sheep::at(&path("store"), &[]);
        sheep.set_disks(&[&path("disk"), &bad]);
        assert_refused(&mut sheep, says);
        assert!(!path("store").exists() && !path("disk").exists(), "{says}");
    }
    // A directory in the place of a device that is not there would be in memory.
    let none = Path::new("/dev/sheepdog-none");
    let says = "there is no device /dev/sheepdog-none";
    let mut sheep = Sheep::at(&path("store"), &[]);
    sheep.set_disks(&[&path("disk"), none]);
    assert_refused(&mut sheep, says);
    assert!(!path("store").exists() && !path("disk").exists());
    assert_refused(&mut Sheep::at(none, &[]), says);
    assert!(!none.exists());
}

#[test]
fn store_without_a_verb_is_no_sheep() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(bin("sheep"));
    let ended = run(command.arg("store").current_dir(home.path()), b"");
    assert_eq!(ended.code, 64, "{}", ended.stderr);
    assert!(ended.stderr.contains("say ./store"), "{}", ended.stderr);
    assert!(ended.stderr.contains("Usage: sheep store list"), "{}", ended.stderr);
    assert!(!home.path().join("store").exists());
}

#[test]
fn sheep_refuses_ports_it_cannot_have() {
    let home = tempfile::tempdir().expect("a temporary directory");
    for port in ["0", "65536", "x", "", "+7000", "-1"] {
        let mut sheep = Sheep::at(&home.path().join("store"), &["-p", port]);
        assert_refused(&mut sheep, &format!("Invalid port number '{port}'"));
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("bound").port().to_string();
    let mut sheep = Sheep::at(&home.path().join("store"), &["-p", &port]);
    assert_refused(&mut sheep, &port);
    for nbd in ["--nbd=0", "--nbd=65536", "--nbd=x:10809", "--nbd="] {
        let mut sheep = Sheep::at(&home.path().join("store"), &[nbd]);
        assert_refused(&mut sheep, "Invalid NBD ");
    }
    // None of these left something that is in the way.
    let mut sheep = Sheep::at(&home.path().join("store"), &[]);
    sheep.start();
    sheep.stop();
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let driver = |name: &str| format!("local:{}", home.path().join(name).display());
    let (one, two) = (driver("one.db"), driver("two.db"));
    let mut first = Sheep::at(&home.path().join("first"), &["-c", &one]);
    first.start();
    let _ = first.dog().run(&["cluster", "format", "-c", "1"]).ok();
    first.stop();
    let mut second = Sheep::at(&home.path().join("second"), &["-c", &two]);
    second.start();
    let _ = second.dog().run(&["cluster", "format", "-c", "1"]).ok();
    second.stop();
    // A new store beside one that has the parent directory's registry, running or not.
    let own = home.path().join("own");
    std::fs::create_dir(&own).expect("make a directory");
    let mut first_there = Sheep::at(&own.join("one"), &[]);
    first_there.start();
    let _ = first_there.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let registry = own.join(".sheepdog-local/registry.db");
    assert!(registry.exists());
    let cure = format!("{}: for another cluster start with -c local:FILE", registry.display());
    let mut beside = Sheep::at(&own.join("two"), &[]);
    assert_refused(&mut beside, &cure);
    first_there.stop();
    assert_refused(&mut beside, &cure);
    let mut crossed = Sheep::at(&home.path().join("first"), &["-c", &two]);
    assert_refused(&mut crossed, "belongs to cluster");
    // Where it belongs it is welcome.
    first.start();
    first.stop();
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let (mut sheep, content) = sheep_with_kept();
    sheep.stop();
    let identity = sheep.store().join("identity");
    let ours = std::fs::read_to_string(&identity).expect("read");
    let newer = ours.replace("format = 1\n", "format = 3\n");
    assert_ne!(newer, ours, "the identity names its format");
    std::fs::write(&identity, newer).expect("write");
    assert_refused(&mut sheep, "written by a newer version");
    std::fs::write(&identity, ours).expect("write");

    // The store's own blocks: magic, version (16 bits), 2 bytes, length, CRC-32C of all with a
    // zero in its place. First the superblock, then the two checkpoint slots.
    let data = sheep.store().join("data");
    let file = File::options().read(true).write(true).open(&data);
    let file = file.expect("open the data file");
    for at in [0, 4096, 8192] {
        let mut ours = vec![0; 4096];
        file.read_exact_at(&mut ours, at).expect("read");
        let mut newer = ours.clone();
        if newer[..16] == [0; 16] {
            // A checkpoint slot that was never written.
            continue;
        }
        newer[4] += 1;
        sum_up(&mut newer);
        file.write_all_at(&newer, at).expect("write");
        assert_refused(&mut sheep, "written by a newer version");
        file.write_all_at(&ours, at).expect("write");
    }
    // What the superblock says of itself: a feature that nobody knows yet, another cluster.
    let mut ours = vec![0; 4096];
    file.read_exact_at(&mut ours, 0).expect("read");
    for (at, says) in [(74, "written by a newer version"), (40, "belongs to cluster")] {
        let mut other = ours.clone();
        other[at] ^= 1;
        sum_up(&mut other);
        file.write_all_at(&other, 0).expect("write");
        assert_refused(&mut sheep, says);
    }
    file.write_all_at(&ours, 0).expect("write");
    sheep.start();
    assert_kept(&sheep, &content);
}

/// Gives a block that was changed the checksum it should have.
fn sum_up(block: &mut [u8]) {
    block[12..16].fill(0);
    let len = u32::from_le_bytes([block[8], block[9], block[10], block[11]]) as usize;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &block[..16 + len]);
    block[12..16].copy_from_slice(&(sum as u32).to_le_bytes());
}

#[test]
fn the_log_may_be_elsewhere_and_is_missed_when_it_is_gone() {
    let home = tempfile::tempdir().expect("a directory");
    let (logs, store) = (home.path().join("logs"), home.path().join("store"));
    let place = format!("size=64M,dir={}", logs.display());
    // A directory that is not there is not made: it may be a mount point without its mount.
    assert_refused(&mut Sheep::at(&store, &["-j", &place]), "logs");
    std::fs::create_dir(&logs).expect("make a directory");
    let mut sheep = Sheep::at(&store, &["-j", &place]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "1M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[9; 1 << 20]).ok();
    let entries = std::fs::read_dir(&logs).expect("list").map(|entry| entry.expect("an entry"));
    let (links, logged): (Vec<_>, Vec<_>) =
        entries.partition(|entry| entry.path().extension().is_some_and(|end| end == "store"));
    assert_eq!((links.len(), logged.len()), (1, 1));
    assert_eq!(logged[0].metadata().expect("stat").len(), 64 << 20);
    assert_eq!(links[0].path().canonicalize().expect("it leads back"), store);
    sheep.kill();
    // It is remembered, and nobody is told another place in vain.
    let mut without = Sheep::at(&store, &["-j", "size=64M,skip"]);
    without.start();
    let read = without.dog().run(&["vdi", "read", "disk"]).ok().stdout;
    assert!(read == [9; 1 << 20]);
    without.stop();
    let said = without.log();
    assert!(said.contains("-j skip has no effect") && !said.contains("-j size"), "{said}");
    let mut other_size = Sheep::at(&store, &["-j", "size=128M"]);
    other_size.start();
    let said = other_size.log();
    let notice = format!("-j size has no effect: {} has a log of 67108864 bytes", store.display());
    assert!(said.contains(&notice), "{said}");
    other_size.stop();
    let elsewhere = format!("size=64M,dir={}", home.path().display());
    assert_refused(&mut Sheep::at(&store, &["-j", &elsewhere]), "logs, not in");
    let away = home.path().join("away");
    std::fs::rename(&logs, &away).expect("take it away");
    assert_refused(&mut Sheep::at(&store, &[]), "which is not there");
    std::fs::rename(&away, &logs).expect("bring it back");
    sheep.start();
    let read = sheep.dog().run(&["vdi", "read", "disk"]).ok().stdout;
    assert!(read == [9; 1 << 20]);
}

const NOT_OURS: &str = "the log is not this store's: it was replaced or lost its contents";

/// Blocks written one by one, each durable when it is acknowledged; killed, so that they are in the
/// log only.
const BLOCKS: u64 = 100;

fn killed_with_blocks(store: &Path, journal: &str, mark: u64) -> Sheep {
    let registry = format!("local:{}", store.with_extension("db").display());
    let mut sheep = Sheep::at(store, &["-c", &registry, "-j", journal]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "4M"]).ok();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    const FUA: u16 = 1;
    for at in 0..BLOCKS {
        let data = vec![(at + mark) as u8; 4096];
        let reply = client.call(nbd::Command::Write, FUA, at * 4096, 4096, &data);
        assert_eq!(reply.expect("an answer").error, 0);
    }
    sheep.kill();
    sheep
}

#[track_caller]
fn assert_blocks(sheep: &mut Sheep, mark: u64) {
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    for at in 0..BLOCKS {
        let read = client.read(at * 4096, 4096).expect("read");
        assert!(read == vec![(at + mark) as u8; 4096], "block {at}");
    }
    sheep.kill();
}

/// Neither started, nor taken for sound by who only looks.
#[track_caller]
fn assert_log_is_missed(sheep: &mut Sheep) {
    assert_refused(sheep, NOT_OURS);
    let store = sheep.store().display().to_string();
    let mut check = std::process::Command::new(bin("sheep"));
    let check = run(check.args(["store", "check", &store]), b"");
    let said = check.text();
    assert_eq!(check.code, 1, "{said}");
    assert!(said.contains(NOT_OURS) && !said.contains("nothing is wrong"), "{said}");
}

/// Taken for an empty one, it would have acknowledged writes vanish without a line.
#[test]
fn a_log_that_lost_its_contents_is_not_taken_for_an_empty_one() {
    let home = tempfile::tempdir().expect("a directory");
    let store = home.path().join("store");
    let mut sheep = killed_with_blocks(&store, "size=64M", 1);
    let (log, kept) = (store.join("log"), home.path().join("kept"));
    assert_eq!(std::fs::metadata(&log).expect("stat").len(), 64 << 20, "as long as was asked for");
    std::fs::copy(&log, &kept).expect("copy");
    let set_len = |bytes| {
        let file = File::options().write(true).open(&log).expect("open the log");
        file.set_len(bytes).expect("truncate");
    };
    set_len(0);
    set_len(64 << 20);
    assert_log_is_missed(&mut sheep);
    std::fs::copy(&kept, &log).expect("bring it back");
    // One that is too short is told by its length.
    set_len(32 << 20);
    assert_refused(&mut sheep, "has 33554432 bytes instead of 67108864");
    std::fs::copy(&kept, &log).expect("bring it back");
    assert_blocks(&mut sheep, 1);
}

#[test]
fn the_log_of_another_store_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let mut stores = [1, 2].map(|mark| {
        let logs = home.path().join(format!("logs-{mark}"));
        std::fs::create_dir(&logs).expect("make a directory");
        let place = format!("size=64M,dir={}", logs.display());
        killed_with_blocks(&home.path().join(format!("store-{mark}")), &place, mark)
    });
    let [ours, theirs] = stores
        .each_ref()
        .map(|sheep| std::fs::read_link(sheep.store().join("log")).expect("a link"));
    let kept = home.path().join("kept");
    std::fs::copy(&ours, &kept).expect("copy");
    std::fs::copy(&theirs, &ours).expect("put theirs over it");
    assert_log_is_missed(&mut stores[0]);
    // Nothing was written to it.
    assert!(std::fs::read(&ours).expect("read") == std::fs::read(&theirs).expect("read"));
    std::fs::copy(&kept, &ours).expect("bring it back");
    assert_blocks(&mut stores[0], 1);
    assert_blocks(&mut stores[1], 2);
}

#[test]
fn options_that_change_what_is_promised_say_so() {
    let mut sheep = Sheep::with(&["-n", "-D"]);
    let log = std::fs::read_to_string(sheep.store().join("sheep.log")).expect("the log");
    for notice in ["-n: writes are acknowledged before they are durable", "-D has no effect"] {
        assert!(log.contains(notice), "{log}");
    }
    let _ = sheep.dog().run(&["vdi", "create", "disk", "1M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[9; 1 << 20]).ok();
    // The machine is not what dies here.
    sheep.kill();
    sheep.start();
    assert!(sheep.dog().run(&["vdi", "read", "disk"]).ok().stdout == [9; 1 << 20]);
}

#[test]
fn full_and_read_only_disks_are_refused_or_reported() {
    let Some(disk) = SmallFs::new(320 << 20) else {
        return;
    };
    let store = disk.path().join("store");
    let mut sheep = Sheep::at(&store, &[]);
    sheep.start();
    let dog = sheep.dog();
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    let _ = dog.run(&["vdi", "create", "disk", "1G"]).ok();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    let mut written = 0;
    let mut data = vec![0; 1 << 20];
    let error = loop {
        Rng::new(written).fill(&mut data);
        let reply = client.call(nbd::Command::Write, 0, written << 20, 1 << 20, &data);
        match reply.expect("an answer, not a dead sheep").error {
            0 => written += 1,
            error => break error,
        }
        assert!(written < 320, "more was taken than there is");
    };
    assert_eq!(error, 28, "no space");
    assert!(written > 32, "only {written} MiB fit on a disk of 320");
    let check = |client: &mut Client, from: u64| {
        let mut expected = vec![0; 1 << 20];
        for at in from..written {
            Rng::new(at).fill(&mut expected);
            let found = client.read(at << 20, 1 << 20).expect("read");
            assert!(found == expected, "MiB {at} differs");
        }
    };
    check(&mut client, 0);
    // What sheep keeps back is enough to administer it.
    let _ = dog.run(&["vdi", "create", "other", "1G"]).ok();
    let _ = dog.run(&["vdi", "rename", "other", "another"]).ok();
    let _ = dog.run(&["vdi", "delete", "another"]).ok();
    // What is free is an estimate that is put right now and then: some more may fit.
    let refused = (900..1000)
        .map(|at| dog.feed(&["vdi", "write", "disk", &format!("{at}M"), "1M"], &data))
        .find(|ended| ended.code != 0)
        .expect("it is full");
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    // The old line, and why.
    let lines = "Failed to write VDI\nServer has no space for new objects\n";
    assert_eq!(refused.stderr, lines);
    let refused = dog.run(&["vdi", "create", "-P", "other", "64M"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    let lines = |says: &str| {
        let log = std::fs::read_to_string(store.join("sheep.log")).expect("the log");
        log.matches(&format!("the disk {} {says}", store.display())).count()
    };
    assert_eq!((lines("is full"), lines("has space again")), (1, 0), "once, however many tries");
    // An import that stops for it leaves what it made, and says so.
    let image = vec![7; 64 << 20];
    let refused = dog.feed(&["vdi", "import", "image", "-", "--size", "64M"], &image);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    let hint = "\nVDI image stays incomplete: delete it, or import it again\n";
    assert!(refused.stderr.ends_with(hint), "{}", refused.stderr);
    let _ = dog.run(&["vdi", "delete", "image"]).ok();
    // What has its space can be written again, whole chunks too.
    Rng::new(10).fill(&mut data);
    client.write(10 << 20, &data).expect("an overwrite needs no space");
    // Room is made by discarding, on the full disk, and can be used at once.
    let reply = client.call(nbd::Command::Trim, 0, 0, 8 << 20, &[]).expect("an answer");
    assert_eq!(reply.error, 0);
    for at in 0..4 {
        client.write(at << 20, &data).expect("there is room again");
    }
    let reply = client.call(nbd::Command::Trim, 0, 4 << 20, 20 << 20, &[]).expect("an answer");
    assert_eq!(reply.error, 0);
    wait_until("it is said to have space", || lines("has space again") == 1);
    assert_eq!(lines("is full"), 1);
    // And a full disk is no reason not to start.
    drop(client);
    sheep.kill();
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    assert!(client.read(0, 1 << 20).expect("read") == data);
    check(&mut client, 24);
    drop(client);
    sheep.stop();

    disk.set_read_only(true);
    assert_refused(&mut sheep, "store");
    disk.set_read_only(false);
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    check(&mut client, 24);
    drop(client);
    sheep.stop();

    // A new store, nobody's neighbour, where there is no room for its log or for anything at all.
    let elsewhere = disk.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("make a directory");
    disk.fill(8 << 20);
    let mut other = Sheep::at(&elsewhere.join("other"), &[]);
    assert_refused(&mut other, "the log needs");
    disk.fill(0);
    // Which of its files finds no room depends on the odd block that the file system finds again.
    assert_refused_with_any(&mut other, &["is full", "the log needs"]);
    // The first store is none the worse for it, and serves what it has on a disk with no room.
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    check(&mut client, 24);
}

/// Somebody else takes the space that blocks in the log were to come home to: the log cannot be
/// freed, which is said, and it goes on by itself.
#[test]
fn a_disk_filled_by_others_refuses_writes_until_there_is_space() {
    let Some(disk) = SmallFs::new(320 << 20) else {
        return;
    };
    let store = disk.path().join("store");
    let mut sheep = Sheep::at(&store, &["-j", "size=64M"]);
    sheep.start();
    let dog = sheep.dog();
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    let _ = dog.run(&["vdi", "create", "disk", "1G"]).ok();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    // Small and each in a chunk of its own: they go to the log.
    const BLOCKS: u64 = 2048;
    let block = |at: u64| vec![at as u8 | 1; 4096];
    for at in 0..BLOCKS {
        client.write(at << 16, &block(at)).expect("write");
    }
    disk.fill(0);
    disk.fill_to_the_brim();
    wait_until("an overwrite is refused", || {
        (0..BLOCKS).any(|at| client.write(at << 16, &block(at)).is_err())
    });
    let lines = |says: &str| {
        let log = std::fs::read_to_string(store.join("sheep.log")).expect("the log");
        log.matches(&format!("the disk {} {says}", store.display())).count()
    };
    assert_eq!(lines("is full: writes are refused"), 1);
    for name in ["filler", "brim"] {
        std::fs::remove_file(disk.path().join(name)).expect("make room");
    }
    wait_until("writes are taken", || client.write(0, &block(0)).is_ok());
    wait_until("it is said to have space", || lines("has space again") == 1);
    assert_eq!(lines("is full: writes are refused"), 1, "once, however many tries");
    for at in 0..BLOCKS {
        assert!(client.read(at << 16, 4096).expect("read") == block(at), "block {at}");
    }
    drop(client);
    sheep.stop();
}

/// An identity of before the format, put back by mistake: whether the data is still in the log or
/// in its places, it is not prepared anew, and the registry stays where it is.
#[test]
fn an_old_identity_takes_no_data() {
    let mut sheep = Sheep::unformatted(&[]);
    sheep.stop();
    let identity = sheep.store().join("identity");
    let old = std::fs::read(&identity).expect("identity");
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "v", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "v"], &[5; 8 << 20]).ok();
    for killed in [true, false] {
        if killed {
            sheep.kill();
        } else {
            sheep.stop();
        }
        let new = std::fs::read(&identity).expect("identity");
        std::fs::write(&identity, &old).expect("write");
        assert_refused(&mut sheep, " holds data, but its identity knows of no cluster: restore");
        // Nor does another store take what seems to hold nothing for gone.
        let mut other = Sheep::at(&sheep.store().with_file_name("other"), &[]);
        assert_refused(&mut other, "the cluster's data is on disk");
        let registry = sheep.store().with_file_name(".sheepdog-local");
        let aside = std::fs::read_dir(&registry).expect("read").any(|entry| {
            let name = entry.expect("entry").file_name().into_string().expect("UTF-8");
            // With the uuid of its cluster.
            name.strip_prefix("registry.db.").is_some_and(|end| end.len() == 36)
        });
        assert!(!aside, "the registry was moved aside");
        std::fs::write(&identity, &new).expect("write");
        sheep.start();
        assert!(sheep.dog().run(&["vdi", "read", "v"]).ok().stdout == [5; 8 << 20]);
    }
    sheep.stop();
}

/// Nobody writes to these pipes, and nobody reads them: a start does not wait for that.
#[test]
fn a_pipe_in_place_of_a_file_is_refused_at_once() {
    for name in ["store/identity", "store/sheep.log", "disk/identity"] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (file, disk) = (home.path().join(name), home.path().join("disk"));
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("create");
        let mut make = std::process::Command::new("mkfifo");
        assert_eq!(sheepdog_testkit::process::run(make.arg(&file), b"").ok().stderr, "");
        let mut sheep = Sheep::at(&home.path().join("store"), &[]);
        if file.starts_with(&disk) {
            sheep.set_disks(&[&disk]);
        }
        assert_refused(&mut sheep, "it is not a file");
        std::fs::remove_file(&file).expect("remove");
        sheep.start();
        sheep.stop();
    }
}
