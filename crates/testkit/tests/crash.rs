//! kill -9, vanished clients and late requests, on the real program.

use rustix::process::Signal;
use sheepdog_testkit::Server;
use sheepdog_testkit::fio::Job;
use sheepdog_testkit::kill::{Trouble, rounds};
use sheepdog_testkit::nbd::{Client, Command, connect};
use sheepdog_testkit::process::{PATIENCE, Process, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::stamp::BLOCK;
use sheepdog_testkit::verify::{Plan, Progress, Writer};
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

fn plan(seed: u64, blocks: u64) -> Plan {
    Plan { seed, blocks, depth: 32, longest: 32 }
}

fn no_acknowledged_write_is_lost(io: &str, count: u32) {
    let seed = Rng::fresh_seed();
    let mut sheep = Sheep::with(&["--io", io]);
    let _ = sheep.dog().run(&["vdi", "create", "disk", "12M"]).ok();
    // Three fragments, so that writes cross from one to the next.
    let blocks = (12 << 20) / BLOCK as u64;
    let troubles = [Trouble::Kill, Trouble::Kill, Trouble::HangUp, Trouble::Freeze];
    let plan = plan(seed, blocks);
    let report = rounds(&mut sheep, "disk", plan, count, &troubles, |n, round| {
        println!("{n}: {round:?}");
    });
    let report = report.unwrap_or_else(|e| panic!("{e}"));
    assert!(report.adds_up(), "{:#}", report.json());
    assert!(report.checked >= 2 * blocks);
    sheep.stop();
}

#[test]
fn no_acknowledged_write_is_lost_and_none_is_torn() {
    no_acknowledged_write_is_lost("auto", 16);
}

#[test]
fn nor_where_io_uring_is_refused() {
    no_acknowledged_write_is_lost("blocking", 6);
}

#[test]
fn fio_finds_all_it_was_promised() {
    let seed = Rng::fresh_seed();
    let mut rng = Rng::new(seed);
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let mut sheep = Sheep::new();
    for round in 0..4 {
        let name = format!("round{round}");
        let _ = sheep.dog().run(&["vdi", "create", &name, "64M"]).ok();
        let job = Job::new(&sheep.uri(&name), rng.below(1 << 30), 64 << 20, scratch.path());
        // Blocks that several writes share, too.
        let job = if round % 2 == 1 { job.unaligned() } else { job };
        let delay = Duration::from_millis(rng.below(400));
        let mut fio = job.start();
        fio.go_on(|| sheep.has_data(&name), delay);
        sheep.kill();
        fio.finish();
        sheep.start();
        let outcome = job.check().unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        println!("{round}: {outcome:?}");
        assert!(outcome.good >= outcome.acknowledged, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_delayed_original_never_overtakes_its_resend() {
    let mut sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "16M"]).ok();
    let mut original = vec![0; BLOCK];
    let mut resend = vec![0; BLOCK];
    for round in 0..40u8 {
        original.fill(2 * round + 1);
        resend.fill(2 * round + 2);
        let (mut old, _replies) = connect(sheep.socket(), "disk").expect("connect");
        // The original is in the socket of a sheep that does not run; its client gives up.
        sheep.freeze(true);
        for block in 0..8 {
            let offset = block * (2 << 20) + u64::from(round) * 512;
            old.send(Command::Write, 0, offset, BLOCK as u32, &original).expect("send");
        }
        if round % 2 == 0 {
            old.hang_up();
        }
        sheep.freeze(false);
        // The other half of the rounds: the client comes again without closing the old
        // connection first; it is closed while the new one is being served.
        if round % 2 == 1 {
            old.hang_up();
        }
        let mut new = Client::connect(sheep.socket(), "disk").expect("connect again");
        for block in 0..8 {
            new.write(block * (2 << 20) + u64::from(round) * 512, &resend).expect("write");
        }
        for look in 0..3 {
            for block in 0..8 {
                let offset = block * (2 << 20) + u64::from(round) * 512;
                let found = new.read(offset, BLOCK as u32).expect("read");
                assert!(found == resend, "round {round}, look {look}, block {block}: overtaken");
            }
        }
    }
}

/// The next client comes by the other door: first NBD then dog, first dog then NBD.
#[test]
fn nor_does_it_through_another_door() {
    let mut sheep = Sheep::new();
    let dog = sheep.dog();
    let _ = dog.run(&["vdi", "create", "disk", "16M"]).ok();
    let size = (1 << 20).to_string();
    for round in 0..12u8 {
        let (original, resend) = (vec![2 * round + 1; BLOCK], vec![2 * round + 2; 1 << 20]);
        let (mut old, _replies) = connect(sheep.socket(), "disk").expect("connect");
        sheep.freeze(true);
        for block in 0..32 {
            old.send(Command::Write, 0, block << 14, BLOCK as u32, &original).expect("send");
        }
        old.hang_up();
        sheep.freeze(false);
        let _ = dog.feed(&["vdi", "write", "disk", "0", &size], &resend).ok();
        for look in 0..2 {
            let read = dog.run(&["vdi", "read", "disk", "0", &size]).ok();
            assert!(read.stdout == resend, "round {round}, look {look}: overtaken");
        }
    }
    for round in 0..12u8 {
        let (original, resend) = (vec![2 * round + 101; 1 << 20], vec![2 * round + 102; BLOCK]);
        let mut command = dog.command();
        command.args(["vdi", "write", "disk", "0", "8M"]);
        let log = tempfile::NamedTempFile::new().expect("a log");
        let mut write = Process::spawn_with_input("dog", &mut command, Stdio::piped(), log.path());
        let mut input = write.child().stdin.take().expect("piped");
        // It is connected when its first data is there.
        input.write_all(&original).expect("feed");
        let mut client = Client::connect(sheep.socket(), "disk").expect("connect");
        wait_until("the first data", || client.read(0, 1).expect("read") == original[..1]);
        drop(client);
        sheep.freeze(true);
        input.write_all(&original[..512 << 10]).expect("feed");
        // Sent to a sheep that does not run once dog has taken it, now or a little later.
        wait_until("dog takes it", || {
            rustix::io::ioctl_fionread(&input).is_ok_and(|left| left == 0)
        });
        write.kill();
        sheep.freeze(false);
        let mut new = Client::connect(sheep.socket(), "disk").expect("connect");
        for block in 0..128 {
            new.write((1 << 20) + (block << 12), &resend).expect("write");
        }
        for look in 0..3 {
            for block in 0..128 {
                let found = new.read((1 << 20) + (block << 12), BLOCK as u32);
                assert!(
                    found.expect("read") == resend,
                    "round {round}, look {look}, block {block}: overtaken"
                );
            }
        }
    }
}

#[test]
fn sigterm_loses_nothing_and_ends_well() {
    let seed = Rng::fresh_seed();
    let mut sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "disk", "8M"]).ok();
    let mut writer = Writer::new(plan(seed, 2048));
    for round in 0..3 {
        let told = |e: String| -> ! { panic!("seed {seed}, round {round}: {e}") };
        writer.connect(sheep.socket(), "disk").unwrap_or_else(|e| told(e));
        let progress = writer.run(700).unwrap_or_else(|e| told(e));
        assert_eq!(progress, Progress::Reached);
        writer.fill(u64::MAX).expect("still there");
        sheep.process().signal(Signal::TERM);
        let status = sheep.process().wait(PATIENCE);
        assert!(status.success(), "{status}\n{}", sheep.log());
        writer.disconnect().unwrap_or_else(|e| told(e));
        sheep.kill();
        sheep.start();
        // It had brought everything home.
        let log = std::fs::read_to_string(sheep.store().join("sheep.log")).expect("its log");
        let opened = log.lines().rfind(|line| line.contains(" opened by "));
        let opened = opened.expect("it says how it found its store");
        assert!(opened.contains(" 0 writes replayed"), "{opened}");
    }
    writer.connect(sheep.socket(), "disk").expect("connect");
    writer.drain().expect("answers");
    writer.verify().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
}
