//! What must hold of each commit, from what the model's shards really did.

use sheepdog_membership::keys::{self, Key};
use sheepdog_membership::{Activation, MapRecord, NodeState, SetRecord, ShardPack, ShardRecord};
use sheepdog_placement::Placement;
use sheepdog_types::kv::Change;
use sheepdog_types::{DiskId, Interval, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet};

use super::registry::Registry;

type Acting = (BTreeSet<(DiskId, Process)>, Option<Process>);

#[derive(Default)]
pub struct Oracle {
    /// What each interval ever was.
    intervals: BTreeMap<(ShardId, Interval), Acting>,
    /// Intervals whose members were all activated.
    pub activated: BTreeSet<(ShardId, Interval)>,
    /// Intervals of which all members had everything.
    pub cleaned: BTreeSet<(ShardId, Interval)>,
    records: BTreeMap<ShardId, ShardRecord>,
    /// Committed activations since the last committed clean one.
    since: BTreeMap<ShardId, Vec<Activation>>,
    map: Option<MapRecord>,
    seen: u64,
    pub begun: u64,
    pub epochs: u64,
}

impl Oracle {
    /// Looks at all commits since the last look.
    pub fn look(&mut self, registry: &Registry) {
        while let Some((_, changes)) = registry.history.get(self.seen as usize) {
            self.seen += 1;
            for change in changes {
                self.change(change);
            }
            if self.seen == registry.revision {
                self.zones(registry, changes);
            }
        }
    }

    fn change(&mut self, change: &Change) {
        let Change::Put(key, value) = change else {
            return;
        };
        match Key::parse(key) {
            Some(Key::Map) => {
                let new = MapRecord::decode(value).expect("map");
                let old = self.map.take().unwrap_or_default();
                let grown = new.epoch - old.epoch;
                assert_eq!(grown, u64::from(new.listed() != old.listed()), "one epoch per change");
                self.epochs += grown;
                for (node, entry) in &old.nodes {
                    let later = new.nodes.get(node).map_or(entry.incarnation, |e| e.incarnation);
                    assert!(later >= entry.incarnation, "an old process came back");
                }
                self.map = Some(new);
            }
            Some(Key::Pack(set, pack)) => {
                for (low, record) in ShardPack::decode(value).expect("pack").shards {
                    let number = pack * keys::PACK_SHARDS + low;
                    self.shard(ShardId { set, number }, &record);
                }
            }
            _ => {}
        }
    }

    fn shard(&mut self, shard: ShardId, new: &ShardRecord) {
        let old = self.records.insert(shard, new.clone()).unwrap_or_default();
        assert!(new.cur >= old.cur, "{shard}: an interval went back");
        let seats = new.acting.iter().map(|seat| (seat.disk, seat.process)).collect();
        let acting: Acting = (seats, new.primary());
        assert!(acting.1.is_some(), "{shard}: nobody orders");
        if new.cur > old.cur {
            self.begun += 1;
            let before = self.intervals.insert((shard, new.cur), acting);
            assert!(before.is_none(), "{shard}: an interval began twice");
        } else {
            assert_eq!(self.intervals[&(shard, new.cur)], acting, "{shard}: changed within");
        }
        let since = self.since.entry(shard).or_default();
        if new.last != old.last {
            let interval = new.last.interval;
            assert_eq!(interval, old.cur, "{shard}: activated late");
            assert!(interval > old.last.interval, "{shard}: activated twice");
            assert!(self.activated.contains(&(shard, interval)), "{shard}: nobody activated it");
            let members: BTreeSet<DiskId> =
                self.intervals[&(shard, interval)].0.iter().map(|(disk, _)| *disk).collect();
            assert_eq!(new.last.members, members, "{shard}: other members");
            since.push(new.last.clone());
        }
        let cleaned = self.cleaned.contains(&(shard, new.last.interval));
        for seat in &new.acting {
            let had = old.seat(seat.disk).is_some_and(|seat| seat.complete);
            let given = cleaned && new.last.members.contains(&seat.disk);
            assert!(!seat.complete || had || given, "{shard}: complete out of nothing");
        }
        if new.older.is_empty() && cleaned && new.acting.iter().any(|seat| seat.complete) {
            since.retain(|activation| activation.interval >= new.last.interval);
        }
        for activation in since.iter().filter(|a| a.interval < new.last.interval) {
            let kept = new.older.iter().any(|old| {
                old.interval >= activation.interval && old.members.is_superset(&activation.members)
            });
            assert!(kept, "{shard}: {activation:?} was forgotten: {new:?}");
        }
    }

    /// Two members of one zone only while something is recovering, or waited for.
    fn zones(&self, registry: &Registry, changes: &[Change]) {
        let Some(map) = &self.map else {
            return;
        };
        let zone = |disk: &DiskId| {
            let node = map.owner(*disk).map(|node| map.nodes[&node].zone);
            node.expect("every disk has a node")
        };
        for change in changes {
            let Change::Put(key, value) = change else {
                continue;
            };
            let Some(Key::Pack(set, pack)) = Key::parse(key) else {
                continue;
            };
            for (low, record) in ShardPack::decode(value).expect("pack").shards {
                let zones: BTreeSet<u32> = record.disks().iter().map(zone).collect();
                if zones.len() == record.acting.len() {
                    continue;
                }
                let target = targets(registry, map, set, pack * keys::PACK_SHARDS + low);
                let up = |disk: &DiskId| {
                    map.owner(*disk).is_some_and(|n| map.nodes[&n].state == NodeState::Up)
                };
                let whole = target
                    .iter()
                    .all(|disk| up(disk) && record.seat(*disk).is_some_and(|seat| seat.complete));
                assert!(!whole, "two of one zone: {record:?}");
            }
        }
    }
}

pub fn targets(registry: &Registry, map: &MapRecord, set: u16, shard: u32) -> Vec<DiskId> {
    let record = registry.value(&keys::set(set)).expect("the set");
    let record = SetRecord::decode(record).expect("set");
    let map = map.placement();
    let placement =
        Placement::with_exceptions(&map, record.policy, record.bits, &record.exceptions);
    placement.expect("table and map fit").acting_set(shard).to_vec()
}
