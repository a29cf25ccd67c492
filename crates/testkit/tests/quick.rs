//! Creating and deleting a VDI cost the same whatever its size and whatever it holds. Times are
//! the best of several, which a busy machine spoils least; what is proportional to a size shows in
//! all of them. The real figures are `cargo xtask bench --only vdis`.

use sheepdog_testkit::Server;
use sheepdog_testkit::nbd::{Command, connect};
use sheepdog_testkit::process::wait_until;
use sheepdog_testkit::sheep::Sheep;
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
const LIMIT: Duration = Duration::from_millis(100);

fn timed(sheep: &Sheep, words: &[&str]) -> Duration {
    let begin = Instant::now();
    let ended = sheep.dog().run(words);
    let took = begin.elapsed();
    let _ = ended.ok();
    took
}

#[test]
fn size_costs_nothing() {
    let sheep = Sheep::new();
    let sizes: [&[&str]; 3] = [&["1M"], &["-y", "16T"], &["-y", "16P"]];
    let mut best = [[Duration::MAX; 2]; 3];
    for _ in 0..ROUNDS {
        for (size, best) in sizes.into_iter().zip(&mut best) {
            let created = timed(&sheep, &[&["vdi", "create", "thin"], size].concat());
            let deleted = timed(&sheep, &["vdi", "delete", "thin"]);
            *best = [best[0].min(created), best[1].min(deleted)];
        }
    }
    println!("{best:?}");
    for (at, what) in ["create", "delete"].iter().enumerate() {
        for large in &best[1..] {
            assert!(large[at] < LIMIT, "{what}: {best:?}");
            assert!(large[at] < 3 * best[0][at] + LIMIT / 4, "{what}: {best:?}");
        }
    }
}

#[test]
fn a_deletion_does_not_wait_for_space() {
    const FRAGMENT: u64 = 4 << 20;
    const FRAGMENTS: u64 = 1024;
    let sheep = Sheep::new();
    let used = || {
        let info = sheep.dog().run(&["node", "info", "--json"]).ok().text();
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        info["used"].as_u64().expect("a number")
    };
    let empty = used();
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let _ = sheep.dog().run(&["vdi", "create", "full", "4G"]).ok();
        let (mut sender, mut receiver) = connect(sheep.socket(), "full").expect("connect");
        for at in 0..FRAGMENTS {
            sender.send(Command::Write, 0, at * FRAGMENT, 4096, &[7; 4096]).expect("send");
            if at >= 32 {
                assert_eq!(receiver.receive().expect("an answer").error, 0);
            }
        }
        for _ in 0..32 {
            assert_eq!(receiver.receive().expect("an answer").error, 0);
        }
        drop((sender, receiver));
        assert!(used() >= empty + FRAGMENTS * 4096);
        best = best.min(timed(&sheep, &["vdi", "delete", "full"]));
    }
    println!("{best:?}");
    assert!(best < LIMIT, "{best:?}");
    // What was freed behind that is free in the end, pages of the index too.
    wait_until("the space is free", || used() <= empty + (1 << 20));
}
