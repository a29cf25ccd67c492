//! The decisions of the elected member: who is up, and who acts for which shard.
//!
//! It keeps no plans. When something may have changed it looks, at most every [`BATCH`], at what the
//! registry holds, who is alive, what was reported and asked for, and makes one transaction of the
//! difference to what should be. That compares the revision of its election and of each key it
//! changes. While one is under way there is no other. One that failed, or may have happened, is
//! followed by reading everything again; a request stays until the records show it or contradict
//! it, so finding one's own change there is success.
//!
//! What it knows beyond the registry is lost with it, and harmless to lose: reports and requests
//! are repeated by their senders, grace goes on from what was stored, who came and went too often
//! starts anew, a question to replicas is asked again.

mod plan;
mod reach;
mod restore;

use crate::acting::{self, Ground, Place, choose};
use crate::api::{Command, Effect, Knowledge, LogLevel, Message, Now, Token};
use crate::map::{DiskState, MapRecord, NodeState};
use crate::records::SetRecord;
use crate::shards::ShardRecord;
use crate::view::View;
use plan::Plan;
use reach::Reach;
pub use reach::{FLAP_WAIT, FLAP_WAIT_MAX, FLAP_WINDOW, FLAPS_FREE, REPORT_TTL};
use restore::Restore;
pub use restore::{ASK_AGAIN, PATIENCE};
use sheepdog_placement::{ClusterMap, Placement};
use sheepdog_types::kv::{Outcome, Revision, Txn};
use sheepdog_types::{ErrorKind, Interval, NodeId, Process, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const MS: u64 = 1_000_000;
/// Changes of this time go together.
pub const BATCH: u64 = 10 * MS;
/// Without any event it looks this often.
pub const IDLE: u64 = 250 * MS;
/// A new coordinator knows no reports, so for this time it does not take back that a node is down.
pub const SETTLE: u64 = 1500 * MS;
/// A node that leaves goes after this time though its shards are not served elsewhere.
pub const LEAVE_WAIT: u64 = 30_000 * MS;
/// Orders that wait at the same time.
pub const COMMANDS_MAX: usize = 1024;

struct Order {
    from: Process,
    id: u64,
    command: Command,
}

/// All that decides who acts, but for the records and what is asked.
#[derive(PartialEq, Eq)]
struct Basis {
    ground: Ground,
    map: ClusterMap,
    sets: BTreeMap<u16, SetRecord>,
    /// Per set, the zones that must act.
    required: BTreeMap<u16, usize>,
}

impl Basis {
    fn new(ground: Ground, plan: &Plan<'_>) -> Self {
        let there = plan.map.nodes.values().filter(|e| e.vnodes > 0 && !e.state.left_cleanly());
        let zones = there.map(|entry| entry.zone).collect::<BTreeSet<u32>>().len();
        let required =
            |(id, set): (&u16, &SetRecord)| (*id, plan.settings.required(set.policy, zones));
        Self {
            ground,
            map: plan.map.placement(),
            sets: plan.sets.clone(),
            required: plan.sets.iter().map(required).collect(),
        }
    }
}

struct Placed {
    map: ClusterMap,
    set: SetRecord,
    placement: Placement,
}

/// See the [module](self).
pub struct Coordinator {
    me: Process,
    election: Revision,
    since: Now,
    reach: Reach,
    /// By node that is away: since when this one counts, and what was stored then.
    graces: BTreeMap<NodeId, (Now, u64)>,
    leaving: BTreeMap<NodeId, Now>,
    activated: BTreeMap<ShardId, (Process, Interval)>,
    clean: BTreeMap<ShardId, (Process, Interval)>,
    again: BTreeMap<ShardId, (Process, Interval)>,
    restore: Option<Restore>,
    round: u64,
    orders: VecDeque<Order>,
    /// When to look.
    due: Now,
    /// The transaction under way, what it changes, and how many orders are in it.
    under_way: Option<(Token, Txn, usize)>,
    /// All shards were looked at on this basis; only requests are new.
    settled: Option<Basis>,
    placed: BTreeMap<u16, Placed>,
    told_broken: bool,
}

impl Coordinator {
    /// The one elected at `election`.
    #[must_use]
    pub fn new(now: Now, me: Process, election: Revision) -> Self {
        Self {
            me,
            election,
            since: now,
            reach: Reach::default(),
            graces: BTreeMap::new(),
            leaving: BTreeMap::new(),
            activated: BTreeMap::new(),
            clean: BTreeMap::new(),
            again: BTreeMap::new(),
            restore: None,
            // Rounds of different coordinators are told apart by the revision of the election.
            round: election.0 << 16,
            orders: VecDeque::new(),
            due: now,
            under_way: None,
            settled: None,
            placed: BTreeMap::new(),
            told_broken: false,
        }
    }

    /// When it was elected.
    #[must_use]
    pub const fn election(&self) -> Revision {
        self.election
    }

    /// When to look again; after the answer, while a transaction is under way.
    #[must_use]
    pub fn next_tick(&self) -> Option<Now> {
        self.under_way.is_none().then_some(self.due)
    }

    fn hurry(&mut self, now: Now) {
        self.due = self.due.min(now + BATCH);
    }

    /// The registry, or the world, may have changed.
    pub fn poke(&mut self, now: Now) {
        self.hurry(now);
    }

    /// The registry went back in time: no shard record can be relied on.
    pub fn went_back(&mut self, now: Now, view: &View, out: &mut Vec<Effect>) {
        let text = "The registry went back in time: all nodes are asked what they know";
        out.push(Effect::Log(LogLevel::Error, text.to_owned()));
        let shards: Vec<ShardId> = view.shards().map(|(shard, _)| shard).collect();
        shards.into_iter().for_each(|shard| self.ask_about(now, shard));
        self.hurry(now);
    }

    fn ask_about(&mut self, now: Now, shard: ShardId) {
        self.round += 1;
        let round = self.round;
        self.restore.get_or_insert_with(|| Restore::new(now, round)).add(shard, round);
    }

    /// A message of a member, this one's own included.
    pub fn message(
        &mut self,
        now: Now,
        from: Process,
        message: Message,
        view: &View,
        out: &mut Vec<Effect>,
    ) {
        match message {
            Message::Suspect(suspicions) => self.reach.report(now, from, suspicions),
            Message::Activated { shard, interval } => {
                self.activated.insert(shard, (from, interval));
            }
            Message::Clean { shard, interval } => {
                self.clean.insert(shard, (from, interval));
            }
            Message::Again { shard, interval } => {
                self.again.insert(shard, (from, interval));
            }
            Message::KnowsLater(knowledge) => self.knows_later(now, knowledge, view, out),
            Message::WentBack { known } => {
                if known > view.revision {
                    self.went_back(now, view, out);
                }
            }
            Message::Know { round, knows } => {
                if let Some(restore) = &mut self.restore {
                    restore.answer(from, round, knows);
                }
            }
            Message::Command { id, command } => {
                let full = self.orders.len() >= COMMANDS_MAX;
                if full {
                    let refused = Some((ErrorKind::Conflict, "too many orders wait".to_owned()));
                    let message = Message::CommandDone { id, refused };
                    out.push(Effect::Send { to: from, message });
                } else if !self.orders.iter().any(|o| (o.from, o.id) == (from, id)) {
                    self.orders.push_back(Order { from, id, command });
                }
            }
            Message::Ping | Message::Pong | Message::Ask { .. } | Message::CommandDone { .. } => {
                return;
            }
        }
        self.hurry(now);
    }

    fn knows_later(&mut self, now: Now, known: Knowledge, view: &View, out: &mut Vec<Effect>) {
        let shard = known.shard;
        let later = known.promised.max(known.activation.interval);
        let Some((record, _)) = view.shard(shard) else {
            return;
        };
        if later <= record.cur {
            return;
        }
        let asked = self.restore.as_ref().is_some_and(|restore| restore.is_of(shard));
        if !asked {
            let (later, cur) = (later.0, record.cur.0);
            let text = format!(
                "Shard {shard}: disk {} knows interval {later}, the record {cur}",
                known.disk
            );
            out.push(Effect::Log(LogLevel::Warn, text));
            self.ask_about(now, shard);
        }
        if let Some(restore) = &mut self.restore {
            restore.know(known);
        }
    }

    /// The answer to the transaction under way: `None` if it is not known. Returns what was
    /// committed, and whether everything must be read again.
    pub fn committed(
        &mut self,
        now: Now,
        token: Token,
        outcome: Option<Outcome>,
        out: &mut Vec<Effect>,
    ) -> Option<(Option<(Revision, Txn)>, bool)> {
        let (_, txn, orders) = self.under_way.take_if(|(under_way, ..)| *under_way == token)?;
        self.due = now;
        if let Some(Outcome::Committed(revision)) = outcome {
            for order in self.orders.drain(..orders.min(self.orders.len())) {
                done(&order, None, out);
            }
            return Some((Some((revision, txn)), false));
        }
        self.settled = None;
        Some((None, true))
    }

    /// Looks, if it is time. `view` must be whole.
    pub fn tick(&mut self, now: Now, view: &View, tokens: &mut u64, out: &mut Vec<Effect>) {
        if now < self.due || self.under_way.is_some() {
            return;
        }
        self.due = now + IDLE;
        if !view.broken.is_empty() {
            if !std::mem::replace(&mut self.told_broken, true) {
                for (key, why) in &view.broken {
                    let text = format!("No change can be made: {key}: {why}");
                    out.push(Effect::Log(LogLevel::Error, text));
                }
            }
            return;
        }
        self.told_broken = false;
        let mut plan = Plan::new(view);
        let mut orders = 0;
        while let Some(order) = self.orders.get(orders) {
            match plan.command(&order.command) {
                Ok(()) => orders += 1,
                Err(error) => {
                    let refused = Some((error.kind(), error.context().to_owned()));
                    if let Some(order) = self.orders.remove(orders) {
                        done(&order, refused, out);
                    }
                }
            }
        }
        if orders > 0 {
            // An order may be about a record.
            self.settled = None;
        }
        self.nodes(now, view, &mut plan);
        if let Err(error) = self.place(view, &mut plan) {
            let text = format!("No change can be made: placement: {error}");
            out.push(Effect::Log(LogLevel::Error, text));
            return;
        }
        plan.number_epoch();
        self.restored(now, &mut plan, out);
        let basis = Basis::new(self.ground(now, &plan), &plan);
        self.shards(&basis, &mut plan);
        let Some((txn, whole)) = plan.txn(self.election) else {
            for order in self.orders.drain(..orders) {
                done(&order, None, out);
            }
            self.settled = self.restore.is_none().then_some(basis);
            return;
        };
        self.settled = (whole && self.restore.is_none()).then_some(basis);
        *tokens += 1;
        let token = Token(*tokens);
        self.under_way = Some((token, txn.clone(), orders));
        out.push(Effect::Registry(token, crate::api::Call::Commit { txn, session: false }));
    }

    /// Who is up, who is away and for how long.
    fn nodes(&mut self, now: Now, view: &View, plan: &mut Plan<'_>) {
        let before = plan.map.clone();
        let settled = now.saturating_sub(self.since) >= SETTLE;
        for (node, (record, _)) in &view.nodes {
            let process = Process { node: *node, incarnation: record.incarnation };
            let entry = before.nodes.get(node);
            let was_up = entry.is_some_and(|entry| entry.state == NodeState::Up);
            let alive =
                view.alive(*node) == Some(record.incarnation) && !plan.fences.process(process);
            // A process that has not joined yet is not judged by what is said of the one before.
            let same = entry.is_some_and(|entry| entry.incarnation == record.incarnation);
            let down = same
                && (self.reach.is_down(now, &before, *node, was_up)
                    || !settled && matches!(entry.map(|e| e.state), Some(NodeState::Down { .. })));
            let left = entry.is_some_and(|entry| entry.state.left_cleanly());
            let up = alive && !down && !(left && record.leaving);
            if !(up && record.leaving) {
                self.leaving.remove(node);
            }
            if alive && left && record.leaving {
                // It never was up as this process, and may go.
                let incarnation = record.incarnation;
                plan.map.nodes.entry(*node).and_modify(|e| e.incarnation = incarnation);
            }
            if !up {
                continue;
            }
            plan.up(*node, record);
            if record.leaving && was_up {
                let since = *self.leaving.entry(*node).or_insert(now);
                let waited = now.saturating_sub(since) >= LEAVE_WAIT;
                if waited || may_leave(process, view, plan) {
                    let grace = plan.settings.grace;
                    plan.map.nodes.entry(*node).and_modify(|e| e.state = NodeState::Left { grace });
                }
            }
        }
        let grace = plan.settings.grace;
        for (node, entry) in &mut plan.map.nodes {
            let record = view.nodes.get(node).map(|(record, _)| record.incarnation);
            let process = Process { node: *node, incarnation: entry.incarnation };
            let alive = record == Some(entry.incarnation)
                && view.alive(*node) == record
                && !plan.fences.process(process);
            if entry.state == NodeState::Up
                && (!alive || self.reach.is_down(now, &before, *node, true))
            {
                entry.state = NodeState::Down { grace };
            }
            entry.state = match entry.state {
                NodeState::Down { grace: stored } => self
                    .away(now, *node, stored, grace)
                    .map_or(NodeState::Out { clean: false }, |grace| NodeState::Down { grace }),
                NodeState::Left { grace: stored } => self
                    .away(now, *node, stored, grace)
                    .map_or(NodeState::Out { clean: true }, |grace| NodeState::Left { grace }),
                other => other,
            };
        }
        let away = |node: &NodeId| {
            let state = plan.map.nodes.get(node).map(|entry| entry.state);
            matches!(state, Some(NodeState::Down { .. } | NodeState::Left { .. }))
        };
        self.graces.retain(|node, _| away(node));
    }

    /// What is left of a node's grace: what is stored, unless a tenth of the whole has passed.
    fn away(&mut self, now: Now, node: NodeId, stored: u64, whole: u64) -> Option<u64> {
        let counted = self.graces.entry(node).or_insert((now, stored));
        if counted.1 != stored {
            *counted = (now, stored);
        }
        let passed = now.saturating_sub(counted.0) / MS;
        let left = stored.checked_sub(passed).filter(|left| *left > 0)?;
        let step = (whole / 10).max(1000);
        Some(if passed >= step { left } else { stored })
    }

    /// Placements for the planned map, and the tables that go with them.
    fn place(&mut self, view: &View, plan: &mut Plan<'_>) -> sheepdog_types::Result<()> {
        let map = plan.map.placement();
        let old = view.map().map(MapRecord::placement).unwrap_or_default();
        let up = plan.map.nodes.values().filter(|entry| entry.state == NodeState::Up);
        let storing = up.filter(|entry| entry.vnodes > 0 && !entry.disks.is_empty());
        let zones: BTreeSet<u32> = storing.map(|entry| entry.zone).collect();
        plan.map.halted.clear();
        for (id, set) in &mut plan.sets {
            if plan.settings.strict && zones.len() < set.policy.width() as usize {
                plan.map.halted.insert(*id);
            }
            if let Some(placed) = self.placed.get(id)
                && placed.map == map
                && placed.set == *set
            {
                continue;
            }
            // What the registry holds belongs to the map that it holds; a new set to the planned.
            let under = if view.sets.contains_key(id) { &old } else { &map };
            let read = Placement::with_exceptions(under, set.policy, set.bits, &set.exceptions);
            let placement = match read {
                Ok(placement) if *under == map => placement,
                Ok(placement) => {
                    let placement = placement.after(&map)?;
                    set.exceptions = placement.exceptions();
                    placement
                }
                // A table that does not fit its map says nothing; data moves to where it belongs.
                Err(_) => {
                    let placement = Placement::fresh(&map, set.policy, set.bits)?;
                    set.exceptions = placement.exceptions();
                    placement
                }
            };
            self.placed.insert(*id, Placed { map: map.clone(), set: set.clone(), placement });
        }
        Ok(())
    }

    /// What all shards have in common.
    fn ground(&mut self, now: Now, plan: &Plan<'_>) -> Ground {
        let map = &plan.map;
        let cut = self.reach.cut(now, map);
        let up: Vec<NodeId> = map.up().map(|process| process.node).collect();
        let reaches = |a: &NodeId, b: &NodeId| !cut.contains(&(*a.min(b), *a.max(b)));
        // Where nobody is cut off, the numbers mean nothing.
        let reach: BTreeMap<NodeId, usize> = if cut.is_empty() {
            BTreeMap::new()
        } else {
            up.iter().map(|a| (*a, up.iter().filter(|b| reaches(a, b)).count())).collect()
        };
        let mut ground = Ground { disks: BTreeMap::new(), cut, reach, coordinator: self.me.node };
        let worse = |(a, b): &(NodeId, NodeId)| {
            if ground.rank(*a) < ground.rank(*b) { *b } else { *a }
        };
        let mut kept_out: BTreeSet<NodeId> = ground.cut.iter().map(worse).collect();
        let down = map.nodes.iter().filter(|(_, e)| matches!(e.state, NodeState::Down { .. }));
        kept_out.extend(down.map(|(node, _)| *node));
        self.reach.observe(now, kept_out);
        for process in map.up() {
            let Some(entry) = map.nodes.get(&process.node) else {
                continue;
            };
            let damped = self.reach.damped(process.node).is_some_and(|until| until > now);
            for (disk, found) in &entry.disks {
                // As `is_usable`, without looking for the disk.
                let serves = matches!(found.state, DiskState::In | DiskState::Draining);
                if serves && !plan.fences.disks.contains(disk) {
                    let place = Place {
                        process,
                        zone: entry.zone,
                        leaving: self.leaving.contains_key(&process.node),
                        damped,
                        draining: entry.draining
                            || found.state == DiskState::Draining
                            || entry.vnodes == 0,
                    };
                    ground.disks.insert(*disk, place);
                }
            }
        }
        ground
    }

    /// Asks replicas, and takes what they know into the plan once all have answered.
    fn restored(&mut self, now: Now, plan: &mut Plan<'_>, out: &mut Vec<Effect>) {
        let Some(restore) = &mut self.restore else {
            return;
        };
        let Some(away) = restore.is_done(now, &plan.map) else {
            for (to, round, shards) in restore.ask(now, &plan.map) {
                for shards in shards.chunks(restore::ASKED_MAX) {
                    let message = Message::Ask { round, shards: shards.to_vec() };
                    out.push(Effect::Send { to, message });
                }
            }
            return;
        };
        let mut missing = 0;
        for shard in restore.shards().collect::<Vec<_>>() {
            let Some(mut record) = plan.shard(shard).cloned() else {
                continue;
            };
            if let Some(known) = restore.apply(shard, &mut record) {
                missing += 1;
                let seats: Vec<_> = record.acting.iter().map(|s| (s.disk, s.process)).collect();
                let primary = record.primary_seat().map(|seat| seat.disk);
                if record.begin(known, &seats, primary) {
                    plan.put_shard(shard, record);
                }
            }
        }
        // Until the records show it the round stays; then it finds nothing more to do.
        if missing == 0 {
            let text = "What the registry lacked of its shards' records is there again";
            out.push(Effect::Log(LogLevel::Info, text.to_owned()));
            self.restore = None;
        } else if !away.is_empty() {
            let text = format!("{} nodes that are away could not be asked", away.len());
            out.push(Effect::Log(LogLevel::Warn, text));
        }
        self.settled = None;
    }

    /// New records, of all shards, or of those that ask if the basis is the same.
    fn shards(&mut self, basis: &Basis, plan: &mut Plan<'_>) {
        let settled = self.settled.take().is_some_and(|old| old == *basis);
        let asked: BTreeSet<ShardId> = [&self.activated, &self.clean, &self.again]
            .iter()
            .flat_map(|m| m.keys().copied())
            .collect();
        if settled {
            for shard in asked {
                self.shard(shard, basis, plan);
            }
            return;
        }
        for (set, record) in &basis.sets {
            for number in 0..1 << record.bits {
                self.shard(ShardId { set: *set, number }, basis, plan);
            }
        }
    }

    fn shard(&mut self, shard: ShardId, basis: &Basis, plan: &mut Plan<'_>) {
        let (placed, required) = (self.placed.get(&shard.set), basis.required.get(&shard.set));
        let (Some(placed), Some(&required)) = (placed, required) else {
            return;
        };
        if shard.number >= placed.placement.shards() {
            return;
        }
        let before = plan.shard(shard).cloned().unwrap_or_default();
        if self.restore.as_ref().is_some_and(|restore| restore.is_of(shard)) {
            return;
        }
        let mut record = before.clone();
        // What contradicts the record is dropped: its sender learns from the record.
        let asks = |record: &ShardRecord, asked: Option<&(Process, Interval)>| {
            asked.is_some_and(|(from, interval)| {
                *interval == record.cur && record.primary() == Some(*from)
            })
        };
        if asks(&record, self.activated.get(&shard)) && !record.is_activated() {
            record.activate();
        } else {
            self.activated.remove(&shard);
        }
        if asks(&record, self.clean.get(&shard)) && !record.is_clean() {
            // Activated may still be on its way.
            record.clean();
        } else {
            self.clean.remove(&shard);
        }
        // The same choice in a new interval, until the record shows that.
        let anew = asks(&record, self.again.get(&shard));
        if !anew {
            self.again.remove(&shard);
        }
        let target = placed.placement.acting_set(shard.number);
        let substitutes = || placed.placement.substitutes(shard.number, usize::from(u8::MAX));
        let look = acting::Shard { record: &record, target, substitutes: &substitutes, required };
        let choice = choose(&basis.ground, &look);
        if let Some(choice) = choice.filter(|choice| anew || !choice.is_in(&record))
            && !record.begin(Interval(0), &choice.seats, choice.primary)
        {
            return;
        }
        if record != before {
            plan.put_shard(shard, record);
        }
    }
}

fn done(order: &Order, refused: Option<(ErrorKind, String)>, out: &mut Vec<Effect>) {
    let message = Message::CommandDone { id: order.id, refused };
    out.push(Effect::Send { to: order.from, message });
}

/// Whether a node that wants to leave may: each of its shards is served by another, or nobody else
/// could serve it.
fn may_leave(process: Process, view: &View, plan: &Plan<'_>) -> bool {
    view.shards().all(|(_, record)| {
        let seated = record.acting.iter().any(|seat| seat.process == process);
        let other = |disk| {
            plan.is_usable(disk) && plan.map.owner(disk).is_some_and(|node| node != process.node)
        };
        let others = record.last.members.iter().any(|disk| other(*disk));
        !seated
            || !others
            || record.primary().is_some_and(|primary| primary.node != process.node)
                && record.is_activated()
    })
}

#[cfg(test)]
mod tests;
