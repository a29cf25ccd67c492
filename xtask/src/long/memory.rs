//! What a store of a tebibyte costs: the test of the same in small, in large.

use super::{commit, save, test_binary};
use crate::shell::cmd;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheepdog_testkit::bins;
use std::time::Instant;

/// Measures it.
pub fn run() -> Result<()> {
    let begin = Instant::now();
    let programs = bins::build("release");
    let binary = test_binary("sheepdog-store", "memory")?;
    let mut run = cmd(&[&binary, "--nocapture"]);
    run.env(bins::BIN_DIR, programs).env("SHEEPDOG_GIB", "1024");
    // What was missed is in the report too.
    let ended = run.output().context("start the test")?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let found: Vec<&str> = said.lines().filter(|line| line.contains(" at most ")).collect();
    found.iter().for_each(|line| println!("{line}"));
    if found.is_empty() {
        bail!("nothing was measured: {}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    let parts = found.iter().filter_map(|line| line.split_once(": "));
    let results: serde_json::Map<String, Value> =
        parts.map(|(what, rest)| (what.to_owned(), json!(rest))).collect();
    let commit = commit()?;
    let report = json!({
        "command": "cargo xtask long memory",
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "found": results,
    });
    save(&format!("memory-{commit}.json"), &report)?;
    if !ended.status.success() {
        bail!("a limit was missed: {}", String::from_utf8_lossy(&ended.stderr).trim());
    }
    Ok(())
}
