//! The registry model of a run with the product's own membership: the calls of nodes to it and its
//! answers, what goes wrong with it, and what oracles read in it.

use super::{Ev, Fenced, Machine, World};
use crate::node::{Node, host_of, node_id};
use crate::registry::{
    Answer, Backup, Call, CallId, Registry, Report, SessionId, Settings, Step, WatchEvent,
};
use crate::{Host, MS, Rng, SECOND};
use sheepdog_membership::{
    self as membership, Command, Config, Event, LocalDisk, MapRecord, SetRecord, ShardPack,
    ShardRecord, Stamp, Token, keys,
};
use sheepdog_placement::{Placement, Policy};
use sheepdog_shard::primary::Phase;
use sheepdog_types::kv::Revision;
use sheepdog_types::{DiskId, ErrorKind, Interval, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
pub(super) struct Cluster {
    pub(super) registry: Registry,
    rng: Rng,
    /// Who waits for an answer, or for what a watch tells.
    calls: BTreeMap<CallId, (Host, Token)>,
    watches: BTreeMap<Host, CallId>,
    sessions: BTreeMap<Host, SessionId>,
    /// Of sessions that begin from now on.
    ttl: u64,
    /// Milliseconds that a node may be away.
    grace: u64,
    orders: u64,
    /// Whether it is put back from a backup in this run, and the backup.
    restores: bool,
    backup: Option<Backup>,
    /// It was: what it says now may be less than what is so.
    pub(super) went_back: bool,
    /// What disks show when they are opened.
    pub(super) physical: BTreeMap<DiskId, Stamp>,
    /// What stores remember of membership.
    known: BTreeMap<Host, (u64, Revision)>,
}

impl Cluster {
    pub(super) fn new(plan: &super::Plan, rng: &Rng) -> Box<Self> {
        let mut chance = rng.fork("cluster");
        let settings = Settings { lost: *chance.pick(&[0, 0, 5, 50]), ..Settings::default() };
        Box::new(Self {
            registry: Registry::new(settings, rng.fork("registry")),
            calls: BTreeMap::new(),
            watches: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ttl: *chance.pick(&[SECOND, 3 * SECOND, 10 * SECOND]),
            // Data is made again elsewhere in some runs, and waits in others.
            grace: *chance.pick(&[600_000, 600_000, 1000, 0]),
            orders: plan.seed << 8,
            restores: chance.chance(25) && plan.restores,
            backup: None,
            went_back: false,
            physical: BTreeMap::new(),
            known: BTreeMap::new(),
            rng: chance,
        })
    }

    fn map(&self) -> MapRecord {
        let entry = self.registry.peek(keys::MAP);
        entry.and_then(|entry| MapRecord::decode(&entry.value).ok()).unwrap_or_default()
    }

    fn record(&self, shard: ShardId) -> Option<ShardRecord> {
        let key = keys::pack(shard.set, shard.number / keys::PACK_SHARDS);
        let pack = ShardPack::decode(&self.registry.peek(&key)?.value).ok()?;
        pack.shards.get(&(shard.number % keys::PACK_SHARDS)).cloned()
    }

    fn targets(&self, shard: ShardId, map: &MapRecord) -> Option<Vec<DiskId>> {
        let set = SetRecord::decode(&self.registry.peek(&keys::set(shard.set))?.value).ok()?;
        let map = map.placement();
        let placement =
            Placement::with_exceptions(&map, set.policy, set.bits, &set.exceptions).ok()?;
        (shard.number < placement.shards()).then(|| placement.acting_set(shard.number).to_vec())
    }

    fn recorded(&self, disk: DiskId) -> Option<Stamp> {
        Stamp::decode(&self.registry.peek(&keys::stamp(disk))?.value).ok()
    }
}

impl World {
    // ---- what oracles read ---------------------------------------------------------------------

    pub(super) fn current_interval(&self, shard: ShardId) -> Option<Interval> {
        match &self.cluster {
            Some(cluster) => cluster.record(shard).map(|record| record.cur),
            None => self.controller.current(shard).map(|current| current.interval),
        }
    }

    pub(super) fn record_primary(&self, shard: ShardId) -> Process {
        let primary = match &self.cluster {
            Some(cluster) => cluster.record(shard).and_then(|record| record.primary()),
            None => self.controller.current(shard).map(|current| current.primary),
        };
        primary.unwrap_or_default()
    }

    pub(super) fn record_shown(&self, shard: ShardId) -> String {
        match &self.cluster {
            Some(cluster) => {
                let targets = cluster.targets(shard, &cluster.map());
                format!("{:?} targets {targets:?}", cluster.record(shard))
            }
            None => format!("{:?}", self.controller.current(shard)),
        }
    }

    pub(super) fn targets(&self, shard: ShardId) -> Vec<DiskId> {
        match &self.cluster {
            Some(cluster) => cluster.targets(shard, &cluster.map()).unwrap_or_default(),
            None => self.controller.targets(shard).to_vec(),
        }
    }

    /// The process of a host, as the map or the stand-in has it.
    pub(super) fn known_process(&self, host: Host) -> Option<Process> {
        match &self.cluster {
            Some(cluster) => cluster.map().process(node_id(host)),
            None => self.controller.process(host),
        }
    }

    /// Whether every target of a shard has everything, and acts as the process that it is now.
    pub(super) fn is_clean(&self, shard: ShardId) -> bool {
        let Some(cluster) = &self.cluster else {
            return self.controller.is_clean(shard);
        };
        let map = cluster.map();
        let (Some(record), Some(targets)) = (cluster.record(shard), cluster.targets(shard, &map))
        else {
            return false;
        };
        let targets: BTreeSet<DiskId> = targets.into_iter().collect();
        let there =
            record.acting.iter().all(|seat| map.process(seat.process.node) == Some(seat.process));
        // A registry that went back says of the past that it was clean.
        let primary = record
            .primary()
            .and_then(|primary| self.node(host_of(primary))?.shards().get(&shard)?.primary());
        let serves = primary.is_some_and(|primary| {
            primary.interval() == record.cur && primary.phase() == Phase::Serving
        });
        serves && record.is_clean() && record.disks() == targets && !targets.is_empty() && there
    }

    // ---- stamps of disks -----------------------------------------------------------------------

    /// How often a disk was opened, as the registry knows.
    pub(super) fn recorded_serial(&self, disk: DiskId) -> u64 {
        match &self.cluster {
            Some(cluster) => cluster.recorded(disk).map_or(0, |stamp| stamp.serial),
            None => self.stamps.get(&disk).copied().unwrap_or(0),
        }
    }

    /// The same, as the disk itself knows.
    pub(super) fn shown_serial(&self, disk: DiskId) -> u64 {
        match &self.cluster {
            Some(cluster) => cluster.physical.get(&disk).map_or(0, |stamp| stamp.serial),
            None => self.recorded_serial(disk),
        }
    }

    pub(super) fn show_serial(&mut self, disk: DiskId, serial: u64) {
        if let Some(cluster) = &mut self.cluster {
            cluster.physical.entry(disk).or_default().serial = serial;
        }
    }

    pub(super) fn prepared_anew(&mut self, disk: DiskId) {
        if let Some(cluster) = &mut self.cluster {
            let old = cluster.physical.get(&disk).copied().unwrap_or_default();
            let recorded = cluster.recorded(disk).unwrap_or_default();
            let generation = old.generation.max(recorded.generation) + 1;
            cluster.physical.insert(disk, Stamp { generation, serial: 0 });
        }
    }

    // ---- processes -----------------------------------------------------------------------------

    /// With what a process on that host starts; none where the stand-in decides.
    pub(super) fn member_config(&self, host: Host) -> Option<Config> {
        let cluster = self.cluster.as_ref()?;
        let disks = self.machines.get(&host)?.disks.iter().map(|disk| {
            let stamp = cluster.physical.get(disk).copied().unwrap_or_default();
            (*disk, LocalDisk { weight: 1, stamp })
        });
        let (known_incarnation, known_revision) =
            cluster.known.get(&host).copied().unwrap_or_default();
        Some(Config {
            node: node_id(host),
            address: format!("host {}", host.0),
            zone: host.0.into(),
            vnodes: 128,
            disks: disks.collect(),
            known_incarnation,
            known_revision,
        })
    }

    /// It has a name: with it all earlier processes of its node are fenced.
    pub(super) fn member_claimed(&mut self, process: Process) {
        let host = host_of(process);
        let Some(machine) = self.machines.get_mut(&host) else { return };
        let before = std::mem::replace(&mut machine.incarnation, process.incarnation);
        self.counts.one("processes joined");
        self.controller.joined(process);
        for incarnation in 1..=before {
            self.fence(Fenced::Gateway(u64::from(host.0) << 32 | incarnation));
        }
        self.publish_lineages();
    }

    pub(super) fn member_died(&mut self, host: Host, node: &Node) {
        let Some(cluster) = &mut self.cluster else { return };
        if let Some(member) = node.member() {
            // An incarnation is remembered before it is used, a revision now and then.
            let known = cluster.known.entry(host).or_default();
            known.0 = known.0.max(member.known_incarnation());
            if cluster.rng.chance(50) {
                known.1 = member.known_revision();
            }
        }
        cluster.registry.forget(host);
        cluster.calls.retain(|_, (asker, _)| *asker != host);
        cluster.watches.remove(&host);
        // Some engines know at once that a process is dead.
        if let Some(session) = cluster.sessions.remove(&host)
            && cluster.rng.chance(50)
        {
            let found = cluster.rng.between(5 * MS, 500 * MS);
            self.queue.after(found, Ev::Expires(session));
        }
    }

    pub(super) fn expires(&mut self, session: SessionId) {
        if let Some(cluster) = &mut self.cluster {
            cluster.registry.expire(&mut self.queue, session);
        }
    }

    /// Somebody looked at a process by a new connection.
    pub(super) fn probed(&mut self, from: Process, to: Process) {
        let (here, there) = (host_of(from), host_of(to));
        if self.net.is_cut(here, there) || self.net.is_cut(there, here) {
            return;
        }
        let heard = self.is_running(to);
        // A machine without power refuses nothing.
        if !heard && self.node(there).is_none() && self.rng.chance(30) {
            return;
        }
        let event = if heard { Event::Heard(to) } else { Event::Reset(to) };
        self.with_node(from, |node, now, wishes| node.member_event(now, event, wishes));
    }

    /// The operator makes the shards, once there are nodes.
    pub(super) fn format(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.registry.peek(&keys::set(0)).is_some() {
            return;
        }
        self.queue.after(100 * MS, Ev::Format);
        if cluster.map().up().count() < usize::from(self.plan.copies) {
            return;
        }
        let set = Command::CreateSet {
            set: 0,
            policy: Policy::Copies(self.plan.copies),
            bits: self.plan.shard_bits,
        };
        let settings = membership::Settings { grace: cluster.grace, ..Default::default() };
        cluster.orders += 2;
        let id = cluster.orders;
        let joined =
            |(_, machine): &(&Host, &Machine)| machine.node.as_ref().is_some_and(Node::is_ready);
        let hosts: Vec<Host> = self.machines.iter().filter(joined).map(|(host, _)| *host).collect();
        if hosts.is_empty() {
            return;
        }
        let host = *self.rng.pick(&hosts);
        self.on_host(host, |node, now, wishes| {
            let settings = Command::Settings(settings);
            node.member_event(now, Event::Command { id: id + 1, command: settings }, wishes);
            node.member_event(now, Event::Command { id, command: set }, wishes);
        });
    }

    // ---- calls ---------------------------------------------------------------------------------

    pub(super) fn registry_call(&mut self, host: Host, token: Token, call: membership::Call) {
        self.trace(|| {
            let shown = format!("{call:?}");
            let end = shown.char_indices().nth(300).map_or(shown.len(), |(at, _)| at);
            format!("{} calls {token:?} {}", host.0, &shown[..end])
        });
        let Some(cluster) = &mut self.cluster else { return };
        let session = cluster.sessions.get(&host).copied();
        let call = match call {
            membership::Call::Begin => Some(Call::Open(cluster.ttl)),
            membership::Call::End => session.map(Call::End),
            membership::Call::List { prefix } => Some(Call::List(prefix)),
            membership::Call::Watch { prefix, from } => {
                if let Some(old) = cluster.watches.remove(&host) {
                    cluster.registry.unwatch(old);
                    cluster.calls.remove(&old);
                }
                Some(Call::Watch(prefix, from))
            }
            membership::Call::Commit { txn, session: false } => Some(Call::Commit(txn, None)),
            membership::Call::Commit { txn, session: true } => {
                session.map(|session| Call::Commit(txn, Some(session)))
            }
        };
        // Without a session: it is told so in a moment by the queue, or was.
        let Some(call) = call else { return };
        let watch = matches!(call, Call::Watch(..));
        let id = cluster.registry.call(&mut self.queue, host, call);
        cluster.calls.insert(id, (host, token));
        if watch {
            cluster.watches.insert(host, id);
        }
    }

    pub(super) fn registry_step(&mut self, step: Step) {
        let Some(cluster) = &mut self.cluster else { return };
        let mut reports = Vec::new();
        cluster.registry.step(&mut self.queue, step, &mut reports);
        for report in reports {
            let Some(cluster) = &mut self.cluster else { return };
            let (host, event) = match report {
                Report::Answer { call, result: Ok(Answer::Watching), .. } => {
                    let _ = call;
                    continue;
                }
                Report::Answer { host, call, result } => {
                    let Some((_, token)) = cluster.calls.remove(&call) else { continue };
                    if cluster.watches.get(&host) == Some(&call) {
                        cluster.watches.remove(&host);
                    }
                    (host, Event::Registry(token, cluster.answer(host, result)))
                }
                Report::Watch { host, watch, event } => {
                    let Some((_, token)) = cluster.calls.get(&watch).copied() else { continue };
                    match event {
                        WatchEvent::Committed(revision, changes) => {
                            (host, Event::Watched { token, revision, changes })
                        }
                        WatchEvent::TooOld | WatchEvent::Broken => {
                            cluster.calls.remove(&watch);
                            cluster.watches.remove(&host);
                            let failed = membership::Answer::Failed(ErrorKind::Conflict);
                            (host, Event::Registry(token, failed))
                        }
                    }
                }
                Report::Expired { host, session } => {
                    if cluster.sessions.get(&host) != Some(&session) {
                        continue;
                    }
                    cluster.sessions.remove(&host);
                    (host, Event::SessionExpired)
                }
            };
            self.trace(|| {
                let shown = format!("{event:?}");
                let end = shown.char_indices().nth(200).map_or(shown.len(), |(at, _)| at);
                format!("{} hears {}", host.0, &shown[..end])
            });
            self.on_host(host, |node, now, wishes| node.member_event(now, event, wishes));
        }
    }

    // ---- faults --------------------------------------------------------------------------------

    /// What goes wrong with the registry, and when the next such fault comes.
    pub(super) fn registry_fault(&mut self) {
        let quiet = self.quiet;
        let nodes = u64::from(self.plan.nodes);
        let pause = self.plan.fault_pause;
        let Some(cluster) = self.cluster.as_mut().filter(|_| !quiet) else { return };
        let pause = cluster.rng.between(pause, pause * 6);
        self.queue.after(pause, Ev::RegistryFault);
        let back = cluster.rng.between(10 * MS, 4 * SECOND);
        let host = Host(cluster.rng.below(nodes) as u16);
        let formatted = cluster.registry.peek(&keys::set(0)).is_some();
        match cluster.rng.below(if cluster.restores && formatted { 14 } else { 8 }) {
            0 | 1 => {
                cluster.registry.set_leader(&mut self.queue, false);
                self.queue.after(back, Ev::RegistryLeads);
            }
            2 | 3 => {
                cluster.registry.set_reach(&mut self.queue, host, false);
                self.queue.after(back, Ev::RegistryReached(host));
            }
            4 => cluster.registry.lose_watches(&mut self.queue),
            5 => cluster.registry.compact(2),
            8.. => match cluster.backup.take().filter(|_| cluster.rng.chance(60)) {
                Some(backup) => {
                    cluster.registry.restore(&mut self.queue, &backup);
                    cluster.went_back = true;
                }
                None => cluster.backup = Some(cluster.registry.backup()),
            },
            _ => {
                if let Some(session) = cluster.sessions.get(&host).copied() {
                    self.counts.one("registry: session expired");
                    cluster.registry.expire(&mut self.queue, session);
                }
            }
        }
    }

    pub(super) fn registry_leads(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.registry.set_leader(&mut self.queue, true);
        }
    }

    pub(super) fn registry_reached(&mut self, host: Host) {
        if let Some(cluster) = &mut self.cluster {
            cluster.registry.set_reach(&mut self.queue, host, true);
        }
    }
}

impl Cluster {
    /// An answer of the model, as membership's driver tells it.
    fn answer(&mut self, host: Host, result: Result<Answer, ErrorKind>) -> membership::Answer {
        match result {
            Ok(Answer::Opened(session)) => {
                self.sessions.insert(host, session);
                membership::Answer::Session
            }
            Ok(Answer::Ended) => membership::Answer::Ended,
            Ok(Answer::Listed(revision, entries)) => {
                membership::Answer::Listing { revision, entries }
            }
            Ok(Answer::Commit(outcome)) => membership::Answer::Commit(outcome),
            // Nobody asks for single keys.
            Ok(Answer::Got(_) | Answer::Watching) => {
                membership::Answer::Failed(ErrorKind::Internal)
            }
            Err(kind) => membership::Answer::Failed(kind),
        }
    }
}
