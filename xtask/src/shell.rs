//! Running commands so that a person can follow.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A command from words.
pub fn cmd(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// The cargo that runs us.
#[allow(dead_code)]
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(sheepdog_testkit::bins::root()).args(words);
    command
}

/// Shows the command, runs it without input, fails if it fails.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    let begin = Instant::now();
    println!("==> {what}");
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{what}: failed ({status}): {command:?}");
    }
    println!("    {what}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// The same, for a command that may not use more than `bytes` of memory, nor may any process that it
/// starts; each for itself.
///
/// Limits pass on to children, so they cannot be set for one process of a tree alone. This is the one
/// that hurts no honest program: it counts private memory that can be written to, and neither maps
/// of files nor shared or reserved addresses, of which databases, rings and virtual machines have
/// many. Only its soft value is set: whoever needs more can raise it again.
pub fn step_within(what: &str, command: &mut Command, bytes: u64) -> Result<()> {
    let begin = Instant::now();
    println!("==> {what}");
    let started = command.stdin(Stdio::null()).spawn();
    let mut child = started.with_context(|| format!("start {command:?}"))?;
    let hard = getrlimit(Resource::Data).maximum;
    let soft = hard.map_or(bytes, |hard| hard.min(bytes));
    let limit = Rlimit { current: Some(soft), maximum: hard };
    let limited = prlimit(Some(Pid::from_child(&child)), Resource::Data, limit);
    let status = child.wait().with_context(|| format!("wait for {command:?}"))?;
    if !status.success() {
        bail!("{what}: failed ({status}): {command:?}");
    }
    limited.context("limit its memory")?;
    println!("    {what}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// What a command prints; fails if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// What a table says of a limit.
pub const fn verdict(good: bool) -> &'static str {
    if good { "pass" } else { "MISS" }
}
