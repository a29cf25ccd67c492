//! A cluster of members under faults: registry, network, processes, and shards that activate and
//! recover. One seed is one run.

mod oracle;
mod registry;

use oracle::Oracle;
use registry::Registry;
use sheepdog_membership::{
    Activation, Answer, Call, Command, Config, Effect, Event, LocalDisk, MapRecord, Member,
    Message, NodeState, Settings, ShardPack, ShardRecord, Stamp, Token, keys,
};
use sheepdog_placement::Policy;
use sheepdog_types::kv::{Outcome, Revision, Txn};
use sheepdog_types::{DiskId, ErrorKind, Interval, NodeId, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const TTL: u64 = 2 * S;
const BITS: u8 = 3;

pub struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Mostly short, sometimes long.
    fn pause(&mut self, long: u64, percent: u64, short: u64) -> u64 {
        let most = if self.percent(percent) { long } else { short };
        self.below(most)
    }

    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

enum Ev {
    Node(usize, u64, Event),
    Call(usize, u64, Token, Call),
    LateCommit(Txn),
    SessionOver(u64),
    Try(usize, u64, ShardId, Interval),
    TryClean(usize, u64, ShardId, Interval),
    Fault,
    Start(usize),
}

struct Node {
    id: NodeId,
    zone: u32,
    disk: DiskId,
    member: Option<Member>,
    /// Grows with each start and each loss of a session; events of an older one are dropped.
    run: u64,
    process: Option<Process>,
    session: Option<u64>,
    watch: Option<(Token, usize, u64)>,
    tick: u64,
    leaving: bool,
    records: BTreeMap<ShardId, ShardRecord>,
    // What the disk has.
    promised: BTreeMap<ShardId, Interval>,
    les: BTreeMap<ShardId, Activation>,
}

pub struct World {
    now: u64,
    seed: u64,
    rng: Rng,
    queue: BTreeMap<(u64, u64), Ev>,
    queued: u64,
    registry: Registry,
    registry_down: bool,
    nodes: Vec<Node>,
    /// One-way cuts.
    cut: BTreeSet<(usize, usize)>,
    off_registry: BTreeSet<usize>,
    oracle: Oracle,
    calm: bool,
    until: u64,
    created: bool,
    pub events: u64,
    pub faults: u64,
    pub intervals: u64,
    pub epochs: u64,
    pub trace: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let count = 3 + rng.below(6).min(rng.below(6)) as usize;
        let zones = if rng.percent(60) { count as u64 } else { 2 + rng.below(3) };
        let node = |at: usize| Node {
            id: NodeId([at as u8 + 1; 16]),
            zone: (at as u64 % zones) as u32,
            disk: DiskId([at as u8 + 101; 16]),
            member: None,
            run: 0,
            process: None,
            session: None,
            watch: None,
            tick: u64::MAX,
            leaving: false,
            records: BTreeMap::new(),
            promised: BTreeMap::new(),
            les: BTreeMap::new(),
        };
        let mut world = Self {
            now: 0,
            seed,
            queue: BTreeMap::new(),
            queued: 0,
            registry: Registry::default(),
            registry_down: false,
            nodes: (0..count).map(node).collect(),
            cut: BTreeSet::new(),
            off_registry: BTreeSet::new(),
            oracle: Oracle::default(),
            calm: true,
            until: 0,
            created: false,
            events: 0,
            faults: 0,
            intervals: 0,
            epochs: 0,
            trace: false,
            rng,
        };
        for at in 0..count {
            let later = world.rng.below(200) * MS;
            world.push(later, Ev::Start(at));
        }
        world
    }

    pub fn run(&mut self) {
        self.run_until(S);
        self.calm = false;
        let end = self.now + S * (2 + self.rng.below(4));
        self.push(10 * MS, Ev::Fault);
        self.run_until(end);
        self.heal();
        // Damping keeps one out for at most a minute; what follows takes seconds.
        let end = self.now + 80 * S;
        self.run_until(self.now + 1500 * MS);
        // The last faults take effect up to two seconds later: what counts is that it rests.
        let mut rested = None;
        while rested != Some(self.registry.revision) {
            let why = self.why();
            rested = why.is_empty().then_some(self.registry.revision);
            assert!(self.now < end, "seed {}: it does not rest: {why}", self.seed);
            self.fill_all();
            self.run_until(self.now + 500 * MS);
        }
        (self.intervals, self.epochs) = (self.oracle.begun, self.oracle.epochs);
    }

    fn push(&mut self, after: u64, ev: Ev) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), ev);
    }

    fn run_until(&mut self, end: u64) {
        self.until = end;
        loop {
            let event = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let ticks = self.nodes.iter().enumerate().map(|(at, node)| (node.tick, at));
            let (tick, at) = ticks.min().unwrap_or((u64::MAX, 0));
            if event.min(tick) >= end {
                self.now = end;
                return;
            }
            self.events += 1;
            assert!(self.events < 200_000, "seed {}: it never rests", self.seed);
            if tick < event {
                self.now = tick;
                let run = self.nodes[at].run;
                self.deliver(at, run, Event::Tick);
            } else if let Some(((time, _), ev)) = self.queue.pop_first() {
                self.now = time;
                self.step(ev);
            }
            self.oracle.look(&self.registry);
        }
    }

    fn step(&mut self, ev: Ev) {
        match ev {
            Ev::Node(at, run, event) => self.deliver(at, run, event),
            Ev::Call(at, run, token, call) => self.call(at, run, token, call),
            Ev::LateCommit(txn) => {
                self.registry.commit(&txn, None);
                self.wake_watches();
            }
            Ev::SessionOver(session) => {
                self.registry.end(session);
                self.wake_watches();
            }
            Ev::Try(at, run, shard, interval) => self.try_activate(at, run, shard, interval),
            Ev::TryClean(at, run, shard, interval) => self.try_clean(at, run, shard, interval),
            Ev::Fault => self.fault(),
            Ev::Start(at) => self.start(at),
        }
    }

    fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.member.is_some() {
            return;
        }
        let disk = LocalDisk { weight: 1 << 40, stamp: Stamp { generation: 1, serial: 1 } };
        node.run += 1;
        node.leaving = false;
        node.member = Some(Member::new(Config {
            node: node.id,
            address: format!("node{at}"),
            zone: node.zone,
            vnodes: 128,
            disks: BTreeMap::from([(node.disk, disk)]),
            known_incarnation: 0,
            known_revision: Revision(0),
        }));
        let run = node.run;
        self.deliver(at, run, Event::Start);
    }

    fn stop(&mut self, at: usize, at_once: bool) {
        let node = &mut self.nodes[at];
        node.member = None;
        node.run += 1;
        node.process = None;
        node.watch = None;
        node.tick = u64::MAX;
        node.records.clear();
        if let Some(session) = node.session.take() {
            self.push(if at_once { MS } else { TTL }, Ev::SessionOver(session));
        }
        // Everyone with a connection sees it reset, unless the machine vanished.
        if at_once {
            for other in 0..self.nodes.len() {
                self.reset(other, at);
            }
        }
    }

    fn reset(&mut self, at: usize, about: usize) {
        let map = self.map();
        let incarnation = map.nodes.get(&self.nodes[about].id).map_or(0, |e| e.incarnation);
        let process = Process { node: self.nodes[about].id, incarnation };
        let run = self.nodes[at].run;
        self.push(MS, Ev::Node(at, run, Event::Reset(process)));
    }

    fn map(&self) -> MapRecord {
        let value = self.registry.value(keys::MAP);
        value.map(|value| MapRecord::decode(value).expect("map")).unwrap_or_default()
    }

    fn deliver(&mut self, at: usize, run: u64, event: Event) {
        let node = &mut self.nodes[at];
        if node.run != run {
            return;
        }
        let Some(member) = &mut node.member else {
            return;
        };
        let mut out = Vec::new();
        if self.trace
            && !matches!(
                event,
                Event::Tick | Event::Message { message: Message::Ping | Message::Pong, .. }
            )
        {
            println!("{:>9.3} {at} <- {event:?}", self.now as f64 / 1e9);
        }
        member.handle(self.now, event, &mut out);
        node.tick = member.next_tick().map_or(u64::MAX, |tick| tick.max(self.now + 1000));
        for effect in out {
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        if self.trace {
            match &effect {
                Effect::Send { message: Message::Ping | Message::Pong, .. } => {}
                effect => println!("{:>9.3} {at} -> {effect:?}", self.now as f64 / 1e9),
            }
        }
        let run = self.nodes[at].run;
        match effect {
            Effect::Registry(token, call) => {
                let slow = if self.rng.percent(3) { 50 * MS } else { 0 };
                let delay = self.rng.below(2 * MS) + slow;
                self.push(delay, Ev::Call(at, run, token, call));
            }
            Effect::Send { to, message } => self.send(at, to, Some(message)),
            Effect::Probe(to) => self.send(at, to, None),
            Effect::Claimed(_) => {}
            Effect::Joined(process) => {
                assert!(self.nodes[at].process.is_none_or(|old| old < process));
                self.nodes[at].process = Some(process);
                if !self.created && at == 0 {
                    self.create(at);
                }
            }
            Effect::Lost => {
                let node = &mut self.nodes[at];
                node.process = None;
                node.records.clear();
                node.watch = None;
            }
            Effect::Superseded { .. } => panic!("seed {}: there is only one", self.seed),
            Effect::Left => {
                self.nodes[at].session = None;
                self.stop(at, true);
                if self.calm {
                    self.push(100 * MS, Ev::Start(at));
                }
            }
            Effect::ShardChanged { shard, record, .. } => {
                let mine = record.primary() == self.nodes[at].process;
                let old = self.nodes[at].records.insert(shard, (*record).clone());
                if mine && old.is_none_or(|old| old.cur != record.cur) {
                    let delay = MS + self.rng.below(20 * MS);
                    self.push(delay, Ev::Try(at, run, shard, record.cur));
                }
            }
            Effect::CommandDone { id, refused } => {
                if id < 2 && refused.is_some() {
                    self.create(at);
                } else if id == 1 {
                    self.created = true;
                }
            }
            Effect::DiskBehind { .. } => panic!("seed {}: no disk went back", self.seed),
            Effect::AskLocal { .. } => panic!("seed {}: no registry went back", self.seed),
            Effect::MapChanged { .. } | Effect::FencesChanged { .. } | Effect::Log(..) => {}
        }
    }

    fn create(&mut self, at: usize) {
        let run = self.nodes[at].run;
        let copies = 2 + (self.seed % 2) as u8;
        let grace = [1000, 2500, 600_000][(self.seed % 3) as usize];
        let settings = Settings { grace, ..Settings::default() };
        let set = Command::CreateSet { set: 0, policy: Policy::Copies(copies), bits: BITS };
        for (id, command) in [(0, Command::Settings(settings)), (1, set)] {
            self.push(200 * MS, Ev::Node(at, run, Event::Command { id, command }));
        }
    }

    fn send(&mut self, from: usize, to: Process, message: Option<Message>) {
        let Some(other) = self.nodes.iter().position(|node| node.id == to.node) else {
            return;
        };
        let back = self.nodes[from].run;
        if self.cut.contains(&(from, other)) {
            return;
        }
        let Some(me) = self.nodes[from].process else {
            return;
        };
        if self.nodes[other].member.is_none() {
            if !self.cut.contains(&(other, from)) {
                self.push(MS, Ev::Node(from, back, Event::Reset(to)));
            }
            return;
        }
        if self.nodes[other].process != Some(to) {
            return;
        }
        let delay = MS / 4 + self.rng.below(MS) + if self.rng.percent(1) { 30 * MS } else { 0 };
        match message {
            Some(message) => {
                let run = self.nodes[other].run;
                if self.calm || !self.rng.percent(1) {
                    self.push(delay, Ev::Node(other, run, Event::Message { from: me, message }));
                }
            }
            None if !self.cut.contains(&(other, from)) => {
                self.push(2 * delay, Ev::Node(from, back, Event::Heard(to)));
            }
            None => {}
        }
    }

    fn call(&mut self, at: usize, run: u64, token: Token, call: Call) {
        let node = &mut self.nodes[at];
        let lives = node.run == run && node.member.is_some();
        let answer = MS / 2 + self.rng.below(2 * MS);
        if self.registry_down || self.off_registry.contains(&at) || !lives {
            let failed = Answer::Failed(ErrorKind::Unreachable);
            return self.push(100 * MS, Ev::Node(at, run, Event::Registry(token, failed)));
        }
        let answered = match call {
            Call::Begin => {
                node.session = Some(self.registry.begin());
                Answer::Session
            }
            Call::End => {
                if let Some(session) = node.session.take() {
                    self.registry.end(session);
                }
                Answer::Ended
            }
            Call::List { .. } => {
                let (revision, entries) = self.registry.list();
                Answer::Listing { revision, entries }
            }
            Call::Watch { from, .. } => {
                if node.watch.is_none_or(|(newer, ..)| newer < token) {
                    node.watch = Some((token, from.0 as usize, self.now));
                }
                self.wake_watches();
                return;
            }
            Call::Commit { txn, session } => {
                let session = session.then_some(node.session);
                if !self.calm && self.rng.percent(4) {
                    // It may have happened, may still happen, or not.
                    match (self.rng.below(3), session) {
                        (0, _) => {}
                        (1, None) => {
                            let late = self.rng.below(500 * MS);
                            self.push(late, Ev::LateCommit(txn));
                        }
                        (_, Some(None)) => {}
                        (_, session) => {
                            self.registry.commit(&txn, session.flatten());
                        }
                    }
                    Answer::Failed(ErrorKind::Unreachable)
                } else {
                    match session {
                        Some(None) => Answer::Failed(ErrorKind::Conflict),
                        session => {
                            let outcome: Outcome = self.registry.commit(&txn, session.flatten());
                            Answer::Commit(outcome)
                        }
                    }
                }
            }
        };
        self.push(answer, Ev::Node(at, run, Event::Registry(token, answered)));
        self.wake_watches();
    }

    /// Sends what each watch has not seen, in order, late.
    fn wake_watches(&mut self) {
        for at in 0..self.nodes.len() {
            let Some((token, mut seen, mut last)) = self.nodes[at].watch else {
                continue;
            };
            if self.off_registry.contains(&at) || self.registry_down {
                continue;
            }
            while let Some((revision, changes)) = self.registry.history.get(seen).cloned() {
                seen += 1;
                let slow = if self.rng.percent(2) { 200 * MS } else { 0 };
                last = last.max(self.now + MS / 2 + self.rng.below(5 * MS) + slow);
                let event = Event::Watched { token, revision, changes };
                let run = self.nodes[at].run;
                self.push(last - self.now, Ev::Node(at, run, event));
            }
            self.nodes[at].watch = Some((token, seen, last));
        }
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    /// The nodes of an acting set, if the primary reaches the process of each.
    fn members(&self, at: usize, record: &ShardRecord) -> Option<Vec<usize>> {
        let seats = record.acting.iter().map(|seat| {
            let other = self.nodes.iter().position(|node| node.process == Some(seat.process))?;
            self.reaches(at, other).then_some(other)
        });
        seats.collect()
    }

    fn current(
        &self,
        at: usize,
        run: u64,
        shard: ShardId,
        interval: Interval,
    ) -> Option<ShardRecord> {
        let node = &self.nodes[at];
        let record = node.records.get(&shard).filter(|_| node.run == run)?;
        let mine = node.process.is_some() && record.primary() == node.process;
        (record.cur == interval && mine).then(|| record.clone())
    }

    fn try_activate(&mut self, at: usize, run: u64, shard: ShardId, interval: Interval) {
        let Some(record) = self.current(at, run, shard, interval) else {
            return;
        };
        let again = Ev::Try(at, run, shard, interval);
        let Some(members) = self.members(at, &record) else {
            return self.push(50 * MS, again);
        };
        let promised = |n: &usize| self.nodes[*n].promised.get(&shard).copied().unwrap_or_default();
        if members.iter().any(|n| promised(n) > interval) {
            return;
        }
        for n in &members {
            self.nodes[*n].promised.insert(shard, interval);
        }
        let votes = members.iter().any(|n| {
            let node = &self.nodes[*n];
            let les = node.les.get(&shard).map(|les| les.interval).unwrap_or_default();
            record.last.members.contains(&node.disk) && les >= record.last.interval
        });
        if !votes && !record.last.members.is_empty() {
            return self.push(50 * MS, again);
        }
        let activation = Activation { interval, members: record.disks() };
        for n in &members {
            self.nodes[*n].les.insert(shard, activation.clone());
        }
        self.oracle.activated.insert((shard, interval));
        self.deliver(at, run, Event::Activated { shard, interval });
        let delay = 20 * MS + self.rng.pause(1500 * MS, 20, 200 * MS);
        self.push(delay, Ev::TryClean(at, run, shard, interval));
    }

    fn try_clean(&mut self, at: usize, run: u64, shard: ShardId, interval: Interval) {
        let Some(record) = self.current(at, run, shard, interval) else {
            return;
        };
        if self.members(at, &record).is_none() || !record.is_activated() {
            return self.push(50 * MS, Ev::TryClean(at, run, shard, interval));
        }
        self.oracle.cleaned.insert((shard, interval));
        self.deliver(at, run, Event::Clean { shard, interval });
    }

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        self.faults += 1;
        let count = self.nodes.len();
        let at = self.rng.below(count as u64) as usize;
        let other = self.rng.below(count as u64) as usize;
        let kind = self.rng.below(15);
        if self.trace {
            println!("{:>9.3} fault {kind} of {at}, {other}", self.now as f64 / 1e9);
        }
        let run = self.nodes[at].run;
        match kind {
            0..=2 => {
                let at_once = self.rng.percent(50);
                self.stop(at, at_once);
                let away = self.rng.pause(5 * S, 50, 300 * MS);
                self.push(away, Ev::Start(at));
            }
            3 => {
                self.cut.insert((at, other));
            }
            4 => {
                self.cut.extend([(at, other), (other, at)]);
            }
            5 => self.cut.extend((0..count).flat_map(|n| [(n, at), (at, n)])),
            6..=8 => self.cut.clear(),
            9 => {
                self.off_registry.insert(at);
                self.lose_session(at);
            }
            10 => {
                self.off_registry.clear();
                self.registry_down = false;
                self.wake_watches();
            }
            11 => self.lose_session(at),
            12 => {
                if self.nodes[at].process.is_some() {
                    self.nodes[at].leaving = true;
                    self.deliver(at, run, Event::Leave);
                    let away = 500 * MS + self.rng.below(3 * S);
                    self.push(away, Ev::Start(at));
                }
            }
            13 => self.reset(at, other),
            _ => {
                if self.rng.percent(30) {
                    self.registry_down = true;
                } else {
                    let node = self.nodes[other].id;
                    let command = if self.rng.percent(50) {
                        Command::Drain { node, drain: self.rng.percent(50) }
                    } else {
                        Command::Vnodes { node, vnodes: 64 + self.rng.below(128) as u32 }
                    };
                    self.deliver(at, run, Event::Command { id: 9, command });
                }
            }
        }
        self.cut.retain(|(a, b)| a != b);
        let next = self.rng.pause(50 * MS, 30, 700 * MS);
        self.push(next, Ev::Fault);
    }

    fn lose_session(&mut self, at: usize) {
        if let Some(session) = self.nodes[at].session.take() {
            let (run, there, here) = (self.nodes[at].run, self.rng.below(TTL), self.rng.below(TTL));
            self.push(there, Ev::SessionOver(session));
            self.push(here, Ev::Node(at, run, Event::SessionExpired));
        }
    }

    fn heal(&mut self) {
        self.calm = true;
        self.cut.clear();
        self.off_registry.clear();
        self.registry_down = false;
        for at in 0..self.nodes.len() {
            self.push(S, Ev::Start(at));
        }
        self.wake_watches();
    }

    /// Nothing stays drained.
    fn fill_all(&mut self) {
        for (node, entry) in self.map().nodes {
            if entry.draining {
                let command = Command::Drain { node, drain: false };
                self.deliver(0, self.nodes[0].run, Event::Command { id: 9, command });
            }
        }
    }

    /// What is not as it should be at last.
    fn why(&self) -> String {
        if !self.created {
            return "no shards".into();
        }
        let map = self.map();
        for node in &self.nodes {
            let entry = map.nodes.get(&node.id);
            let up = entry.is_some_and(|entry| entry.state == NodeState::Up);
            let here = node.process.map(|process| process.incarnation);
            if !up || entry.map(|entry| entry.incarnation) != here {
                return format!("{:?} is {entry:?}, {here:?}", node.id);
            }
            if entry.is_some_and(|entry| entry.draining) {
                return "one is drained".into();
            }
        }
        let pack = self.registry.value(&keys::pack(0, 0)).expect("pack");
        let pack = ShardPack::decode(pack).expect("pack");
        for number in 0..1 << BITS {
            let record = &pack.shards[&number];
            let targets = oracle::targets(&self.registry, &map, 0, number);
            let set: BTreeSet<DiskId> = targets.iter().copied().collect();
            if !record.is_clean() || record.disks() != set {
                return format!("shard {number} of {targets:?} is {record:?}");
            }
            if record.primary_seat().map(|seat| seat.disk) != targets.first().copied() {
                return format!("shard {number}: another primary than {targets:?}: {record:?}");
            }
        }
        String::new()
    }
}
