//! The speed table: the same fio jobs against the disk itself, `qemu-nbd` on a raw file and a
//! sheep, all on one disk, interleaved, so that the ratios mean something on any machine. Then
//! importing an image against `cp`, and how long creating and deleting VDIs takes.

mod contender;
mod import;
mod measure;
mod report;
mod vdis;

use anyhow::{Context, Result, bail};
use contender::{Contender, DiskStat};
use measure::{Sample, measure};
use report::{Table, Verdict};
use serde_json::{Map, Value, json};
use sheepdog_testkit::bins;
use std::path::PathBuf;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// As the table shows it.
    pub name: &'static str,
    /// fio's word.
    pub rw: &'static str,
    /// fio's block size.
    pub block: &'static str,
    /// Requests in flight.
    pub depth: u32,
}

const LOADS: [Load; 6] = [
    load("4k random write, depth 1", "randwrite", "4k", 1),
    load("4k random write, depth 32", "randwrite", "4k", 32),
    load("4k random read, depth 1", "randread", "4k", 1),
    load("4k random read, depth 32", "randread", "4k", 32),
    load("1M sequential write, depth 8", "write", "1M", 8),
    load("1M sequential read, depth 8", "read", "1M", 8),
];

const fn load(name: &'static str, rw: &'static str, block: &'static str, depth: u32) -> Load {
    Load { name, rw, block, depth }
}

impl Load {
    /// Whether it writes.
    pub fn writes(&self) -> bool {
        self.rw.ends_with("write")
    }
}

/// How long and how much.
#[derive(Clone, Debug)]
struct Options {
    bytes: u64,
    seconds: u32,
    rounds: u32,
    ours: bool,
    only: Option<Part>,
    dir: PathBuf,
    save: Option<PathBuf>,
}

/// Parts that can be run alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Loads,
    Import,
    Vdis,
}

impl Options {
    fn does(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part) && (self.ours || part == Part::Loads)
    }

    fn parse(args: &[&str]) -> Result<Self> {
        let mut options = Self {
            bytes: 2 << 30,
            seconds: 4,
            rounds: 5,
            ours: true,
            only: None,
            dir: bins::target_dir().join("bench"),
            save: None,
        };
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match *word {
                "--quick" => (options.bytes, options.seconds, options.rounds) = (256 << 20, 1, 1),
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--mib" => options.bytes = value()?.parse::<u64>()? << 20,
                "--only" => {
                    options.only = Some(match *value()? {
                        "loads" => Part::Loads,
                        "import" => Part::Import,
                        "vdis" => Part::Vdis,
                        other => bail!("{other} is none of loads, import, vdis"),
                    });
                }
                "--dir" => options.dir = PathBuf::from(value()?),
                "--save" => options.save = Some(PathBuf::from(value()?)),
                "--baselines" => options.ours = false,
                _ => bail!(
                    "bench [--quick] [--rounds N] [--seconds N] [--mib N] [--dir DIR] \
                     [--save FILE.json] [--baselines] [--only loads|import|vdis]"
                ),
            }
        }
        Ok(options)
    }
}

/// `bench`.
pub fn run(args: &[&str]) -> Result<()> {
    let options = Options::parse(args)?;
    if options.ours {
        bins::use_dir(bins::build("release"));
    }
    // What a run that was interrupted left.
    let _ = std::fs::remove_dir_all(&options.dir);
    std::fs::create_dir_all(&options.dir)?;
    let result = run_in(&options);
    std::fs::remove_dir_all(&options.dir)?;
    result
}

fn run_in(options: &Options) -> Result<()> {
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut record = Map::new();
    if options.does(Part::Loads) {
        let table = loads(options)?;
        if options.ours {
            verdicts.extend(table.verdicts());
        }
        record.insert("runs".to_owned(), table.json());
    }
    if options.does(Part::Import) {
        // Of several GiB the page cache would keep a part only.
        let bytes = options.bytes.min(1 << 30);
        println!("Import of {} MiB", bytes >> 20);
        let imports = import::run(&options.dir, bytes, options.rounds)?;
        println!("\nMedians\n{}", imports.text());
        verdicts.extend(imports.verdicts());
        record.insert("import".to_owned(), imports.json());
    }
    if options.does(Part::Vdis) {
        println!("Creating and deleting VDIs");
        let latencies = vdis::run(&options.dir, 20 * options.rounds)?;
        println!("{}", latencies.text());
        verdicts.extend(latencies.verdicts());
        record.insert("vdis".to_owned(), latencies.json());
    }
    if !verdicts.is_empty() {
        println!("Targets");
        verdicts.iter().for_each(|verdict| println!("{}", verdict.line()));
    }
    if let Some(file) = &options.save {
        record.insert("commit".to_owned(), json!(crate::long::commit()?));
        record.insert("mib".to_owned(), json!(options.bytes >> 20));
        let targets: Vec<Value> = verdicts.iter().map(Verdict::json).collect();
        record.insert("targets".to_owned(), json!(targets));
        std::fs::write(file, format!("{:#}\n", Value::Object(record)))?;
        println!("saved as {}", file.display());
    }
    Ok(())
}

fn loads(options: &Options) -> Result<Table> {
    let stat = DiskStat::of(&options.dir)?;
    println!(
        "All on {}, {} MiB each, {} rounds of {} s a load, {} CPUs.",
        stat.name(),
        options.bytes >> 20,
        options.rounds,
        options.seconds,
        std::thread::available_parallelism()?
    );
    let mut contenders = vec![
        Contender::direct(&options.dir, options.bytes)?,
        Contender::qemu_nbd(&options.dir, "directsync", options.bytes)?,
        Contender::qemu_nbd(&options.dir, "none", options.bytes)?,
    ];
    if options.ours {
        contenders.push(Contender::sheep(&options.dir, options.bytes)?);
    }
    for contender in &contenders {
        println!("  {:<12} {}", contender.name, contender.durability);
    }
    for contender in &contenders {
        measure::fill(contender, options.bytes)?;
    }
    let mut table = Table::new(contenders.iter().map(|c| c.name).collect());
    for load in LOADS {
        println!("\n{}", load.name);
        println!("  {}", Sample::HEADER);
        for round in 0..options.rounds {
            for turn in 0..contenders.len() {
                // Another one begins each round, so that none always follows the same one.
                let at = (turn + round as usize) % contenders.len();
                let contender = &contenders[at];
                let flushes = stat.flushes()?;
                let mut sample = measure(contender, &load, options.bytes, options.seconds, round)?;
                sample.flushes = stat.flushes()?.saturating_sub(flushes);
                println!("  {}", sample.line(contender.name));
                table.add(&load, at, sample);
            }
        }
    }
    println!("\n{}", table.medians(&LOADS));
    Ok(table)
}
