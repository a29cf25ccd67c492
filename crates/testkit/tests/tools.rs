//! Other people's tools judge the NBD door and the images.

use sheepdog_testkit::Server;
use sheepdog_testkit::process::{Ended, run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::tools::command;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

fn tool(words: &[&str]) -> Ended {
    run(command(words[0]).args(&words[1..]), b"")
}

/// A raw image with data of odd places and lengths, and holes.
fn image(dir: &Path, bytes: u64, seed: u64) -> PathBuf {
    let path = dir.join("image.raw");
    let file = File::create(&path).expect("create");
    file.set_len(bytes).expect("size");
    let mut rng = Rng::new(seed);
    for _ in 0..40 {
        let mut data = vec![0; usize::try_from(1 + rng.below(300_000)).expect("small")];
        rng.fill(&mut data);
        let at = rng.below(bytes - data.len() as u64);
        file.write_all_at(&data, at).expect("write");
    }
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn qemu_img_converts_and_compares() {
    let home = tempfile::tempdir().expect("a temporary directory");
    // Not a multiple of anything but a sector.
    let bytes = 37 * MIB + 512 * 3;
    let raw = image(home.path(), bytes, 1);
    let sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", &bytes.to_string()]).ok();
    let uri = sheep.uri("disk");
    let _ = tool(&["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", text(&raw), &uri]).ok();
    let _ = tool(&["qemu-img", "compare", "-f", "raw", "-F", "raw", text(&raw), &uri]).ok();
    let back = home.path().join("back.qcow2");
    let _ = tool(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", &uri, text(&back)]).ok();
    let _ =
        tool(&["qemu-img", "compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&back)]).ok();
}

#[test]
fn images_come_in_and_go_out() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let bytes = 37 * MIB + 512 * 3;
    let raw = image(home.path(), bytes, 2);
    let sheep = Sheep::new();
    let dog = sheep.dog();
    for (name, options) in [("plain", &[][..]), ("packed", &["-c"])] {
        let qcow2 = home.path().join(format!("{name}.qcow2"));
        let mut convert = command("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2"]).args(options);
        let _ = run(convert.arg(&raw).arg(&qcow2), b"").ok();
        let _ = dog.run(&["vdi", "import", name, text(&qcow2)]).ok();
        let uri = sheep.uri(name);
        let _ = tool(&["qemu-img", "compare", "-f", "raw", "-F", "raw", text(&raw), &uri]).ok();
    }
    let _ = dog.run(&["vdi", "import", "bare", text(&raw)]).ok();
    let out = home.path().join("out.raw");
    let _ = dog.run(&["vdi", "export", "bare", text(&out)]).ok();
    assert!(std::fs::read(&out).expect("read") == std::fs::read(&raw).expect("read"));
    let out = home.path().join("out.qcow2");
    let _ = dog.run(&["vdi", "export", "packed", text(&out)]).ok();
    let _ = tool(&["qemu-img", "check", "-f", "qcow2", text(&out)]).ok();
    let _ = tool(&["qemu-img", "compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&out)]).ok();
}

#[test]
fn nbdcopy_copies_both_ways() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let bytes = 21 * MIB + 512;
    let raw = image(home.path(), bytes, 3);
    let sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", &bytes.to_string()]).ok();
    // Four connections: multi-conn.
    let _ = tool(&["nbdcopy", "--connections=4", text(&raw), &sheep.uri("disk")]).ok();
    let back = home.path().join("back.raw");
    let _ = tool(&["nbdcopy", "--connections=4", &sheep.uri("disk"), text(&back)]).ok();
    assert!(std::fs::read(&back).expect("read") == std::fs::read(&raw).expect("read"));
}

/// `nbdinfo --map` as (offset, length, description), neighbours of one kind merged.
fn map(uri: &str) -> Vec<(u64, u64, String)> {
    let listed = tool(&["nbdinfo", "--map", "--json", uri]).ok().text();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let mut extents: Vec<(u64, u64, String)> = Vec::new();
    for extent in listed.as_array().expect("a list") {
        let number = |key: &str| extent[key].as_u64().expect("a number");
        let kind = extent["description"].as_str().expect("a text").to_owned();
        match extents.last_mut() {
            Some(last) if last.2 == kind => last.1 += number("length"),
            _ => extents.push((number("offset"), number("length"), kind)),
        }
    }
    extents
}

#[test]
fn nbdinfo_shows_exports_and_maps() {
    let sheep = Sheep::new();
    let dog = sheep.dog();
    let _ = dog.run(&["vdi", "create", "thin", "32M"]).ok();
    let _ = dog.run(&["vdi", "create", "-P", "thick", "8M"]).ok();
    let size = tool(&["nbdinfo", "--size", &sheep.uri("thin")]).ok().text();
    assert_eq!(size.trim(), (32 * MIB).to_string());
    let list = format!("nbd+unix:///?socket={}", sheep.socket().display());
    let listed = tool(&["nbdinfo", "--list", "--json", &list]).ok().text();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let exports = listed["exports"].as_array().expect("a list");
    let mut names: Vec<_> =
        exports.iter().map(|e| e["export-name"].as_str().expect("a name")).collect();
    names.sort_unstable();
    assert_eq!(names, ["thick", "thin"]);

    assert_eq!(map(&sheep.uri("thin")), [(0, 32 * MIB, "hole,zero".to_owned())]);
    assert_eq!(map(&sheep.uri("thick")), [(0, 8 * MIB, "zero".to_owned())]);
    // Across the border between two fragments, and one block of the last.
    let mut write = command("qemu-io");
    write.args(["-f", "raw", "-c", "write -P 1 3M 2M", "-c", "write -P 2 32764k 4k"]);
    let _ = run(write.arg(sheep.uri("thin")), b"").ok();
    let (hole, data) = ("hole,zero".to_owned(), "data".to_owned());
    let expected = [
        (0, 3 * MIB, hole.clone()),
        (3 * MIB, 2 * MIB, data.clone()),
        (5 * MIB, 27 * MIB - 4096, hole),
        (32 * MIB - 4096, 4096, data),
    ];
    assert_eq!(map(&sheep.uri("thin")), expected);
}

#[test]
fn qemu_io_patterns_hold_through_kill_9() {
    patterns_hold("auto");
}

#[test]
fn qemu_io_patterns_hold_without_io_uring() {
    patterns_hold("blocking");
}

fn patterns_hold(engine: &str) {
    let mut sheep = Sheep::with(&["--io", engine]);
    let _ = sheep.dog().run(&["vdi", "create", "disk", "16M"]).ok();
    let io = |sheep: &Sheep, commands: &[&str]| {
        let mut io = command("qemu-io");
        io.args(["-f", "raw"]);
        for command in commands {
            io.args(["-c", command]);
        }
        let ended = run(io.arg(sheep.uri("disk")), b"").ok();
        // qemu-io exits 0 on a pattern that does not hold.
        let said = format!("{}{}", ended.text(), ended.stderr);
        assert!(!said.contains("failed"), "{said}");
    };
    io(
        &sheep,
        &[
            "write -P 0x11 0 16M",
            "write -P 0x22 512 512",
            "write -f -P 0x33 4095k 2k",
            "write -P 0x44 1000001 77777",
            "write -z 8M 1M",
            "write -z -u 10M 1M",
            "discard 12M 2M",
            "aio_write -P 0x55 15M 64k",
            "aio_write -P 0x66 15808k 64k",
            "aio_flush",
            "flush",
        ],
    );
    let patterns = [
        "read -P 0x11 0 512",
        "read -P 0x22 512 512",
        "read -P 0x11 1024 998977",
        "read -P 0x44 1000001 77777",
        "read -P 0x33 4095k 2k",
        "read -P 0x11 4097k 4095k",
        "read -P 0 8M 1M",
        "read -P 0x11 9M 1M",
        "read -P 0 10M 1M",
        "read -P 0x11 11M 1M",
        "read -P 0 12M 2M",
        "read -P 0x11 14M 1M",
        "read -P 0x55 15M 64k",
        "read -P 0x66 15808k 64k",
    ];
    io(&sheep, &patterns);
    sheep.kill();
    sheep.start();
    io(&sheep, &patterns);
    sheep.stop();
    sheep.start();
    io(&sheep, &patterns);
}

#[test]
fn fio_verifies_unaligned_traffic() {
    let sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "32M"]).ok();
    let mut fio = command("fio");
    fio.current_dir(sheep.store().parent().expect("a parent"))
        .args(["--name=job", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-96k"])
        .args(["--blockalign=512", "--iodepth=16", "--size=32M", "--verify=crc32c"])
        .args(["--verify_state_save=0", "--verify_fatal=1"])
        .arg(format!("--uri={}", sheep.uri("disk")));
    let _ = run(&mut fio, b"").ok();
}

#[test]
fn discarded_space_returns_to_the_host() {
    let mut sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "64M"]).ok();
    let store = sheep.store().to_owned();
    let used = || -> u64 {
        let du = run(std::process::Command::new("du").args(["-s", "-B1"]).arg(&store), b"");
        let du = du.ok().text();
        let number = du.split_whitespace().next().expect("a number");
        number.parse().expect("a number")
    };
    let io = |sheep: &Sheep, words: &[&str]| {
        let mut io = command("qemu-io");
        io.args(["-f", "raw"]);
        for word in words {
            io.args(["-c", word]);
        }
        let _ = run(io.arg(sheep.uri("disk")), b"").ok();
    };
    let before = used();
    io(&sheep, &["write -P 7 0 48M"]);
    let full = used();
    assert!(full >= before + 48 * MIB, "{before} {full}");
    // While it runs, and but for what is still used.
    io(&sheep, &["discard 0 16M", "discard 17M 31M"]);
    wait_until("space returns", || used() <= before + 2 * MIB);
    assert_eq!(
        map(&sheep.uri("disk")),
        [
            (0, 16 * MIB, "hole,zero".to_owned()),
            (16 * MIB, MIB, "data".to_owned()),
            (17 * MIB, 47 * MIB, "hole,zero".to_owned())
        ]
    );
    // Single blocks too, between blocks that stay.
    io(&sheep, &["write -P 7 32M 8M"]);
    let words: Vec<_> = (0..1024).map(|at| format!("discard {}k 4k", 32768 + 8 * at)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    io(&sheep, &words);
    wait_until("space returns", || used() <= before + 6 * MIB);
    sheep.stop();
    assert!(used() <= before + 6 * MIB);
    assert!(used() >= before + 5 * MIB);
}

#[test]
fn the_largest_disk_is_usable_to_its_last_byte() {
    let sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "-y", "huge", "16P"]).ok();
    let uri = sheep.uri("huge");
    let size = tool(&["nbdinfo", "--size", &uri]).ok().text();
    assert_eq!(size.trim(), (16u64 << 50).to_string());
    let mut io = command("qemu-io");
    io.args(["-f", "raw", "-c", "write -P 9 18014398509481472 512"]);
    io.args(["-c", "read -P 9 18014398509481472 512", "-c", "read -P 0 1P 64k"]);
    let ended = run(io.arg(&uri), b"").ok();
    assert!(!ended.text().contains("failed"), "{}", ended.text());
}
