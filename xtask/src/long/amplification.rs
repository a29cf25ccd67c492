//! What the device writes for each byte that a client writes, by the device's own count.

use super::{commit, save};
use crate::shell::verdict;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheepdog_testkit::amplification::{Ground, Load, Order};
use sheepdog_testkit::bins;
use std::time::Instant;

const GIB: u64 = 1 << 30;

/// With each the most it may be; the last one is for the record.
fn loads(seed: u64) -> [(&'static str, Load, Option<f64>); 5] {
    let random = Load {
        ground: Ground::Device,
        order: Order::Random,
        set: 4 * GIB,
        log: GIB,
        client: 2 * GIB,
        seed,
    };
    // Twice over all of it: the second time everything is overwritten.
    let sequential = Load { order: Order::Sequential, set: GIB, ..random };
    let files = Ground::Files;
    [
        ("4 KiB random in 4 GiB, a device", random, Some(2.5)),
        ("4 KiB random in 4 GiB, files", Load { ground: files, ..random }, Some(2.5)),
        ("1 MiB sequential, a device", sequential, Some(1.05)),
        ("1 MiB sequential, files", Load { ground: files, ..sequential }, Some(1.05)),
        ("4 KiB random in 64 GiB, a device", Load { set: 64 * GIB, client: GIB, ..random }, None),
    ]
}

/// Measures all.
pub fn run(seed: u64) -> Result<()> {
    bins::use_dir(bins::build("release"));
    let begin = Instant::now();
    println!("seed {seed}");
    let (mut missed, mut results) = (false, serde_json::Map::new());
    for (name, load, limit) in loads(seed) {
        let factor = load.measure().context("not root: there are no devices to count on")?;
        let good = limit.is_none_or(|limit| factor <= limit);
        missed |= !good;
        let shown = limit.map_or_else(|| "-".to_owned(), |limit| format!("{limit:.2}"));
        println!("{name:34} {factor:6.3} at most {shown:>5}  {}", verdict(good));
        let result: Value = json!({ "written_per_byte": factor, "limit": limit });
        results.insert(name.to_owned(), result);
    }
    let commit = commit()?;
    let report = json!({
        "command": format!("cargo xtask long amplification --seed {seed}"),
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "loads": results,
    });
    save(&format!("amplification-{commit}-{seed}.json"), &report)?;
    if missed {
        bail!("the device writes more than it may");
    }
    Ok(())
}
