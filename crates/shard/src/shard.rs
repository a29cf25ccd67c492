//! All that a process does for one shard: its replicas, one on each of its disks that has a copy, and
//! the primary while it is one. What they say to each other within the process does not leave it.

use crate::effect::{Assignment, Disks, Effect, Event, Token};
use crate::message::{Message, Order, Refusal, Report, Request, Response, ToPrimary, ToReplica};
use crate::primary::{Context as PrimaryContext, Phase, Primary};
use crate::replica::{Context as ReplicaContext, Replica};
use crate::rules::Rules;
use crate::state::ReplicaState;
use sheepdog_storelog::Answer;
use sheepdog_types::{DiskId, FragmentId, Interval, Process, Result, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// See the module.
pub struct Shard {
    id: ShardId,
    me: Process,
    rules: Rules,
    replicas: BTreeMap<DiskId, Replica>,
    primary: Option<Primary>,
    newest: Interval,
    next_token: u64,
}

/// What the store of a disk has of a shard.
#[derive(Clone, Debug, Default)]
pub struct Found<'a> {
    /// The state that was kept, if any was.
    pub state: Option<&'a [u8]>,
    /// What is held.
    pub fragments: BTreeSet<FragmentId>,
    /// The disk is not known to have lost something or gone back in time.
    pub votes: bool,
}

impl Shard {
    /// Of a process that just started.
    #[must_use]
    pub fn new(id: ShardId, me: Process, rules: Rules) -> Self {
        let replicas = BTreeMap::new();
        Self { id, me, rules, replicas, primary: None, newest: Interval(0), next_token: 0 }
    }

    /// A disk of this process that may hold a copy.
    ///
    /// # Errors
    /// When the state that was kept cannot be read.
    pub fn attach(
        &mut self,
        disk: DiskId,
        found: Found<'_>,
        disks: &dyn Disks,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<()> {
        let Found { state, fragments, votes } = found;
        let state = state.map(ReplicaState::decode).transpose()?.unwrap_or_default();
        if let Some(view) = disks.disk(disk) {
            let (id, rules) = (self.id, self.rules);
            let mut replica = Replica::new(id, disk, rules, state, fragments, view, now);
            if !votes {
                let next_token = &mut self.next_token;
                replica.lose_vote(&mut ReplicaContext { now, disk: view, next_token, out });
            }
            self.replicas.insert(disk, replica);
        }
        Ok(())
    }

    /// A disk is lost.
    pub fn detach(&mut self, disk: DiskId, disks: &dyn Disks, now: u64, out: &mut Vec<Effect>) {
        self.replicas.remove(&disk);
        if let Some(primary) = &mut self.primary {
            let mut cx = PrimaryContext { now, disks, next_token: &mut self.next_token, out };
            primary.stop(self.newest, &mut cx);
        }
    }

    /// The copy on a disk.
    #[must_use]
    pub fn replica(&self, disk: DiskId) -> Option<&Replica> {
        self.replicas.get(&disk)
    }

    /// The disks with a copy here.
    pub fn disks(&self) -> impl Iterator<Item = DiskId> {
        self.replicas.keys().copied()
    }

    /// The primary, if it is or was here in the newest interval that is known.
    #[must_use]
    pub const fn primary(&self) -> Option<&Primary> {
        self.primary.as_ref()
    }

    /// Feeds one event.
    pub fn handle(&mut self, now: u64, event: Event, disks: &dyn Disks, out: &mut Vec<Effect>) {
        let mut events = VecDeque::from([event]);
        let mut effects = Vec::new();
        while let Some(event) = events.pop_front() {
            self.one(now, event, disks, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send(to, message @ (Message::Order(_) | Message::Report(_)))
                        if to == self.me =>
                    {
                        events.push_back(Event::Message(to, message));
                    }
                    effect => out.push(effect),
                }
            }
        }
    }

    fn one(&mut self, now: u64, event: Event, disks: &dyn Disks, out: &mut Vec<Effect>) {
        let next_token = &mut self.next_token;
        match event {
            Event::Assigned(assignment) => self.assigned(now, assignment, disks, out),
            Event::Message(from, Message::Order(order)) => {
                let (Some(replica), Some(disk)) =
                    (self.replicas.get_mut(&order.disk), disks.disk(order.disk))
                else {
                    return;
                };
                let mut cx = ReplicaContext { now, disk, next_token, out };
                replica.order(from, order.interval, order.body, &mut cx);
            }
            Event::Message(from, Message::Report(report)) => {
                let ToPrimary { shard, disk, interval, .. } = report;
                if let Some(primary) = &mut self.primary
                    && primary.interval() == interval
                {
                    primary.report(report, &mut PrimaryContext { now, disks, next_token, out });
                } else if let Report::Revoke = report.body {
                    // Nothing is read under that interval here any more.
                    let order = ToReplica { shard, disk, interval, body: Order::Revoked };
                    out.push(Effect::Send(from, Message::Order(order)));
                }
            }
            Event::Message(from, Message::Request(request)) => {
                if let Some(primary) = &mut self.primary {
                    let mut cx = PrimaryContext { now, disks, next_token, out };
                    primary.request(from, request, &mut cx);
                } else {
                    let result = Err(Refusal::Moved { interval: self.newest });
                    let Request { interval, id, .. } = request;
                    let response = Response { shard: self.id, interval, id, result };
                    out.push(Effect::Send(from, Message::Response(response)));
                }
            }
            Event::Message(_, Message::Response(_)) => {}
            Event::Stored(disk, token, result) => self.stored(now, disk, token, result, disks, out),
            Event::Connected(process) => {
                self.with_primary(now, disks, out, |primary, cx| primary.connected(process, cx));
            }
            Event::Committed(interval) => {
                self.with_primary(now, disks, out, |primary, cx| primary.committed(interval, cx));
            }
            Event::Lineages(lineages) => {
                self.with_primary(now, disks, out, |primary, cx| {
                    primary.lineages(None, lineages, cx);
                });
            }
            Event::Fetched(interval, lineages) => {
                self.with_primary(now, disks, out, |primary, cx| {
                    primary.lineages(Some(interval), lineages, cx);
                });
            }
            Event::Tick => {
                self.with_primary(now, disks, out, Primary::tick);
                for (id, replica) in &mut self.replicas {
                    if let Some(disk) = disks.disk(*id) {
                        let next_token = &mut self.next_token;
                        replica.tick(&mut ReplicaContext { now, disk, next_token, out });
                    }
                }
            }
        }
    }

    fn with_primary(
        &mut self,
        now: u64,
        disks: &dyn Disks,
        out: &mut Vec<Effect>,
        act: impl FnOnce(&mut Primary, &mut PrimaryContext<'_>),
    ) {
        if let Some(primary) = &mut self.primary {
            let next_token = &mut self.next_token;
            act(primary, &mut PrimaryContext { now, disks, next_token, out });
        }
    }

    fn assigned(
        &mut self,
        now: u64,
        assignment: Assignment,
        disks: &dyn Disks,
        out: &mut Vec<Effect>,
    ) {
        if assignment.interval < self.newest {
            return;
        }
        self.newest = assignment.interval;
        let mut cx = PrimaryContext { now, disks, next_token: &mut self.next_token, out };
        if let Some(primary) = &mut self.primary {
            if primary.interval() == assignment.interval {
                primary.assigned(assignment, &mut cx);
                return;
            }
            primary.stop(assignment.interval, &mut cx);
        }
        if assignment.primary == self.me {
            self.primary = Primary::new(self.id, self.me, self.rules, assignment, &mut cx);
        }
    }

    fn stored(
        &mut self,
        now: u64,
        disk: DiskId,
        token: Token,
        result: Result<Answer>,
        disks: &dyn Disks,
        out: &mut Vec<Effect>,
    ) {
        let next_token = &mut self.next_token;
        let mut result = Some(result);
        if let Some(primary) = &mut self.primary {
            let mut cx = PrimaryContext { now, disks, next_token, out };
            result = result.and_then(|result| primary.stored(token, result, &mut cx));
        }
        let (Some(result), Some(replica), Some(view)) =
            (result, self.replicas.get_mut(&disk), disks.disk(disk))
        else {
            return;
        };
        let next_token = &mut self.next_token;
        let mut cx = ReplicaContext { now, disk: view, next_token, out };
        if let Err(error) = replica.stored(token, result, &mut cx) {
            out.push(Effect::DiskFailed(disk, error.full()));
        }
    }

    /// Whether it serves as the primary.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.primary.as_ref().is_some_and(|primary| primary.phase() == Phase::Serving)
    }
}
