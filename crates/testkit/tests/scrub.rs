//! What rots unseen is found, named once, counted, and never read as something else.

use sheepdog_testkit::Server;
use sheepdog_testkit::kept::{KEPT, sheep_with_kept};
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::process::wait_until;
use sheepdog_testkit::sheep::Sheep;
use std::fs;
use std::os::unix::fs::FileExt;

/// The disk's part of `node info --json`.
fn health(sheep: &Sheep) -> serde_json::Value {
    let info = sheep.dog().run(&["node", "info", "--json"]).ok().text();
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    info["nodes"][0]["disks"][0].clone()
}

#[test]
fn rot_is_found_while_the_disk_is_idle() {
    let (mut sheep, content) = sheep_with_kept();
    sheep.stop();
    let data = sheep.store().join("data");
    let bytes = fs::read(&data).expect("the data");
    let file = fs::File::options().write(true).open(&data).expect("the data");
    for mib in [2, 5] {
        let block = &content[mib << 20..(mib << 20) + 4096];
        let at = bytes.chunks(4096).position(|found| found == block).expect("it is at home");
        file.write_all_at(b"rot", at as u64 * 4096 + 7).expect("damage it");
    }
    sheep.start();
    wait_until("the scrub has read all", || health(&sheep)["scrub"]["passes"] == 1);
    let found = health(&sheep);
    assert_eq!(found["scrub"]["bad"], 2, "{found:#}");
    assert_eq!(found["durable"], true);
    assert!(found["checksum_errors"].as_u64() >= Some(2), "{found:#}");
    let findings: Vec<&str> = found["scrub"]["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|line| line.as_str().expect("a line"))
        .collect();
    assert!(findings[0].starts_with("kept at 2097152: "), "{findings:?}");
    assert!(findings[1].starts_with("kept at 5242880: "), "{findings:?}");
    // People are told the first, scripts get the table of old.
    let shown = sheep.dog().run(&["node", "md", "info"]).ok().text();
    let line =
        format!("bad: {}: 2 bad places: the first: kept at 2097152: ", sheep.store().display());
    assert!(shown.lines().last().is_some_and(|last| last.starts_with(&line)), "{shown}");
    assert_eq!(sheep.dog().run(&["node", "md", "info", "-r"]).ok().text().lines().count(), 1);
    let log = fs::read_to_string(sheep.store().join("sheep.log")).expect("the log");
    assert_eq!(log.matches("scrub: ").count(), 2, "{log}");
    // All else is well, and what is written anew is well again.
    let mut client = Client::connect(sheep.socket(), "kept").expect("connect");
    assert!(client.read(2 << 20, 4096).is_err());
    assert!(client.read(0, 2 << 20).expect("read") == content[..2 << 20]);
    client.write(2 << 20, &content[2 << 20..(2 << 20) + 4096]).expect("write");
    client.write(5 << 20, &content[5 << 20..(5 << 20) + 4096]).expect("write");
    assert!(client.read(0, KEPT as u32).expect("read") == content);
}

#[test]
fn a_scrub_keeps_to_its_rate() {
    let mut sheep = Sheep::with(&["--scrub", "1M"]);
    let _ = sheep.dog().run(&["vdi", "create", "disk", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "disk"], &[9; 8 << 20]).ok();
    sheep.kill();
    let begun = std::time::Instant::now();
    sheep.start();
    wait_until("it has begun", || health(&sheep)["scrub"]["done"] != 0);
    // The first fragment has 4 MiB.
    assert!(begun.elapsed().as_millis() >= 3900, "{:?}", begun.elapsed());
    assert_eq!(health(&sheep)["scrub"]["rate"], 1 << 20);
    sheep.stop();
    let mut sheep = Sheep::with(&["--scrub", "0", "-n"]);
    assert_eq!(
        (&health(&sheep)["scrub"]["rate"], &health(&sheep)["durable"]),
        (&0.into(), &false.into())
    );
    sheep.stop();
}
