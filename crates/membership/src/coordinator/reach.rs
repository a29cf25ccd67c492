//! Who reaches whom, from the reports of members, and who came and went too often.
//!
//! A report holds all suspicions of its sender and replaces the one before. It counts while the
//! sender is up and repeats it ([`REPORT_TTL`]). One reporter cuts a *pair*; a *node* is down when
//! two report [`DOWN`] of silence, and stays so until fewer than two suspect it at all.

use crate::api::{Now, Suspicion};
use crate::detect::DOWN;
use crate::map::MapRecord;
use sheepdog_types::{NodeId, Process};
use std::collections::{BTreeMap, BTreeSet};

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
/// Reports are repeated every 500 ms ([`crate::member`]); an older one says nothing.
pub const REPORT_TTL: u64 = 3 * S;
/// Reporters that it takes.
const REPORTERS: usize = 2;
/// Returns within this time are counted.
pub const FLAP_WINDOW: u64 = 60 * S;
/// So many of them cost nothing.
pub const FLAPS_FREE: usize = 2;
/// What the next one costs; each further one twice as much as the one before.
pub const FLAP_WAIT: u64 = 2 * S;
/// The most that one costs.
pub const FLAP_WAIT_MAX: u64 = 60 * S;

struct Report {
    at: Now,
    process: Process,
    suspicions: Vec<Suspicion>,
}

/// See the [module](self).
#[derive(Default)]
pub struct Reach {
    reports: BTreeMap<NodeId, Report>,
    /// By node, when it came back.
    returns: BTreeMap<NodeId, Vec<Now>>,
    /// Who was kept out at the last look.
    kept_out: BTreeSet<NodeId>,
}

impl Reach {
    pub fn report(&mut self, now: Now, process: Process, suspicions: Vec<Suspicion>) {
        self.reports.insert(process.node, Report { at: now, process, suspicions });
    }

    /// Reports and suspicions that count: of processes that are up or were, by processes that are.
    fn live<'a>(
        &'a self,
        now: Now,
        map: &'a MapRecord,
    ) -> impl Iterator<Item = (NodeId, &'a Suspicion)> {
        let reports = self.reports.iter().filter(move |(node, report)| {
            map.process(**node) == Some(report.process)
                && now.saturating_sub(report.at) < REPORT_TTL
        });
        let all = reports.flat_map(|(node, report)| report.suspicions.iter().map(|s| (*node, s)));
        all.filter(|(_, suspicion)| {
            let entry = map.nodes.get(&suspicion.process.node);
            entry.is_some_and(|entry| entry.incarnation == suspicion.process.incarnation)
        })
    }

    /// Whether a node is down by report.
    pub fn is_down(&self, now: Now, map: &MapRecord, node: NodeId, was_up: bool) -> bool {
        let about = self.live(now, map).filter(|(by, s)| s.process.node == node && *by != node);
        let long = about.filter(|(_, s)| !was_up || s.silent >= DOWN / MS);
        long.map(|(by, _)| by).collect::<BTreeSet<_>>().len() >= REPORTERS
    }

    /// Pairs of nodes that do not reach each other, the lower first.
    pub fn cut(&self, now: Now, map: &MapRecord) -> BTreeSet<(NodeId, NodeId)> {
        let pairs = self.live(now, map).map(|(by, s)| (by, s.process.node));
        let up = pairs.filter(|(a, b)| a != b && map.process(*b).is_some());
        up.map(|(a, b)| (a.min(b), a.max(b))).collect()
    }

    /// Notes who is kept out now, be it down or the worse half of a pair, and so who came back.
    pub fn observe(&mut self, now: Now, kept_out: BTreeSet<NodeId>) {
        for node in self.kept_out.difference(&kept_out) {
            self.returns.entry(*node).or_default().push(now);
        }
        self.kept_out = kept_out;
        self.returns.retain(|_, times| {
            times.retain(|at| now.saturating_sub(*at) < FLAP_WINDOW);
            !times.is_empty()
        });
    }

    /// Until when a node joins nothing.
    pub fn damped(&self, node: NodeId) -> Option<Now> {
        let times = self.returns.get(&node)?;
        let last = *times.last()?;
        let costly = times.len().checked_sub(FLAPS_FREE + 1)?;
        let wait = FLAP_WAIT.saturating_mul(1 << costly.min(16)).min(FLAP_WAIT_MAX);
        Some(last.saturating_add(wait))
    }
}
