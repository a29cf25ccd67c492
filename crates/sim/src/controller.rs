//! A coordinator and its registry in one, as simple as can be: it decides at once and tells everybody
//! late. It stands in for both where a run is about shards alone.

use crate::node::host_of;
use crate::{Host, Rng};
use sheepdog_shard::{Activation, Assignment, Lineages, VidRecord};
use sheepdog_types::{DiskId, Interval, LineageId, NodeId, Process, ShardId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the registry knows of a shard.
#[derive(Clone, Debug, Default)]
struct Record {
    current: Assignment,
    targets: Vec<DiskId>,
    clean: bool,
    revision: u64,
}

/// See the module.
pub struct Controller {
    shards: BTreeMap<ShardId, Record>,
    /// The node of each disk.
    homes: BTreeMap<DiskId, NodeId>,
    /// Processes that are believed to be up.
    up: BTreeMap<NodeId, Process>,
    /// Pairs that do not reach each other.
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// Of each of them the one that must not act.
    shunned: BTreeSet<NodeId>,
    /// Lineages and fences.
    pub lineages: Arc<Lineages>,
    copies: usize,
    required: usize,
    revision: u64,
    /// Shards whose record changed.
    changed: BTreeSet<ShardId>,
}

impl Controller {
    /// Shards with their targets, on those disks.
    #[must_use]
    pub fn new(
        homes: BTreeMap<DiskId, NodeId>,
        shards: Vec<ShardId>,
        copies: usize,
        required: usize,
        rng: &mut Rng,
    ) -> Self {
        let disks: Vec<DiskId> = homes.keys().copied().collect();
        let target = |rng: &mut Rng| {
            let mut disks = disks.clone();
            rng.shuffle(&mut disks);
            let mut nodes = BTreeSet::new();
            disks.retain(|disk| nodes.insert(homes[disk]));
            disks.truncate(copies);
            disks
        };
        let records = shards.into_iter().map(|id| {
            let record = Record { targets: target(rng), ..Record::default() };
            (id, record)
        });
        Self {
            shards: records.collect(),
            up: BTreeMap::new(),
            cuts: BTreeSet::new(),
            shunned: BTreeSet::new(),
            lineages: Arc::default(),
            copies,
            required,
            revision: 0,
            changed: BTreeSet::new(),
            homes,
        }
    }

    /// The disks where a shard should be.
    #[must_use]
    pub fn targets(&self, shard: ShardId) -> &[DiskId] {
        self.shards.get(&shard).map_or(&[], |record| &record.targets)
    }

    /// The newest record.
    #[must_use]
    pub fn current(&self, shard: ShardId) -> Option<&Assignment> {
        self.shards.get(&shard).map(|record| &record.current)
    }

    /// Whether every target has everything.
    #[must_use]
    pub fn is_clean(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|record| {
            let acting: BTreeSet<&DiskId> = record.current.acting.iter().collect();
            record.clean && acting == record.targets.iter().collect()
        })
    }

    /// Records that changed since this was asked last, with their revisions.
    pub fn changes(&mut self) -> Vec<(ShardId, u64, Assignment)> {
        let changed = std::mem::take(&mut self.changed);
        let of = |id: ShardId| {
            self.shards.get(&id).map(|record| (id, record.revision, record.current.clone()))
        };
        changed.into_iter().filter_map(of).collect()
    }

    /// All records, for a process that just started.
    #[must_use]
    pub fn all(&self) -> Vec<(ShardId, u64, Assignment)> {
        let all = self.shards.iter();
        all.map(|(id, record)| (*id, record.revision, record.current.clone())).collect()
    }

    /// A process takes part: with it all earlier ones of its node are over.
    pub fn joined(&mut self, process: Process) {
        let mut lineages = (*self.lineages).clone();
        lineages.revision += 1;
        lineages.gateways.insert(process.node, process.incarnation);
        self.lineages = Arc::new(lineages);
        self.up.insert(process.node, process);
        self.shunned.remove(&process.node);
        self.cuts.retain(|(a, b)| *a != process.node && *b != process.node);
        self.decide_all(Some(process.node));
    }

    /// Another number of the lock of a VDI: whoever holds a lower one is fenced.
    pub fn move_lock(&mut self, vid: Vid) {
        let mut lineages = (*self.lineages).clone();
        lineages.revision += 1;
        if let Some(record) = lineages.vids.get_mut(&vid) {
            record.fence += 1;
        }
        self.lineages = Arc::new(lineages);
    }

    /// A new VDI.
    pub fn create(&mut self, vid: Vid) {
        let mut lineages = (*self.lineages).clone();
        lineages.revision += 1;
        let lineage = LineageId(u64::from(vid.get()));
        let record = VidRecord { lineage, working: true, fence: 0, path: [vid].into() };
        lineages.vids.insert(vid, record);
        self.lineages = Arc::new(lineages);
    }

    /// A process is found dead.
    pub fn gone(&mut self, process: Process) {
        if self.up.get(&process.node) == Some(&process) {
            self.up.remove(&process.node);
            self.decide_all(None);
        }
    }

    /// Two that do not reach each other: one of them must go, if they share a shard. That is the one
    /// that fewer reach.
    pub fn unreachable(&mut self, a: NodeId, b: NodeId) {
        let shared = self.shards.values().any(|record| {
            let nodes: BTreeSet<NodeId> =
                record.current.acting.iter().map(|disk| self.homes[disk]).collect();
            nodes.contains(&a) && nodes.contains(&b)
        });
        if !shared || !self.up.contains_key(&a) || !self.up.contains_key(&b) {
            return;
        }
        self.cuts.insert((a.min(b), a.max(b)));
        let mut cuts = self.cuts.clone();
        self.shunned.clear();
        while !cuts.is_empty() {
            let count = |node: &NodeId| cuts.iter().filter(|(a, b)| a == node || b == node).count();
            let nodes = cuts.iter().flat_map(|(a, b)| [*a, *b]);
            let Some(worst) = nodes.max_by_key(|node| (count(node), *node)) else {
                break;
            };
            self.shunned.insert(worst);
            cuts.retain(|(a, b)| *a != worst && *b != worst);
        }
        self.decide_all(None);
    }

    /// They reach each other again.
    pub fn reachable(&mut self) {
        self.cuts.clear();
        if !self.shunned.is_empty() {
            let nodes = std::mem::take(&mut self.shunned);
            for node in nodes {
                self.decide_all(Some(node));
            }
        }
    }

    /// A primary has activated its interval; whether that counts.
    pub fn activated(&mut self, shard: ShardId, interval: Interval) -> bool {
        let Some(record) = self.shards.get_mut(&shard) else {
            return false;
        };
        if record.current.interval != interval {
            return false;
        }
        if record.current.last.interval != interval {
            let former = std::mem::take(&mut record.current.last);
            record.current.older.extend(former.members);
            let members = record.current.acting.iter().copied().collect();
            record.current.last = Activation { interval, members };
            self.touch(shard);
        }
        true
    }

    /// Everything is everywhere in that interval.
    pub fn clean(&mut self, shard: ShardId, interval: Interval) {
        let Some(record) = self.shards.get_mut(&shard) else {
            return;
        };
        if record.current.interval == interval && record.current.last.interval == interval {
            record.clean = true;
            record.current.older.clear();
            self.touch(shard);
            self.decide(shard, false);
        }
    }

    /// A primary wants to take over once more.
    pub fn again(&mut self, shard: ShardId, interval: Interval) {
        if self.current(shard).is_some_and(|current| current.interval == interval) {
            self.decide(shard, true);
        }
    }

    /// A replica has promised that one.
    pub fn knows_later(&mut self, shard: ShardId, promised: Interval) {
        if let Some(record) = self.shards.get_mut(&shard)
            && promised > record.current.interval
        {
            record.current.interval = promised;
            self.decide(shard, true);
        }
    }

    fn decide_all(&mut self, came: Option<NodeId>) {
        for id in self.shards.keys().copied().collect::<Vec<_>>() {
            let record = &self.shards[&id];
            let of_it = |disk: &DiskId| Some(self.homes[disk]) == came;
            let helps = !record.clean
                && (record.current.older.iter().any(of_it)
                    || record.current.last.members.iter().any(of_it));
            self.decide(id, helps);
        }
    }

    /// Who acts from now on.
    fn decide(&mut self, id: ShardId, anew: bool) {
        let record = &self.shards[&id];
        let process = |disk: &DiskId| {
            let node = self.homes[disk];
            self.up.get(&node).copied().filter(|_| !self.shunned.contains(&node))
        };
        let is_up = |disk: &&DiskId| process(disk).is_some();
        let mut acting: Vec<DiskId> = record.targets.iter().filter(is_up).copied().collect();
        let whole = record.clean
            && record
                .targets
                .iter()
                .any(|disk| record.current.acting.contains(disk) && is_up(&disk));
        if !whole {
            for disk in record.current.last.members.iter().filter(is_up) {
                if !acting.contains(disk) {
                    acting.push(*disk);
                }
            }
        }
        if acting.len() < self.required {
            let mut nodes: BTreeSet<NodeId> = acting.iter().map(|disk| self.homes[disk]).collect();
            for disk in self.homes.keys().filter(is_up) {
                if acting.len() < self.copies && nodes.insert(self.homes[disk]) {
                    acting.push(*disk);
                }
            }
        }
        if acting.is_empty() {
            return;
        }
        let last = &record.current.last.members;
        let first = acting.iter().position(|disk| last.contains(disk)).unwrap_or(0);
        let Some(primary) = process(&acting[first]) else {
            return;
        };
        let mut known: BTreeSet<DiskId> = acting.iter().copied().collect();
        known.extend(last.iter().copied());
        known.extend(record.current.older.iter().copied());
        let hosts: BTreeMap<DiskId, Process> =
            known.iter().filter_map(|disk| process(disk).map(|host| (*disk, host))).collect();
        let current = &record.current;
        let of_acting = |hosts: &BTreeMap<DiskId, Process>| {
            acting.iter().map(|disk| hosts.get(disk).copied()).collect::<Vec<_>>()
        };
        let same = current.acting == acting
            && current.primary == primary
            && of_acting(&current.hosts) == of_acting(&hosts);
        if same && !anew {
            if current.hosts != hosts
                && let Some(record) = self.shards.get_mut(&id)
            {
                record.current.hosts = hosts;
                self.touch(id);
            }
            return;
        }
        let full = acting.iter().collect::<BTreeSet<_>>() == record.targets.iter().collect();
        let required = self.required.min(acting.len());
        let copies_here = acting.len();
        if copies_here < self.required {
            // Too few zones are left: it waits for one of them.
            return;
        }
        if let Some(record) = self.shards.get_mut(&id) {
            record.clean = false;
            record.current = Assignment {
                interval: Interval(record.current.interval.0 + 1),
                acting,
                primary,
                full,
                required,
                hosts,
                ..record.current.clone()
            };
            self.touch(id);
        }
    }

    fn touch(&mut self, id: ShardId) {
        self.revision += 1;
        if let Some(record) = self.shards.get_mut(&id) {
            record.revision = self.revision;
        }
        self.changed.insert(id);
    }

    /// The process that is believed to run on a host.
    #[must_use]
    pub fn process(&self, host: Host) -> Option<Process> {
        self.up.values().copied().find(|process| host_of(*process) == host)
    }
}
