//! What an engine adds to the disk: durable overwrites and reads of random blocks through an engine
//! in a tokio current-thread loop, next to plain system calls on the same preallocated file.
//!
//! `cargo run --release -p sheepdog-store --example latency [DIR [ROUNDS]]`; rounds are interleaved,
//! each figure is the median over the rounds. Depth 32 of the plain calls is 32 threads.

use bytes::Bytes;
use rustix::io::ReadWriteFlags;
use sheepdog_store::{
    Areas, DurableMethod, Engine, EngineChoice, Ready, StoreLock, measure_durable, open_engine,
};
use sheepdog_storelog::io::{Area, DiskOp, OpId};
use sheepdog_types::PageBuf;
use std::error::Error;
use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LOG_BYTES: u64 = 256 << 20;
/// Operations per round at depth 1 and in all at depth 32.
const OPS: [u64; 2] = [2000, 16_000];
const DEPTHS: [usize; 2] = [1, 32];

/// One kind of operation: durable overwrites or reads of this many bytes.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    write: bool,
    bytes: usize,
}

const LOADS: [Load; 3] = [
    Load { name: "durable write 4 KiB", write: true, bytes: 4096 },
    Load { name: "durable write 8 KiB", write: true, bytes: 8192 },
    Load { name: "read 4 KiB", write: false, bytes: 4096 },
];

/// What one round found.
#[derive(Clone, Copy)]
struct Round {
    p50: Duration,
    p99: Duration,
    per_second: f64,
}

impl Round {
    fn new(mut times: Vec<Duration>, all: Duration) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Self { p50: at(50), p99: at(99), per_second: times.len() as f64 / all.as_secs_f64() }
    }
}

/// Offsets that are random enough for a disk.
struct Offsets(u64);

impl Offsets {
    fn next(&mut self, bytes: usize) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (LOG_BYTES / bytes as u64) * bytes as u64
    }
}

/// Incompressible bytes.
fn noise(bytes: usize) -> Bytes {
    let mut buf = PageBuf::zeroed(bytes);
    let mut offsets = Offsets(0x9e37_79b9_7f4a_7c15);
    for word in buf.as_mut().chunks_exact_mut(8) {
        offsets.next(8);
        word.copy_from_slice(&offsets.0.to_ne_bytes());
    }
    buf.freeze()
}

async fn through(engine: &mut dyn Engine, load: Load, depth: usize, ops: u64, seed: u64) -> Round {
    let ready = Ready::new(engine).expect("register the engine");
    let data = noise(load.bytes);
    let mut offsets = Offsets(seed);
    let (mut started, mut out) = (0, Vec::new());
    let mut starts = Vec::with_capacity(ops as usize);
    let mut times = Vec::with_capacity(ops as usize);
    let begin = Instant::now();
    while (times.len() as u64) < ops {
        while started < ops && engine.in_flight() < depth {
            let offset = offsets.next(load.bytes);
            starts.push(Instant::now());
            let what = if load.write {
                DiskOp::Write { area: Area::Log, offset, data: vec![data.clone()], durable: true }
            } else {
                DiskOp::Read { area: Area::Log, offset, len: load.bytes }
            };
            engine.submit(OpId(started), what);
            started += 1;
        }
        engine.kick().expect("kick");
        ready.wait().await.expect("wait");
        engine.reap(&mut out);
        for completion in out.drain(..) {
            completion.result.expect("an operation that works");
            times.push(starts[completion.op.0 as usize].elapsed());
        }
    }
    Round::new(times, begin.elapsed())
}

fn plain(areas: &Areas, load: Load, depth: usize, ops: u64, seed: u64) -> Round {
    let begin = Instant::now();
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..depth as u64)
            .map(|i| {
                scope.spawn(move || {
                    let file = areas.file(Area::Log);
                    let mut offsets = Offsets(seed + i * 0x1234_5677);
                    let data = noise(load.bytes);
                    let mut buf = PageBuf::zeroed(load.bytes);
                    let mut times = Vec::new();
                    for _ in 0..ops / depth as u64 {
                        let offset = offsets.next(load.bytes);
                        let start = Instant::now();
                        let n = if load.write {
                            let data = [IoSlice::new(&data)];
                            rustix::io::pwritev2(file, &data, offset, ReadWriteFlags::DSYNC)
                        } else {
                            let mut buf = [IoSliceMut::new(buf.as_mut())];
                            rustix::io::preadv2(file, &mut buf, offset, ReadWriteFlags::empty())
                        };
                        assert_eq!(n.expect("a call that works"), load.bytes);
                        times.push(start.elapsed());
                    }
                    times
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().expect("a thread that works")).collect()
    });
    Round::new(times, begin.elapsed())
}

fn median<T: Copy + PartialOrd>(rounds: &[Round], of: impl Fn(&Round) -> T) -> T {
    let mut all: Vec<T> = rounds.iter().map(of).collect();
    all.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    all[all.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: usize = match args.next() {
        Some(n) => n.to_string_lossy().parse()?,
        None => 5,
    };
    let dir = tempfile::tempdir_in(parent)?;
    let begin = Instant::now();
    let files = StoreLock::take(dir.path())?.prepare(LOG_BYTES)?;
    println!(
        "prepared in {:.2?}, direct {}, log unit {}",
        begin.elapsed(),
        files.areas.is_direct(),
        files.log_unit
    );
    let mut engines: Vec<Box<dyn Engine>> = Vec::new();
    for choice in [EngineChoice::Auto, EngineChoice::Blocking] {
        let mut engine = open_engine(&files.areas, choice, DurableMethod::Dsync)?;
        let measured = measure_durable(&mut *engine, files.log_unit, files.log_bytes)?;
        println!("{}: {measured:?}", engine.name());
        engine.set_durable_method(DurableMethod::Dsync);
        engines.push(engine);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    println!("load, depth, how: p50 us, p99 us, operations per second");
    for load in LOADS {
        for (depth, ops) in DEPTHS.into_iter().zip(OPS) {
            let mut results = vec![Vec::new(); engines.len() + 1];
            for round in 0..rounds {
                let seed = 1 + round as u64;
                results[0].push(plain(&files.areas, load, depth, ops, seed));
                for (engine, results) in engines.iter_mut().zip(&mut results[1..]) {
                    let round = through(&mut **engine, load, depth, ops, seed);
                    results.push(runtime.block_on(round));
                }
            }
            let names = ["system calls"].into_iter().chain(engines.iter().map(|e| e.name()));
            for (name, rounds) in names.zip(&results) {
                println!(
                    "{:20} {depth:3} {name:17} {:8.1} {:8.1} {:9.0}",
                    load.name,
                    median(rounds, |r| r.p50).as_secs_f64() * 1e6,
                    median(rounds, |r| r.p99).as_secs_f64() * 1e6,
                    median(rounds, |r| r.per_second),
                );
            }
        }
    }
    Ok(())
}
