//! Who is to act for one shard, and who is to order: a pure function of the shard's record, its
//! target set and of who can be used now.
//!
//! * **Holders** are the members of J, the last activated interval: only they are known to have
//!   what was acknowledged. While there are none that can be used, nothing is changed: the shard
//!   waits for them.
//! * **Targets** that can be used always act; those that lack data join and are filled.
//! * Others that are **complete** act on until as many targets are complete, so that a move never
//!   lowers the number of copies. While nobody is complete all holders act on.
//! * Where fewer zones would act than **required**, substitutes join: first those that act already,
//!   then those the placement names, then any disk of another zone.
//! * Of two that do not **reach** each other one goes: first a joiner before a holder, then the
//!   one that fewer nodes reach, then the one that is not the coordinator, then the higher id.
//! * One that is **damped** (it came and went too often) joins nothing, unless the shard would have
//!   no holder or too few members without it.

use crate::keys::SEATS_MAX;
use crate::shards::ShardRecord;
use sheepdog_types::{DiskId, NodeId, Process};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A disk that can be used: its node is up, it is neither lost nor out nor fenced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Who has it.
    pub process: Process,
    /// Its failure domain.
    pub zone: u32,
    /// Its node wants to leave: it should not order.
    pub leaving: bool,
    /// It is not to join anything for now.
    pub damped: bool,
    /// Data is to be moved away: it does not join as a substitute.
    pub draining: bool,
}

/// Everything that is the same for all shards.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ground {
    /// The disks that can be used.
    pub disks: BTreeMap<DiskId, Place>,
    /// Pairs of nodes that do not reach each other, the lower id first.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// By how many nodes each is reached.
    pub reach: BTreeMap<NodeId, usize>,
    /// The coordinator's node.
    pub coordinator: NodeId,
}

impl Ground {
    /// The lower, the sooner it stays when two do not reach each other.
    #[must_use]
    pub fn rank(&self, node: NodeId) -> (Reverse<usize>, bool, NodeId) {
        let reach = self.reach.get(&node).copied().unwrap_or(0);
        (Reverse(reach), node != self.coordinator, node)
    }

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }
}

/// One shard.
pub struct Shard<'a> {
    /// Its record.
    pub record: &'a ShardRecord,
    /// The disks that placement gives it, in order.
    pub target: &'a [DiskId],
    /// Where it turns when targets cannot act, best first.
    pub substitutes: &'a dyn Fn() -> Vec<DiskId>,
    /// Zones that must act.
    pub required: usize,
}

/// Who is to act.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The acting set: targets in their order, then the others by id.
    pub seats: Vec<(DiskId, Process)>,
    /// Whose process orders.
    pub primary: DiskId,
}

impl Choice {
    /// Whether the record's present interval is that already. The order of seats means nothing.
    #[must_use]
    pub fn is_in(&self, record: &ShardRecord) -> bool {
        self.seats.len() == record.acting.len()
            && record.primary_seat().map(|seat| seat.disk) == Some(self.primary)
            && self.seats.iter().all(|(disk, process)| {
                record.seat(*disk).is_some_and(|seat| seat.process == *process)
            })
    }
}

/// See the [module](self). `None`: nothing can be done now.
#[must_use]
pub fn choose(ground: &Ground, shard: &Shard<'_>) -> Option<Choice> {
    let careful = Choosing::new(ground, shard, false);
    match careful.finish() {
        Some(choice) if careful.zones() >= shard.required => Some(choice),
        _ => Choosing::new(ground, shard, true).finish(),
    }
}

struct Choosing<'a> {
    ground: &'a Ground,
    shard: &'a Shard<'a>,
    /// Whether the damped join too.
    all: bool,
    chosen: BTreeMap<DiskId, Place>,
}

impl<'a> Choosing<'a> {
    fn new(ground: &'a Ground, shard: &'a Shard<'a>, all: bool) -> Self {
        let mut new = Self { ground, shard, all, chosen: BTreeMap::new() };
        new.run();
        new
    }

    fn usable(&self, disk: DiskId) -> Option<Place> {
        let place = *self.ground.disks.get(&disk)?;
        let seated = |disk| {
            let seat = self.shard.record.seat(disk);
            seat.is_some_and(|seat| seat.process == place.process)
        };
        (self.all || !place.damped || seated(disk)).then_some(place)
    }

    fn zones(&self) -> usize {
        self.chosen.values().map(|place| place.zone).collect::<BTreeSet<_>>().len()
    }

    fn add(&mut self, disk: DiskId) {
        let Some(place) = self.usable(disk) else {
            return;
        };
        let node = place.process.node;
        let reached = self.chosen.values().all(|p| !self.ground.is_cut(p.process.node, node));
        if reached && self.chosen.len() < SEATS_MAX {
            self.chosen.insert(disk, place);
        }
    }

    fn add_ranked(&mut self, mut disks: Vec<DiskId>) {
        disks.retain(|disk| self.ground.disks.contains_key(disk));
        disks.sort_by_key(|disk| (self.ground.rank(self.ground.disks[disk].process.node), *disk));
        disks.into_iter().for_each(|disk| self.add(disk));
    }

    fn run(&mut self) {
        let Shard { record, target, .. } = *self.shard;
        let members = &record.last.members;
        let complete: Vec<DiskId> =
            record.acting.iter().filter(|s| s.complete).map(|s| s.disk).collect();
        let complete: Vec<DiskId> =
            complete.into_iter().filter(|disk| self.usable(*disk).is_some()).collect();
        let mut kept: Vec<DiskId> = if complete.is_empty() {
            members.iter().copied().filter(|disk| !target.contains(disk)).collect()
        } else {
            let done = complete.iter().filter(|disk| target.contains(disk)).count();
            let others = complete.iter().copied().filter(|disk| !target.contains(disk));
            others.take(target.len().saturating_sub(done)).collect()
        };
        let (holders, joiners): (Vec<DiskId>, Vec<DiskId>) =
            target.iter().partition(|disk| members.contains(disk));
        kept.extend(holders);
        self.add_ranked(kept);
        self.add_ranked(joiners);
        if self.zones() < self.shard.required {
            self.substitute();
        }
    }

    fn substitute(&mut self) {
        let record = self.shard.record;
        let mut names: Vec<DiskId> = Vec::new();
        // Holders first: they have most of it.
        names.extend(record.last.members.iter().filter(|disk| record.seat(**disk).is_some()));
        names.extend(record.acting.iter().map(|seat| seat.disk));
        let fresh = (self.shard.substitutes)();
        let others = self.ground.disks.keys().copied();
        let fresh = fresh.into_iter().chain(others);
        names.extend(fresh.filter(|disk| self.ground.disks.get(disk).is_some_and(|p| !p.draining)));
        for disk in names {
            if self.zones() >= self.shard.required {
                break;
            }
            let Some(place) = self.usable(disk) else {
                continue;
            };
            if self.chosen.values().all(|p| p.zone != place.zone) {
                self.add(disk);
            }
        }
    }

    fn finish(&self) -> Option<Choice> {
        let Shard { record, target, .. } = *self.shard;
        let members = &record.last.members;
        let held = members.is_empty() || self.chosen.keys().any(|disk| members.contains(disk));
        let others = self.chosen.keys().filter(|disk| !target.contains(disk));
        let order = target.iter().filter(|disk| self.chosen.contains_key(*disk)).chain(others);
        let order: Vec<DiskId> = order.copied().collect();
        // The first of the best: who is complete orders rather than a holder that is not, and that
        // one rather than a joiner; who leaves only before joiners.
        let primary = order.iter().copied().min_by_key(|disk| {
            let complete = record.seat(*disk).is_some_and(|seat| seat.complete);
            let holds = complete || members.contains(disk);
            (!holds, self.chosen[disk].leaving, !complete)
        })?;
        let seats = order.iter().map(|disk| (*disk, self.chosen[disk].process)).collect();
        held.then_some(Choice { seats, primary })
    }
}

#[cfg(test)]
mod tests;
