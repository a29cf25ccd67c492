//! Everything that must pass, in the order in which failures are cheapest to learn.

use crate::shell::{cargo, step};
use crate::{deps, licences};
use anyhow::Result;
use sheepdog_testkit::bins::{BIN_DIR, profile_dir};
use sheepdog_testkit::tools::find;
use std::time::Instant;

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
        step(
            "dependencies",
            &mut cargo(&["deny", "--offline", "check", "bans", "licenses", "sources"]),
        )?;
    } else {
        println!("==> dependencies (cargo-deny is not installed: licences and bans only)");
        licences::run()?;
    }
    step("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    let mut tests = if find("cargo-nextest").is_some() {
        cargo(&["nextest", "run", "--workspace", "--locked", "--profile", "ci"])
    } else {
        println!("==> cargo-nextest is not installed: cargo test instead");
        let mut tests = cargo(&["test", "--workspace", "--locked", "--lib", "--bins", "--tests"]);
        // Whole machines run in some of these: few at a time.
        tests.args(["--", "--test-threads=2"]);
        tests
    };
    step("tests", tests.env(BIN_DIR, profile_dir()))?;
    step(
        "examples in the documentation",
        &mut cargo(&["test", "--workspace", "--locked", "--doc"]),
    )?;
    let mut doc =
        cargo(&["doc", "--workspace", "--locked", "--no-deps", "--document-private-items"]);
    step("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("==> all passed in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}
