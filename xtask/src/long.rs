//! Runs that are too long for every day. Their reports are kept in `docs/runs/`.

use crate::shell::{cargo, cmd, output};
use crate::{fuzz, sim};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheepdog_testkit::Server;
use sheepdog_testkit::bins;
use sheepdog_testkit::fio::{Job, Outcome};
use sheepdog_testkit::kill::{Trouble, rounds};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::verify::Plan;
use std::time::{Duration, Instant};

mod amplification;
mod broken;
mod memory;

const USAGE: &str = "long kill [--rounds N] [--seed N]
       long cuts [--rounds N] [--seed N]
       long broken [--rounds N] [--seed N]
       long fuzz [--seconds N]
       long amplification [--seed N]
       long memory
       long sim [--seconds N] [--seed N]";

/// `long NAME …`.
pub fn run(args: &[&str]) -> Result<()> {
    let [name, rest @ ..] = args else {
        bail!(USAGE);
    };
    let (mut rounds, mut seed, mut seconds) = (None, None, None);
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match *word {
            "--rounds" => rounds = Some(value.parse()?),
            "--seed" => seed = Some(value.parse()?),
            "--seconds" => seconds = Some(value.parse()?),
            _ => bail!(USAGE),
        }
    }
    match *name {
        "kill" => kill(rounds.unwrap_or(100), seed.unwrap_or_else(Rng::fresh_seed)),
        // 12 deaths each: 100,000 in all, and as many cuts after single operations.
        "cuts" => cuts(rounds.unwrap_or(8400), seed.unwrap_or_else(Rng::fresh_seed) >> 16),
        "fuzz" => fuzz(seconds.unwrap_or(30 * 60)),
        "amplification" => amplification::run(seed.unwrap_or_else(Rng::fresh_seed)),
        "memory" => memory::run(),
        // Others than those of every day, and of each other.
        "sim" => sim(seed.unwrap_or_else(|| Rng::fresh_seed() >> 24), seconds.unwrap_or(60 * 60)),
        "broken" => broken::run(rounds.unwrap_or(300), seed.unwrap_or_else(Rng::fresh_seed)),
        _ => bail!(USAGE),
    }
}

/// Every fuzz target, from its seeds and whatever earlier runs found interesting.
fn fuzz(seconds: u32) -> Result<()> {
    let begin = Instant::now();
    let targets = fuzz::long(seconds)?;
    let commit = commit()?;
    let report = json!({
        "command": format!("cargo xtask long fuzz --seconds {seconds}"),
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "targets": targets,
    });
    save(&format!("fuzz-{commit}.json"), &report)
}

/// The core in simulated clusters.
fn sim(seed: u64, seconds: u32) -> Result<()> {
    let begin = Instant::now();
    let runs = sim::long(seed, seconds.into())?;
    let commit = commit()?;
    let report = json!({
        "command": format!("cargo xtask long sim --seconds {seconds} --seed {seed}"),
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "first_seed": seed,
        "runs": runs,
    });
    save(&format!("sim-{commit}-{seed}.json"), &report)?;
    if runs["failed"] != 0 {
        bail!("the simulator has findings: `cargo xtask sim shrink --seed N` tells one of them");
    }
    Ok(())
}

/// The store's model tests: random work on simulated disks that lose power, run full, fail. One
/// seed is one run; `SHEEPDOG_SEED=N SHEEPDOG_SEEDS=1` repeats it.
///
/// With each the part of the seeds that it gets. The first is the one whose deaths are counted; the
/// second cuts after each single operation, some 500 times a seed; the others repeat the first in
/// worse weather.
const CUTS: [(&str, u32); 6] = [
    ("crashes_anywhere_keep_acknowledged_writes_and_space", 1),
    ("cuts::stores_side_by_side_survive_a_cut_after_any_operation", 40),
    ("faults::a_full_host_refuses_writes_early_and_never_deletes", 8),
    ("faults::space_once_given_can_be_written_when_somebody_else_fills_the_host", 8),
    ("faults::without_space_writes_are_refused_and_nothing_is_lost", 8),
    ("faults::disk_errors_are_told_and_do_no_damage", 8),
];

fn cuts(seeds: u32, seed: u64) -> Result<()> {
    let begin = Instant::now();
    let binary = test_binary("sheepdog-storelog", "crash")?;
    let mut results = serde_json::Map::new();
    let mut cuts = 0;
    for (test, part) in CUTS {
        let count = seeds.div_ceil(part).max(100.min(seeds));
        println!("{test}: {count} seeds from {seed}");
        let mut run = cmd(&[&binary, "--exact", test, "--nocapture"]);
        run.env("SHEEPDOG_SEED", seed.to_string()).env("SHEEPDOG_SEEDS", count.to_string());
        let said = output(&mut run).with_context(|| format!("{test}, seeds from {seed}"))?;
        let counts = said.lines().rev().find(|line| line.starts_with("Counts"));
        let counts = counts.context("the test counted nothing")?;
        println!("  {counts}");
        cuts += cuts_of(counts).context("the test counted no cuts")?;
        results.insert(test.to_owned(), json!({ "seeds": count, "counts": counts }));
    }
    let commit = commit()?;
    let report = json!({
        "command": format!("cargo xtask long cuts --rounds {seeds} --seed {}", seed << 16),
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "first_seed": seed,
        "cuts_after_single_operations": cuts,
        "tests": results,
    });
    save(&format!("cuts-{commit}-{seed}.json"), &report)
}

/// Builds the tests of one file for speed, and says where they are.
fn test_binary(package: &str, test: &str) -> Result<String> {
    let build = ["test", "--release", "-p", package, "--test", test, "--no-run"];
    let built = output(cargo(&build).arg("--message-format=json"))?;
    built
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
        .context("cargo named no test binary")
}

/// The number behind `cuts: ` in what a test prints at its end.
fn cuts_of(counts: &str) -> Option<u64> {
    let (_, rest) = counts.split_once("cuts: ")?;
    rest.split(',').next()?.trim().parse().ok()
}

fn save(name: &str, report: &Value) -> Result<()> {
    let dir = bins::root().join("docs/runs");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), format!("{report:#}\n"))?;
    println!("{report:#}\nsaved as docs/runs/{name}");
    Ok(())
}

/// The commit of the work tree, with a mark if the tree differs from it.
pub fn commit() -> Result<String> {
    let root = bins::root();
    let commit = output(cmd(&["git", "rev-parse", "--short=12", "HEAD"]).current_dir(&root))?;
    let changed = output(cmd(&["git", "status", "--porcelain", "-uno"]).current_dir(&root))?;
    let mark = if changed.is_empty() { "" } else { "+changes" };
    Ok(format!("{}{mark}", commit.trim()))
}

fn kill(count: u32, seed: u64) -> Result<()> {
    bins::use_dir(bins::build("release"));
    let begin = Instant::now();
    println!("seed {seed}");
    let writer = with_writer(count, seed)?;
    let fio = with_fio(count, seed)?;
    let commit = commit()?;
    let report = json!({
        "command": format!("cargo xtask long kill --rounds {count} --seed {seed}"),
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "writer": writer,
        "fio": fio,
    });
    save(&format!("kill-{commit}-{seed}.json"), &report)
}

/// Our writer: all three kinds of trouble.
fn with_writer(count: u32, seed: u64) -> Result<Value> {
    let blocks = 16 << 10;
    let mut sheep = Sheep::new();
    let _ = sheep.dog().run(&["vdi", "create", "kill", "64M"]).ok();
    let plan = Plan { seed, blocks, depth: 32, longest: 32 };
    let troubles = [Trouble::Kill, Trouble::Kill, Trouble::HangUp, Trouble::Freeze];
    let report = rounds(&mut sheep, "kill", plan, count, &troubles, |number, round| {
        println!(
            "writer {number}/{count}: {:?}, {} acknowledged, {} unanswered, back in {} ms",
            round.trouble, round.acknowledged, round.pending, round.back_ms
        );
    });
    let report = report.map_err(|e| anyhow::anyhow!("{e}"))?;
    if !report.adds_up() {
        bail!("the counts do not add up: {:#}", report.json());
    }
    sheep.stop();
    Ok(report.json())
}

/// fio's verified writes, each round on a VDI of its own.
fn with_fio(count: u32, seed: u64) -> Result<Value> {
    let mut rng = Rng::new(seed);
    let scratch = tempfile::tempdir()?;
    let mut sheep = Sheep::new();
    let dog = sheep.dog();
    let mut sum = Outcome::default();
    for number in 1..=count {
        let name = format!("fio{number}");
        let _ = dog.run(&["vdi", "create", &name, "256M"]).ok();
        let job = Job::new(&sheep.uri(&name), rng.next_u64() >> 32, 256 << 20, scratch.path());
        let job = if number % 2 == 0 { job.unaligned() } else { job };
        let delay = Duration::from_millis(rng.below(1400));
        let mut fio = job.start();
        fio.go_on(|| sheep.has_data(&name), delay);
        sheep.kill();
        fio.finish();
        sheep.start();
        let outcome =
            job.check().map_err(|e| anyhow::anyhow!("seed {seed}, fio round {number}: {e}"))?;
        println!("fio {number}/{count}: killed after {} ms: {outcome:?}", delay.as_millis());
        sum.acknowledged += outcome.acknowledged;
        sum.good += outcome.good;
        sum.other += outcome.other;
        let _ = dog.run(&["vdi", "delete", &name]).ok();
    }
    sheep.stop();
    Ok(json!({
        "rounds": count,
        "writes_acknowledged": sum.acknowledged,
        "writes_found_good": sum.good,
        "writes_never_acknowledged_and_not_there": sum.other,
        "adds_up": sum.good >= sum.acknowledged,
    }))
}
