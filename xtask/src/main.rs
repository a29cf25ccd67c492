//! `cargo xtask WORD`: the chores of this repository. Everything a person or CI does here that is
//! more than one cargo command starts here.

mod bench;
mod ci;
mod demo;
mod deps;
mod fuzz;
mod licences;
mod long;
mod placement;
mod samples;
mod shell;
mod sim;

use anyhow::{Result, bail};
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask WORD

  demo [IMAGE]      build sheep and dog, start a sheep, make a VDI (from IMAGE if given): ./start
  ci                everything that must pass: ./test
  deps              get the programs the tests need (as root by apt; otherwise say what is missing)
  bench [--quick] [--only loads|import|vdis]
                    the speed table: ours against fio on the disk and against qemu-nbd, importing
                    an image against cp, creating and deleting VDIs
  fuzz [NAME] [--seconds N]
                    every reader of foreign bytes against inputs chosen by coverage
  fuzz NAME --input FILE
                    one input again
  placement [--json] [NODES...]
                    how level placement is and how much it moves, on simulated clusters;
                    fails if a bound is broken
  long kill|cuts|broken [--rounds N] [--seed N]
                    deaths under verifying writers, of stores on simulated disks, and disks that
                    break; report in docs/runs/
  long fuzz [--seconds N]
                    every fuzz target for 30 minutes, report in docs/runs/
  long amplification|memory
                    what the device writes for a byte of a client; memory, start and idle
                    processor of a store of 1 TiB; fails if a limit is missed, report in docs/runs/
  sim run [--seed FIRST] [--seeds N] [--seconds N]
                    the core in simulated clusters under faults, one run a seed
  sim trace|shrink --seed N
                    one run with all its messages; one that failed, with what it does not need
                    left out
  sim mutations [--seed FIRST] [--seeds N] [--rule NAME]
                    each rule of the protocol left out: which oracle finds it, after how many seeds
  long sim [--seconds N] [--seed N]
                    an hour of seeds, report in docs/runs/
  samples LABEL     nodes as this version leaves them, for all later ones to open; kept in
                    crates/testkit/samples
  licences          every dependency's licence is one that deny.toml allows";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match chore(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What went wrong, for people: no backtrace, whatever the environment asks for.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(words: &[&str]) -> Result<()> {
    match words {
        ["demo", rest @ ..] => demo::run(rest),
        ["ci"] => ci::run(),
        ["deps"] => deps::run(),
        ["bench", rest @ ..] => bench::run(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["long", rest @ ..] => long::run(rest),
        ["placement", rest @ ..] => placement::run(rest),
        ["samples", rest @ ..] => samples::run(rest),
        ["sim", rest @ ..] => sim::run(rest),
        ["licences"] => licences::run(),
        ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}
