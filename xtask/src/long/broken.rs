//! One operation of the disk goes wrong, at every place in turn: under a sheep at work, at a first
//! start, at a start with a log to replay.

use super::{commit, save};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheepdog_testkit::bins;
use sheepdog_testkit::broken::rounds::{AtWork, Round, first_start, next_start};
use sheepdog_testkit::brokenfs::{BrokenFs, Fault, Mode};
use std::time::Instant;

/// What the rounds of one kind came to.
#[derive(Default)]
struct Sum {
    rounds: u64,
    hit: u64,
    refused: u64,
    failed: u64,
}

impl Sum {
    fn add(
        &mut self,
        name: &str,
        spared: u64,
        round: std::result::Result<Round, String>,
    ) -> Result<Round> {
        let round =
            round.map_err(|e| anyhow::anyhow!("{name}, {spared} operations spared: {e}"))?;
        println!("{name}: {spared} spared: {round:?}");
        self.rounds += 1;
        self.hit += u64::from(round.hits > 0);
        self.refused += round.refused;
        self.failed += u64::from(round.failed);
        Ok(round)
    }

    fn json(&self) -> Value {
        json!({
            "rounds": self.rounds,
            "operations_that_went_wrong": self.hit,
            "refused": self.refused,
            "disks_failed": self.failed,
        })
    }
}

/// At most `count` rounds of each kind; a start is over sooner.
pub fn run(count: u32, seed: u64) -> Result<()> {
    bins::use_dir(bins::build("release"));
    let begin = Instant::now();
    let count = u64::from(count);
    println!("seed {seed}");
    let mut kinds = serde_json::Map::new();
    for mode in Mode::ALL {
        let disk = || BrokenFs::new(mode).context("no /dev/fuse, or not root");
        let mut note = |name: &str, sum: &Sum| {
            kinds.insert(format!("{name} ({mode:?})"), sum.json());
        };
        // The page cache tells of want of space when it is too late to refuse: the disk fails.
        for more in [false, true].into_iter().filter(|_| mode != Mode::Cached) {
            let name = if more { "no space from there on" } else { "no space once" };
            let (mut sum, disk) = (Sum::default(), disk()?);
            let mut work = AtWork::new(&disk, seed);
            for spared in 0..count {
                sum.add(name, spared, work.without_space(&disk, spared, more))?;
            }
            note(name, &sum);
        }
        let (mut sum, at) = (Sum::default(), disk()?);
        let mut work = AtWork::new(&at, seed);
        for spared in 0..count {
            sum.add("an error", spared, work.with_an_error(&at, spared))?;
        }
        note("an error", &sum);
        let (mut sum, at) = (Sum::default(), disk()?);
        let mut work = AtWork::new(&at, seed);
        for spared in 0..count {
            let fault = Fault::eio().after(spared).times(1);
            if sum.add("a start", spared, next_start(&mut work, &at, fault))?.hits == 0 {
                break;
            }
        }
        note("an error at a start", &sum);
        for (name, fault) in [("an error", Fault::eio()), ("no space", Fault::full())] {
            let (mut sum, at) = (Sum::default(), disk()?);
            for spared in 0..count {
                let fault = fault.clone().after(spared).times(1);
                if sum.add("a first start", spared, first_start(&at, fault))?.hits == 0 {
                    break;
                }
            }
            note(&format!("{name} at a first start"), &sum);
        }
    }
    if kinds.is_empty() {
        bail!("nothing was done");
    }
    let commit = commit()?;
    let report = json!({
        "command": format!("cargo xtask long broken --rounds {count} --seed {seed}"),
        "commit": commit,
        "seconds": begin.elapsed().as_secs(),
        "kinds": kinds,
    });
    save(&format!("broken-{commit}-{seed}.json"), &report)
}
