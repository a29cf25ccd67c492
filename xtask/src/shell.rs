//! Running commands so that a person can follow.

use anyhow::{Context, Result, bail};
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

/// What a command prints; fails if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
