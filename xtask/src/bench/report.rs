//! Medians, ratios and verdicts.

use super::Load;
use super::measure::Sample;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// All samples, by load and contender.
pub struct Table {
    names: Vec<&'static str>,
    samples: BTreeMap<(&'static str, usize), Vec<Sample>>,
}

/// A number of a sample.
type Field = fn(&Sample) -> f64;

const P50: Field = |s| s.p50;
const IOPS: Field = |s| s.iops;
const MIB: Field = |s| s.mib;

/// One target: our median against another's.
struct Target {
    load: &'static str,
    what: &'static str,
    field: Field,
    against: &'static str,
    bound: f64,
    /// Whether a smaller ratio is better.
    less: bool,
}

const TARGETS: [Target; 7] = [
    target("4k random write, depth 1", "latency p50", P50, "direct", 1.7, true),
    target("4k random write, depth 32", "rate", IOPS, "direct", 0.5, false),
    target("4k random write, depth 32", "rate", IOPS, "directsync", 1.0, false),
    target("4k random read, depth 1", "latency p50", P50, "none", 1.15, true),
    target("4k random read, depth 32", "rate", IOPS, "none", 1.0, false),
    target("1M sequential write, depth 8", "rate", MIB, "direct", 0.85, false),
    target("1M sequential read, depth 8", "rate", MIB, "direct", 0.9, false),
];

const fn target(
    load: &'static str,
    what: &'static str,
    field: Field,
    against: &'static str,
    bound: f64,
    less: bool,
) -> Target {
    Target { load, what, field, against, bound, less }
}

/// Whether a target is met.
pub struct Verdict {
    text: String,
    measured: f64,
    met: bool,
}

impl Verdict {
    /// A number that may not be larger.
    pub fn at_most(text: String, measured: f64, bound: f64) -> Self {
        Self { text, measured, met: measured <= bound }
    }

    /// A number that may not be smaller.
    pub fn at_least(text: String, measured: f64, bound: f64) -> Self {
        Self { text, measured, met: measured >= bound }
    }

    /// A line of the report.
    pub fn line(&self) -> String {
        let verdict = if self.met { "pass" } else { "MISS" };
        format!("  {verdict}  {:>6.2}  {}", self.measured, self.text)
    }

    /// For the record.
    pub fn json(&self) -> Value {
        let measured = (self.measured * 1000.0).round() / 1000.0;
        json!({ "target": self.text, "measured": measured, "met": self.met })
    }
}

/// The middle one, or between the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl Table {
    /// An empty one.
    pub const fn new(names: Vec<&'static str>) -> Self {
        Self { names, samples: BTreeMap::new() }
    }

    /// One more sample.
    pub fn add(&mut self, load: &Load, contender: usize, sample: Sample) {
        let samples = self.samples.entry((load.name, contender)).or_default();
        samples.push(sample);
    }

    fn median(&self, load: &'static str, contender: usize, field: Field) -> f64 {
        let samples = self.samples.get(&(load, contender));
        median(&samples.into_iter().flatten().map(field).collect::<Vec<_>>())
    }

    fn median_of(&self, load: &'static str, name: &str, field: Field) -> f64 {
        let at = self.names.iter().position(|n| *n == name);
        at.map_or(f64::NAN, |at| self.median(load, at, field))
    }

    /// The table of medians.
    pub fn medians(&self, loads: &[Load]) -> String {
        let mut text = String::from("Medians\n");
        for load in loads {
            let _ = writeln!(text, "{:<30}{}", load.name, &Sample::HEADER[3..]);
            for (at, name) in self.names.iter().enumerate() {
                let flushes = match load {
                    // Where nothing is written, what others flush is not this one's.
                    load if !load.writes() => String::new(),
                    _ => format!("{:.3}", self.median(load.name, at, Sample::flushes_per_request)),
                };
                let _ = writeln!(
                    text,
                    "  {name:<28}{:>11.0} {:>8.1} {:>8.1} {:>8.1} {flushes:>16}",
                    self.median(load.name, at, IOPS),
                    self.median(load.name, at, MIB),
                    self.median(load.name, at, P50),
                    self.median(load.name, at, |s| s.p99),
                );
            }
        }
        text
    }

    /// Which targets are met.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts: Vec<_> = TARGETS
            .iter()
            .map(|t| {
                let ours = self.median_of(t.load, "sheep", t.field);
                let ratio = ours / self.median_of(t.load, t.against, t.field);
                let sign = if t.less { "at most" } else { "at least" };
                let text = format!("{}: {} {sign} {} of {}", t.load, t.what, t.bound, t.against);
                let judge = if t.less { Verdict::at_most } else { Verdict::at_least };
                judge(text, ratio, t.bound)
            })
            .collect();
        let load = "4k random write, depth 1";
        let flushes = self.median_of(load, "sheep", Sample::flushes_per_request);
        // A hundredth less is a run that was cut off between write and flush.
        let text = format!("{load}: device flushes per acknowledged write at least 1");
        verdicts.push(Verdict::at_least(text, flushes, 0.99));
        verdicts
    }

    /// All samples, for the record.
    pub fn json(&self) -> Value {
        let run = |((load, at), samples): (&(&str, usize), &Vec<Sample>)| {
            let samples: Vec<Value> = samples.iter().map(Sample::json).collect();
            json!({ "load": load, "who": self.names[*at], "runs": samples })
        };
        self.samples.iter().map(run).collect()
    }
}
