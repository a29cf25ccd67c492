//! Creating and deleting VDIs: how long `dog` takes as its users see it, from the start of the
//! process to its end, whatever the size and whatever the VDI holds.

use super::report::Verdict;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheepdog_testkit::Server;
use sheepdog_testkit::nbd::{Command, connect};
use sheepdog_testkit::sheep::Sheep;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Milliseconds that creating and deleting may take.
const LIMIT: f64 = 10.0;
/// As `dog vdi create` takes them; a VDI of more than 2^20 objects is a hyper volume.
const SIZES: [(&str, &[&str]); 3] =
    [("1 MiB", &["1M"]), ("1 GiB", &["1G"]), ("16 TiB", &["-y", "16T"])];
/// Fragments that a VDI with data holds something in, a block each.
const FRAGMENTS: u64 = 2048;
const FRAGMENT: u64 = 4 << 20;
/// Writes in flight that fill one.
const DEPTH: u64 = 32;

/// Milliseconds by what was done.
#[derive(Default)]
pub struct Latencies(BTreeMap<String, Vec<f64>>);

impl Latencies {
    fn time(&mut self, what: &str, sheep: &Sheep, words: &[&str]) {
        let begin = Instant::now();
        let ended = sheep.dog().run(words);
        let took = begin.elapsed().as_secs_f64() * 1e3;
        let _ = ended.ok();
        self.0.entry(what.to_owned()).or_default().push(took);
    }

    /// The table.
    pub fn text(&self) -> String {
        let line = |(what, times): (&String, &Vec<f64>)| {
            let (p50, p99) = (percentile(times, 50), percentile(times, 99));
            format!("  {what:<44}{:>6} {p50:>10.1} {p99:>8.1}\n", times.len())
        };
        let lines: String = self.0.iter().map(line).collect();
        format!("  {:<44}{:>6} {:>10} {:>8}\n{lines}", "whole dog", "runs", "p50 ms", "p99 ms")
    }

    /// Whether the limit is kept.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let judged = self.0.iter().filter(|(what, _)| *what != START);
        let of = |(what, times): (&String, &Vec<f64>)| {
            [(50, "median"), (99, "p99")].map(|(percent, name)| {
                let text = format!("dog vdi {what}: {name} at most {LIMIT:.0} ms");
                Verdict::at_most(text, percentile(times, percent), LIMIT)
            })
        };
        judged.flat_map(of).collect()
    }

    /// For the record.
    pub fn json(&self) -> Value {
        let of = |times: &Vec<f64>| {
            let ms = |percent| (percentile(times, percent) * 100.0).round() / 100.0;
            json!({ "runs": times.len(), "p50_ms": ms(50), "p99_ms": ms(99) })
        };
        self.0.iter().map(|(what, times)| (what.clone(), of(times))).collect()
    }
}

/// What every one of them starts with, and nothing more.
const START: &str = "(dog alone, which says how it is used)";

/// The value that so many of 100 do not exceed.
fn percentile(times: &[f64], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Creates and deletes, all sizes in turn; `runs` of each, a tenth as many of VDIs with data.
pub fn run(dir: &Path, runs: u32) -> Result<Latencies> {
    let mut sheep = Sheep::at(&dir.join("vdis").join("store"), &[]);
    std::fs::create_dir_all(dir.join("vdis"))?;
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let mut latencies = Latencies::default();
    for round in 0..runs {
        latencies.time(START, &sheep, &["vdi", "create", "--help"]);
        for (name, size) in SIZES {
            let create = [&["vdi", "create", "thin"], size].concat();
            latencies.time(&format!("create of {name}"), &sheep, &create);
            latencies.time(&format!("delete of {name}"), &sheep, &["vdi", "delete", "thin"]);
        }
        if round % 10 == 0 {
            let _ = sheep.dog().run(&["vdi", "create", "full", "8G"]).ok();
            fill(&sheep).context("fill a VDI")?;
            let what = format!("delete with data in {FRAGMENTS} fragments");
            latencies.time(&what, &sheep, &["vdi", "delete", "full"]);
        }
    }
    sheep.stop();
    Ok(latencies)
}

/// A block in each fragment.
fn fill(sheep: &Sheep) -> Result<()> {
    let (mut sender, mut receiver) = connect(sheep.socket(), "full")?;
    let block = [7; 4096];
    for at in 0..FRAGMENTS + DEPTH {
        if at < FRAGMENTS {
            sender.send(Command::Write, 0, at * FRAGMENT, 4096, &block)?;
        }
        if at >= DEPTH {
            anyhow::ensure!(receiver.receive()?.error == 0, "a write was refused");
        }
    }
    Ok(())
}
