//! Runs that are too long for every day. Their reports are kept in `docs/runs/`.

use crate::shell::{cmd, output};
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

/// `long kill …`.
pub fn run(args: &[&str]) -> Result<()> {
    let ["kill", rest @ ..] = args else {
        bail!("long kill [--rounds N] [--seed N]");
    };
    let (mut rounds, mut seed) = (100, Rng::fresh_seed());
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match *word {
            "--rounds" => rounds = value.parse()?,
            "--seed" => seed = value.parse()?,
            _ => bail!("long kill [--rounds N] [--seed N]"),
        }
    }
    kill(rounds, seed)
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
    let dir = bins::root().join("docs/runs");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("kill-{commit}-{seed}.json"));
    std::fs::write(&file, format!("{report:#}\n"))?;
    println!("{report:#}\nsaved as docs/runs/{}", file.file_name().unwrap_or_default().display());
    Ok(())
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
