//! One run: nodes, net, disks, the controller and clients on one queue, faults by chance, and the
//! judgement at the end. A seed and a plan name the run exactly.

mod clients;
mod cluster;
mod end;
mod faults;
mod plan;

use crate::check;
use crate::controller::Controller;
use crate::disk::{Disk, Image, Step as DiskStep};
use crate::history::History;
use crate::net::{Death, Lane, Net, Report, Step as NetStep};
use crate::node::{Node, Wish, host_of, node_id};
use crate::registry::{SessionId, Step as RegistryStep};
use crate::report::Finding;
use crate::{Counts, Delay, Host, MS, Queue, Rng, SECOND};
use clients::{Client, ClientEvent};
use cluster::Cluster;
pub use plan::Plan;
use sheepdog_gateway::Layout;
use sheepdog_membership as membership;
use sheepdog_shard::{Assignment, Event as ShardEvent, Lineages, Message};
use sheepdog_storelog::{LOG_HAS_OWNER, Limits, Superblock, prepare};
use sheepdog_types::{BLOCK_SIZE, DiskId, Interval, Process, ShardId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Disks of a node, at most.
const DISKS_MAX: u16 = 4;
/// Between two ticks of a node.
const TICK: u64 = 10 * MS;

/// A message with both ends of its stream: one for another run of the process is thrown away.
#[derive(Clone, Debug)]
struct Wire {
    from: Process,
    to: Process,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Shard(Message),
    Member(membership::Message),
}

/// What happens.
#[derive(Debug)]
enum Ev {
    Net(NetStep),
    Disk(DiskStep),
    Registry(RegistryStep),
    Tick(Host, u64),
    /// The registry tells a process something.
    Assigned(Process, ShardId, u64, Box<Assignment>),
    Committed(Process, ShardId, Interval),
    Lineages(Process, Arc<Lineages>, Option<(ShardId, Interval)>),
    /// A process tells the registry something.
    Activated(Process, ShardId, Interval),
    Clean(ShardId, Interval),
    Again(ShardId, Interval),
    KnowsLater(ShardId, Interval),
    Fetch(Process, ShardId, Interval),
    Joined(Process),
    Gone(Process),
    /// A second look of the first of them at the second.
    Probed(Process, Process),
    /// Somebody begins to use the cluster.
    Format,
    RegistryFault,
    RegistryLeads,
    RegistryReached(Host),
    Expires(SessionId),
    Unreachable(Host, Host),
    Reachable,
    Client(usize, ClientEvent),
    Start(Host),
    Fault,
    Heal,
}

impl From<NetStep> for Ev {
    fn from(step: NetStep) -> Self {
        Self::Net(step)
    }
}

impl From<RegistryStep> for Ev {
    fn from(step: RegistryStep) -> Self {
        Self::Registry(step)
    }
}

impl From<DiskStep> for Ev {
    fn from(step: DiskStep) -> Self {
        Self::Disk(step)
    }
}

/// A machine: its disks stay when its process dies.
struct Machine {
    disks: Vec<DiskId>,
    node: Option<Node>,
    /// Runs so far.
    run: u64,
    /// Of the run that is part of the cluster, or was the last to be.
    incarnation: u64,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What oracles did not accept.
    pub findings: Vec<Finding>,
    /// What happened.
    pub counts: Counts,
    /// Faults that there were, those left out included.
    pub faults: u64,
    /// What people need to follow it: nanoseconds and words.
    pub story: Vec<(u64, String)>,
    /// A sum of all that happened, in order: the same for the same plan.
    pub digest: u64,
}

/// See the module.
pub struct World {
    plan: Plan,
    rng: Rng,
    queue: Queue<Ev>,
    net: Net<Wire>,
    disks: BTreeMap<DiskId, Disk>,
    machines: BTreeMap<Host, Machine>,
    controller: Controller,
    /// In place of the controller, but for the lineages.
    cluster: Option<Box<Cluster>>,
    layout: Layout,
    limits: Limits,
    vids: Vec<Vid>,
    clients: Vec<Client>,
    /// The number with which new connections hold the lock of a VDI.
    locks: BTreeMap<Vid, u64>,
    /// Connections and operations of clients, by number.
    connections: BTreeMap<u64, usize>,
    next_connection: u64,
    next_op: u64,
    next_value: u64,
    history: History,
    counts: Counts,
    findings: Vec<Finding>,
    quiet: bool,
    faults: u64,
    story: Vec<(u64, String)>,
    digest: u64,
    fences: Vec<Fence>,
    /// The opening count of each disk as the registry knows it, and an image of an earlier one.
    stamps: BTreeMap<DiskId, u64>,
    images: BTreeMap<DiskId, (u64, Image)>,
    /// Disks that were put back from an image and not opened since.
    restored: BTreeSet<DiskId>,
}

/// A fence on its way: once every shard has it in force, what it fences never happens any more.
struct Fence {
    revision: u64,
    shards: BTreeSet<ShardId>,
    what: Fenced,
}

/// Who is fenced.
#[derive(Clone, Copy)]
enum Fenced {
    /// A run of a process, as the history names it.
    Gateway(u64),
    /// Holders of lower numbers of the lock of a VDI.
    Lock(Vid, u64),
}

fn disk_id(host: Host, number: u16) -> DiskId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&host.0.to_be_bytes());
    id[2..4].copy_from_slice(&number.to_be_bytes());
    DiskId(id)
}

/// Node and place of a disk, for people.
fn shown_disk(disk: DiskId) -> String {
    let number = disk_number(disk);
    format!("{}.{}", number / DISKS_MAX, number % DISKS_MAX)
}

fn disk_number(disk: DiskId) -> u16 {
    host_of_disk(disk).0 * DISKS_MAX + u16::from_be_bytes([disk.0[2], disk.0[3]])
}

fn host_of_disk(disk: DiskId) -> Host {
    Host(u16::from_be_bytes([disk.0[0], disk.0[1]]))
}

/// A disk that was prepared, for the first time or again.
fn superblock(plan: &Plan, disk: DiskId, wiped: u64) -> Superblock {
    let mut rng = Rng::new(plan.seed).fork_nth("log", u64::from(disk_number(disk)) << 32 | wiped);
    Superblock {
        disk,
        cluster: [7; 16],
        log_id: rng.next_u64(),
        log_bytes: plan.log_bytes,
        log_unit: 512,
        geometry: plan.geometry,
        log_fua: plan.seed.is_multiple_of(2),
        features: LOG_HAS_OWNER,
    }
}

impl World {
    fn superblock(&self, disk: DiskId) -> Superblock {
        superblock(&self.plan, disk, self.queue.now())
    }

    /// A cluster on empty disks.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let rng = Rng::new(plan.seed);
        let mut queue = Queue::new();
        let net = Net::new(plan.net, rng.fork("net"));
        let mut disks = BTreeMap::new();
        let mut machines = BTreeMap::new();
        let mut homes = BTreeMap::new();
        for number in 0..plan.nodes {
            let host = Host(number);
            let mut clock = rng.fork_nth("clock", u64::from(number));
            let error = clock.below(2 * crate::queue::NORMAL_ERROR);
            let rate = crate::queue::TRUE_RATE - crate::queue::NORMAL_ERROR + error;
            queue.add_host(host, clock.below(SECOND), rate);
            let mut here = Vec::new();
            for second in 0..plan.disks_per_node {
                let id = disk_id(host, second);
                let chance = rng.fork_nth("disk", u64::from(disk_number(id)));
                let mut disk = Disk::new(disk_number(id), host, chance);
                let superblock = superblock(&plan, id, 0);
                for op in prepare(&superblock).expect("the plan's log is large enough") {
                    disk.run_now(&op);
                }
                disk.bound(plan.disk_blocks);
                homes.insert(id, node_id(host));
                here.push(id);
                disks.insert(id, disk);
            }
            machines.insert(host, Machine { disks: here, node: None, run: 0, incarnation: 0 });
        }
        let layout = Layout { geometry: plan.geometry, bits: plan.shard_bits, set: 0 };
        let mut chance = rng.fork("targets");
        let cluster = plan.membership.then(|| Cluster::new(&plan, &rng));
        let mut controller = Controller::new(
            homes,
            // With a registry it has only lineages.
            if plan.membership { Vec::new() } else { plan.shards() },
            usize::from(plan.copies),
            usize::from(plan.required),
            &mut chance,
        );
        let vids: Vec<Vid> = (1..=plan.vdis).filter_map(Vid::new).collect();
        for vid in &vids {
            controller.create(*vid);
        }
        let limits = Limits {
            cache_bytes: 1 << 20,
            logged_bytes: 1 << 20,
            units_max: 1 << 16,
            recycled_units: 4,
            spare_pages: 16,
            give_back_units: 64,
            extent_blocks_min: 2,
            ..Limits::STANDARD
        };
        let mut world = Self {
            rng: rng.fork("world"),
            queue,
            net,
            disks,
            machines,
            controller,
            cluster,
            layout,
            limits,
            vids,
            clients: Vec::new(),
            locks: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 1,
            next_op: 1,
            next_value: 1,
            history: History::new(),
            counts: Counts::default(),
            findings: Vec::new(),
            quiet: false,
            faults: 0,
            story: Vec::new(),
            digest: 0,
            fences: Vec::new(),
            stamps: BTreeMap::new(),
            images: BTreeMap::new(),
            restored: BTreeSet::new(),
            plan,
        };
        for number in 0..world.plan.nodes {
            world.start(Host(number));
        }
        for number in 0..world.plan.clients {
            world.clients.push(Client::new(rng.fork_nth("client", u64::from(number))));
            world.queue.after(50 * MS, Ev::Client(usize::from(number), ClientEvent::Connect));
        }
        world.queue.after(world.plan.fault_pause, Ev::Fault);
        if world.plan.membership {
            world.queue.after(10 * MS, Ev::Format);
            world.queue.after(world.plan.fault_pause, Ev::RegistryFault);
        }
        world
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let end = self.plan.length;
        while self.findings.is_empty() && self.queue.now() < end {
            if !self.step() {
                break;
            }
        }
        if self.findings.is_empty() {
            self.settle();
        }
        self.judge();
        let mut counts = self.counts;
        counts.add("events", self.queue.delivered());
        counts += &self.net.faults;
        if let Some(cluster) = &self.cluster {
            counts += &cluster.registry.happened;
        }
        for disk in self.disks.values() {
            counts += &disk.happened;
        }
        let (faults, story, digest) = (self.faults, self.story, self.digest);
        Outcome { findings: self.findings, counts, faults, story, digest }
    }

    fn judge(&mut self) {
        let judgement = check::history(&self.history);
        self.counts.add("blocks judged", judgement.blocks);
        self.counts.add("operations judged", judgement.ops);
        self.counts.add("blocks not decided", judgement.undecided);
        for (block, violation) in judgement.violations {
            let what = format!("{block:?}: {violation}");
            self.find("linearizability", what);
        }
    }

    fn find(&mut self, oracle: &'static str, what: String) {
        self.findings.push(Finding { seed: self.plan.seed, oracle, what });
    }

    /// One event. `false` when nothing is left.
    fn step(&mut self) -> bool {
        let Some(due) = self.queue.next() else {
            return false;
        };
        let kind = std::mem::discriminant(&due.event);
        let mut hash = DefaultHasher::new();
        (self.digest, self.queue.now(), kind, self.next_value).hash(&mut hash);
        self.digest = hash.finish();
        match due.event {
            Ev::Net(step) => {
                let mut reports = Vec::new();
                self.net.step(&mut self.queue, step, &mut reports);
                for report in reports {
                    self.net_report(report);
                }
            }
            Ev::Disk(step) => self.disk_step(step),
            Ev::Registry(step) => self.registry_step(step),
            Ev::Probed(from, to) => self.probed(from, to),
            Ev::Format => self.format(),
            Ev::RegistryFault => self.registry_fault(),
            Ev::RegistryLeads => self.registry_leads(),
            Ev::RegistryReached(host) => self.registry_reached(host),
            Ev::Expires(session) => self.expires(session),
            Ev::Tick(host, run) => self.tick(host, run),
            Ev::Assigned(process, shard, revision, assignment) => {
                self.with_node(process, |node, now, wishes| {
                    node.assigned(now, shard, revision, *assignment, wishes);
                });
            }
            Ev::Committed(process, shard, interval) => {
                self.with_node(process, |node, now, wishes| {
                    node.shard_event(now, shard, ShardEvent::Committed(interval), wishes);
                });
            }
            Ev::Lineages(process, lineages, fetched) => {
                self.with_node(process, |node, now, wishes| {
                    if let Some((shard, interval)) = fetched {
                        let event = ShardEvent::Fetched(interval, lineages.clone());
                        node.shard_event(now, shard, event, wishes);
                    }
                    node.lineages(now, &lineages, wishes);
                });
            }
            Ev::Activated(process, shard, interval) => {
                if self.controller.activated(shard, interval) {
                    self.counts.one("intervals activated");
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::Committed(process, shard, interval));
                }
                self.publish();
            }
            Ev::Clean(shard, interval) => {
                self.controller.clean(shard, interval);
                self.publish();
            }
            Ev::Again(shard, interval) => {
                self.controller.again(shard, interval);
                self.publish();
            }
            Ev::KnowsLater(shard, promised) => {
                self.controller.knows_later(shard, promised);
                self.publish();
            }
            Ev::Fetch(process, shard, interval) => {
                // Read now, known later.
                let delay = self.registry_delay();
                let lineages = self.controller.lineages.clone();
                self.queue.after(delay, Ev::Lineages(process, lineages, Some((shard, interval))));
            }
            Ev::Joined(process) => {
                if self.is_running(process) {
                    self.controller.joined(process);
                    let settled = |node: &Node, disk: &DiskId| node.votes_are_settled(*disk);
                    let here = self.machines.get(&host_of(process));
                    if let Some(Machine { node: Some(node), disks, .. }) = here {
                        self.restored.retain(|d| !disks.contains(d) || !settled(node, d));
                    }
                    let host = u64::from(host_of(process).0);
                    for incarnation in 1..process.incarnation {
                        self.fence(Fenced::Gateway(host << 32 | incarnation));
                    }
                    for (shard, revision, assignment) in self.controller.all() {
                        self.tell(process, shard, revision, assignment);
                    }
                    self.publish();
                    self.publish_lineages();
                }
            }
            Ev::Gone(process) => {
                if !self.is_running(process) {
                    self.controller.gone(process);
                    self.publish();
                }
            }
            Ev::Unreachable(a, b) => {
                if self.net.is_cut(a, b) || self.net.is_cut(b, a) {
                    self.controller.unreachable(node_id(a), node_id(b));
                    self.publish();
                }
            }
            Ev::Reachable => {
                self.controller.reachable();
                self.publish();
            }
            Ev::Client(client, event) => self.client_event(client, event),
            Ev::Start(host) => self.start(host),
            Ev::Fault => self.fault(),
            Ev::Heal => self.heal(),
        }
        true
    }

    // ---- processes -----------------------------------------------------------------------------

    fn start(&mut self, host: Host) {
        let config = self.member_config(host);
        let Some(machine) = self.machines.get_mut(&host) else {
            return;
        };
        if machine.node.is_some() {
            return;
        }
        machine.run += 1;
        if config.is_none() {
            machine.incarnation = machine.run;
        }
        // A disk that was opened fewer times than the registry knows has gone back in time.
        let behind = |disk: &&DiskId| {
            let opened = self.images.get(*disk).map(|(opened, _)| *opened);
            self.restored.contains(*disk) && opened < self.stamps.get(*disk).copied()
        };
        let without_vote: BTreeSet<DiskId> = machine.disks.iter().filter(behind).copied().collect();
        let free = machine.disks.iter().filter_map(|id| self.disks.get(id)).map(Disk::free_bytes);
        let free = free.min().unwrap_or(0);
        for disk in &machine.disks {
            *self.stamps.entry(*disk).or_default() += 1;
        }
        let mut wishes = Vec::new();
        // With membership it has no incarnation before it joined.
        let incarnation = if config.is_some() { 0 } else { machine.incarnation };
        let mut node = Node::start(
            host,
            incarnation,
            &machine.disks,
            without_vote,
            free,
            self.limits,
            self.layout,
            self.plan.rules,
            &mut wishes,
        );
        if let Some(config) = config {
            node.take_part(config);
        }
        let run = machine.run;
        machine.node = Some(node);
        self.net.start(&mut self.queue, host);
        self.queue.at_host(self.queue.now() + TICK, host, Ev::Tick(host, run));
        self.wishes(host, wishes);
    }

    /// A process dies, with or without its machine.
    fn kill(&mut self, host: Host, power: bool) {
        let Some(machine) = self.machines.get_mut(&host) else {
            return;
        };
        let Some(node) = machine.node.take() else {
            return;
        };
        let process = node.me;
        for id in &machine.disks {
            if let Some(disk) = self.disks.get_mut(id) {
                if power {
                    disk.power_loss();
                } else {
                    disk.process_dies();
                }
            }
        }
        self.queue.resume(host);
        self.queue.forget(host);
        self.member_died(host, &node);
        let death = if power || self.rng.chance(20) { Death::Silence } else { Death::Reset };
        self.net.die(&mut self.queue, host, death);
        let found = self.rng.between(5 * MS, if power { 3 * SECOND } else { 500 * MS });
        if self.cluster.is_none() {
            self.queue.after(found, Ev::Gone(process));
        }
        self.clients_of(host);
    }

    fn is_running(&self, process: Process) -> bool {
        let machine = self.machines.get(&host_of(process));
        machine.and_then(|machine| machine.node.as_ref()).is_some_and(|node| node.me == process)
    }

    fn node(&self, host: Host) -> Option<&Node> {
        self.machines.get(&host).and_then(|machine| machine.node.as_ref())
    }

    fn with_node(&mut self, process: Process, act: impl FnOnce(&mut Node, u64, &mut Vec<Wish>)) {
        let host = host_of(process);
        let now = self.queue.local(host);
        let machine = self.machines.get_mut(&host);
        let Some(node) = machine.and_then(|machine| machine.node.as_mut()) else {
            return;
        };
        if node.me != process {
            return;
        }
        let mut wishes = Vec::new();
        act(node, now, &mut wishes);
        self.wishes(host, wishes);
    }

    fn on_host(&mut self, host: Host, act: impl FnOnce(&mut Node, u64, &mut Vec<Wish>)) {
        if let Some(process) = self.node(host).map(|node| node.me) {
            self.with_node(process, act);
        }
    }

    fn tick(&mut self, host: Host, run: u64) {
        let runs = |machine: &Machine| machine.run == run && machine.node.is_some();
        if !self.machines.get(&host).is_some_and(runs) {
            return;
        }
        let free: Vec<(DiskId, u64)> = self.machines[&host]
            .disks
            .iter()
            .filter_map(|id| self.disks.get(id).map(|disk| (*id, disk.free_bytes())))
            .collect();
        self.on_host(host, |node, now, wishes| {
            for (disk, bytes) in free {
                node.host_free(now, disk, bytes, wishes);
            }
            node.tick(now, wishes);
        });
        self.queue.at_host(self.queue.now() + TICK, host, Ev::Tick(host, run));
    }

    fn wishes(&mut self, host: Host, wishes: Vec<Wish>) {
        let Some(me) = self.node(host).map(|node| node.me) else {
            return;
        };
        for wish in wishes {
            match wish {
                Wish::Disk(disk, op, what) => {
                    if let Some(disk) = self.disks.get_mut(&disk) {
                        disk.submit(&mut self.queue, op, what);
                    }
                }
                // To what its node was before: nobody hears it.
                Wish::Send(to, _) | Wish::Say(to, _) if host_of(to) == host => {}
                Wish::Send(to, message) => {
                    self.trace(|| {
                        let shown = format!("{message:?}");
                        let end = shown.char_indices().nth(400).map_or(shown.len(), |(at, _)| at);
                        format!("{} -> {}: {}", host.0, host_of(to).0, &shown[..end])
                    });
                    let lane = if message.is_control() { Lane::Control } else { Lane::Bulk };
                    let bytes = 200;
                    let wire = Wire { from: me, to, body: Body::Shard(message) };
                    self.counts.one("messages");
                    self.net.send(&mut self.queue, (host, host_of(to)), lane, bytes, wire);
                }
                Wish::Client(effect) => self.client_effect(effect),
                Wish::Activated(shard, interval) => {
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::Activated(me, shard, interval));
                }
                Wish::Clean(shard, interval) => {
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::Clean(shard, interval));
                }
                Wish::Again(shard, interval) => {
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::Again(shard, interval));
                }
                Wish::KnowsLater(knows) => {
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::KnowsLater(knows.shard, knows.promised));
                }
                Wish::Fetch(shard, interval) => {
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::Fetch(me, shard, interval));
                }
                Wish::FencesInForce(shard, interval, revision) => {
                    self.in_force(shard, interval, revision);
                }
                Wish::DiskFailed(disk, why) => self.disk_failed(host, disk, &why),
                Wish::Broken(shard, rule) => {
                    if self.plan.asserts {
                        self.find("assert", format!("{shard} on {me:?}: {rule}"));
                    }
                }
                Wish::Ready => {
                    let delay = self.registry_delay();
                    self.queue.after(delay, Ev::Joined(me));
                }
                Wish::Registry(token, call) => self.registry_call(host, token, call),
                Wish::Say(to, message) => {
                    self.trace(|| format!("{} -> {}: {message:?}", host.0, host_of(to).0));
                    let wire = Wire { from: me, to, body: Body::Member(message) };
                    let way = (host, host_of(to));
                    self.net.send(&mut self.queue, way, Lane::Control, 200, wire);
                }
                Wish::Probe(process) => {
                    let delay = self.rng.between(MS, 50 * MS);
                    self.queue.after(delay, Ev::Probed(me, process));
                }
                Wish::Claimed => self.member_claimed(me),
                Wish::Lost => {
                    // It could join anew as it is; its shards cannot yet.
                    self.counts.one("processes that lost their session");
                    self.kill(host, false);
                    let pause = self.rng.between(MS, 500 * MS);
                    self.queue.after(pause, Ev::Start(host));
                    return;
                }
                Wish::Stamped(disk, stamp) => {
                    if let Some(cluster) = &mut self.cluster {
                        cluster.physical.insert(disk, stamp);
                    }
                }
                Wish::Log(level, text) => {
                    if level == membership::LogLevel::Error {
                        self.counts.one("errors in the log of membership");
                    }
                    self.trace(|| format!("{} says: {text}", host.0));
                }
            }
        }
    }

    fn trace(&self, what: impl FnOnce() -> String) {
        if self.plan.trace {
            println!("{} {}", self.queue.now() / MS, what());
        }
    }

    fn disk_failed(&mut self, host: Host, disk: DiskId, why: &str) {
        if !self.plan.disks_fail {
            self.find("disk", format!("{disk:?} of {host:?} failed: {why}"));
        }
        self.counts.one("disks failed");
        // With its only disk the process has nothing to do.
        self.kill(host, false);
        let pause = self.rng.between(SECOND, 5 * SECOND);
        self.queue.after(pause, Ev::Start(host));
    }

    fn disk_step(&mut self, step: DiskStep) {
        let host = Host(step.disk / DISKS_MAX);
        let id = disk_id(host, step.disk % DISKS_MAX);
        let disk = self.disks.get_mut(&id);
        let Some(completion) = disk.and_then(|disk| disk.complete(step)) else {
            return;
        };
        self.on_host(host, |node, now, wishes| node.completed(now, id, completion, wishes));
    }

    fn net_report(&mut self, report: Report<Wire>) {
        match report {
            Report::Connected { host, peer } => {
                if let Some(process) = self.node(peer).map(|node| node.me) {
                    self.on_host(host, |node, now, wishes| {
                        node.connected(now, process, wishes);
                        node.heard(now, process, wishes);
                    });
                }
            }
            Report::Disconnected { host, peer } if self.cluster.is_some() => {
                self.on_host(host, |node, now, wishes| {
                    if let Some(process) = node.knows(node_id(peer)) {
                        node.member_event(now, membership::Event::Reset(process), wishes);
                    }
                });
            }
            Report::Disconnected { host, peer } => {
                let delay = self.rng.between(MS, SECOND);
                self.queue.after(delay, Ev::Unreachable(host, peer));
            }
            Report::Message { message, .. } => {
                let Wire { from, to, body } = message;
                self.with_node(to, |node, now, wishes| match body {
                    Body::Shard(message) => {
                        node.heard(now, from, wishes);
                        node.message(now, from, message, wishes);
                    }
                    Body::Member(message) => {
                        let event = membership::Event::Message { from, message };
                        node.member_event(now, event, wishes);
                    }
                });
            }
        }
    }

    /// What the newest lineages fence is fenced once all shards have them in force.
    fn fence(&mut self, what: Fenced) {
        let shards = self.plan.shards().into_iter().collect();
        let revision = self.controller.lineages.revision;
        self.fences.push(Fence { revision, shards, what });
    }

    /// A primary says that fences are in force. One that the registry replaced has no say.
    fn in_force(&mut self, shard: ShardId, interval: Interval, revision: u64) {
        if Some(interval) != self.current_interval(shard) {
            return;
        }
        let mut fences = std::mem::take(&mut self.fences);
        for fence in &mut fences {
            if fence.revision <= revision {
                fence.shards.remove(&shard);
            }
        }
        let (done, open) = fences.into_iter().partition(|fence| fence.shards.is_empty());
        self.fences = open;
        let done: Vec<Fence> = done;
        for fence in done {
            self.counts.one("fences in force");
            match fence.what {
                Fenced::Gateway(gateway) => self.history.fenced(gateway),
                Fenced::Lock(vid, below) => self.lock_moved(vid, below),
            }
        }
    }

    // ---- the registry --------------------------------------------------------------------------

    fn registry_delay(&mut self) -> u64 {
        let delay = Delay { least: 200_000, typical: 2 * MS, rare: 20, longest: SECOND };
        delay.draw(&mut self.rng)
    }

    fn tell(&mut self, process: Process, shard: ShardId, revision: u64, record: Assignment) {
        let delay = self.registry_delay();
        self.queue.after(delay, Ev::Assigned(process, shard, revision, Box::new(record)));
    }

    fn processes(&self) -> Vec<Process> {
        self.machines.values().filter_map(|m| m.node.as_ref()).map(|node| node.me).collect()
    }

    fn publish(&mut self) {
        for (shard, revision, assignment) in self.controller.changes() {
            let acting: Vec<String> = assignment.acting.iter().map(|d| shown_disk(*d)).collect();
            self.story.push((
                self.queue.now(),
                format!(
                    "shard {shard}: interval {} on {}, primary {}, last activated {}",
                    assignment.interval.0,
                    acting.join(" "),
                    host_of(assignment.primary).0,
                    assignment.last.interval.0,
                ),
            ));
            for process in self.processes() {
                self.tell(process, shard, revision, assignment.clone());
            }
        }
    }

    fn publish_lineages(&mut self) {
        for process in self.processes() {
            let delay = self.registry_delay();
            let lineages = self.controller.lineages.clone();
            self.queue.after(delay, Ev::Lineages(process, lineages, None));
        }
    }
}

/// Bytes of one block.
pub(crate) const BLOCK: usize = BLOCK_SIZE;
