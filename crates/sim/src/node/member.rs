//! A node's part in the cluster, with the product's own machine of membership: what it says of
//! records and map becomes what shards and the gateway are told, and what shards ask for goes to it.

use super::{Inner, Node, Slot, State, Wish};
use sheepdog_gateway::{Event as GatewayEvent, Gateway};
use sheepdog_membership::{
    Config, Effect, Event, Knowledge, LocalDisk, MapRecord, Member, SetRecord, ShardRecord, Stamp,
};
use sheepdog_placement::{ClusterMap, Placement};
use sheepdog_shard::{Activation, Assignment, Event as ShardEvent};
use sheepdog_storelog::CommandId;
use sheepdog_types::{DiskId, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Messages of a peer are signs of life; more often than this the member is not told.
const HEARD: u64 = 50 * crate::MS;

/// See the module.
pub struct Part {
    member: Member,
    started: bool,
    /// What the disks showed when they were opened.
    found: BTreeMap<DiskId, Stamp>,
    map: Option<MapRecord>,
    records: BTreeMap<ShardId, ShardRecord>,
    /// What the shards were told last.
    told: BTreeMap<ShardId, Assignment>,
    placed: Option<(ClusterMap, SetRecord, Placement)>,
    behind: BTreeSet<DiskId>,
    /// What must be durable before a disk has lost its vote.
    losing: BTreeMap<DiskId, BTreeSet<CommandId>>,
    heard: BTreeMap<Process, u64>,
}

impl Part {
    /// Of a process that just started.
    pub fn new(config: Config) -> Box<Self> {
        let found = config.disks.iter().map(|(id, disk)| (*id, disk.stamp)).collect();
        Box::new(Self {
            member: Member::new(config),
            started: false,
            found,
            map: None,
            records: BTreeMap::new(),
            told: BTreeMap::new(),
            placed: None,
            behind: BTreeSet::new(),
            losing: BTreeMap::new(),
            heard: BTreeMap::new(),
        })
    }

    /// The disks where a shard should be, by what the member knows.
    fn target(&mut self, shard: ShardId) -> Option<&[DiskId]> {
        let map = self.map.as_ref()?.placement();
        let set = self.member.set(shard.set)?;
        let fits = self.placed.as_ref().is_some_and(|(m, s, _)| *m == map && s == set);
        if !fits {
            let set = set.clone();
            let placement =
                Placement::with_exceptions(&map, set.policy, set.bits, &set.exceptions).ok()?;
            self.placed = Some((map, set, placement));
        }
        let (_, _, placement) = self.placed.as_ref()?;
        (shard.number < placement.shards()).then(|| placement.acting_set(shard.number))
    }

    /// What a shard is told of its record.
    fn assignment(&mut self, shard: ShardId) -> Option<Assignment> {
        let record = self.records.get(&shard)?.clone();
        let primary = record.primary()?;
        let acting: Vec<DiskId> = record.acting.iter().map(|seat| seat.disk).collect();
        let target: Option<BTreeSet<DiskId>> =
            self.target(shard).map(|target| target.iter().copied().collect());
        let map = self.map.as_ref()?;
        let policy = self.member.set(shard.set)?.policy;
        let there = map.nodes.values().filter(|e| e.vnodes > 0 && !e.state.left_cleanly());
        let zones: BTreeSet<u32> = there.map(|entry| entry.zone).collect();
        let older: BTreeSet<DiskId> =
            record.older.iter().flat_map(|old| old.members.iter().copied()).collect();
        let mut hosts: BTreeMap<DiskId, Process> = record
            .last
            .members
            .iter()
            .chain(&older)
            .filter_map(|disk| Some((*disk, map.process(map.owner(*disk)?)?)))
            .collect();
        // Who acts does so as the process that the record names, whoever is there now.
        hosts.extend(record.acting.iter().map(|seat| (seat.disk, seat.process)));
        Some(Assignment {
            interval: record.cur,
            full: target == Some(record.disks()),
            acting,
            primary,
            last: Activation {
                interval: record.last.interval,
                members: record.last.members.clone(),
            },
            older,
            required: self.member.settings().required(policy, zones.len()),
            hosts,
        })
    }
}

impl Node {
    /// It takes part by the machine of membership.
    pub fn take_part(&mut self, config: Config) {
        self.part = Some(Part::new(config));
    }

    /// Its membership.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        self.part.as_ref().map(|part| &part.member)
    }

    /// The newest process of a node that it knows.
    #[must_use]
    pub fn knows(&self, node: sheepdog_types::NodeId) -> Option<Process> {
        let entry = self.part.as_ref()?.map.as_ref()?.nodes.get(&node)?;
        Some(Process { node, incarnation: entry.incarnation })
    }

    /// Something for its membership.
    pub fn member_event(&mut self, now: u64, event: Event, wishes: &mut Vec<Wish>) {
        self.inbox.push_back(Inner::Member(event));
        self.run(now, wishes);
    }

    /// Its disks are open.
    pub(super) fn start_part(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        let open = |slot: &Slot| matches!(slot.state, State::Open(_));
        if !self.stores.0.values().all(open) {
            return;
        }
        if let Some(part) = self.part.as_mut().filter(|part| !part.started) {
            part.started = true;
            self.member_event(now, Event::Start, wishes);
        }
    }

    pub(super) fn tick_part(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        let next = self.part.as_ref().and_then(|part| part.member.next_tick());
        if next.is_some_and(|next| next <= now) {
            self.member_event(now, Event::Tick, wishes);
        }
    }

    /// A peer gave a sign of life.
    pub fn heard(&mut self, now: u64, from: Process, wishes: &mut Vec<Wish>) {
        if let Some(part) = &mut self.part {
            let last = part.heard.insert(from, now);
            match last.filter(|last| now.saturating_sub(*last) < HEARD) {
                Some(last) => drop(part.heard.insert(from, last)),
                None => self.member_event(now, Event::Heard(from), wishes),
            }
        }
    }

    pub(super) fn member_handles(&mut self, now: u64, event: Event, wishes: &mut Vec<Wish>) {
        let mut effects = Vec::new();
        if let Some(part) = &mut self.part {
            part.member.handle(now, event, &mut effects);
        }
        for effect in effects {
            self.member_effect(now, effect, wishes);
        }
    }

    fn member_effect(&mut self, now: u64, effect: Effect, wishes: &mut Vec<Wish>) {
        let Some(part) = &mut self.part else { return };
        match effect {
            Effect::Registry(token, call) => wishes.push(Wish::Registry(token, call)),
            Effect::Send { to, message } => wishes.push(Wish::Say(to, message)),
            Effect::Probe(process) => wishes.push(Wish::Probe(process)),
            Effect::Claimed(process) => self.claimed(now, process, wishes),
            Effect::Joined(_) => self.ready = true,
            Effect::Lost | Effect::Superseded { .. } | Effect::Left => wishes.push(Wish::Lost),
            Effect::ShardChanged { shard, record, .. } => {
                part.records.insert(shard, *record);
                self.assign(shard);
            }
            Effect::MapChanged { map, .. } => {
                part.map = Some(*map);
                let shards: Vec<ShardId> = part.records.keys().copied().collect();
                shards.into_iter().for_each(|shard| self.assign(shard));
            }
            Effect::DiskBehind { disk, .. } => drop(part.behind.insert(disk)),
            Effect::AskLocal { round, shards } => {
                let knows = self.knowledge(&shards);
                self.inbox.push_back(Inner::Member(Event::Local { round, knows }));
            }
            Effect::Log(level, text) => wishes.push(Wish::Log(level, text)),
            // What they fence comes with the lineages, which are not in the registry model yet.
            Effect::FencesChanged { .. } | Effect::CommandDone { .. } => {}
        }
    }

    /// Others may know it as that process from now on: its shards and its gateway begin.
    fn claimed(&mut self, now: u64, me: Process, wishes: &mut Vec<Wish>) {
        let Some(part) = &mut self.part else { return };
        self.me = me;
        self.without_vote = part.behind.clone();
        self.gateway = Gateway::new(me, self.layout);
        if self.lineages.revision > 0 {
            let event = GatewayEvent::Lineages(self.lineages.clone());
            self.inbox.push_back(Inner::Gateway(event));
        }
        wishes.push(Wish::Claimed);
        for disk in self.stores.0.keys().copied().collect::<Vec<_>>() {
            let before = self.stores.0.get(&disk).map_or(0, |slot| slot.next_command);
            self.open_shards(now, disk, wishes);
            let after = self.stores.0.get(&disk).map_or(0, |slot| slot.next_command);
            if self.without_vote.contains(&disk)
                && let Some(part) = &mut self.part
            {
                let open = (before..after).map(CommandId);
                let asked = self.stores.0.get(&disk).map(|slot| &slot.asked);
                let open = open.filter(|id| asked.is_some_and(|asked| asked.contains_key(id)));
                part.losing.insert(disk, open.collect());
                self.vote_lost(disk, wishes);
            } else {
                self.stamp(disk, wishes);
            }
        }
        for number in 0..1 << self.layout.bits {
            // The gateway has clients of all VDIs: it wants to know who serves anything.
            let shard = ShardId { set: self.layout.set, number };
            self.inbox.push_back(Inner::Member(Event::Holds { shard, held: true }));
        }
    }

    /// Each attach is a step of a disk's stamp; the member compared the one before it.
    fn stamp(&mut self, disk: DiskId, wishes: &mut Vec<Wish>) {
        let found = self.part.as_ref().and_then(|part| part.found.get(&disk));
        if let Some(found) = found {
            let stamp = Stamp { serial: found.serial + 1, ..*found };
            wishes.push(Wish::Stamped(disk, stamp));
            let came = Event::DiskCame(disk, LocalDisk { weight: 1, stamp });
            self.inbox.push_back(Inner::Member(came));
        }
    }

    /// A command of a disk that loses its vote is done.
    pub(super) fn vote_command_done(
        &mut self,
        disk: DiskId,
        id: CommandId,
        wishes: &mut Vec<Wish>,
    ) {
        let losing = self.part.as_mut().and_then(|part| part.losing.get_mut(&disk));
        if losing.is_some_and(|losing| losing.remove(&id)) {
            self.vote_lost(disk, wishes);
        }
    }

    fn vote_lost(&mut self, disk: DiskId, wishes: &mut Vec<Wish>) {
        let Some(part) = &mut self.part else { return };
        if part.losing.get(&disk).is_some_and(BTreeSet::is_empty) {
            part.losing.remove(&disk);
            part.behind.remove(&disk);
            if let Some(found) = part.found.get(&disk) {
                let stamp = Stamp { serial: found.serial + 1, ..*found };
                wishes.push(Wish::Stamped(disk, stamp));
                let taken = Event::VoteTaken { disk, stamp };
                self.inbox.push_back(Inner::Member(taken));
            }
        }
    }

    /// Tells a shard and the gateway what its record says, if that is new.
    fn assign(&mut self, shard: ShardId) {
        let Some(part) = &mut self.part else { return };
        let Some(assignment) = part.assignment(shard) else { return };
        if part.told.get(&shard) == Some(&assignment) {
            return;
        }
        part.told.insert(shard, assignment.clone());
        let (interval, primary) = (assignment.interval, assignment.primary);
        let active = assignment.last.interval == interval;
        self.inbox.push_back(Inner::Shard(shard, ShardEvent::Assigned(assignment)));
        if active {
            self.inbox.push_back(Inner::Shard(shard, ShardEvent::Committed(interval)));
        }
        let routed = GatewayEvent::Routed(shard, interval, primary);
        self.inbox.push_back(Inner::Gateway(routed));
    }

    /// What its replicas of some shards durably know.
    fn knowledge(&self, shards: &[ShardId]) -> Vec<Knowledge> {
        let mut knows = Vec::new();
        for id in shards {
            let Some(shard) = self.shards.get(id) else { continue };
            for disk in shard.disks() {
                let Some(replica) = shard.replica(disk) else { continue };
                let state = replica.state();
                let activation = super::activation(&state.les);
                knows.push(Knowledge { shard: *id, disk, promised: state.promised, activation });
            }
        }
        knows
    }
}
