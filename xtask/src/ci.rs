//! Everything that must pass, in the order in which failures are cheapest to learn.

use crate::shell::{cargo, step, step_within};
use crate::{deps, fuzz, licences, sim};
use anyhow::Result;
use sheepdog_testkit::bins::{BIN_DIR, profile_dir};
use sheepdog_testkit::tools::find;
use std::time::Instant;

/// Memory of the program that runs the tests, and of each test. It keeps what tests print, without a
/// limit of its own: one that prints for ever must not take the machine with it. The most that an
/// honest one took is 1.5 GiB, a virtual machine (`VmData` of `/proc/PID/status`, looked
/// at through a whole run).
const TEST_MEMORY: u64 = 4 << 30;

/// Runs it all.
pub fn run() -> Result<()> {
    let begin = Instant::now();
    deps::run()?;
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    step(
        "lints",
        cargo(&["clippy", "--workspace", "--all-targets", "--locked"])
            .args(["--", "-D", "warnings"]),
    )?;
    if find("cargo-deny").is_some() {
        // The list of advisories is on the network; the rest is not.
        for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
            let mut deny = cargo(&["deny", "--offline", "--manifest-path", manifest, "check"]);
            deny.args(["--config", "deny.toml", "bans", "licenses", "sources"]);
            step("dependencies", &mut deny)?;
        }
    } else {
        println!("==> dependencies (cargo-deny is not installed: licences and bans only)");
        licences::run()?;
    }
    step("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    tests()?;
    step(
        "examples in the documentation",
        &mut cargo(&["test", "--workspace", "--locked", "--doc"]),
    )?;
    let mut doc =
        cargo(&["doc", "--workspace", "--locked", "--no-deps", "--document-private-items"]);
    step("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    sim::ci()?;
    fuzz::ci()?;
    println!("==> all passed in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Builds the tests and runs them.
fn tests() -> Result<()> {
    let nextest = find("cargo-nextest").is_some();
    let command = |more: &[&str]| {
        let mut command = if nextest {
            cargo(&["nextest", "run", "--workspace", "--locked", "--profile", "ci"])
        } else {
            cargo(&["test", "--workspace", "--locked", "--lib", "--bins", "--tests"])
        };
        command.args(more).env(BIN_DIR, profile_dir());
        command
    };
    // Apart from the run, as compilers and linkers take what they need.
    step("build the tests", &mut command(&["--no-run"]))?;
    if nextest {
        return step_within("tests", &mut command(&[]), TEST_MEMORY);
    }
    println!("==> cargo-nextest is not installed: cargo test instead");
    // Whole machines run in some of these: few at a time.
    step_within("tests", &mut command(&["--", "--test-threads=2"]), TEST_MEMORY)
}
