//! Fuzzing, guided by coverage: builds the targets of `fuzz/` with the pinned toolchain and runs
//! them, two at a time. What they found interesting is kept in `target/fuzz/corpus`, an input that
//! broke something in `target/fuzz/findings`.

use crate::shell::{cargo, cmd, output, step};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheepdog_testkit::bins::{root, target_dir};
use sheepdog_testkit::tools::find;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

const USAGE: &str = "fuzz [NAME] [--seconds N]
       fuzz NAME --input FILE";

/// Every target and how long its inputs may be: as long as it takes to say something new.
const TARGETS: [(&str, u32); 11] = [
    ("dog_args", 512),
    ("dog_images", 16 << 10),
    ("index_pages", 5000),
    ("log_batch", 8 << 10),
    ("nbd_handshake", 4096),
    ("nbd_requests", 16 << 10),
    ("sheep_options", 1024),
    ("store_open", 256),
    ("superblock", 256),
    ("table_copy", 2048),
    ("wire", 8 << 10),
];

/// Seconds for each target unless told.
const SECONDS: u32 = 60;
/// Seconds in [`ci`].
const SECONDS_CI: u32 = 20;
/// Seconds that one input may take.
const SECONDS_INPUT: u32 = 20;

/// Counts each edge of the code and looks at comparisons, as libFuzzer wants it. These are options
/// of the stable compiler; the address sanitizer would not be, and hardly any code here is unsafe.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// `fuzz …`.
pub fn run(args: &[&str]) -> Result<()> {
    let (mut name, mut seconds, mut input) = (None, SECONDS, None);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => seconds = words.next().context(USAGE)?.parse()?,
            "--input" => input = Some(fs::canonicalize(words.next().context(USAGE)?)?),
            word if name.is_none() && !word.starts_with('-') => name = Some(word),
            _ => bail!(USAGE),
        }
    }
    let chosen: Vec<_> =
        TARGETS.into_iter().filter(|(target, _)| name.is_none_or(|name| name == *target)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!("there is no such target; there are {}", names.join(", "));
    }
    let programs = build()?;
    match (input, &chosen[..]) {
        (None, _) => all(&programs, &chosen, seconds).map(drop),
        (Some(input), [(name, _)]) => step(name, Command::new(programs.join(name)).arg(input)),
        (Some(_), _) => bail!(USAGE),
    }
}

/// What continuous integration runs: the checks of the package itself, then every target shortly.
pub fn ci() -> Result<()> {
    step("fuzz: format", &mut package("fmt", &["--check"]))?;
    let mut lints = instrumented("clippy", &[])?;
    step("fuzz: lints", lints.args(["--", "-D", "warnings"]))?;
    let programs = build()?;
    all(&programs, &TARGETS, SECONDS_CI).map(drop)
}

/// Every target for long; gives the report.
pub fn long(seconds: u32) -> Result<Value> {
    let programs = build()?;
    let found = all(&programs, &TARGETS, seconds)?;
    Ok(found.into_iter().map(|found| (found.name.to_owned(), found.json())).collect())
}

/// A command of cargo for the package of the targets.
fn package(word: &str, words: &[&str]) -> Command {
    let mut command = cargo(&[word, "--manifest-path", "fuzz/Cargo.toml"]);
    command.args(words);
    command
}

fn instrumented(word: &str, words: &[&str]) -> Result<Command> {
    if find("c++").is_none() && std::env::var_os("CXX").is_none() {
        bail!(
            "fuzzing needs a C++ compiler, for libFuzzer, and there is none on this machine: \
             `cargo xtask deps` gets it"
        );
    }
    let mut command = package(word, &["--locked", "--release", "--target", &host()?]);
    command
        .args(words)
        .arg("--target-dir")
        .arg(dir())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    Ok(command)
}

/// With `--target`, the flags are for the targets and not for what runs while building.
fn host() -> Result<String> {
    let shown = output(cmd(&["rustc", "-vV"]).current_dir(root()))?;
    let host = shown.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

fn dir() -> PathBuf {
    target_dir().join("fuzz")
}

/// Builds all targets; gives the directory of the programs.
fn build() -> Result<PathBuf> {
    step("fuzz: build", &mut instrumented("build", &[])?)?;
    Ok(dir().join(host()?).join("release"))
}

/// How a target fared.
struct Found {
    name: &'static str,
    seconds: u64,
    executions: u64,
    edges: u64,
    features: u64,
    inputs: u64,
}

impl Found {
    fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "executions": self.executions,
            "edges_covered": self.edges,
            "features_covered": self.features,
            "inputs_kept": self.inputs,
        })
    }
}

/// Runs targets, two at a time if there are two processors.
fn all(programs: &Path, chosen: &[(&'static str, u32)], seconds: u32) -> Result<Vec<Found>> {
    println!("==> fuzz: {} targets, {seconds} s each", chosen.len());
    let begin = Instant::now();
    let queue = Mutex::new(chosen.iter());
    let results = Mutex::new(Vec::new());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..processors.min(2) {
            scope.spawn(|| {
                while let Some((name, longest)) = next(&queue) {
                    let result = one(programs, name, *longest, seconds);
                    if let Ok(found) = &result {
                        println!(
                            "    {name}: {} executions, {} edges, {} inputs",
                            found.executions, found.edges, found.inputs
                        );
                    }
                    if let Ok(mut results) = results.lock() {
                        results.push(result.with_context(|| format!("fuzz {name}")));
                    }
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_default();
    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let bad: Vec<_> = bad.into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect();
    if !bad.is_empty() {
        bail!("{}", bad.join("\n"));
    }
    println!("    fuzz: {:.0} s", begin.elapsed().as_secs_f64());
    let mut good: Vec<Found> = good.into_iter().filter_map(Result::ok).collect();
    good.sort_by_key(|found| found.name);
    Ok(good)
}

fn next<'a, T>(queue: &Mutex<std::slice::Iter<'a, T>>) -> Option<&'a T> {
    queue.lock().ok()?.next()
}

/// Runs one target. It must find nothing.
fn one(programs: &Path, name: &'static str, longest: u32, seconds: u32) -> Result<Found> {
    let program = programs.join(name);
    let (findings, corpus) = (dir().join("findings"), dir().join("corpus").join(name));
    let scratch = tempfile::tempdir()?;
    let seeds = scratch.path().join("seeds");
    for dir in [&findings, &corpus, &seeds] {
        fs::create_dir_all(dir)?;
    }
    output(Command::new(&program).env("SHEEPDOG_FUZZ_SEEDS", &seeds))?;
    let log = dir().join(format!("{name}.log"));
    let file = File::create(&log)?;
    let mut run = Command::new(&program);
    // What is interesting goes to the first directory; the others are only read.
    run.arg(&corpus).arg(&seeds);
    let kept = root().join("fuzz/corpus").join(name);
    if kept.is_dir() {
        run.arg(kept);
    }
    run.arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        .args([format!("-max_total_time={seconds}"), format!("-max_len={longest}")])
        .arg(format!("-timeout={SECONDS_INPUT}"))
        .args(["-rss_limit_mb=2048", "-detect_leaks=0", "-print_final_stats=1"])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let begin = Instant::now();
    let status = run.status().with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        bail!("{}", finding(name, &said, &log));
    }
    let done = said.lines().rev().find(|line| line.contains("DONE")).unwrap_or_default();
    let number = |word: &str| {
        let mut words = done.split([' ', '\t', '/']).skip_while(|found| *found != word);
        words.nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let executions = done.trim_start_matches('#').split_whitespace().next();
    let found = Found {
        name,
        seconds: begin.elapsed().as_secs(),
        executions: executions.and_then(|number| number.parse().ok()).unwrap_or(0),
        edges: number("cov:"),
        features: number("ft:"),
        inputs: number("corp:"),
    };
    if found.executions == 0 || found.edges == 0 {
        bail!("it covered nothing: {}", log.display());
    }
    Ok(found)
}

/// What to say when something was found.
fn finding(name: &str, said: &str, log: &Path) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let mut text = match panic {
        Some(at) => {
            let panic = lines[at..].iter().take_while(|line| !line.contains("stack backtrace"));
            panic.take(6).copied().collect::<Vec<_>>().join("\n  ")
        }
        None => lines.iter().find(|line| line.contains("ERROR")).unwrap_or(&"").to_string(),
    };
    let written = lines.iter().find_map(|line| line.split_once("Test unit written to "));
    match written {
        Some((_, file)) => text.push_str(&format!(
            "\n  reproducer: {file}\n  repeat it: cargo xtask fuzz {name} --input {file}"
        )),
        None => text.push_str("\n  there is no reproducer"),
    }
    format!("found something\n  {text}\n  all it said: {}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target that is built and never run, or run and not there, would be noticed by nobody.
    #[test]
    fn every_target_is_listed() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("the manifest");
        let manifest: toml::Table = manifest.parse().expect("TOML");
        let bins = manifest["bin"].as_array().expect("targets");
        let mut names: Vec<_> = bins.iter().filter_map(|bin| bin["name"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, TARGETS.map(|(name, _)| name));
    }

    #[test]
    fn a_finding_names_its_reproducer() {
        let said = "INFO: Seed: 1\nthread '<unnamed>' panicked at crates/x.rs:1:2:\nboom\n\
                    artifact_prefix='/f/'; Test unit written to /f/crash-1\n";
        let text = finding("wire", said, Path::new("/l"));
        assert!(text.contains("boom") && text.contains("fuzz wire --input /f/crash-1"), "{text}");
    }
}
