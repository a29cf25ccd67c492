//! What `cargo xtask sim` runs.
//!
//! * `run --seed FIRST [--seeds N] [--seconds N]`: runs, one a seed; JSON of all that happened is the
//!   last line.
//! * `trace --seed N [--rule NAME]`: one run with all its messages, without a rule if one is named.
//! * `shrink --seed N [--rule NAME]`: leaves out what the finding does not need, and tells the rest.
//! * `mutations --seed FIRST [--seeds N] [--rule NAME]`: each rule left out, and how soon that is found.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "what runs the simulator has time and threads; a run has none"
)]

use sheepdog_shard::{Rule, Rules};
use sheepdog_sim::report::{Finding, Report};
use sheepdog_sim::{Outcome, Plan, World, shrink};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Runs that shrinking may take.
const SHRINK_RUNS: usize = 300;

struct Options {
    seed: u64,
    seeds: u64,
    seconds: Option<u64>,
    rule: Option<String>,
}

fn options() -> Result<(String, Options), String> {
    let mut words = std::env::args().skip(1);
    let verb = words.next().ok_or("run, trace, shrink or mutations?")?;
    let mut options = Options { seed: 1, seeds: u64::MAX, seconds: None, rule: None };
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{word} {value}: {e}"));
        match word.as_str() {
            "--seed" => options.seed = number()?,
            "--seeds" => options.seeds = number()?,
            "--seconds" => options.seconds = Some(number()?),
            "--rule" => options.rule = Some(value),
            _ => return Err(format!("{word}: not known")),
        }
    }
    Ok((verb, options))
}

fn main() -> ExitCode {
    let (verb, options) = match options() {
        Ok(found) => found,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(64);
        }
    };
    let passed = match verb.as_str() {
        "run" => run(&options),
        "trace" => {
            let plan = plan_of(&options);
            told(&outcome_of(Plan { trace: true, ..plan }))
        }
        "shrink" => shrink_run(plan_of(&options)),
        "mutations" => mutations(&options),
        _ => {
            eprintln!("{verb}: not known");
            return ExitCode::from(64);
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The run of a seed, with a rule left out if one is named.
fn plan_of(options: &Options) -> Plan {
    let plan = Plan::of(options.seed);
    let named = |rule: &&Rule| options.rule.as_ref() == Some(&format!("{rule:?}"));
    match Rule::ALL.iter().find(named) {
        Some(rule) => Plan { rules: Rules::without(*rule), asserts: false, ..plan },
        None => plan,
    }
}

/// A panic of the core is a finding as any other.
fn outcome_of(plan: Plan) -> Outcome {
    let seed = plan.seed;
    std::panic::catch_unwind(|| World::new(plan).run()).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = text.unwrap_or_else(|| "a panic".to_owned());
        Outcome { findings: vec![Finding { seed, oracle: "panic", what }], ..Outcome::default() }
    })
}

fn told(outcome: &Outcome) -> bool {
    for (at, line) in &outcome.story {
        println!("{:>9.3} ms  {line}", *at as f64 / 1e6);
    }
    for finding in &outcome.findings {
        println!("{}: {}", finding.oracle, finding.what);
    }
    outcome.findings.is_empty()
}

/// Seeds on all processors, until there are enough or the time is over.
fn run(options: &Options) -> bool {
    let begin = Instant::now();
    let time = options.seconds.map(Duration::from_secs);
    let next = AtomicU64::new(options.seed);
    let end = options.seed.saturating_add(options.seeds);
    let report = Mutex::new(Report::default());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || time.is_some_and(|time| begin.elapsed() >= time) {
                        return;
                    }
                    let one = report_of(&outcome_of(Plan::of(seed)));
                    for finding in &one.findings {
                        println!("seed {seed}: {}: {}", finding.oracle, finding.what);
                    }
                    *report.lock().expect("nobody panics with it") += &one;
                }
            });
        }
    });
    let report = report.into_inner().expect("nobody panics with it");
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!(
        "{} seeds, {} events, {} findings in {seconds:.0} s",
        report.seeds, report.events, report.failed
    );
    let line: String = report.to_json().split_whitespace().collect::<Vec<_>>().join(" ");
    println!("{line}");
    report.failed == 0
}

fn report_of(outcome: &Outcome) -> Report {
    let mut report = Report { seeds: 1, ..Report::default() };
    for (name, count) in outcome.counts.iter() {
        if name == "events" {
            report.events = count;
        } else if name.starts_with("fault:")
            || name.starts_with("disk:")
            || name.starts_with("net:")
        {
            report.faults.add(name, count);
        } else if name.contains("done") || name.starts_with("refused") || name.contains("client") {
            report.operations.add(name, count);
        } else {
            report.seen.add(name, count);
        }
    }
    if let Some(finding) = outcome.findings.first() {
        report.find(finding.clone());
    }
    report
}

/// Leaves out faults, clients and time as long as something is still found.
fn shrink_run(mut plan: Plan) -> bool {
    let seed = plan.seed;
    let first = outcome_of(plan.clone());
    if first.findings.is_empty() {
        println!("seed {seed}: nothing is found");
        return true;
    }
    let all: Vec<u64> = (0..first.faults).collect();
    let shrunk = shrink::list(&all, SHRINK_RUNS, |kept| {
        let kept: BTreeSet<u64> = kept.iter().copied().collect();
        let without_faults = all.iter().filter(|fault| !kept.contains(fault)).copied().collect();
        !outcome_of(Plan { without_faults, ..plan.clone() }).findings.is_empty()
    });
    let kept: BTreeSet<u64> = shrunk.items.iter().copied().collect();
    plan.without_faults = all.iter().filter(|fault| !kept.contains(fault)).copied().collect();
    for fewer in 1..plan.clients {
        let smaller = Plan { clients: fewer, ..plan.clone() };
        if !outcome_of(smaller.clone()).findings.is_empty() {
            plan = smaller;
            break;
        }
    }
    println!("seed {seed}: {} of {} faults, {} clients", kept.len(), all.len(), plan.clients);
    told(&outcome_of(plan))
}

/// Each rule left out, with the product's asserts off: which oracle finds it, and after how many seeds.
fn mutations(options: &Options) -> bool {
    std::panic::set_hook(Box::new(|_| {}));
    let seeds = options.seeds.min(20_000);
    let mut all = true;
    println!("| rule | found by | seeds |\n|---|---|--:|");
    for rule in Rule::ALL {
        let name = format!("{rule:?}");
        if options.rule.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let found = (options.seed..options.seed + seeds).find_map(|seed| {
            let rules = Rules::without(rule);
            let outcome = outcome_of(Plan { rules, asserts: false, ..Plan::of(seed) });
            outcome.findings.first().map(|f| (seed - options.seed + 1, f.oracle))
        });
        match found {
            Some((seeds, oracle)) => println!("| {name} | {oracle} | {seeds} |"),
            None => {
                all = false;
                println!("| {name} | not found | {seeds} |");
            }
        }
    }
    all
}
