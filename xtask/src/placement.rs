//! The placement simulation, as an optimised program of its own.

use crate::shell::cargo;
use anyhow::{Context, Result, bail};
use std::process::Stdio;

/// Prints the table and fails if a bound is broken.
pub fn run(words: &[&str]) -> Result<()> {
    let example = ["run", "--release", "--quiet", "--package", "sheepdog-placement"];
    let mut command = cargo(&example);
    command.args(["--example", "simulate", "--"]).args(words).stdin(Stdio::null());
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("placement: a bound is broken, or it could not be looked at ({status})");
    }
    Ok(())
}
