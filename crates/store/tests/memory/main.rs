//! What a large store costs: memory, the time to start, and the processor while nobody asks for
//! anything. A real sheep, on the index that random writes of whole chunks everywhere leave.
//!
//! `SHEEPDOG_GIB=1024` makes it as large as the limits are for (`cargo xtask long memory`); smaller
//! ones take their part of them.

mod full;

use sheepdog_testkit::Server;
use sheepdog_testkit::nbd::Client;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::usage::{Memory, memory, processor};
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What the fragments of a tebibyte and all else that sheep is may take, and what of it is not the
/// fragments'.
const MEMORY_MAX: u64 = 64 * MIB;
const SHEEP_ITSELF: u64 = 21 * MIB;
/// Caches: bookkeeping of fragments in use (`Limits::STANDARD`), and buffers (`PageBuf`).
const CACHES: u64 = 64 * MIB + 64 * MIB;
/// Fragments that are looked at to fill the caches; a small store has no more.
const MANY: u64 = 4 << 10;
/// Time from nothing to ready.
const START_MAX: Duration = Duration::from_secs(2);

/// What was found, as the table has it; fails at its end if there was a miss.
#[derive(Default)]
struct Table {
    missed: bool,
}

impl Table {
    fn line(&mut self, what: &str, found: f64, limit: f64, unit: &str) {
        let verdict = if found <= limit { "pass" } else { "MISS" };
        self.missed |= found > limit;
        println!("{what}: {found:.2} {unit}, at most {limit:.2} {unit}: {verdict}");
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// Part of one processor that sheep takes while it is left alone, in percent.
fn idle(sheep: &mut Sheep, time: Duration) -> f64 {
    let pid = sheep.process().pid();
    let before = processor(pid);
    std::thread::sleep(time);
    (processor(pid) - before).as_secs_f64() / time.as_secs_f64() * 100.0
}

/// A sheep that was just started on a store, its memory, and the time that this took.
fn started(store: &Path, options: &[&str]) -> (Sheep, Memory, Duration) {
    let mut sheep = Sheep::at(store, options);
    let begin = Instant::now();
    sheep.start();
    let time = begin.elapsed();
    let memory = memory(sheep.process().pid());
    (sheep, memory, time)
}

#[test]
fn a_large_store_takes_little() {
    let gib = std::env::var("SHEEPDOG_GIB").ok().map(|gib| gib.parse().expect("a number"));
    let long = gib.is_some();
    let gib: u64 = gib.unwrap_or(32);
    let (mut table, part) = (Table::default(), gib as f64 / 1024.0);
    let mut first = Sheep::with(&["-j", "size=64M"]);
    let _ = first.dog().run(&["vdi", "create", "full", &format!("{gib}G")]).ok();
    let mut client = Client::connect(first.socket(), "full").expect("connect");
    client.write(0, &[1; 4096]).expect("write");
    first.stop();
    let store = first.store().to_owned();
    let (mut sheep, empty, _) = started(&store, &[]);
    sheep.stop();
    full::fill(&store, gib * 256);

    let (mut sheep, ready, time) = started(&store, &["--scrub", "0"]);
    table.line("memory until ready", mib(ready.peak), mib(MEMORY_MAX), "MiB");
    let index = mib(ready.own.saturating_sub(empty.own));
    // What it is rounded up to counts more in a small store.
    let index_max = mib(MEMORY_MAX - SHEEP_ITSELF) * part + 1.0;
    table.line("memory of the index", index, index_max, "MiB");
    table.line("time to ready", time.as_secs_f64(), START_MAX.as_secs_f64(), "s");
    let quiet = Duration::from_secs(if long { 10 } else { 3 });
    table.line("processor while idle", idle(&mut sheep, quiet), 1.0, "%");
    let mut client = Client::connect(sheep.socket(), "full").expect("connect");
    let many = if long { 4 * MANY } else { MANY };
    for number in 0..many {
        // The last block of each, all over the store.
        let offset = (number + 1) * (gib << 30) / many - 4096;
        assert_eq!(client.read(offset, 4096).expect("read"), [0; 4096], "at {offset}");
    }
    let own = memory(sheep.process().pid()).own;
    let own_max = mib(empty.own) + index_max + mib(CACHES);
    table.line("memory with full caches", mib(own), own_max, "MiB");
    sheep.stop();
    if long {
        let (mut sheep, ..) = started(&store, &[]);
        table.line("processor while the scrub reads", idle(&mut sheep, quiet), 1.0, "%");
        sheep.stop();
    }
    assert!(!table.missed, "a limit was missed");
}
