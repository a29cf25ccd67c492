//! What `node info` says is used, what the VDIs say they store and what the host counts are one
//! truth: after any work, after discards and deletions, after kill -9, on one disk and on several.

use sheepdog_testkit::Server;
use sheepdog_testkit::nbd::{Command, FUA, NO_HOLE, Receiver, Sender, connect};
use sheepdog_testkit::process::{run, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use std::path::{Path, PathBuf};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Requests in flight.
const DEPTH: usize = 16;
/// What a store holds ready on each disk for pages of its index, so that it can discard and delete
/// on a full file system.
const SPARE_PAGES: u64 = 4 * MIB;
/// The superblock and the index of as few fragments as here.
const INDEX: u64 = MIB;
/// What the host counts and the store cannot be sure of: free pages in units with others after a
/// start, blocks on their way when it was killed; the file system's own for the file; `sheep.log`.
const UNSURE: u64 = 512 * KIB;

/// A formatted node, and what it said last.
struct Node {
    sheep: Sheep,
    /// Directories that hold data.
    disks: Vec<PathBuf>,
    rng: Rng,
    _home: tempfile::TempDir,
}

/// What everybody says at one time. Per disk: what the node says is used, what the host counts
/// without the log.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Books {
    stored: u64,
    used: Vec<u64>,
    host: Vec<u64>,
}

/// Whether two numbers are within 2 % of the larger, and something.
fn close(a: u64, b: u64, besides: u64) -> bool {
    a.abs_diff(b) <= a.max(b) / 50 + besides
}

impl Books {
    /// When everything in the log has come home and nothing is to be given back any more.
    fn agree(&self) -> bool {
        let used: u64 = self.used.iter().sum::<u64>();
        let disks = self.used.len() as u64;
        let stored = self.stored + SPARE_PAGES * disks;
        let host = self.used.iter().zip(&self.host);
        close(stored, used, INDEX * disks)
            && host.into_iter().all(|(used, host)| close(*used, *host, UNSURE))
    }
}

fn du(path: &Path) -> u64 {
    let du = run(std::process::Command::new("du").args(["-s", "-B1"]).arg(path), b"").ok().text();
    let number = du.split_whitespace().next().and_then(|word| word.parse().ok());
    number.expect("a number")
}

fn number(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

impl Node {
    /// On so many disks beside the store, or on the store alone.
    fn new(disks: usize) -> Self {
        let seed = Rng::fresh_seed();
        println!("SHEEPDOG_TEST_SEED={seed}");
        let home = tempfile::tempdir().expect("a temporary directory");
        let store = home.path().join("store");
        let mut sheep = Sheep::at(&store, &["-j", "size=64M"]);
        let mut dirs: Vec<PathBuf> =
            (0..disks).map(|at| home.path().join(format!("disk{at}"))).collect();
        sheep.set_disks(&dirs.iter().map(PathBuf::as_path).collect::<Vec<_>>());
        sheep.start();
        let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
        if dirs.is_empty() {
            dirs.push(store);
        }
        Self { sheep, disks: dirs, rng: Rng::new(seed), _home: home }
    }

    fn json(&self, words: &[&str]) -> serde_json::Value {
        let text = self.sheep.dog().run(words).ok().text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words:?}: {e}: {text}"))
    }

    fn books(&self) -> Books {
        let list = self.json(&["vdi", "list", "--json"]);
        let node = self.json(&["node", "info", "--json"]);
        let disks = node["nodes"][0]["disks"].as_array().expect("disks");
        let used: Vec<u64> = disks.iter().map(|disk| number(&disk["used"])).collect();
        assert_eq!(used.len(), self.disks.len(), "{node:#}");
        assert_eq!(number(&node["used"]), used.iter().sum::<u64>(), "{node:#}");
        let vdis = list["vdis"].as_array().expect("VDIs");
        let stored = vdis.iter().map(|vdi| number(&vdi["stored"])).sum();
        let log = |dir: &Path| std::fs::metadata(dir.join("log")).map_or(0, |log| log.len());
        let host = self.disks.iter().map(|dir| du(dir) - log(dir)).collect();
        Books { stored, used, host }
    }

    /// Waits until all agree and nothing moves any more.
    fn settle(&self, what: &str) -> Books {
        let mut books = self.books();
        println!("{what}: {books:?}");
        wait_until(&format!("the books agree after {what}"), || {
            let (each, total) = self.in_other_places();
            let now = self.books();
            let still = now == books;
            if !still {
                println!("{what}: {now:?}");
            }
            books = now;
            if still {
                assert_eq!(each, books.stored, "vdi info and vdi list");
                assert_eq!(
                    total,
                    books.used.iter().sum::<u64>(),
                    "node info, for people and machines"
                );
            }
            still && books.agree()
        });
        books
    }

    /// The sum of what `vdi info` says of each, and the total of `node info` as scripts see it.
    fn in_other_places(&self) -> (u64, u64) {
        let list = self.json(&["vdi", "list", "--json"]);
        let names = list["vdis"].as_array().expect("VDIs");
        let each = names.iter().map(|vdi| {
            let name = vdi["name"].as_str().expect("a name");
            number(&self.json(&["vdi", "info", name, "--json"])["stored"])
        });
        let total = self.sheep.dog().run(&["node", "info", "-r"]).ok().text();
        let total = total.lines().find_map(|line| line.strip_prefix("Total ")).expect("a total");
        let used = total.split(' ').nth(1).and_then(|word| word.parse().ok());
        (each.sum(), used.expect("a number"))
    }

    fn create(&self, words: &[&str]) {
        let _ = self.sheep.dog().run(&[&["vdi", "create"], words].concat()).ok();
    }

    /// Writes, zeros and discards of all sizes; as many of the last are not waited for as are in
    /// flight. The very last gives space back, upon which an idle store brings home what is in its
    /// log.
    fn work(&mut self, vdi: &str, requests: usize) -> (Sender, Receiver) {
        let (mut sender, mut receiver) = connect(self.sheep.socket(), vdi).expect("connect");
        let mut bytes = vec![0; MIB as usize];
        self.rng.fill(&mut bytes);
        let zeros = vec![0; MIB as usize];
        for request in 0..requests {
            let rng = &mut self.rng;
            let len = match rng.below(12) {
                0..=5 => 4 * KIB,
                6..=8 => 64 * KIB,
                9 => MIB,
                _ => 1 + rng.below(200_000),
            };
            let unit = match rng.below(8) {
                0 => 1,
                1 => 512,
                2 => 64 * KIB,
                _ => 4 * KIB,
            };
            let at = rng.below(sender.size() - len) / unit * unit;
            let (command, flags, payload) = match rng.below(12) {
                0 | 1 => (Command::Trim, 0, &[][..]),
                2 => (Command::WriteZeroes, 0, &[][..]),
                3 => (Command::WriteZeroes, NO_HOLE, &[][..]),
                4 => (Command::Write, 0, &zeros[..len as usize]),
                _ => (Command::Write, FUA, &bytes[..len as usize]),
            };
            sender.send(command, flags, at, len as u32, payload).expect("send");
            if request >= DEPTH {
                assert_eq!(receiver.receive().expect("an answer").error, 0);
            }
        }
        (sender, receiver)
    }

    /// The same to its end; the last request gives space back, upon which an idle store brings home
    /// what is in its log.
    fn work_to_the_end(&mut self, vdi: &str, requests: usize) {
        let (mut sender, mut receiver) = self.work(vdi, requests);
        sender.send(Command::Write, 0, 0, 65536, &[7; 65536]).expect("send");
        sender.send(Command::Trim, 0, 0, 65536, &[]).expect("send");
        for _ in 0..DEPTH.min(requests) + 2 {
            assert_eq!(receiver.receive().expect("an answer").error, 0);
        }
    }

    fn discard_all(&self, vdi: &str) {
        let (mut sender, mut receiver) = connect(self.sheep.socket(), vdi).expect("connect");
        let size = u32::try_from(sender.size()).expect("a small VDI");
        sender.send(Command::Trim, 0, 0, size, &[]).expect("send");
        assert_eq!(receiver.receive().expect("an answer").error, 0);
    }

    fn the_books_agree(&mut self, requests: usize) {
        self.settle("the start");
        for (name, size) in [("wide", "256M"), ("small", "64M"), ("gone", "32M")] {
            self.create(&[name, size]);
        }
        self.create(&["-P", "reserved", "16M"]);
        let books = self.settle("a reservation");
        assert_eq!(books.stored, 16 * MIB, "what is reserved is stored");
        for vdi in ["wide", "small", "gone", "reserved"] {
            self.work_to_the_end(vdi, requests);
        }
        let full = self.settle("work");
        assert!(full.stored > 24 * MIB, "{full:?}");
        for vdi in ["small", "wide"] {
            let connection = self.work(vdi, requests / 2);
            self.sheep.kill();
            drop(connection);
            self.sheep.start();
            self.settle("kill -9");
        }
        let before = self.settle("kill -9");
        let _ = self.sheep.dog().run(&["vdi", "delete", "gone"]).ok();
        let after = self.settle("a deletion");
        assert!(after.stored < before.stored, "{after:?}");
        self.sheep.stop();
        self.sheep.start();
        self.settle("a new start");
        for vdi in ["wide", "small", "reserved"] {
            self.discard_all(vdi);
        }
        let books = self.settle("discarding all");
        assert_eq!(books.stored, 0);
        for vdi in ["small", "wide", "reserved"] {
            self.work_to_the_end(vdi, requests / 4);
            let _ = self.sheep.dog().run(&["vdi", "delete", vdi]).ok();
        }
        let books = self.settle("deleting all");
        assert_eq!(books.stored, 0);
        self.sheep.kill();
        self.sheep.start();
        self.settle("kill -9 of an empty node");
    }
}

#[test]
fn node_vdis_and_host_agree() {
    Node::new(0).the_books_agree(400);
}

#[test]
fn and_so_they_do_for_each_of_several_disks() {
    Node::new(3).the_books_agree(300);
}
