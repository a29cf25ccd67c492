//! The judges judged: what the end-to-end tests rely on, tried against `qemu-nbd`, so that a
//! failure elsewhere is sheep's and not the harness's.

use sheepdog_testkit::Server;
use sheepdog_testkit::fio::Job;
use sheepdog_testkit::kill::{Trouble, rounds};
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::qemu_nbd::QemuNbd;
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::uri;
use sheepdog_testkit::shown::assert_same;
use sheepdog_testkit::stamp::BLOCK;
use sheepdog_testkit::verify::{Plan, Progress, Writer};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

fn disk(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let image = home.path().join("disk.raw");
    let file = File::create(&image).expect("create");
    file.set_len(bytes).expect("size");
    (home, image)
}

const BLOCKS: u64 = 2048;

fn plan() -> Plan {
    Plan { seed: Rng::fresh_seed(), blocks: BLOCKS, depth: 32, longest: 16 }
}

#[test]
fn a_server_that_loses_nothing_passes() {
    let (_home, image) = disk(BLOCKS * BLOCK as u64);
    let mut server = QemuNbd::serve(&image, "writeback");
    // qemu-nbd does not promise what we promise of a client that went: only kills.
    let report = rounds(&mut server, "disk", plan(), 6, &[Trouble::Kill], |_, _| {});
    let report = report.expect("nothing is lost");
    assert!(report.adds_up(), "{report:?}");
    assert_eq!(report.rounds.len(), 6);
    assert!(report.checked >= 2 * BLOCKS);
}

#[test]
fn a_lost_block_is_found() {
    let (_home, image) = disk(BLOCKS * BLOCK as u64);
    let mut server = QemuNbd::serve(&image, "writeback");
    let mut writer = Writer::new(plan());
    writer.connect(server.socket(), "disk").expect("connect");
    assert_eq!(writer.run(3000), Ok(Progress::Reached));
    writer.drain().expect("answers");
    writer.verify().expect("intact");
    writer.disconnect().expect("nothing in flight");
    server.kill();
    // One sector of one block of the busy part goes back to what it was: zeros.
    let file = File::options().read(true).write(true).open(&image);
    let file = file.expect("open the image");
    let mut block = vec![0; BLOCK];
    let at = (0..BLOCKS).map(|b| b * BLOCK as u64).find(|at| {
        file.read_exact_at(&mut block, *at).expect("read");
        block.iter().any(|b| *b != 0)
    });
    let at = at.expect("something was written");
    file.write_all_at(&[0; 512], at + 1024).expect("write");
    server.start();
    writer.connect(server.socket(), "disk").expect("connect");
    let error = writer.verify().expect_err("a torn block");
    assert!(error.contains("torn"), "{error}");
}

#[test]
fn the_client_speaks_the_protocol() {
    let (_home, image) = disk(1 << 20);
    let server = QemuNbd::serve(&image, "writeback");
    let mut client = Client::connect(server.socket(), "disk").expect("connect");
    assert_eq!(client.sender.size(), 1 << 20);
    let mut data = vec![0; 10_000];
    Rng::new(1).fill(&mut data);
    client.write(5000, &data).expect("write");
    assert_same(client.read(5000, 10_000).expect("read"), data);
    assert_same(client.read(0, 5000).expect("read"), vec![0; 5000]);
    assert!(client.read(1 << 20, 1).is_err());
    let refused = Client::connect(server.socket(), "other").expect_err("no such export");
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[test]
fn fio_finds_what_is_lost() {
    let (home, image) = disk(32 << 20);
    let mut server = QemuNbd::serve(&image, "writeback");
    let address = uri(server.socket(), "disk");
    let job = Job::new(&address, 5, 32 << 20, home.path());
    let mut fio = job.start();
    let seen = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&image).is_ok_and(|found| found.blocks() > 8192)
    };
    fio.go_on(seen, Duration::from_millis(20));
    server.kill();
    fio.finish();
    server.start();
    let outcome = job.check().expect("nothing is lost");
    assert!(outcome.acknowledged > 0, "{outcome:?}");
    assert!(outcome.good >= outcome.acknowledged, "{outcome:?}");
    server.kill();
    let file = File::options().write(true).open(&image).expect("open");
    file.set_len(0).expect("lose everything");
    file.set_len(32 << 20).expect("size");
    server.start();
    let error = job.check().expect_err("everything is lost");
    assert!(error.contains("lost or damaged"), "{error}");
}
