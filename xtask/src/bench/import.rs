//! Importing an image against what one does without us: `cp`, and `sync` of the copy, so that both
//! are durable at the end.

use super::report::{Verdict, median};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheepdog_testkit::Server;
use sheepdog_testkit::process::{run as run_command, wait_until};
use sheepdog_testkit::rng::Rng;
use sheepdog_testkit::sheep::Sheep;
use sheepdog_testkit::tools::command;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

/// Of the speed of `cp` and `sync`, at least.
const TARGET: f64 = 0.8;
/// What may stay used when an imported VDI is gone.
const REST: u64 = 16 << 20;

/// One side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Copy,
    Raw,
    Qcow2,
}

const SIDES: [(Side, &str); 3] = [
    (Side::Copy, "cp --sparse=never, sync"),
    (Side::Raw, "dog vdi import, raw"),
    (Side::Qcow2, "dog vdi import, qcow2"),
];

/// Seconds of each side, round by round.
pub struct Imports {
    bytes: u64,
    seconds: [Vec<f64>; 3],
}

impl Imports {
    fn rate(&self, side: usize) -> f64 {
        (self.bytes >> 20) as f64 / median(&self.seconds[side])
    }

    /// The medians.
    pub fn text(&self) -> String {
        let line = |side: usize| {
            let (name, rate) = (SIDES[side].1, self.rate(side));
            format!("  {name:<28}{:>8.2} s {rate:>8.0} MiB/s\n", median(&self.seconds[side]))
        };
        (0..SIDES.len()).map(line).collect()
    }

    /// The ratios of the medians.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let verdict = |side: usize| {
            let text = format!("{}: rate at least {TARGET} of cp and sync", SIDES[side].1);
            Verdict::at_least(text, self.rate(side) / self.rate(0), TARGET)
        };
        vec![verdict(1), verdict(2)]
    }

    /// For the record.
    pub fn json(&self) -> Value {
        let side = |side: usize| {
            let seconds = self.seconds[side].iter().map(|s| (s * 1000.0).round() / 1000.0);
            json!({ "who": SIDES[side].1, "seconds": seconds.collect::<Vec<_>>() })
        };
        json!({ "mib": self.bytes >> 20, "sides": (0..SIDES.len()).map(side).collect::<Vec<_>>() })
    }
}

/// All sides in turn, in another order each round.
pub fn run(dir: &Path, bytes: u64, rounds: u32) -> Result<Imports> {
    let dir = dir.join("import");
    std::fs::create_dir_all(&dir)?;
    let (raw, qcow2, copy) = (dir.join("image.raw"), dir.join("image.qcow2"), dir.join("copy.raw"));
    random_image(&raw, bytes)?;
    let mut convert = command("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2);
    let _ = run_command(&mut convert, b"").ok();
    File::open(&qcow2)?.sync_all()?;
    let mut sheep = Sheep::at(&dir.join("store"), &[]);
    sheep.start();
    let _ = sheep.dog().run(&["cluster", "format", "-c", "1"]).ok();
    let empty = used(&sheep)?;
    let mut imports = Imports { bytes, seconds: Default::default() };
    for round in 0..rounds as usize {
        for turn in 0..SIDES.len() {
            let at = (turn + round) % SIDES.len();
            let (side, name) = SIDES[at];
            let begin = Instant::now();
            let image = match side {
                Side::Copy => {
                    let mut cp = command("cp");
                    let _ = run_command(cp.arg("--sparse=never").arg(&raw).arg(&copy), b"").ok();
                    let _ = run_command(command("sync").arg(&copy), b"").ok();
                    None
                }
                Side::Raw => Some(&raw),
                Side::Qcow2 => Some(&qcow2),
            };
            if let Some(image) = image {
                let mut import = sheep.dog().command();
                let _ = run_command(import.args(["vdi", "import", "image"]).arg(image), b"").ok();
            }
            let seconds = begin.elapsed().as_secs_f64();
            println!("  {name:<28}{seconds:>8.2} s {:>8.0} MiB/s", (bytes >> 20) as f64 / seconds);
            imports.seconds[at].push(seconds);
            // Each begins with nothing of another one's under way.
            if side == Side::Copy {
                std::fs::remove_file(&copy)?;
            } else {
                let _ = sheep.dog().run(&["vdi", "delete", "image"]).ok();
                wait_until("the VDI's space is free", || {
                    used(&sheep).is_ok_and(|used| used < empty + REST)
                });
            }
        }
    }
    sheep.stop();
    Ok(imports)
}

/// Bytes that do not compress and are not zero.
fn random_image(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut rng = Rng::new(1);
    let mut piece = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        rng.fill(&mut piece);
        file.write_all(&piece)?;
    }
    Ok(file.sync_all()?)
}

fn used(sheep: &Sheep) -> Result<u64> {
    let info = sheep.dog().run(&["node", "info", "--json"]).ok().text();
    let info: Value = serde_json::from_str(&info)?;
    info["used"].as_u64().context("node info without a sum")
}
