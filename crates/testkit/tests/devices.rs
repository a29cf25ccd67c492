//! Raw block devices as disks.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::loopfs::LoopDevice;
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::process::{Ended, run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;

fn sheep_on(home: &Path, devices: &[&LoopDevice]) -> Sheep {
    let mut sheep = Sheep::at(&home.join("store"), &[]);
    name(&mut sheep, devices);
    sheep
}

fn name(sheep: &mut Sheep, devices: &[&LoopDevice]) {
    sheep.set_disks(&devices.iter().map(|device| device.path()).collect::<Vec<_>>());
}

fn offline(words: &[&str]) -> Ended {
    run(Command::new(bin("sheep")).arg("store").args(words), b"")
}

fn info(sheep: &Sheep) -> (u64, u64) {
    let text = sheep.dog().run(&["node", "info", "-r"]).ok().text();
    let fields: Vec<u64> =
        text.lines().next().unwrap_or("").split(' ').filter_map(|f| f.parse().ok()).collect();
    (fields[2], fields[3])
}

#[test]
fn a_device_is_a_disk_with_its_log_on_it() {
    let Some(mut device) = LoopDevice::new(640 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&device]);
    for _ in 0..2 {
        // Twice before the format: what was prepared then holds nothing.
        sheep.start();
        sheep.stop();
    }
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "64M"]).ok();
    let mut content = vec![0; (64 * MIB) as usize];
    Rng::new(5).fill(&mut content);
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    for at in (0..64).step_by(4) {
        let part = &content[(at * MIB) as usize..((at + 4) * MIB) as usize];
        client.write(at * MIB, part).expect("write");
    }
    content[4096..12_288].fill(7);
    client.write(4096, &[7; 8192]).expect("write");
    let (used, available) = info(&sheep);
    assert!((64 * MIB..80 * MIB).contains(&used), "{used}");
    // What is neither log nor kept for checkpoints and deletes.
    assert!((550 * MIB..570 * MIB).contains(&(used + available)), "{used} + {available}");
    sheep.kill();
    let elsewhere = device.path().to_owned();
    device.rename();
    assert_ne!(device.path(), elsewhere);
    name(&mut sheep, &[&device]);
    sheep.start();
    let read = |sheep: &Sheep| {
        let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
        client.read(0, (64 * MIB) as u32 / 4).expect("read")
    };
    assert!(read(&sheep) == content[..(16 * MIB) as usize]);
    sheep.stop();

    // Without any cluster, from the device and from a copy of it.
    let store = sheep.store().to_str().expect("UTF-8").to_owned();
    let image = home.path().join("saved");
    for disk in [device.path(), &device.image()] {
        let dirs = format!("{store},{}", disk.display());
        let words = ["store", "export", &dirs, "disk", "--force"];
        let saved = run(Command::new(bin("sheep")).args(words).arg(&image), b"").ok();
        assert_eq!(saved.stderr, "");
        assert!(fs::read(&image).expect("the image") == content);
        let checked = run(Command::new(bin("sheep")).args(["store", "check", &dirs]), b"").ok();
        assert!(checked.text().contains("nothing is wrong"), "{}", checked.text());
    }
    sheep.start();
    assert!(read(&sheep) == content[..(16 * MIB) as usize]);
    sheep.stop();
}

/// Space runs out by units: writes are refused in time, deletes and restarts work, and what is
/// freed is there at once.
#[test]
fn a_full_device_refuses_writes_and_goes_on() {
    let Some(device) = LoopDevice::new(256 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&device]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "1G"]).ok();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    let piece = vec![9; MIB as usize];
    let mut written = 0;
    while client.write(written * MIB, &piece).is_ok() {
        written += 1;
        assert!(written < 256, "more than the device has");
    }
    assert!(written > 140, "{written} MiB fit");
    // Smaller ones a little longer, each in a chunk of its own.
    let small = (0..64).map(|at| client.write(900 * MIB + at * 65_536, &[1; 4096]));
    let error = small.filter_map(Result::err).next().expect("full");
    assert_eq!(error.to_string(), "the server reports error 28");
    // What has its place can be written again and again, small and large.
    for round in 0..3 {
        for at in 0..written {
            client.write(at * MIB, &piece).expect("an overwrite");
            client.write(at * MIB + 4096, &[round; 4096]).expect("an overwrite");
        }
    }
    drop(client);
    sheep.kill();
    sheep.start();
    let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
    let read = client.read(0, MIB as u32).expect("read");
    assert!(read[..4096] == piece[..4096] && read[4096..8192] == [2; 4096]);
    drop(client);
    let full = info(&sheep);
    let _ = sheep.dog().run(&["vdi", "delete", "disk"]).ok();
    wait_until("the space is back", || info(&sheep).0 < full.0 / 4);
    let _ = sheep.dog().run(&["vdi", "create", "again", "1G"]).ok();
    let mut client = Client::connect(sheep.socket(), "again").expect("connect");
    for at in 0..written - 4 {
        client.write(at * MIB, &piece).expect("there is space again");
    }
    drop(client);
    sheep.stop();
    let log = fs::read_to_string(sheep.store().join("sheep.log")).expect("the log");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_device_with_something_on_it_is_not_taken() {
    let (Some(a), Some(b)) = (LoopDevice::new(256 * MIB), LoopDevice::new(100 * MIB)) else {
        return;
    };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&a]);
    for at in [510, 256 * MIB - 100] {
        let raw = File::options().write(true).open(a.path()).expect("open");
        raw.write_all_at(b"mark", at).expect("write");
        raw.sync_all().expect("sync");
        let (_, said) = sheep.try_start().expect_err("it is not empty");
        assert!(said.contains(&format!("{} is not empty", a.path().display())), "{said}");
        raw.write_all_at(&[0; 4], at).expect("write");
        raw.sync_all().expect("sync");
    }
    name(&mut sheep, &[&b]);
    let (_, said) = sheep.try_start().expect_err("too small");
    assert!(said.contains("needs twice as much"), "{said}");
    name(&mut sheep, &[&a]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    // Another node does not take it, and does not harm it.
    let other_home = home.path().join("other");
    fs::create_dir(&other_home).expect("directory");
    let mut other = sheep_on(&other_home, &[&a]);
    let (_, said) = other.try_start().expect_err("it is in use");
    assert!(said.contains("is in use"), "{said}");
    sheep.stop();
    let (_, said) = other.try_start().expect_err("it is somebody's");
    assert!(said.contains("is not empty"), "{said}");
    sheep.start();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "4M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[3; 4 << 20]).ok();
    sheep.stop();
    // With data nobody is told to clear it: not before the other store has disks, nor after.
    let says = format!("{} is a disk of another node and holds data", a.path().display());
    // Of the one that was too small there is a directory too.
    let links = fs::read_dir(sheep.store().join("disks")).expect("list");
    let ids: Vec<_> = links.map(|dir| dir.expect("a disk").file_name()).collect();
    let refuse = |other: &mut Sheep| {
        let (_, said) = other.try_start().expect_err("it is somebody's");
        assert!(said.contains(&says) && !said.contains("wipefs"), "{said}");
        let names = |id: &std::ffi::OsString| said.contains(&format!("disk {}", id.display()));
        assert!(ids.iter().any(names), "{said}");
    };
    refuse(&mut other);
    assert!(!other.store().exists(), "nothing was made");
    let directory = other_home.join("directory");
    other.set_disks(&[&directory]);
    other.start();
    other.stop();
    name(&mut other, &[&a]);
    refuse(&mut other);
    // Another device in its place is not it.
    name(&mut sheep, &[&b]);
    let (_, said) = sheep.try_start().expect_err("another device");
    assert!(said.contains(&format!("{} is missing from PATH", a.path().display())), "{said}");
    name(&mut sheep, &[&a]);
    sheep.start();
    sheep.stop();
}

/// `O_EXCL`, as who makes a file system or mounts one opens it.
fn is_taken(device: &Path) -> bool {
    const EXCLUSIVE: i32 = 0o200;
    let opened = File::options().read(true).custom_flags(EXCLUSIVE).open(device);
    opened.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
}

/// The log may be on a mount that is late: a start without it is refused and changes nothing, and
/// whoever looks at the device is told where the log is.
#[test]
fn a_device_with_its_log_elsewhere_is_not_opened_without_it() {
    let Some(mut device) = LoopDevice::new(256 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let logs = home.path().join("logs");
    fs::create_dir(&logs).expect("directory");
    let place = format!("size=64M,dir={}", logs.display());
    let mut sheep = Sheep::at(&home.path().join("store"), &["-j", &place]);
    name(&mut sheep, &[&device]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "16M"]).ok();
    let mut content = vec![0; 16 << 20];
    Rng::new(9).fill(&mut content);
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &content).ok();
    // In the log only: nobody could tell from an index that it is gone.
    let _ = sheep.dog().feed(&["vdi", "write", "disk", "4096", "4096"], &[3; 4096]).ok();
    content[4096..8192].fill(3);
    assert!(is_taken(device.path()), "nobody else may use it");
    let store = sheep.store().to_str().expect("UTF-8").to_owned();
    let path = |device: &LoopDevice| device.path().to_str().expect("UTF-8").to_owned();
    for dirs in [path(&device), format!("{store},{}", path(&device)), store.clone()] {
        let busy = offline(&["check", &dirs]);
        assert_eq!((busy.code, busy.stderr.lines().count()), (2, 1), "{dirs}: {}", busy.stderr);
        let line = &busy.stderr;
        assert!(
            line.contains("is in use: by a sheep") || line.contains("a sheep is using"),
            "{line}"
        );
    }
    sheep.kill();
    wait_until("the kernel let go of it", || !is_taken(device.path()));

    let dirs = fs::read_dir(sheep.store().join("disks")).expect("the directory of devices");
    let links: Vec<_> = dirs.map(|entry| entry.expect("entry").path()).collect();
    let [links] = links.as_slice() else { panic!("one device: {links:?}") };
    let log = fs::read_link(links.join("log")).expect("a link");
    let away = home.path().join("away");
    fs::rename(&logs, &away).expect("rename");
    for round in 0..2 {
        let (status, said) = sheep.try_start().expect_err("without its log");
        assert_eq!(status.code(), Some(1), "{said}");
        let line = format!("{}, which is not there: bring it back", log.display());
        assert!(said.contains(&line), "{said}");
        assert_eq!(fs::read_link(links.join("log")).expect("a link"), log, "round {round}");
        let looked = offline(&["check", &format!("{store},{}", path(&device))]);
        assert_eq!((looked.code, looked.stderr.lines().count()), (2, 1), "{}", looked.text());
        assert!(looked.stderr.contains(&line), "{}", looked.stderr);
        // Under another name it is the same.
        device.rename();
        name(&mut sheep, &[&device]);
    }
    fs::rename(&away, &logs).expect("rename");
    sheep.start();
    assert!(sheep.dog().run(&["vdi", "read", "disk"]).ok().stdout == content);
    sheep.stop();

    let alone = offline(&["check", &path(&device)]);
    assert_eq!((alone.code, alone.stderr.lines().count()), (2, 1), "{}", alone.text());
    assert!(alone.stderr.contains("is not on it: name its store too"), "{}", alone.stderr);
    let checked = offline(&["check", &format!("{store},{}", path(&device))]);
    assert_eq!(checked.code, 0, "{}{}", checked.text(), checked.stderr);
    let image = home.path().join("image");
    let words = ["export", &format!("{store},{}", device.image().display()), "disk"];
    let saved = offline(&[&words[..], &[image.to_str().expect("UTF-8")]].concat()).ok();
    assert_eq!(saved.stderr, "");
    assert!(fs::read(&image).expect("the image") == content);
}

/// A device says which blocks are damaged; whether there are other disks only its store knows.
#[test]
fn a_device_alone_can_be_checked() {
    let Some(device) = LoopDevice::new(256 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&device]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "4M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[3; 4 << 20]).ok();
    let path = device.path().to_str().expect("UTF-8");
    let busy = offline(&["check", path]);
    assert_eq!((busy.code, busy.stderr.lines().count()), (2, 1), "{}", busy.stderr);
    assert!(busy.stderr.contains("is in use: by a sheep"), "{}", busy.stderr);
    sheep.stop();
    for path in [path, device.image().to_str().expect("UTF-8")] {
        let checked = offline(&["check", path]);
        let text = checked.text();
        assert!(text.starts_with("missing: other disks of the node, if it has more"), "{text}");
        assert!(!text.contains("damage") && text.contains("1024 blocks of 1 fragments"), "{text}");
        assert_eq!(checked.code, 1);
        let line = format!("a copy of the VDI table, which {path} cannot hold: name the store too");
        assert!(text.contains(&format!("missing: {line}\n")), "{text}");
        let listed = offline(&["list", path]);
        assert_eq!((listed.code, listed.stderr), (1, format!("missing: {line}\n")));
    }
    let all = format!("{},{path}", sheep.store().display());
    assert_eq!(offline(&["check", &all]).code, 0);
    // The store keeps one for each device.
    fs::remove_file(sheep.store().join("table")).expect("remove");
    assert_eq!(offline(&["check", &all]).code, 0);
    assert!(offline(&["list", &all]).ok().text().contains(" disk"));
    // Without its superblock it is damaged, not missing.
    let raw = File::options().write(true).open(device.path()).expect("open");
    raw.write_all_at(&[0; 4096], 0).expect("write");
    raw.sync_all().expect("sync");
    drop(raw);
    let checked = offline(&["check", &all]);
    let line = format!("damage: {path} has no superblock, or a damaged one\n");
    assert!(checked.text().starts_with(&line), "{}", checked.text());
    assert!(!checked.text().contains("missing"), "{}", checked.text());
    assert_eq!(checked.code, 1);
}

#[test]
fn a_device_without_its_superblock_is_lost_unless_there_is_no_other() {
    let (Some(a), Some(b)) = (LoopDevice::new(256 * MIB), LoopDevice::new(256 * MIB)) else {
        return;
    };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&a, &b]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "32M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[3; 32 << 20]).ok();
    sheep.stop();
    let raw = |device: &LoopDevice| {
        File::options().read(true).write(true).open(device.path()).expect("open")
    };
    let swap = |device: &LoopDevice, bytes: &[u8]| {
        let (raw, mut before) = (raw(device), vec![0; 4096]);
        raw.read_exact_at(&mut before, 0).expect("read");
        raw.write_all_at(bytes, 0).expect("write");
        raw.sync_all().expect("sync");
        before
    };
    let of_b = swap(&b, &[0; 4096]);
    sheep.start();
    let shown = sheep.dog().run(&["node", "md", "info"]).ok().text();
    let line = format!("lost: {0}: {0} has no superblock", b.path().display());
    assert!(shown.contains(&line), "{shown}");
    sheep.stop();
    let of_a = swap(&a, &[0; 4096]);
    let (status, said) = sheep.try_start().expect_err("no disk is left");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{} has no superblock", a.path().display())), "{said}");
    swap(&a, &of_a);
    swap(&b, &of_b);
    sheep.start();
    let read = sheep.dog().run(&["vdi", "read", "disk"]).ok();
    assert!(read.stdout == [3; 32 << 20]);
    sheep.stop();
}

/// The device is what it was; what is missing is in the store.
#[test]
fn a_device_without_its_files_in_the_store_names_them() {
    let Some(mut device) = LoopDevice::new(256 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&device]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "4M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[3; 4 << 20]).ok();
    sheep.stop();
    let devices = sheep.store().join("disks");
    let links = fs::read_dir(&devices).expect("list").next().expect("one").expect("one").path();
    let identity = links.join("identity");
    let line = format!("{} is missing: bring that file back from a copy", identity.display());
    for lost in [&identity, &devices] {
        let away = home.path().join("away");
        fs::rename(lost, &away).expect("rename");
        let (status, said) = sheep.try_start().expect_err("no disk is left");
        assert_eq!((status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(&line) && !said.contains("superblock"), "{said}");
        let image = home.path().join("image");
        let dirs = format!("{},{}", sheep.store().display(), device.path().display());
        let saved = offline(&["export", &dirs, "disk", "--force", image.to_str().expect("UTF-8")]);
        assert!(fs::read(&image).expect("the image") == [3; 4 << 20], "{}", saved.stderr);
        // From a copy of it, too.
        for disk in [device.path().to_owned(), device.image()] {
            let dirs = format!("{},{}", sheep.store().display(), disk.display());
            let checked = offline(&["check", &dirs]);
            let line = format!("damage: {} is not there", identity.display());
            assert!(checked.text().starts_with(&line), "{}", checked.text());
            assert_eq!(checked.code, 1);
        }
        // Under another name it is the same.
        device.rename();
        name(&mut sheep, &[&device]);
        fs::rename(&away, lost).expect("rename");
    }
    sheep.start();
    assert!(sheep.dog().run(&["vdi", "read", "disk"]).ok().stdout == [3; 4 << 20]);
    sheep.stop();
}

/// A wrong partition table, a volume made smaller by mistake: what is behind the end may come back.
#[test]
fn a_device_that_became_smaller_is_not_written_to() {
    let Some(mut device) = LoopDevice::new(512 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&device]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "64M"]).ok();
    let mut content = vec![0; 64 << 20];
    Rng::new(7).fill(&mut content);
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &content).ok();
    sheep.stop();
    sheep.start();
    // To other units, which only the log names.
    Rng::new(8).fill(&mut content[..16 << 20]);
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &content[..16 << 20]).ok();
    sheep.kill();
    let start_of = |device: &LoopDevice| {
        let mut start = vec![0; 100 << 20];
        File::open(device.image()).expect("open").read_exact_at(&mut start, 0).expect("read");
        start
    };
    for bytes in [140 * MIB, 100 * MIB] {
        device.show(bytes);
        name(&mut sheep, &[&device]);
        let before = start_of(&device);
        let (status, said) = sheep.try_start().expect_err("it is smaller");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("outside of the disk"), "{bytes}: {said}");
        let dirs = format!("{},{}", sheep.store().display(), device.path().display());
        let checked = offline(&["check", &dirs]);
        let text = checked.text();
        assert_eq!(checked.code, 1, "{bytes}: {text}");
        let line = "is in use and outside of the disk";
        assert!(bytes == 100 * MIB || text.contains(line), "{bytes}: {text}");
        assert!(start_of(&device) == before, "{bytes}: something was written");
    }
    device.show(0);
    name(&mut sheep, &[&device]);
    sheep.start();
    assert!(sheep.dog().run(&["vdi", "read", "disk"]).ok().stdout == content);
    sheep.stop();
}

/// As with a directory: an identity of before the format takes no data.
#[test]
fn a_device_with_data_is_not_prepared_again() {
    let Some(device) = LoopDevice::new(256 * MIB) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&device]);
    sheep.start();
    let identity = sheep.store().join("identity");
    let old = fs::read(&identity).expect("identity");
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "v", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "v"], &[5; 8 << 20]).ok();
    sheep.stop();
    let new = fs::read(&identity).expect("identity");
    fs::write(&identity, &old).expect("write");
    let (_, said) = sheep.try_start().expect_err("there is data");
    let path = device.path().display();
    assert!(said.contains(&format!("the disk {path} holds data, but its identity")), "{said}");
    fs::write(&identity, &new).expect("write");
    sheep.start();
    assert!(sheep.dog().run(&["vdi", "read", "v"]).ok().stdout == [5; 8 << 20]);
    sheep.stop();
}

/// What two names of one device show is not taken for two disks, blank or not.
#[test]
fn a_device_with_two_names_is_one_disk() {
    let Some(one) = LoopDevice::new(256 * MIB) else { return };
    let Some(other) = LoopDevice::at(&one.image()) else { return };
    let home = tempfile::tempdir().expect("directory");
    let mut sheep = sheep_on(home.path(), &[&one, &other]);
    let same = format!("{} and {} are the same disk", one.path().display(), other.path().display());
    for _ in 0..2 {
        // Blank first, then prepared under the first name.
        let (_, said) = sheep.try_start().expect_err("it is one disk");
        assert!(said.contains(&same), "{said}");
    }
    let node = home.path().join("node");
    let made = run(Command::new("cp").arg("-a").args([one.path(), &node]), b"").ok();
    assert_eq!(made.stderr, "");
    sheep.set_disks(&[one.path(), &node]);
    let (_, said) = sheep.try_start().expect_err("it is one disk");
    assert!(said.contains(&format!("PATH names {} twice", node.display())), "{said}");
    // Named once it is taken, under either name.
    name(&mut sheep, &[&other]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let _ = sheep.dog().run(&["vdi", "create", "v", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "v"], &[5; 8 << 20]).ok();
    sheep.stop();
    name(&mut sheep, &[&one, &other]);
    let (_, said) = sheep.try_start().expect_err("it is one disk");
    assert!(said.contains("is not a disk of the store"), "{said}");
    name(&mut sheep, &[&one]);
    sheep.start();
    assert!(sheep.dog().run(&["vdi", "read", "v"]).ok().stdout == [5; 8 << 20]);
    sheep.stop();
}
