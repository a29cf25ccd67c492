//! One process's part in the cluster.
//!
//! * **Joining**: begin a session, list everything, take an incarnation larger than any before by
//!   CAS on the node's own record (with the stamps of the disks), then put the sign of life through
//!   the session. A claim that may have happened is never taken up: the next one is larger.
//! * **Keeping**: whatever of its own keys is not as it should be is written again, one transaction
//!   at a time; so a lost answer, a conflict and a registry that went back need nothing special.
//! * **Session over**: primaries stop, and the process joins anew, with a new incarnation.
//! * **Leaving**: its record says that it wants to; the coordinator moves its primaries first; when
//!   the map shows that it left, it stamps its disks and ends the session.
//! * **Coordinator**: whoever puts the ephemeral election key. The member runs the coordinator, makes
//!   its calls and gives it the messages it is sent.

use crate::api::{
    Answer, Call, Config, Effect, Event, Knowledge, LocalDisk, LogLevel, Message, Now, Token,
};
use crate::coordinator::Coordinator;
use crate::detect::{DOWN, Detector};
use crate::keys;
use crate::map::NodeState;
use crate::records::{NodeRecord, SetRecord, Settings, Stamp, encode_process};
use crate::view::View;
use sheepdog_types::kv::{Change, Compare, Outcome, Revision, Txn};
use sheepdog_types::{DiskId, ErrorKind, Interval, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet};

const MS: u64 = 1_000_000;
/// A registry that did not answer is tried again after this.
pub const RETRY: u64 = 200 * MS;
/// What the coordinator is to do is repeated until the records show it, and reports are.
pub const REPEAT: u64 = 500 * MS;
/// How often a disk that made checkpoints is stamped.
pub const STAMP: u64 = 600_000 * MS;
/// Each node that is alive before this one in the order of ids delays standing for coordinator by
/// so much, so that they do not all try at once.
pub const STAND: u64 = 20 * MS;
/// The most that it is delayed.
pub const STAND_MAX: u64 = 500 * MS;
/// Up to so many nodes look at all others; in a larger cluster at those they share shards with, at
/// the coordinator, and the coordinator at all.
pub const ALL_PEERS: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    None,
    Beginning(Token),
    Alive,
    Ending(Token),
}

/// What a transaction of this member's own is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Aim {
    Claim(u64),
    Other,
}

struct Own {
    token: Token,
    aim: Aim,
    changes: Vec<Change>,
    stamps: Vec<DiskId>,
}

struct Disk {
    local: LocalDisk,
    /// Its stamp is not recorded until its vote is taken.
    behind: bool,
    /// When it was last recorded by this incarnation.
    stamped: Option<Now>,
}

#[derive(Default)]
struct Claim {
    activated: Option<Interval>,
    clean: Option<Interval>,
    again: Option<Interval>,
    later: Option<Knowledge>,
    sent: Option<Now>,
}

/// The last report: when it went out, to whom, and whom it was about: reset, silent for long.
type Reported = (Now, Process, Vec<(Process, bool, bool)>);

/// See the [module](self).
pub struct Member {
    config: Config,
    disks: BTreeMap<DiskId, Disk>,
    view: View,
    tokens: u64,
    session: Session,
    /// The listing under way, with the latest revision that was known when it was asked for.
    listing: Option<(Token, Revision)>,
    watch: Option<Token>,
    /// The view was listed and is kept by a watch.
    whole: bool,
    retry: Now,
    started: bool,
    incarnation: Option<u64>,
    own: Option<Own>,
    joined: bool,
    leaving: bool,
    /// Left, superseded: nothing more happens.
    over: bool,
    told: BTreeSet<ShardId>,
    held: BTreeSet<ShardId>,
    claims: BTreeMap<ShardId, Claim>,
    went_back: Option<Revision>,
    detector: Detector,
    reported: Option<Reported>,
    stand: Option<Now>,
    coordinator: Option<Coordinator>,
}

impl Member {
    /// A process that has not begun.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let disk = |(id, local): (&DiskId, &LocalDisk)| {
            (*id, Disk { local: *local, behind: false, stamped: None })
        };
        let went_back = Some(config.known_revision).filter(|revision| revision.0 > 0);
        Self {
            disks: config.disks.iter().map(disk).collect(),
            config,
            view: View::default(),
            tokens: 0,
            session: Session::None,
            listing: None,
            watch: None,
            whole: false,
            retry: 0,
            started: false,
            incarnation: None,
            own: None,
            joined: false,
            leaving: false,
            over: false,
            told: BTreeSet::new(),
            held: BTreeSet::new(),
            claims: BTreeMap::new(),
            went_back,
            detector: Detector::default(),
            reported: None,
            stand: None,
            coordinator: None,
        }
    }

    /// The process, while it is part of the cluster.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        self.me().filter(|_| self.joined)
    }

    /// Whether this member is the coordinator, as far as it knows.
    #[must_use]
    pub const fn is_coordinator(&self) -> bool {
        self.coordinator.is_some()
    }

    /// The largest incarnation it took, to be remembered by the store.
    #[must_use]
    pub const fn known_incarnation(&self) -> u64 {
        self.config.known_incarnation
    }

    /// The latest revision it has seen, to be remembered by the store now and then.
    #[must_use]
    pub const fn known_revision(&self) -> Revision {
        self.view.revision
    }

    /// A set of shards, as far as it is known.
    #[must_use]
    pub fn set(&self, set: u16) -> Option<&SetRecord> {
        self.view.sets.get(&set).map(|(set, _)| set)
    }

    /// The settings, as far as they are known.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.view.settings.as_ref().map(|(settings, _)| *settings).unwrap_or_default()
    }

    fn me(&self) -> Option<Process> {
        Some(Process { node: self.config.node, incarnation: self.incarnation? })
    }

    fn leader(&self) -> Option<Process> {
        self.view.coordinator.as_ref().map(|(process, _)| *process)
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        if self.over {
            return;
        }
        let mut effects = Vec::new();
        self.take(now, event, &mut effects);
        self.drive(now, &mut effects);
        // The coordinator is a peer like others, if it is this process: what it is sent comes at
        // once.
        let mut rounds = 0;
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                match (effect, self.me()) {
                    (Effect::Send { to, message }, Some(me)) if to == me && rounds < 8 => {
                        self.message(now, me, message, &mut more);
                    }
                    (effect, _) => out.push(effect),
                }
            }
            if !more.is_empty() {
                self.drive(now, &mut more);
            }
            effects = more;
            rounds += 1;
        }
    }

    /// When to come back with a tick at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Now> {
        if self.over || !self.started {
            return None;
        }
        let idle = match self.session {
            Session::None => Some(self.retry),
            Session::Alive => {
                let waits = if self.whole { self.own.is_none() } else { self.listing.is_none() };
                let busy = waits.then_some(self.retry).filter(|_| self.busy());
                let free_to_write = self.joined && self.whole && self.own.is_none();
                let stand = self.stand.filter(|_| !self.leaving).map(|at| at.max(self.retry));
                let free = [stand, self.next_stamp()].into_iter().flatten().min();
                [busy, free.filter(|_| free_to_write)].into_iter().flatten().min()
            }
            Session::Beginning(_) | Session::Ending(_) => None,
        };
        let repeat = self.reported.as_ref().map(|(at, ..)| at + REPEAT);
        let claims = self.claims.values().filter_map(|claim| claim.sent).min();
        let claims = claims.map(|at| at + REPEAT);
        let coordinator = self.coordinator.as_ref().and_then(Coordinator::next_tick);
        let coordinator = coordinator.filter(|_| self.whole);
        let detector = self.detector.next_tick();
        let others = [repeat, claims, coordinator, detector].into_iter().flatten().min();
        let others = others.filter(|_| self.joined && self.session == Session::Alive);
        [idle, others].into_iter().flatten().min()
    }

    fn next_stamp(&self) -> Option<Now> {
        let due = self.disks.iter().filter(|(id, disk)| {
            let recorded = self.view.stamps.get(*id).map(|(stamp, _)| *stamp);
            !disk.behind && recorded != Some(disk.local.stamp)
        });
        let next = due.map(|(_, disk)| disk.stamped.map_or(0, |at| at + STAMP)).min();
        next.map(|at| at.max(self.retry))
    }

    /// Whether something of its own is to be written, or everything to be read.
    fn busy(&self) -> bool {
        !self.whole || !self.joined || self.is_record_wrong().is_some()
    }

    fn take(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Start => self.started = true,
            Event::Tick => {}
            Event::Registry(token, answer) => self.answer(now, token, answer, out),
            Event::Watched { token, revision, changes } => {
                if self.watch == Some(token) {
                    self.view.commit(revision, &changes);
                }
            }
            Event::SessionExpired => self.expired(now, out),
            Event::Heard(process) => self.detector.heard(now, process),
            Event::Reset(process) => self.detector.reset(now, process, out),
            Event::Message { from, message } => {
                self.detector.heard(now, from);
                self.message(now, from, message, out);
            }
            Event::Activated { shard, interval } => {
                let claim = self.claims.entry(shard).or_default();
                (claim.activated, claim.sent) = (Some(interval), None);
            }
            Event::Clean { shard, interval } => {
                let claim = self.claims.entry(shard).or_default();
                (claim.clean, claim.sent) = (Some(interval), None);
            }
            Event::Again { shard, interval } => {
                let claim = self.claims.entry(shard).or_default();
                (claim.again, claim.sent) = (Some(interval), None);
            }
            Event::KnowsLater(knowledge) => {
                let claim = self.claims.entry(knowledge.shard).or_default();
                (claim.later, claim.sent) = (Some(knowledge), None);
            }
            Event::Local { round, knows } => {
                if let Some(to) = self.leader() {
                    out.push(Effect::Send { to, message: Message::Know { round, knows } });
                }
            }
            Event::Holds { shard, held } => {
                if held && self.held.insert(shard) {
                    self.tell(shard, out);
                } else if !held {
                    self.held.remove(&shard);
                }
            }
            Event::Stamped { disk, stamp } => self.stamped(disk, stamp, false),
            Event::VoteTaken { disk, stamp } => self.stamped(disk, stamp, true),
            Event::DiskGone(disk) => drop(self.disks.remove(&disk)),
            Event::DiskCame(id, local) => {
                self.config.disks.insert(id, local);
                let recorded = self.view.stamps.get(&id).map(|(stamp, _)| *stamp);
                let behind = recorded.filter(|recorded| *recorded > local.stamp);
                if let Some(recorded) = behind {
                    out.push(Effect::DiskBehind { disk: id, recorded });
                }
                self.disks.insert(id, Disk { local, behind: behind.is_some(), stamped: None });
            }
            Event::Leave => self.leaving = true,
            Event::Command { id, command } => {
                let message = Message::Command { id, command };
                match self.leader().filter(|_| self.joined) {
                    Some(to) => out.push(Effect::Send { to, message }),
                    None => {
                        let why = "there is no coordinator now".to_owned();
                        let refused = Some((ErrorKind::Unreachable, why));
                        out.push(Effect::CommandDone { id, refused });
                    }
                }
            }
        }
    }

    fn stamped(&mut self, id: DiskId, stamp: Stamp, taken: bool) {
        if let Some(disk) = self.disks.get_mut(&id) {
            disk.local.stamp = disk.local.stamp.max(stamp);
            if taken {
                // Recorded at once, and even though it is less than what was.
                *disk = Disk { behind: false, stamped: None, ..*disk };
                disk.local.stamp = stamp;
            }
        }
    }

    fn answer(&mut self, now: Now, token: Token, answer: Answer, out: &mut Vec<Effect>) {
        if self.session == Session::Beginning(token) {
            self.session = if answer == Answer::Session { Session::Alive } else { Session::None };
            self.retry = if self.session == Session::Alive { now } else { now + RETRY };
            return;
        }
        if self.session == Session::Ending(token) {
            self.over = true;
            out.push(Effect::Left);
            return;
        }
        if let Some((_, floor)) = self.listing.take_if(|(listing, _)| *listing == token) {
            match answer {
                Answer::Listing { revision, entries } => {
                    self.listed(now, floor, revision, &entries, out);
                }
                _ => self.retry = now + RETRY,
            }
            return;
        }
        if self.watch == Some(token) {
            self.unsure(now + RETRY);
            return;
        }
        let outcome = match answer {
            Answer::Commit(outcome) => Some(outcome),
            _ => None,
        };
        if let Some(own) = self.own.take_if(|own| own.token == token) {
            if let Some(Outcome::Committed(revision)) = outcome {
                self.view.commit(revision, &own.changes);
                for id in own.stamps {
                    if let Some(disk) = self.disks.get_mut(&id) {
                        disk.stamped = Some(now);
                    }
                }
                if let Aim::Claim(incarnation) = own.aim {
                    self.incarnation = Some(incarnation);
                    self.config.known_incarnation = incarnation;
                    let node = self.config.node;
                    out.push(Effect::Claimed(Process { node, incarnation }));
                }
            } else {
                self.unsure(if outcome.is_some() { now } else { now + RETRY });
            }
            return;
        }
        let coordinator = self.coordinator.as_mut();
        match coordinator.and_then(|c| c.committed(now, token, outcome, out)) {
            Some((Some((revision, txn)), _)) => self.view.commit(revision, &txn.changes),
            Some((None, true)) => self.unsure(if outcome.is_some() { now } else { now + RETRY }),
            _ => {}
        }
    }

    /// Everything must be read again before anything is decided.
    fn unsure(&mut self, retry: Now) {
        self.whole = false;
        self.watch = None;
        self.retry = self.retry.max(retry);
    }

    fn listed(
        &mut self,
        now: Now,
        floor: Revision,
        revision: Revision,
        entries: &[sheepdog_types::kv::Entry],
        out: &mut Vec<Effect>,
    ) {
        if revision < floor {
            self.went_back = self.went_back.max(Some(floor));
            let text = "The registry has less history than it had";
            out.push(Effect::Log(LogLevel::Error, text.to_owned()));
        } else if revision < self.view.revision {
            // A commit was answered after the listing was made.
            return;
        }
        self.went_back = self.went_back.filter(|known| *known > revision);
        self.view.list(revision, entries);
        self.whole = true;
        if let (Some(coordinator), Some(_)) = (&mut self.coordinator, self.went_back) {
            coordinator.went_back(now, &self.view, out);
        }
        let token = self.token();
        self.watch = Some(token);
        let call = Call::Watch { prefix: keys::PREFIX.to_owned(), from: revision };
        out.push(Effect::Registry(token, call));
    }

    fn expired(&mut self, now: Now, out: &mut Vec<Effect>) {
        if let Session::Ending(_) = self.session {
            self.over = true;
            out.push(Effect::Left);
            return;
        }
        if self.session != Session::Alive {
            return;
        }
        if self.incarnation.take().is_some() {
            out.push(Effect::Lost);
        }
        self.joined = false;
        self.session = Session::None;
        self.own = None;
        self.listing = None;
        self.coordinator = None;
        self.claims.clear();
        self.told.clear();
        self.reported = None;
        self.disks.values_mut().for_each(|disk| disk.stamped = None);
        self.unsure(now);
    }

    fn message(&mut self, now: Now, from: Process, message: Message, out: &mut Vec<Effect>) {
        match message {
            Message::Ping => out.push(Effect::Send { to: from, message: Message::Pong }),
            Message::Pong => {}
            Message::Ask { round, shards } => {
                self.went_back = None;
                out.push(Effect::AskLocal { round, shards });
            }
            Message::CommandDone { id, refused } => out.push(Effect::CommandDone { id, refused }),
            for_coordinator => match &mut self.coordinator {
                Some(coordinator) => {
                    coordinator.message(now, from, for_coordinator, &self.view, out);
                }
                None => {
                    if let Message::Command { id, .. } = for_coordinator {
                        let why = "the coordinator has changed".to_owned();
                        let refused = Some((ErrorKind::Unreachable, why));
                        let message = Message::CommandDone { id, refused };
                        out.push(Effect::Send { to: from, message });
                    }
                }
            },
        }
    }

    /// Does whatever is to be done now.
    fn drive(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !self.started || self.over {
            return;
        }
        match self.session {
            Session::None if now >= self.retry => {
                let token = self.token();
                self.session = Session::Beginning(token);
                out.push(Effect::Registry(token, Call::Begin));
            }
            Session::Alive => {
                if !self.whole && self.listing.is_none() && now >= self.retry {
                    let token = self.token();
                    self.listing = Some((token, self.view.revision));
                    let call = Call::List { prefix: keys::PREFIX.to_owned() };
                    out.push(Effect::Registry(token, call));
                }
            }
            _ => return,
        }
        self.news(now, out);
        if self.over || self.session != Session::Alive {
            return;
        }
        if self.whole && self.own.is_none() && now >= self.retry {
            self.write(now, out);
        }
        // Peers are looked at, and the coordinator is told, whether the registry answers or not.
        if self.joined {
            self.detector.tick(now, out);
            self.report(now, out);
            self.claim(now, out);
        }
        if let Some(coordinator) = self.coordinator.as_mut().filter(|_| self.whole) {
            coordinator.tick(now, &self.view, &mut self.tokens, out);
        }
    }

    /// Tells what changed in the registry.
    fn news(&mut self, now: Now, out: &mut Vec<Effect>) {
        let news = std::mem::take(&mut self.view.news);
        if !news.any {
            return;
        }
        if news.broken {
            for (key, why) in &self.view.broken {
                out.push(Effect::Log(LogLevel::Error, format!("{key} cannot be read: {why}")));
            }
        }
        let mine = self.view.nodes.get(&self.config.node).map(|(record, _)| record.incarnation);
        if let (Some(mine), Some(me)) = (mine, self.incarnation)
            && mine > me
            && self.whole
        {
            self.over = true;
            self.coordinator = None;
            out.push(Effect::Superseded { by: mine });
            return;
        }
        self.follow_election(now);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.poke(now);
        }
        if self.joined {
            if news.map {
                self.tell_map(out);
            }
            if news.fences {
                self.tell_fences(out);
            }
            news.shards.iter().for_each(|shard| self.tell(*shard, out));
        }
        self.choose_peers(now);
    }

    fn follow_election(&mut self, now: Now) {
        let elected = self.view.coordinator.as_ref().map(|(process, at)| (*process, *at));
        let mine = self.me().filter(|_| self.joined);
        match elected {
            Some((process, at)) if Some(process) == mine => {
                if self.coordinator.as_ref().is_none_or(|c| c.election() != at) {
                    self.coordinator = Some(Coordinator::new(now, process, at));
                }
                self.stand = None;
            }
            Some(_) => {
                self.coordinator = None;
                self.stand = None;
            }
            None => {
                self.coordinator = None;
                if self.stand.is_none() {
                    let before = self.view.sessions.range(..self.config.node).count() as u64;
                    self.stand = Some(now + (before * STAND).min(STAND_MAX));
                }
            }
        }
    }

    fn tell_map(&self, out: &mut Vec<Effect>) {
        if let Some((map, revision)) = &self.view.map {
            out.push(Effect::MapChanged { map: Box::new(map.clone()), revision: *revision });
        }
    }

    fn tell_fences(&self, out: &mut Vec<Effect>) {
        if let Some((fences, revision)) = &self.view.fences {
            let fences = Box::new(fences.clone());
            out.push(Effect::FencesChanged { fences, revision: *revision });
        }
    }

    /// Tells a record, if it concerns this process, or did.
    fn tell(&mut self, shard: ShardId, out: &mut Vec<Effect>) {
        let Some((record, revision)) = self.view.shard(shard).filter(|_| self.joined) else {
            return;
        };
        let named = self.config.disks.keys().any(|disk| record.names(*disk));
        if named || self.held.contains(&shard) || self.told.contains(&shard) {
            let record = Box::new(record.clone());
            out.push(Effect::ShardChanged { shard, record, revision });
        }
        if named {
            self.told.insert(shard);
        } else {
            self.told.remove(&shard);
        }
    }

    fn choose_peers(&mut self, now: Now) {
        let Some(map) = self.view.map().filter(|_| self.joined) else {
            return;
        };
        // Who is down and has a sign of life is down by report, and comes back by being heard.
        let there = map.nodes.iter().filter(|(node, entry)| match entry.state {
            NodeState::Up => true,
            NodeState::Down { .. } => self.view.alive(**node) == Some(entry.incarnation),
            _ => false,
        });
        let all = there.map(|(node, e)| Process { node: *node, incarnation: e.incarnation });
        let mut peers: BTreeSet<Process> = all.collect();
        if peers.len() > ALL_PEERS && self.coordinator.is_none() {
            let mut near = BTreeSet::new();
            for (_, record) in self.view.shards() {
                if record.acting.iter().any(|seat| self.disks.contains_key(&seat.disk)) {
                    near.extend(record.acting.iter().map(|seat| seat.process));
                }
            }
            near.extend(self.leader());
            let suspect = self.detector.suspicions(now);
            near.extend(suspect.iter().map(|suspicion| suspicion.process));
            peers.retain(|process| near.contains(process));
        }
        peers.retain(|process| process.node != self.config.node);
        self.detector.watch(now, &peers);
    }

    /// The incarnation, if the node's record is not as it should be.
    fn is_record_wrong(&self) -> Option<u64> {
        let incarnation = self.incarnation?;
        let config = &self.config;
        let right = self.view.nodes.get(&config.node).is_some_and(|(found, _)| {
            (found.incarnation, found.zone, found.vnodes, found.leaving)
                == (incarnation, config.zone, config.vnodes, self.leaving)
                && found.address == config.address
                && found.disks.iter().eq(self.disks.iter().map(|(id, d)| (id, &d.local.weight)))
        });
        (!right).then_some(incarnation)
    }

    fn record(&self, incarnation: u64) -> NodeRecord {
        NodeRecord {
            incarnation,
            address: self.config.address.clone(),
            zone: self.config.zone,
            vnodes: self.config.vnodes,
            leaving: self.leaving,
            disks: self.disks.iter().map(|(id, disk)| (*id, disk.local.weight)).collect(),
        }
    }

    /// Writes one of its own keys that is not as it should be.
    fn write(&mut self, now: Now, out: &mut Vec<Effect>) {
        let node = self.config.node;
        let Some(me) = self.me() else {
            return self.write_claim(out);
        };
        if let Some(incarnation) = self.is_record_wrong() {
            let record = self.record(incarnation);
            let key = keys::node(node);
            let compares = vec![self.view.compare(key.clone())];
            let txn = Txn { compares, changes: vec![Change::Put(key, record.encode())] };
            return self.commit(Aim::Other, txn, false, Vec::new(), out);
        }
        if self.view.alive(node) != Some(me.incarnation) {
            let key = keys::session(node);
            let compares = vec![self.view.compare(keys::node(node))];
            let txn = Txn { compares, changes: vec![Change::Put(key, encode_process(me))] };
            return self.commit(Aim::Other, txn, true, Vec::new(), out);
        }
        if !self.joined {
            self.join(now, me, out);
        }
        if self.has_left(me) {
            let due = self.stamps_due(now, true);
            if !due.is_empty() {
                return self.write_stamps(due, out);
            }
            let token = self.token();
            self.session = Session::Ending(token);
            out.push(Effect::Registry(token, Call::End));
            return;
        }
        if self.stand.is_some_and(|at| at <= now) && !self.leaving {
            self.stand = None;
            let key = keys::COORDINATOR.to_owned();
            let compares = vec![Compare::Absent(key.clone())];
            let txn = Txn { compares, changes: vec![Change::Put(key, encode_process(me))] };
            return self.commit(Aim::Other, txn, true, Vec::new(), out);
        }
        let due = self.stamps_due(now, false);
        if !due.is_empty() {
            self.write_stamps(due, out);
        }
    }

    fn has_left(&self, me: Process) -> bool {
        let entry = self.view.map().and_then(|map| map.nodes.get(&me.node));
        let left = entry
            .is_some_and(|entry| entry.incarnation == me.incarnation && entry.state.left_cleanly());
        self.leaving && left
    }

    fn write_claim(&mut self, out: &mut Vec<Effect>) {
        let node = self.config.node;
        let record = self.view.nodes.get(&node).map(|(record, _)| record.incarnation);
        let entry = self.view.map().and_then(|map| map.nodes.get(&node)).map(|e| e.incarnation);
        let fenced = self.view.fences.as_ref().and_then(|(f, _)| f.processes.get(&node).copied());
        let known = [record, entry, self.view.alive(node), fenced].into_iter().flatten().max();
        let known = known.unwrap_or(0).max(self.config.known_incarnation);
        let Some(incarnation) = known.checked_add(1) else {
            let text = "All incarnations of this node are used".to_owned();
            out.push(Effect::Log(LogLevel::Error, text));
            self.over = true;
            return;
        };
        // What may have been committed is used up, too.
        self.config.known_incarnation = incarnation;
        let key = keys::node(node);
        let mut compares = vec![self.view.compare(key.clone())];
        let mut changes = vec![Change::Put(key, self.record(incarnation).encode())];
        let mut stamps = Vec::new();
        for (id, disk) in &mut self.disks {
            let recorded = self.view.stamps.get(id).map(|(stamp, _)| *stamp);
            if let Some(recorded) = recorded.filter(|recorded| *recorded > disk.local.stamp) {
                if !std::mem::replace(&mut disk.behind, true) {
                    out.push(Effect::DiskBehind { disk: *id, recorded });
                }
                continue;
            }
            if disk.behind {
                continue;
            }
            let key = keys::stamp(*id);
            compares.push(self.view.compare(key.clone()));
            changes.push(Change::Put(key, disk.local.stamp.encode()));
            stamps.push(*id);
        }
        self.commit(Aim::Claim(incarnation), Txn { compares, changes }, false, stamps, out);
    }

    fn join(&mut self, now: Now, me: Process, out: &mut Vec<Effect>) {
        self.joined = true;
        out.push(Effect::Joined(me));
        self.tell_map(out);
        self.tell_fences(out);
        let shards: Vec<ShardId> = self.view.shards().map(|(shard, _)| shard).collect();
        shards.into_iter().for_each(|shard| self.tell(shard, out));
        self.follow_election(now);
        self.choose_peers(now);
    }

    fn stamps_due(&self, now: Now, leaving: bool) -> Vec<DiskId> {
        let due = self.disks.iter().filter(|(id, disk)| {
            let recorded = self.view.stamps.get(*id).map(|(stamp, _)| *stamp);
            let late = disk.stamped.is_none_or(|at| leaving || now.saturating_sub(at) >= STAMP);
            late && !disk.behind && recorded != Some(disk.local.stamp)
        });
        due.map(|(id, _)| *id).collect()
    }

    fn write_stamps(&mut self, due: Vec<DiskId>, out: &mut Vec<Effect>) {
        let mut txn = Txn::default();
        for id in &due {
            let Some(disk) = self.disks.get(id) else {
                continue;
            };
            let key = keys::stamp(*id);
            txn.compares.push(self.view.compare(key.clone()));
            txn.changes.push(Change::Put(key, disk.local.stamp.encode()));
        }
        self.commit(Aim::Other, txn, false, due, out);
    }

    fn commit(
        &mut self,
        aim: Aim,
        txn: Txn,
        session: bool,
        stamps: Vec<DiskId>,
        out: &mut Vec<Effect>,
    ) {
        let token = self.token();
        self.own = Some(Own { token, aim, changes: txn.changes.clone(), stamps });
        out.push(Effect::Registry(token, Call::Commit { txn, session }));
    }

    /// Tells the coordinator whom this process does not reach: when that changes, and again and
    /// again.
    fn report(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(to) = self.leader() else {
            self.reported = None;
            return;
        };
        let suspicions = self.detector.suspicions(now);
        let about = |s: &crate::api::Suspicion| (s.process, s.reset, s.silent >= DOWN / MS);
        let about: Vec<_> = suspicions.iter().map(about).collect();
        let same = self.reported.as_ref().is_some_and(|(at, whom, what)| {
            *whom == to && *what == about && now.saturating_sub(*at) < REPEAT
        });
        if !same {
            self.reported = Some((now, to, about));
            out.push(Effect::Send { to, message: Message::Suspect(suspicions) });
            // Until the coordinator asks what this process knows.
            if let Some(known) = self.went_back {
                out.push(Effect::Send { to, message: Message::WentBack { known } });
            }
        }
    }

    /// Tells the coordinator what local shards ask for, until the records answer it.
    fn claim(&mut self, now: Now, out: &mut Vec<Effect>) {
        let (view, to) = (&self.view, self.leader());
        self.claims.retain(|shard, claim| {
            let Some((record, _)) = view.shard(*shard) else {
                return false;
            };
            let over = |interval: &Interval| *interval < record.cur;
            claim.activated.take_if(|i| over(i) || *i == record.last.interval);
            claim.clean.take_if(|i| over(i) || *i == record.cur && record.is_clean());
            claim.again.take_if(|i| over(i));
            claim.later.take_if(|k| k.promised.max(k.activation.interval) <= record.cur);
            let told = [claim.activated, claim.clean, claim.again];
            told.iter().any(Option::is_some) || claim.later.is_some()
        });
        let Some(to) = to else {
            self.claims.values_mut().for_each(|claim| claim.sent = None);
            return;
        };
        let again = |at: Option<Now>| at.is_none_or(|at| now.saturating_sub(at) >= REPEAT);
        for (shard, claim) in &mut self.claims {
            if !again(claim.sent) {
                continue;
            }
            claim.sent = Some(now);
            let shard = *shard;
            let activated = claim.activated.map(|interval| Message::Activated { shard, interval });
            let clean = claim.clean.map(|interval| Message::Clean { shard, interval });
            let again = claim.again.map(|interval| Message::Again { shard, interval });
            let later = claim.later.clone().map(Message::KnowsLater);
            for message in [activated, clean, again, later].into_iter().flatten() {
                out.push(Effect::Send { to, message });
            }
        }
    }
}

#[cfg(test)]
mod tests;
