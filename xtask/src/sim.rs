//! The simulator, as an optimised program of its own: `crates/sim/examples/simulate.rs`.

use crate::shell::cargo;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::{Command, Stdio};

/// Seconds of seeds in continuous integration.
const SECONDS_CI: u64 = 240;

fn simulate(words: &[&str]) -> Command {
    let mut command = cargo(&["run", "--profile", "sim", "--quiet", "--locked"]);
    command.args(["--package", "sheepdog-sim", "--features", "mutations"]);
    command.args(["--example", "simulate", "--"]).args(words).stdin(Stdio::null());
    command
}

/// `sim run|trace|shrink|mutations …`.
pub fn run(words: &[&str]) -> Result<()> {
    let mut command = simulate(words);
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("the simulator found something, or could not be run ({status})");
    }
    Ok(())
}

/// What continuous integration runs: always the same seeds first, as many as there is time for.
pub fn ci() -> Result<()> {
    println!("==> simulator: {SECONDS_CI} s of seeds");
    run(&["run", "--seed", "1", "--seconds", &SECONDS_CI.to_string()])
}

/// Seeds from `seed` on for so many seconds; gives the report, which may have findings.
pub fn long(seed: u64, seconds: u64) -> Result<Value> {
    let (seed, seconds) = (seed.to_string(), seconds.to_string());
    let mut command = simulate(&["run", "--seed", &seed, "--seconds", &seconds]);
    let output = command.stderr(Stdio::inherit()).output().context("run the simulator")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (findings, report) = match text.trim_end().rsplit_once('\n') {
        Some((findings, report)) => (findings, report),
        None => ("", text.trim_end()),
    };
    println!("{findings}");
    serde_json::from_str(report).with_context(|| format!("the report of the simulator: {report}"))
}
