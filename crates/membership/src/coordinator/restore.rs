//! A registry that went back in time: what the records lack is taken from the replicas.
//!
//! A replica knows a later interval than the record, or a member has seen a later revision than the
//! registry has. Then the shards concerned are not changed until **every node that is up has said
//! what its replicas of them know**, and nodes that are away but not given up were waited for
//! ([`PATIENCE`]). `cur` goes above every interval that anyone promised or was activated in; J with
//! its members is the latest activation that anyone has recorded.
//!
//! Why that is safe. Each member of an activated interval wrote its activation, with the members,
//! durably before the interval served. So if any member of the last one that served answers, the
//! latest activation reported is that one, or a later one in which nothing was acknowledged that
//! its members have not decided on (they all hold what was before, by P2). If none answers, the
//! latest reported may be an older one, whose members may lack writes: that is why not only the
//! nodes of the record are asked, which itself is old, but all, and why those that are away are
//! waited for. What remains is the loss of the registry's recent past together with all members of
//! the last interval, for longer than the patience; the operator is told when that may be the case.
//! A number above all reported ones is used by no interval that anybody reached has promised, so
//! promises tell this one from the lost ones.

use crate::api::{Knowledge, Now};
use crate::map::{MapRecord, NodeState};
use crate::shards::{Activation, ShardRecord};
use sheepdog_types::{Interval, NodeId, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet};

const S: u64 = 1_000_000_000;
/// How long nodes that are away are waited for.
pub const PATIENCE: u64 = 60 * S;
/// The least time for nodes that the record does not know to tell it of themselves.
pub const HEAR: u64 = 3 * S;
/// Whoever did not answer is asked again.
pub const ASK_AGAIN: u64 = S / 2;
/// Shards of one question, so that messages stay small.
pub const ASKED_MAX: usize = 4096;

/// What became known of a shard.
#[derive(Clone, Debug, Default)]
struct Found {
    highest: Interval,
    activations: BTreeMap<Interval, Activation>,
}

/// One round of asking.
#[derive(Debug)]
pub struct Restore {
    round: u64,
    since: Now,
    asked: Option<Now>,
    /// What the shards' replicas said.
    found: BTreeMap<ShardId, Found>,
    /// Processes that answered this round.
    answered: BTreeSet<Process>,
}

impl Restore {
    pub fn new(now: Now, round: u64) -> Self {
        let (found, answered) = (BTreeMap::new(), BTreeSet::new());
        Self { round, since: now, asked: None, found, answered }
    }

    pub fn is_of(&self, shard: ShardId) -> bool {
        self.found.contains_key(&shard)
    }

    /// A further shard. Everyone is asked anew, unless it is in already.
    pub fn add(&mut self, shard: ShardId, round: u64) {
        if !self.is_of(shard) {
            self.found.insert(shard, Found::default());
            self.answered.clear();
            self.asked = None;
            self.round = round;
        }
    }

    pub fn know(&mut self, knowledge: Knowledge) {
        if let Some(found) = self.found.get_mut(&knowledge.shard) {
            let activation = knowledge.activation;
            found.highest = found.highest.max(knowledge.promised).max(activation.interval);
            if !activation.members.is_empty() {
                found.activations.insert(activation.interval, activation);
            }
        }
    }

    pub fn answer(&mut self, from: Process, round: u64, knows: Vec<Knowledge>) {
        knows.into_iter().for_each(|knowledge| self.know(knowledge));
        if round == self.round {
            self.answered.insert(from);
        }
    }

    /// Whom to ask now.
    pub fn ask(&mut self, now: Now, map: &MapRecord) -> Vec<(Process, u64, Vec<ShardId>)> {
        if self.asked.is_some_and(|at| now.saturating_sub(at) < ASK_AGAIN) {
            return Vec::new();
        }
        self.asked = Some(now);
        let shards: Vec<ShardId> = self.found.keys().copied().collect();
        let silent = map.up().filter(|process| !self.answered.contains(process));
        silent.map(|process| (process, self.round, shards.clone())).collect()
    }

    /// Whether everyone was heard, and who was not waited for any longer.
    pub fn is_done(&self, now: Now, map: &MapRecord) -> Option<Vec<NodeId>> {
        let all = map.up().all(|process| self.answered.contains(&process));
        let away = map.nodes.iter().filter(|(_, entry)| {
            matches!(entry.state, NodeState::Down { .. } | NodeState::Left { .. })
        });
        let away: Vec<NodeId> = away.map(|(node, _)| *node).collect();
        let passed = now.saturating_sub(self.since);
        let patient = passed >= if away.is_empty() { HEAR } else { PATIENCE };
        (all && patient && map.up().next().is_some()).then_some(away)
    }

    pub fn shards(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.found.keys().copied()
    }

    /// Puts into a record what was found. The interval above everything, whose acting set is to be
    /// chosen, is returned; `None` if the record lacks nothing.
    pub fn apply(&self, shard: ShardId, record: &mut ShardRecord) -> Option<Interval> {
        let found = self.found.get(&shard)?;
        let latest = found.activations.values().next_back();
        if let Some(latest) = latest.filter(|latest| latest.interval > record.last.interval) {
            let last = std::mem::replace(&mut record.last, latest.clone());
            record.remember(last);
            let older = found.activations.values().rev().skip(1).rev();
            older.for_each(|activation| record.remember(activation.clone()));
            // Who had everything then may lack what came later.
            record.acting.iter_mut().for_each(|seat| seat.complete = false);
        }
        (found.highest > record.cur).then_some(found.highest)
    }
}
