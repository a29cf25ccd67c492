//! What runs report: counters that add up over seeds, and findings; written as JSON.

use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Counters by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// One more.
    pub fn one(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// So many more.
    pub fn add(&mut self, name: &'static str, count: u64) {
        if count > 0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// How many so far.
    #[must_use]
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// All that are not 0, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().map(|(name, count)| (*name, *count))
    }
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        for (name, count) in other.iter() {
            self.add(name, count);
        }
    }
}

/// A run that an oracle did not accept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Names the run.
    pub seed: u64,
    /// Which oracle.
    pub oracle: &'static str,
    /// In words.
    pub what: String,
}

/// How many findings are kept word for word; the others are only counted.
pub const FINDINGS_KEPT: usize = 100;

/// One run, or many together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// Runs.
    pub seeds: u64,
    /// Delivered events.
    pub events: u64,
    /// Client operations by kind and end.
    pub operations: Counts,
    /// Faults that happened, by kind.
    pub faults: Counts,
    /// Other things worth counting: situations reached, bytes moved.
    pub seen: Counts,
    /// Runs with a finding.
    pub failed: u64,
    /// The first of the findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// For people and for files that are added up later.
    ///
    /// # Panics
    /// Never: all keys are strings.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("counters and strings are JSON")
    }

    /// Notes a run that failed.
    pub fn find(&mut self, finding: Finding) {
        self.failed += 1;
        if self.findings.len() < FINDINGS_KEPT {
            self.findings.push(finding);
        }
    }
}

impl AddAssign<&Self> for Report {
    fn add_assign(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.operations += &other.operations;
        self.faults += &other.faults;
        self.seen += &other.seen;
        self.failed += other.failed;
        let room = FINDINGS_KEPT.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.iter().take(room).cloned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_run(seed: u64) -> Report {
        let mut report = Report { seeds: 1, events: 1000 + seed, ..Report::default() };
        report.operations.add("write", 7);
        report.operations.add("read", 0);
        report.faults.one(if seed.is_multiple_of(2) { "reset" } else { "power loss" });
        report.find(Finding { seed, oracle: "linearizability", what: "stale".to_owned() });
        report
    }

    #[test]
    fn reports_add_up_and_stay_short() {
        let mut all = Report::default();
        for seed in 0..300 {
            all += &one_run(seed);
        }
        assert_eq!((all.seeds, all.failed, all.findings.len()), (300, 300, FINDINGS_KEPT));
        assert_eq!(all.events, 300 * 1000 + 299 * 150);
        assert_eq!((all.operations.of("write"), all.faults.of("reset")), (2100, 150));
        assert_eq!(all.faults.total(), 300);
        assert_eq!(all.operations.iter().count(), 1, "what never happened is not listed");
    }

    #[test]
    fn a_report_is_json() {
        let text = one_run(1).to_json();
        let read: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(read["faults"]["power loss"], 1);
        assert_eq!(read["findings"][0]["seed"], 1);
    }
}
