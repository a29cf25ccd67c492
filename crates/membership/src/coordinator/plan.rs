//! What the registry should hold: a copy of what it holds, changed by orders of the operator, by
//! who came and went, and the transaction that makes the difference.

use crate::api::Command;
use crate::keys::{self, CHANGES_MAX, NODES_MAX, PACK_SHARDS, SETS_MAX};
use crate::map::{DiskEntry, DiskState, MapRecord, NodeEntry, NodeState};
use crate::records::{Fences, NodeRecord, SetRecord, Settings};
use crate::shards::{Activation, ShardPack, ShardRecord};
use crate::view::View;
use sheepdog_placement::{BITS_MAX, Placement, VNODES_MAX, WIDTH_MAX};
use sheepdog_types::kv::{Change, Compare, Revision, Txn};
use sheepdog_types::{DiskId, Error, ErrorKind, Interval, NodeId, Result, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of one transaction, beyond which the rest waits for the next: etcd takes 1.5 MiB.
const TXN_BYTES_MAX: usize = 1 << 20;

/// See the [module](self).
pub struct Plan<'a> {
    view: &'a View,
    pub map: MapRecord,
    pub settings: Settings,
    pub fences: Fences,
    pub sets: BTreeMap<u16, SetRecord>,
    /// Records of nodes that are forgotten.
    forgotten: BTreeSet<NodeId>,
    /// Packs that were touched; those that orders are about first.
    packs: BTreeMap<(u16, u32), ShardPack>,
    first: BTreeSet<(u16, u32)>,
}

fn refuse(kind: ErrorKind, why: impl Into<String>) -> Error {
    Error::new(kind, why)
}

impl<'a> Plan<'a> {
    pub fn new(view: &'a View) -> Self {
        Self {
            view,
            map: view.map().cloned().unwrap_or_default(),
            settings: view.settings.as_ref().map(|(settings, _)| *settings).unwrap_or_default(),
            fences: view.fences.as_ref().map(|(fences, _)| fences.clone()).unwrap_or_default(),
            sets: view.sets.iter().map(|(id, (set, _))| (*id, set.clone())).collect(),
            forgotten: BTreeSet::new(),
            packs: BTreeMap::new(),
            first: BTreeSet::new(),
        }
    }

    /// The present record of a shard, as planned.
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRecord> {
        let (pack, low) = (shard.number / PACK_SHARDS, shard.number % PACK_SHARDS);
        match self.packs.get(&(shard.set, pack)) {
            Some(pack) => pack.shards.get(&low),
            None => self.view.shard(shard).map(|(record, _)| record),
        }
    }

    pub fn put_shard(&mut self, shard: ShardId, record: ShardRecord) {
        let key = (shard.set, shard.number / PACK_SHARDS);
        let old = || self.view.packs.get(&key).map(|(pack, _)| pack.clone()).unwrap_or_default();
        let pack = self.packs.entry(key).or_insert_with(old);
        pack.shards.insert(shard.number % PACK_SHARDS, record);
    }

    fn node(&mut self, node: NodeId) -> Result<&mut NodeEntry> {
        let entry = self.map.nodes.get_mut(&node);
        entry.ok_or_else(|| refuse(ErrorKind::Invalid, "there is no such node"))
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn command(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::CreateSet { set, policy, bits } => {
                let width = policy.width();
                if *bits > BITS_MAX || width == 0 || width > u32::from(WIDTH_MAX) {
                    return Err(refuse(ErrorKind::Invalid, "no such policy or shards"));
                }
                match self.sets.get(set) {
                    Some(old) if (old.policy, old.bits) == (*policy, *bits) => return Ok(()),
                    Some(_) => return Err(refuse(ErrorKind::Exists, "the set is in use")),
                    None if self.sets.len() >= SETS_MAX => {
                        return Err(refuse(ErrorKind::Invalid, "too many policies are in use"));
                    }
                    None => {}
                }
                let fresh = Placement::fresh(&self.map.placement(), *policy, *bits)?;
                let exceptions = fresh.exceptions();
                self.sets.insert(*set, SetRecord { policy: *policy, bits: *bits, exceptions });
            }
            Command::Drain { node, drain } => self.node(*node)?.draining = *drain,
            Command::Vnodes { node, vnodes } => {
                if *vnodes > VNODES_MAX {
                    return Err(refuse(ErrorKind::Invalid, "that is too heavy"));
                }
                let entry = self.node(*node)?;
                (entry.vnodes, entry.vnodes_fixed) = (*vnodes, true);
            }
            Command::Disk { disk, state } => {
                let mut entries = self.map.nodes.values_mut();
                let entry = entries.find_map(|entry| entry.disks.get_mut(disk));
                let entry =
                    entry.ok_or_else(|| refuse(ErrorKind::Invalid, "there is no such disk"))?;
                if *state == DiskState::Lost || entry.state == DiskState::Lost {
                    return Err(refuse(ErrorKind::Invalid, "its node says whether it is lost"));
                }
                entry.state = *state;
            }
            Command::GiveUp { node } => {
                let entry = self.node(*node)?;
                if entry.state == NodeState::Up {
                    return Err(refuse(ErrorKind::Invalid, "the node is up"));
                }
                entry.state = NodeState::Out { clean: true };
            }
            Command::Remove { node } => {
                let Some(entry) = self.map.nodes.get(node) else {
                    return Ok(());
                };
                if !matches!(entry.state, NodeState::Out { .. }) {
                    return Err(refuse(ErrorKind::Invalid, "the node is not out"));
                }
                // Its incarnation stays known, by a fence: a process that comes back takes a later.
                let newest = self.fences.processes.entry(*node).or_default();
                *newest = entry.incarnation.max(*newest);
                self.map.nodes.remove(node);
                self.forgotten.insert(*node);
            }
            Command::Fence(process) => {
                let newest = self.fences.processes.entry(process.node).or_default();
                *newest = process.incarnation.max(*newest);
            }
            Command::Settings(settings) => {
                self.settings = *settings;
                for entry in self.map.nodes.values_mut() {
                    if let NodeState::Down { grace } | NodeState::Left { grace } = &mut entry.state
                    {
                        *grace = (*grace).min(settings.grace);
                    }
                }
            }
            Command::Force { shard, lost } => self.force(*shard, lost)?,
        }
        Ok(())
    }

    /// The last resort: J becomes the latest activation since the last clean one of which members
    /// remain, reduced to these. With none, whoever has anything decides.
    fn force(&mut self, shard: ShardId, lost: &[DiskId]) -> Result<()> {
        let record = self.shard(shard).cloned();
        let mut record = record.ok_or_else(|| refuse(ErrorKind::Invalid, "no such shard"))?;
        let gone = |plan: &Self, disk: &DiskId| lost.contains(disk) || !plan.is_usable(*disk);
        if !record.last.members.iter().any(|disk| gone(self, disk)) {
            return Ok(());
        }
        let mut all: Vec<Activation> = record.older.drain(..).collect();
        all.push(std::mem::take(&mut record.last));
        while let Some(mut activation) = all.pop() {
            let (fenced, left): (BTreeSet<DiskId>, BTreeSet<DiskId>) =
                activation.members.iter().partition(|disk| gone(self, disk));
            self.fences.disks.extend(fenced);
            if !left.is_empty() {
                activation.members = left;
                record.last = activation;
                break;
            }
        }
        record.older = all;
        record.acting.iter_mut().for_each(|seat| seat.complete = false);
        self.first.insert((shard.set, shard.number / PACK_SHARDS));
        // The interval that is activated next must not look activated already.
        let (seats, primary) = (record.acting.clone(), record.primary_seat().map(|s| s.disk));
        let seats: Vec<_> = seats.iter().map(|seat| (seat.disk, seat.process)).collect();
        if !record.begin(Interval(0), &seats, primary) {
            return Err(refuse(ErrorKind::Internal, "all intervals are used"));
        }
        self.put_shard(shard, record);
        Ok(())
    }

    /// Whether a disk's node is up, and it is neither lost nor out nor fenced.
    pub fn is_usable(&self, disk: DiskId) -> bool {
        let mut up = self.map.nodes.values().filter(|entry| entry.state == NodeState::Up);
        let state = up.find_map(|entry| entry.disks.get(&disk)).map(|entry| entry.state);
        matches!(state, Some(DiskState::In | DiskState::Draining))
            && !self.fences.disks.contains(&disk)
    }

    /// Whether the map has what an up node says of itself; true of nearly all at nearly all times.
    fn is_in(&self, node: NodeId, record: &NodeRecord) -> bool {
        self.map.nodes.get(&node).is_some_and(|entry| {
            let disk = |(id, weight): (&DiskId, &u64)| {
                entry.disks.get(id).is_some_and(|found| {
                    let fenced = self.fences.disks.contains(id);
                    found.weight == (*weight).max(1)
                        && found.state != DiskState::Lost
                        && (!fenced || found.state == DiskState::Out)
                })
            };
            let lost = |(id, found): (&DiskId, &DiskEntry)| {
                found.state == DiskState::Lost || record.disks.contains_key(id)
            };
            entry.state == NodeState::Up
                && (entry.incarnation, entry.zone) == (record.incarnation, record.zone)
                && (entry.vnodes_fixed || entry.vnodes == record.vnodes)
                && entry.address == record.address
                && record.disks.iter().all(disk)
                && entry.disks.iter().all(lost)
        })
    }

    /// Takes what an up node says of itself into the map.
    pub fn up(&mut self, node: NodeId, record: &NodeRecord) {
        if self.is_in(node, record) {
            return;
        }
        if !self.map.nodes.contains_key(&node) && self.map.nodes.len() >= NODES_MAX {
            return;
        }
        let new = NodeEntry {
            incarnation: record.incarnation,
            address: String::new(),
            zone: record.zone,
            vnodes: record.vnodes,
            vnodes_fixed: false,
            state: NodeState::Up,
            draining: false,
            disks: BTreeMap::new(),
        };
        // A disk that was carried from another node that is not up, or does not claim it any more.
        let claimed = |view: &View, owner: NodeId, disk: &DiskId| {
            let claims = view.nodes.get(&owner).is_some_and(|(r, _)| r.disks.contains_key(disk));
            claims && view.alive(owner).is_some()
        };
        for (owner, entry) in &mut self.map.nodes {
            if *owner != node {
                let moved = |disk: &DiskId| {
                    record.disks.contains_key(disk) && !claimed(self.view, *owner, disk)
                };
                entry.disks.retain(|disk, _| !moved(disk));
            }
        }
        let elsewhere: BTreeSet<DiskId> = {
            let others = self.map.nodes.iter().filter(|(owner, _)| **owner != node);
            others.flat_map(|(_, entry)| entry.disks.keys().copied()).collect()
        };
        let fences = &self.fences;
        let entry = self.map.nodes.entry(node).or_insert(new);
        entry.state = NodeState::Up;
        entry.incarnation = record.incarnation;
        entry.address.clone_from(&record.address);
        entry.zone = record.zone;
        if !entry.vnodes_fixed {
            entry.vnodes = record.vnodes;
        }
        for (disk, weight) in &record.disks {
            if elsewhere.contains(disk) {
                continue;
            }
            let new = DiskEntry { weight: *weight, state: DiskState::In };
            let found = entry.disks.entry(*disk).or_insert(new);
            // A full disk is a small one, not a lost one.
            found.weight = (*weight).max(1);
            if fences.disks.contains(disk) {
                found.state = DiskState::Out;
            } else if found.state == DiskState::Lost {
                found.state = DiskState::In;
            }
        }
        for (disk, found) in &mut entry.disks {
            if !record.disks.contains_key(disk) {
                found.state = DiskState::Lost;
            }
        }
    }

    /// Gives the map its epoch, once everything else is in it.
    pub fn number_epoch(&mut self) {
        let before = self.view.map().map(MapRecord::listed).unwrap_or_default();
        if self.map.listed() != before {
            self.map.epoch = self.map.epoch.saturating_add(1);
        }
    }

    /// The transaction that makes the registry so, and whether it makes all of it; `None` if it is
    /// so already.
    pub fn txn(&self, election: Revision) -> Option<(Txn, bool)> {
        let mut puts = Vec::new();
        let view = self.view;
        if self.map != view.map().cloned().unwrap_or_default() {
            puts.push((keys::MAP.to_owned(), self.map.encode()));
        }
        let settings = view.settings.as_ref().map(|(settings, _)| *settings);
        if self.settings != settings.unwrap_or_default() {
            puts.push((keys::SETTINGS.to_owned(), self.settings.encode()));
        }
        if self.fences != view.fences.as_ref().map(|(f, _)| f.clone()).unwrap_or_default() {
            puts.push((keys::FENCES.to_owned(), self.fences.encode()));
        }
        for (id, set) in &self.sets {
            if view.sets.get(id).map(|(set, _)| set) != Some(set) {
                puts.push((keys::set(*id), set.encode()));
            }
        }
        let mut bytes: usize = puts.iter().map(|(_, value)| value.len()).sum();
        let first = |key: &(u16, u32)| self.first.contains(key);
        let (urgent, usual): (Vec<_>, Vec<_>) = self.packs.iter().partition(|(k, _)| first(k));
        let mut whole = true;
        for ((set, number), pack) in urgent.into_iter().chain(usual) {
            if view.packs.get(&(*set, *number)).map(|(pack, _)| pack) == Some(pack) {
                continue;
            }
            let value = pack.encode();
            bytes = bytes.saturating_add(value.len());
            let full = puts.len() + self.forgotten.len() >= CHANGES_MAX || bytes > TXN_BYTES_MAX;
            if full && !puts.is_empty() {
                whole = false;
                break;
            }
            puts.push((keys::pack(*set, *number), value));
        }
        let forgotten = self.forgotten.iter().map(|node| keys::node(*node));
        let deletes: Vec<String> = forgotten.collect();
        if puts.is_empty() && deletes.is_empty() {
            return None;
        }
        let mut compares = vec![Compare::Unchanged(keys::COORDINATOR.to_owned(), election)];
        let touched = puts.iter().map(|(key, _)| key).chain(&deletes);
        compares.extend(touched.map(|key| view.compare(key.clone())));
        let changes = puts.into_iter().map(|(key, value)| Change::Put(key, value));
        let changes = changes.chain(deletes.into_iter().map(Change::Delete)).collect();
        Some((Txn { compares, changes }, whole))
    }
}
