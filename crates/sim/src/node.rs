//! A process of the product in the simulator: the stores of its disks, its shards, its gateway, all of
//! them the product's own machines, and the wires between them.

mod member;

use crate::Host;
use member::Part;
use sheepdog_gateway::{
    Connection, Effect as GatewayEffect, Event as GatewayEvent, Gateway, Layout,
};
use sheepdog_membership::{self as membership, Stamp};
use sheepdog_shard::effect::{Disk as DiskView, Disks};
use sheepdog_shard::{Assignment, Effect, Event, Found, Lineages, Message, Rules, Shard};
use sheepdog_storelog::io::{Completion, DiskOp, OpId};
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect as StoreEffect, Held, Input, Limits, Opening, RequestEntry,
    Store,
};
use sheepdog_types::{DiskId, Error, FragmentId, NodeId, Process, RequestId, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// What a node asks of the world.
#[derive(Debug)]
pub enum Wish {
    /// An operation of a disk.
    Disk(DiskId, OpId, DiskOp),
    /// A message to another process.
    Send(Process, Message),
    /// A gateway tells a client.
    Client(GatewayEffect),
    /// Registry: the interval is activated.
    Activated(ShardId, sheepdog_types::Interval),
    /// Registry: nothing is missing in the interval.
    Clean(ShardId, sheepdog_types::Interval),
    /// Registry: another interval.
    Again(ShardId, sheepdog_types::Interval),
    /// Registry: there is a later interval.
    KnowsLater(membership::Knowledge),
    /// Registry: lineages and fences, read linearizably.
    Fetch(ShardId, sheepdog_types::Interval),
    /// Fences up to that revision are in force in this shard.
    FencesInForce(ShardId, sheepdog_types::Interval, u64),
    /// A disk cannot go on.
    DiskFailed(DiskId, String),
    /// A rule was broken.
    Broken(ShardId, &'static str),
    /// Every disk is open: the node takes part.
    Ready,
    /// Its membership calls the registry.
    Registry(membership::Token, membership::Call),
    /// A message of its membership to another process.
    Say(Process, membership::Message),
    /// Whether a process can be reached.
    Probe(Process),
    /// It has the name of a process.
    Claimed,
    /// It is not any more: it ends, and another run begins.
    Lost,
    /// The stamp that is on a disk from now on.
    Stamped(DiskId, Stamp),
    /// For people.
    Log(membership::LogLevel, String),
}

enum State {
    Opening(Box<Opening>),
    Open(View),
    Failed,
}

struct Slot {
    state: State,
    next_command: u64,
    asked: BTreeMap<CommandId, (ShardId, sheepdog_shard::Token)>,
}

/// The stores that are open.
struct Stores(BTreeMap<DiskId, Slot>);

impl Disks for Stores {
    fn disk(&self, disk: DiskId) -> Option<&dyn DiskView> {
        match &self.0.get(&disk)?.state {
            State::Open(view) => Some(view),
            _ => None,
        }
    }
}

/// A store that is open, as its shards see it.
struct View {
    store: Box<Store>,
    /// Each may use its part of what is free.
    shards: u64,
}

impl DiskView for View {
    fn held(&self, fragment: FragmentId) -> Option<Held> {
        self.store.held(fragment)
    }

    fn requests(&self, shard: ShardId) -> Vec<(RequestId, RequestEntry)> {
        self.store.requests(shard).collect()
    }

    fn room(&self) -> u64 {
        self.store.usage().free / self.shards
    }
}

/// See the module.
pub struct Node {
    /// Where it runs.
    pub host: Host,
    /// Which run of it this is.
    pub me: Process,
    rules: Rules,
    layout: Layout,
    stores: Stores,
    shards: BTreeMap<ShardId, Shard>,
    /// Its gateway.
    pub gateway: Gateway,
    /// The newest record of each shard that was seen.
    seen: BTreeMap<ShardId, u64>,
    ready: bool,
    /// Bytes that its host has free for each disk, when it starts.
    free: u64,
    /// Disks that went back in time, as the registry knows.
    without_vote: BTreeSet<DiskId>,
    lineages: Arc<Lineages>,
    /// What its machines tell each other, in order.
    inbox: VecDeque<Inner>,
    /// Its part in the cluster, where a run has the machine of membership.
    part: Option<Box<Part>>,
    /// Answers to what an oracle asked.
    answers: BTreeMap<(DiskId, CommandId), Result<Answer, Error>>,
}

/// For one of the machines of a node.
enum Inner {
    Member(membership::Event),
    Shard(ShardId, Event),
    Gateway(GatewayEvent),
}

/// What a replica's state says of an activation, as the registry's records do.
fn activation(les: &sheepdog_shard::Activation) -> membership::Activation {
    membership::Activation { interval: les.interval, members: les.members.clone() }
}

/// The name of the node on a host.
#[must_use]
pub fn node_id(host: Host) -> NodeId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&host.0.to_be_bytes());
    NodeId(id)
}

/// The host of a node.
#[must_use]
pub fn host_of(process: Process) -> Host {
    Host(u16::from_be_bytes([process.node.0[0], process.node.0[1]]))
}

impl Node {
    /// A process starts on its disks.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "one call, each of its own kind")]
    pub fn start(
        host: Host,
        incarnation: u64,
        disks: &[DiskId],
        without_vote: BTreeSet<DiskId>,
        free: u64,
        limits: Limits,
        layout: Layout,
        rules: Rules,
        wishes: &mut Vec<Wish>,
    ) -> Self {
        let me = Process { node: node_id(host), incarnation };
        let mut stores = BTreeMap::new();
        for disk in disks {
            let mut effects = Vec::new();
            let state = State::Opening(Box::new(Opening::start(limits, &mut effects)));
            for effect in effects {
                if let StoreEffect::Disk(op, what) = effect {
                    wishes.push(Wish::Disk(*disk, op, what));
                }
            }
            stores.insert(*disk, Slot { state, next_command: 0, asked: BTreeMap::new() });
        }
        Self {
            host,
            me,
            rules,
            layout,
            stores: Stores(stores),
            shards: BTreeMap::new(),
            gateway: Gateway::new(me, layout),
            seen: BTreeMap::new(),
            ready: false,
            free,
            without_vote,
            lineages: Arc::default(),
            inbox: VecDeque::new(),
            part: None,
            answers: BTreeMap::new(),
        }
    }

    /// Lets its machines handle what they were told, and what they tell each other then.
    fn run(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        while let Some(inner) = self.inbox.pop_front() {
            match inner {
                Inner::Member(event) => self.member_handles(now, event, wishes),
                Inner::Shard(id, event) => {
                    let mut effects = Vec::new();
                    if let Some(shard) = self.shards.get_mut(&id) {
                        shard.handle(now, event, &self.stores, &mut effects);
                    }
                    for effect in effects {
                        self.shard_effect(id, effect, wishes);
                    }
                }
                Inner::Gateway(event) => {
                    let mut effects = Vec::new();
                    self.gateway.handle(now, event, &mut effects);
                    for effect in effects {
                        match effect {
                            GatewayEffect::Send(to, message) if to == self.me => {
                                let event = Event::Message(to, message);
                                self.tell_shard(event);
                            }
                            GatewayEffect::Send(to, message) => {
                                wishes.push(Wish::Send(to, message));
                            }
                            effect => wishes.push(Wish::Client(effect)),
                        }
                    }
                }
            }
        }
    }

    fn tell_member(&mut self, event: membership::Event) {
        self.inbox.push_back(Inner::Member(event));
    }

    fn tell_shard(&mut self, event: Event) {
        if let Event::Message(_, message) = &event {
            self.inbox.push_back(Inner::Shard(message.shard(), event));
        }
    }

    /// Whether its disks are open.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Its shards.
    #[must_use]
    pub const fn shards(&self) -> &BTreeMap<ShardId, Shard> {
        &self.shards
    }

    /// The store of a disk, if it is open.
    #[must_use]
    pub fn store(&self, disk: DiskId) -> Option<&Store> {
        match &self.stores.0.get(&disk)?.state {
            State::Open(view) => Some(&view.store),
            _ => None,
        }
    }

    /// What a disk holds of a fragment.
    #[must_use]
    pub fn held(&self, disk: DiskId, fragment: FragmentId) -> Option<Held> {
        self.store(disk).and_then(|store| store.held(fragment))
    }

    /// An operation of a disk has ended.
    pub fn completed(
        &mut self,
        now: u64,
        disk: DiskId,
        completion: Completion,
        wishes: &mut Vec<Wish>,
    ) {
        let Some(slot) = self.stores.0.get_mut(&disk) else {
            return;
        };
        let mut effects = Vec::new();
        match &mut slot.state {
            State::Opening(opening) => {
                match opening.completed(completion, &mut effects) {
                    None => {}
                    Some(Ok((mut store, _))) => {
                        store.handle(Input::HostFree(self.free), &mut effects);
                        let shards = 1 << self.layout.bits;
                        slot.state = State::Open(View { store, shards });
                    }
                    Some(Err(error)) => {
                        slot.state = State::Failed;
                        wishes.push(Wish::DiskFailed(disk, error.full()));
                    }
                }
                let opened = matches!(slot.state, State::Open(_));
                self.store_effects(disk, effects, wishes);
                self.run(now, wishes);
                if opened && self.part.is_none() {
                    self.open_shards(now, disk, wishes);
                }
                if !self.ready
                    && self.stores.0.values().all(|s| !matches!(s.state, State::Opening(_)))
                {
                    if self.part.is_some() {
                        self.start_part(now, wishes);
                    } else {
                        self.ready = true;
                        wishes.push(Wish::Ready);
                    }
                }
            }
            State::Open(View { store, .. }) => {
                store.handle(Input::Completed(completion), &mut effects);
                store.pump(&mut effects);
                self.store_effects(disk, effects, wishes);
                self.run(now, wishes);
            }
            State::Failed => {}
        }
    }

    fn open_shards(&mut self, now: u64, disk: DiskId, wishes: &mut Vec<Wish>) {
        let Some(store) = self.store(disk) else {
            return;
        };
        let mut fragments: BTreeMap<ShardId, BTreeSet<FragmentId>> = BTreeMap::new();
        for (fragment, _) in store.all_held() {
            fragments.entry(self.layout.shard(fragment)).or_default().insert(fragment);
        }
        let states: BTreeMap<ShardId, Vec<u8>> =
            store.shards().map(|(shard, state)| (shard, state.to_vec())).collect();
        for number in 0..1 << self.layout.bits {
            let id = ShardId { set: self.layout.set, number };
            let (me, rules) = (self.me, self.rules);
            let shard = self.shards.entry(id).or_insert_with(|| Shard::new(id, me, rules));
            let held = fragments.remove(&id).unwrap_or_default();
            let state = states.get(&id).map(Vec::as_slice);
            let mut effects = Vec::new();
            let votes = !self.without_vote.contains(&disk);
            shard
                .attach(
                    disk,
                    Found { state, fragments: held, votes },
                    &self.stores,
                    now,
                    &mut effects,
                )
                .expect("what a shard wrote it can read");
            for effect in effects {
                self.shard_effect(id, effect, wishes);
            }
        }
        self.run(now, wishes);
    }

    /// What the host has free for a disk.
    pub fn host_free(&mut self, now: u64, disk: DiskId, bytes: u64, wishes: &mut Vec<Wish>) {
        let mut effects = Vec::new();
        if let Some(Slot { state: State::Open(View { store, .. }), .. }) =
            self.stores.0.get_mut(&disk)
        {
            store.handle(Input::HostFree(bytes), &mut effects);
        }
        self.store_effects(disk, effects, wishes);
        self.run(now, wishes);
    }

    /// Time passed.
    pub fn tick(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        let disks: Vec<DiskId> = self.stores.0.keys().copied().collect();
        for disk in disks {
            let mut effects = Vec::new();
            if let Some(Slot { state: State::Open(View { store, .. }), .. }) =
                self.stores.0.get_mut(&disk)
            {
                store.handle(Input::Tick(now / crate::MS), &mut effects);
                store.pump(&mut effects);
            }
            self.store_effects(disk, effects, wishes);
            self.run(now, wishes);
        }
        let shards: Vec<ShardId> = self.shards.keys().copied().collect();
        for shard in shards {
            self.shard_event(now, shard, Event::Tick, wishes);
        }
        self.gateway_event(now, GatewayEvent::Tick, wishes);
        self.tick_part(now, wishes);
    }

    /// The registry's record of a shard, unless a newer one was seen.
    pub fn assigned(
        &mut self,
        now: u64,
        shard: ShardId,
        revision: u64,
        assignment: Assignment,
        wishes: &mut Vec<Wish>,
    ) {
        let seen = self.seen.entry(shard).or_default();
        if *seen >= revision {
            return;
        }
        *seen = revision;
        let routed = GatewayEvent::Routed(shard, assignment.interval, assignment.primary);
        self.shard_event(now, shard, Event::Assigned(assignment), wishes);
        self.gateway_event(now, routed, wishes);
    }

    /// Something for one of its shards.
    pub fn shard_event(&mut self, now: u64, id: ShardId, event: Event, wishes: &mut Vec<Wish>) {
        self.inbox.push_back(Inner::Shard(id, event));
        self.run(now, wishes);
    }

    fn shard_effect(&mut self, id: ShardId, effect: Effect, wishes: &mut Vec<Wish>) {
        match effect {
            Effect::Send(to, message) if to == self.me => match message {
                Message::Response(response) => {
                    self.inbox.push_back(Inner::Gateway(GatewayEvent::Response(response)));
                }
                message => self.tell_shard(Event::Message(to, message)),
            },
            Effect::Send(to, message) => wishes.push(Wish::Send(to, message)),
            Effect::Store(disk, token, command) => self.command(disk, id, token, command, wishes),
            Effect::Activated(interval) if self.part.is_some() => {
                self.tell_member(membership::Event::Activated { shard: id, interval });
            }
            Effect::Clean(interval) if self.part.is_some() => {
                self.tell_member(membership::Event::Clean { shard: id, interval });
            }
            Effect::Again(interval) if self.part.is_some() => {
                self.tell_member(membership::Event::Again { shard: id, interval });
            }
            Effect::KnowsLater { disk, promised, les } => {
                let activation = activation(&les);
                let knowledge = membership::Knowledge { shard: id, disk, promised, activation };
                if self.part.is_some() {
                    self.tell_member(membership::Event::KnowsLater(knowledge));
                } else {
                    wishes.push(Wish::KnowsLater(knowledge));
                }
            }
            Effect::Activated(interval) => wishes.push(Wish::Activated(id, interval)),
            Effect::Clean(interval) => wishes.push(Wish::Clean(id, interval)),
            Effect::Again(interval) => wishes.push(Wish::Again(id, interval)),
            Effect::Fetch(interval) => wishes.push(Wish::Fetch(id, interval)),
            Effect::FencesInForce(interval, revision) => {
                wishes.push(Wish::FencesInForce(id, interval, revision));
            }
            Effect::DiskFailed(disk, why) => wishes.push(Wish::DiskFailed(disk, why)),
            Effect::Broken(shard, rule) => wishes.push(Wish::Broken(shard, rule)),
        }
    }

    fn command(
        &mut self,
        disk: DiskId,
        shard: ShardId,
        token: sheepdog_shard::Token,
        command: Command,
        wishes: &mut Vec<Wish>,
    ) {
        let mut effects = Vec::new();
        if let Some(slot) = self.stores.0.get_mut(&disk)
            && let State::Open(View { store, .. }) = &mut slot.state
        {
            let id = CommandId(slot.next_command);
            slot.next_command += 1;
            slot.asked.insert(id, (shard, token));
            store.handle(Input::Command(id, command), &mut effects);
            store.pump(&mut effects);
        }
        self.store_effects(disk, effects, wishes);
    }

    /// An oracle asks a store something.
    pub fn ask(
        &mut self,
        disk: DiskId,
        command: Command,
        wishes: &mut Vec<Wish>,
    ) -> Option<(DiskId, CommandId)> {
        let slot = self.stores.0.get_mut(&disk)?;
        let State::Open(View { store, .. }) = &mut slot.state else {
            return None;
        };
        let id = CommandId(slot.next_command);
        slot.next_command += 1;
        let mut effects = Vec::new();
        store.handle(Input::Command(id, command), &mut effects);
        store.pump(&mut effects);
        self.store_effects(disk, effects, wishes);
        Some((disk, id))
    }

    /// The answer, once it is there.
    pub fn answer(&mut self, asked: (DiskId, CommandId)) -> Option<Result<Answer, Error>> {
        self.answers.remove(&asked)
    }

    fn store_effects(&mut self, disk: DiskId, effects: Vec<StoreEffect>, wishes: &mut Vec<Wish>) {
        for effect in effects {
            match effect {
                StoreEffect::Disk(op, what) => wishes.push(Wish::Disk(disk, op, what)),
                StoreEffect::Reply(command, result) => {
                    let slot = self.stores.0.get_mut(&disk);
                    let asked = slot.and_then(|slot| slot.asked.remove(&command));
                    if asked.is_none() {
                        self.answers.insert((disk, command), result);
                    } else if let Some((shard, token)) = asked {
                        let event = Event::Stored(disk, token, result);
                        self.inbox.push_back(Inner::Shard(shard, event));
                        self.vote_command_done(disk, command, wishes);
                    }
                }
            }
        }
    }

    /// Whether the loss of a disk's vote is durable, or it has lost none.
    #[must_use]
    pub fn votes_are_settled(&self, disk: DiskId) -> bool {
        let losing = |shard: &Shard| shard.replica(disk).is_some_and(|r| r.is_losing_vote());
        self.ready && !self.shards.values().any(losing)
    }

    /// A message from another process.
    pub fn message(&mut self, now: u64, from: Process, message: Message, wishes: &mut Vec<Wish>) {
        match message {
            Message::Response(response) => {
                self.gateway_event(now, GatewayEvent::Response(response), wishes);
            }
            message => {
                let shard = message.shard();
                self.shard_event(now, shard, Event::Message(from, message), wishes);
            }
        }
    }

    /// There is a connection to a process.
    pub fn connected(&mut self, now: u64, peer: Process, wishes: &mut Vec<Wish>) {
        let shards: Vec<ShardId> = self.shards.keys().copied().collect();
        for shard in shards {
            self.shard_event(now, shard, Event::Connected(peer), wishes);
        }
        self.gateway_event(now, GatewayEvent::Connected(peer), wishes);
    }

    /// Lineages and fences, for everything here.
    pub fn lineages(&mut self, now: u64, lineages: &Arc<Lineages>, wishes: &mut Vec<Wish>) {
        if lineages.revision <= self.lineages.revision {
            return;
        }
        self.lineages = lineages.clone();
        let shards: Vec<ShardId> = self.shards.keys().copied().collect();
        for shard in shards {
            // Only what was fetched ends a takeover's wait: this one may be from before it began.
            if self.shards.get(&shard).is_some_and(Shard::is_serving) {
                self.shard_event(now, shard, Event::Lineages(lineages.clone()), wishes);
            }
        }
        self.gateway_event(now, GatewayEvent::Lineages(lineages.clone()), wishes);
    }

    /// Something for the gateway.
    pub fn gateway_event(&mut self, now: u64, event: GatewayEvent, wishes: &mut Vec<Wish>) {
        self.inbox.push_back(Inner::Gateway(event));
        self.run(now, wishes);
    }

    /// A client's connection is gone.
    pub fn close(&mut self, now: u64, connection: Connection, wishes: &mut Vec<Wish>) {
        self.gateway_event(now, GatewayEvent::Close(connection), wishes);
    }
}
