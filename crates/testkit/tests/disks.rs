//! What a VDI is to its users: exact sizes, names, growth, deletion, reserved space.

use sheepdog_testkit::Server;
use sheepdog_testkit::kept::{KEPT, assert_kept, sheep_with_kept};
use sheepdog_testkit::loopfs::SmallFs;
use sheepdog_testkit::nbd::{Client, Command, connect};
use sheepdog_testkit::process::{Process, run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::{Sheep, free_port};
use sheepdog_testkit::tools::command;
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;
/// What a store without data holds: space kept ready for its index.
const EMPTY: u64 = 4 * MIB;
/// The protocol's number for a disk that is full, and for a write beyond its end.
const ENOSPC: u32 = 28;

fn open(sheep: &Sheep, export: &str) -> Client {
    Client::connect(sheep.socket(), export).unwrap_or_else(|e| panic!("{export:?}: {e}"))
}

/// Does something when it goes, also when that is because of a panic.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The fields of a VDI's raw line.
fn listed(sheep: &Sheep, name: &str) -> Vec<String> {
    let list = sheep.dog().run(&["vdi", "list", "-r", name]).ok().text();
    assert_eq!(list.lines().count(), 1, "{list}");
    list.trim_end().split(' ').map(str::to_owned).collect()
}

/// Bytes that the store occupies of its host: what the file system says, and what sheep says.
fn occupied(sheep: &Sheep) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(sheep.store().join("data")).expect("the data file");
    (data.blocks() * 512, used(sheep))
}

/// Bytes that sheep says it uses, those of its index included.
fn used(sheep: &Sheep) -> u64 {
    let info = sheep.dog().run(&["node", "info", "-r"]).ok().text();
    let used = info.lines().next().and_then(|line| line.split(' ').nth(2));
    used.expect("a line").parse().expect("a number")
}

#[test]
fn sizes_are_exact_to_the_byte() {
    let mut sheep = Sheep::new();
    let dog = sheep.dog();
    // Neither is a multiple of anything, and a double can hold neither.
    let sizes = [("odd", (1u64 << 53) + 1), ("huge", (16 << 50) - 1), ("none", 0), ("one", 1)];
    for (name, size) in sizes {
        let _ = dog.run(&["vdi", "create", "-y", name, &size.to_string()]).ok();
    }
    for _ in 0..2 {
        for (name, size) in sizes {
            assert_eq!(listed(&sheep, name)[3], size.to_string());
            let mut client = open(&sheep, name);
            assert_eq!(client.sender.size(), size);
            let Some(last) = size.checked_sub(1) else {
                continue;
            };
            client.write(last, b"!").expect("write the last byte");
            assert_eq!(client.read(last, 1).expect("read"), b"!");
            let beyond = client.call(Command::Write, 0, size, 1, b"!");
            assert_eq!(beyond.expect("an answer").error, ENOSPC);
            let read = dog.run(&["vdi", "read", name, &last.to_string()]).ok();
            assert_eq!(read.stdout, b"!");
        }
        sheep.kill();
        sheep.start();
    }
    // One byte more.
    let grown = ((1u64 << 53) + 2).to_string();
    let _ = dog.run(&["vdi", "resize", "odd", &grown]).ok();
    assert_eq!(listed(&sheep, "odd")[3], grown);
    let mut client = open(&sheep, "odd");
    assert_eq!(client.read(1 << 53, 2).expect("read"), b"!\0");
}

#[test]
fn objects_are_as_large_as_asked_for() {
    let sheep = Sheep::new();
    let dog = sheep.dog();
    // The largest size of each without -y.
    for (shift, size) in [(20u32, 1u64 << 40), (22, 1 << 42), (31, 1 << 51)] {
        let name = format!("objects{shift}");
        let create = ["vdi", "create", "-z", &shift.to_string(), &name];
        let _ = dog.run(&[&create[..], &[&size.to_string()]].concat()).ok();
        let mut client = open(&sheep, &name);
        let object = 1u64 << shift;
        let mut data = vec![0; 8192];
        Rng::new(object).fill(&mut data);
        // Across the border of the first two objects, and in the last one.
        for at in [object - 4096, size - 8192] {
            client.write(at, &data).expect("write");
            assert!(client.read(at, 8192).expect("read") == data, "{shift}");
        }
        let line = listed(&sheep, &name);
        assert_eq!(line[3], size.to_string());
        assert_eq!(line[4], (3 * object).to_string(), "used, {shift}");
        assert_eq!(line[10], shift.to_string());
        let info = dog.run(&["vdi", "info", "--json", &name]).ok().text();
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(info["stored"], 4 * 4096, "{info}");
    }
}

#[test]
fn growth_is_seen_by_the_next_connection() {
    let (mut sheep, content) = sheep_with_kept();
    let mut old = open(&sheep, "kept");
    let _ = sheep.dog().run(&["vdi", "resize", "kept", "16M"]).ok();
    // Whoever is connected keeps the disk it was given.
    assert_eq!(old.read(0, 4096).expect("it lives"), &content[..4096]);
    let beyond = old.call(Command::Write, 0, KEPT, 1, b"x");
    assert_eq!(beyond.expect("an answer").error, ENOSPC);
    let mut new = open(&sheep, "kept");
    assert_eq!(new.sender.size(), 2 * KEPT);
    let zeros = vec![0; KEPT as usize];
    assert!(new.read(KEPT, KEPT as u32).expect("read") == zeros);
    new.write(2 * KEPT - 1, b"x").expect("write");
    sheep.kill();
    sheep.start();
    let mut new = open(&sheep, "kept");
    assert_eq!(new.sender.size(), 2 * KEPT);
    assert!(new.read(0, KEPT as u32).expect("read") == content);
    assert_eq!(new.read(2 * KEPT - 2, 2).expect("read"), b"\0x");
}

#[test]
fn a_renamed_vdi_is_the_same_disk() {
    let (mut sheep, mut content) = sheep_with_kept();
    let dog = sheep.dog();
    let mut old = open(&sheep, "kept");
    let _ = dog.run(&["vdi", "rename", "kept", "other"]).ok();
    old.write(5, b"under way").expect("the connection lives");
    content[5..14].copy_from_slice(b"under way");
    assert!(Client::connect(sheep.socket(), "kept").is_err());
    assert_eq!(open(&sheep, "other").read(5, 9).expect("read"), b"under way");
    sheep.kill();
    sheep.start();
    // The old name is free.
    let _ = dog.run(&["vdi", "create", "kept", "1M"]).ok();
    let taken = dog.run(&["vdi", "rename", "other", "kept"]);
    assert_eq!(taken.code, 1, "{}", taken.stderr);
    assert!(taken.stderr.contains("VDI exists already"), "{}", taken.stderr);
    let _ = dog.run(&["vdi", "delete", "kept"]).ok();
    let _ = dog.run(&["vdi", "rename", "other", "kept"]).ok();
    assert_kept(&sheep, &content);
}

#[test]
fn names_are_looked_up_whole_first() {
    let sheep = Sheep::new();
    let dog = sheep.dog();
    let names = ["disk", "disk@tag", "@", "a b/c?d", "Schäfer🐑", "0"];
    for (number, name) in names.iter().enumerate() {
        let _ = dog.run(&["vdi", "create", "--", name, "1M"]).ok();
        let mut client = open(&sheep, name);
        client.write(0, &[number as u8 + 1]).expect("write");
    }
    for (number, name) in names.iter().enumerate() {
        let found = open(&sheep, name).read(0, 1).expect("read");
        assert_eq!(found, [number as u8 + 1], "{name}");
    }
    for name in ["", "disk@", "disk@other", "disk@0", "dis", "disk@tag@tag"] {
        let error = connect(sheep.socket(), name).expect_err(name);
        assert!(error.to_string().contains("refused"), "{name}: {error}");
    }
}

#[test]
fn a_deleted_vdi_is_gone_and_so_is_its_space() {
    let (mut sheep, content) = sheep_with_kept();
    let dog = sheep.dog();
    let mut data = vec![0; 1 << 20];
    let mut states = Vec::new();
    for round in 0..4 {
        let _ = dog.run(&["vdi", "create", "disk", "1G"]).ok();
        let mut client = open(&sheep, "disk");
        // Large and small writes, and space that was only reserved.
        for at in 0..48 {
            Rng::new(at).fill(&mut data);
            client.write(at << 22, &data).expect("write");
            client.write((at << 22) + 3 * MIB + 17, &data[..5000]).expect("write");
        }
        let reserved = client.call(Command::WriteZeroes, 2, 900 * MIB, 8 << 20, &[]);
        assert_eq!(reserved.expect("an answer").error, 0);
        let (on_disk, used) = occupied(&sheep);
        assert!(used >= KEPT + 56 * MIB, "{used}");
        assert!(on_disk >= KEPT + 48 * MIB, "{on_disk}");
        let _ = dog.run(&["vdi", "delete", "disk"]).ok();
        // Whoever had it open is cut off, and nobody gets it any more.
        assert!(client.read(0, 4096).is_err());
        assert!(Client::connect(sheep.socket(), "disk").is_err());
        if round == 2 {
            // A deletion that is interrupted goes on after the restart.
            sheep.kill();
            sheep.start();
        }
        wait_until("the space is back", || occupied(&sheep).1 < EMPTY + KEPT + MIB);
        // A clean end brings everything home.
        sheep.stop();
        sheep.start();
        states.push(occupied(&sheep));
    }
    let (first, last) = (states[0], states[states.len() - 1]);
    assert_eq!(first.1, last.1, "blocks are left behind: {states:?}");
    assert!(last.0 <= EMPTY + KEPT + MIB, "space is left behind: {states:?}");
    // The same name again is another disk.
    let _ = dog.run(&["vdi", "create", "disk", "1G"]).ok();
    assert_eq!(open(&sheep, "disk").read(0, 4096).expect("read"), [0; 4096]);
    let _ = dog.run(&["vdi", "delete", "disk"]).ok();
    assert_kept(&sheep, &content);
}

#[test]
fn a_deletion_races_with_clients_and_leaves_nothing() {
    let (mut sheep, content) = sheep_with_kept();
    let dog = sheep.dog();
    // A clean end brings everything home: what is held now is what will be held without the others.
    sheep.stop();
    sheep.start();
    let before = used(&sheep);
    let done = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut written = 0;
                    while !done.load(Ordering::Relaxed) {
                        let Ok(mut client) = Client::connect(sheep.socket(), "disk") else {
                            continue;
                        };
                        for at in 0..8 {
                            written += u32::from(client.write(at << 22, &[7; 4096]).is_ok());
                        }
                    }
                    written
                })
            })
            .collect();
        {
            // Also when dog fails: the scope waits for the clients before it passes the panic on.
            let _end = OnDrop(|| done.store(true, Ordering::Relaxed));
            for _ in 0..60 {
                let _ = dog.run(&["vdi", "create", "disk", "64M"]).ok();
                let _ = dog.run(&["vdi", "delete", "disk"]).ok();
            }
        }
        let written = clients.into_iter().map(|c| c.join().expect("a client"));
        written.sum::<u32>()
    });
    assert!(written > 100, "they never met: {written}");
    // Nothing was written to a VDI that was gone.
    wait_until("the space is back", || used(&sheep) <= before);
    assert_kept(&sheep, &content);
}

#[test]
fn a_second_format_leaves_nothing_of_the_first() {
    let (mut sheep, _) = sheep_with_kept();
    let dog = sheep.dog();
    let mut old = open(&sheep, "kept");
    let _ = dog.run(&["cluster", "format", "-f", "-c", "1"]).ok();
    assert!(old.read(0, 4096).is_err(), "its disk is gone");
    assert_eq!(dog.run(&["vdi", "list", "-r"]).ok().text(), "");
    for _ in 0..2 {
        let _ = dog.run(&["vdi", "create", "kept", "8M"]).ok();
        let zeros = vec![0; KEPT as usize];
        assert!(open(&sheep, "kept").read(0, KEPT as u32).expect("read") == zeros);
        let _ = dog.run(&["vdi", "delete", "kept"]).ok();
        wait_until("the space is back", || occupied(&sheep).1 < EMPTY + MIB);
        sheep.kill();
        sheep.start();
    }
}

#[test]
fn reserved_space_is_there_when_the_disk_is_full() {
    let Some(disk) = SmallFs::new(512 << 20) else {
        return;
    };
    let mut sheep = Sheep::at(&disk.path().join("store"), &["-j", "size=64M"]);
    sheep.start();
    let dog = sheep.dog();
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    let before = disk.free();
    let _ = dog.run(&["vdi", "create", "-P", "thick", "32M"]).ok();
    assert!(disk.free() <= before - 32 * MIB, "nothing was reserved");
    // More than there is cannot be reserved, and nothing half-made stays.
    let refused = dog.run(&["vdi", "create", "-P", "large", "2G"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert_eq!(dog.run(&["vdi", "list", "-r", "large"]).ok().text(), "");
    // Somebody else takes the rest of the file system.
    disk.fill(0);
    let mut client = open(&sheep, "thick");
    let mut data = vec![0; 1 << 20];
    for at in 0..32 {
        Rng::new(at).fill(&mut data);
        client.write(at << 20, &data).unwrap_or_else(|e| panic!("MiB {at}: {e}"));
    }
    sheep.kill();
    sheep.start();
    let mut client = open(&sheep, "thick");
    for at in 0..32 {
        Rng::new(at).fill(&mut data);
        assert!(client.read(at << 20, 1 << 20).expect("read") == data, "{at}");
    }
    sheep.stop();
}

#[test]
fn a_sheep_starts_on_a_disk_that_others_filled_to_the_brim() {
    let Some(disk) = SmallFs::new(256 << 20) else {
        return;
    };
    let mut sheep = Sheep::at(&disk.path().join("store"), &["-j", "size=64M"]);
    sheep.start();
    let dog = sheep.dog();
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    let _ = dog.run(&["vdi", "create", "-P", "thick", "8M"]).ok();
    let mut data = vec![0; 1 << 20];
    for round in 0..6 {
        disk.fill_to_the_brim();
        if round % 3 == 2 {
            sheep.stop();
        } else {
            sheep.kill();
        }
        // And what its end gave back is taken, too.
        disk.fill_to_the_brim();
        sheep.start();
        Rng::new(round).fill(&mut data);
        let mut client = open(&sheep, "thick");
        client.write(round << 20, &data).expect("it has its space");
        assert!(client.read(round << 20, 1 << 20).expect("read") == data);
    }
    // Where nothing can be written, something can still be deleted.
    let _ = dog.run(&["vdi", "delete", "thick"]).ok();
    sheep.stop();
}

#[test]
fn a_vdi_says_it_has_its_space_only_when_it_has() {
    let mut sheep = Sheep::new();
    let mut create = sheep.dog().command();
    create.args(["vdi", "create", "-P", "thick", "64G"]);
    let log = tempfile::NamedTempFile::new().expect("a log");
    let mut create = Process::spawn("dog", &mut create, log.path());
    wait_until("it is begun", || {
        !sheep.dog().run(&["vdi", "list", "-r", "thick"]).ok().text().is_empty()
    });
    sheep.kill();
    create.kill();
    sheep.start();
    assert!(Client::connect(sheep.socket(), "thick").is_err(), "half of it is not what was asked");
    let info = sheep.dog().run(&["vdi", "info", "thick", "--json"]).ok().text();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["state"], "incomplete", "{info}");
    // Asked for again, it is made.
    let _ = sheep.dog().run(&["vdi", "create", "-P", "thick", "16M"]).ok();
    open(&sheep, "thick").write(0, b"x").expect("write");
}

#[test]
fn the_tcp_door_is_another_door_to_the_same_disks() {
    let port = free_port();
    let sheep = Sheep::with(&[&format!("--nbd={port}")]);
    let _ = sheep.dog().run(&["vdi", "create", "disk", "8M"]).ok();
    let uri = format!("nbd://127.0.0.1:{port}/disk");
    let mut io = command("qemu-io");
    io.args(["-f", "raw", "-c", "write -P 7 1000 70000", &uri]);
    let _ = run(&mut io, b"").ok();
    let found = open(&sheep, "disk").read(1000, 70000).expect("read");
    assert!(found.iter().all(|b| *b == 7));
    let info = run(command("nbdinfo").args(["--json", &uri]), b"").ok().text();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    let export = &info["exports"][0];
    for able in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
        assert_eq!(export[format!("can_{able}")], true, "{able}: {export:#}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(info["structured"], true);
}

#[test]
fn a_dog_that_is_killed_while_it_writes_leaves_old_or_new() {
    let (sheep, content) = sheep_with_kept();
    let new = vec![0xa5; KEPT as usize];
    for kib in [0, 1, 500, 3000, 7000] {
        let mut write = sheep.dog().command();
        write.args(["vdi", "write", "kept"]);
        let log = tempfile::NamedTempFile::new().expect("a log");
        let mut write = Process::spawn_with_input("dog", &mut write, Stdio::piped(), log.path());
        let mut input = write.child().stdin.take().expect("piped");
        input.write_all(&new[..kib << 10]).expect("feed");
        write.kill();
        let read = sheep.dog().run(&["vdi", "read", "kept"]).ok().stdout;
        for (at, block) in read.chunks(4096).enumerate() {
            let range = at * 4096..(at + 1) * 4096;
            let fed = range.end <= kib << 10;
            assert!(
                block == &content[range.clone()] || (fed && block == &new[range]),
                "{kib} KiB were fed; block {at} is neither old nor new"
            );
        }
        let _ = sheep.dog().feed(&["vdi", "write", "kept"], &content).ok();
    }
    assert_kept(&sheep, &content);
}
