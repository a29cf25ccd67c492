//! Raw block devices as disks.

use sheepdog_testkit::Server;
use sheepdog_testkit::bins::bin;
use sheepdog_testkit::loopfs::LoopDevice;
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::process::{run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
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
    // Another device in its place is not it.
    name(&mut sheep, &[&b]);
    let (_, said) = sheep.try_start().expect_err("another device");
    assert!(said.contains(&format!("{} is missing from PATH", a.path().display())), "{said}");
    name(&mut sheep, &[&a]);
    sheep.start();
    sheep.stop();
}
