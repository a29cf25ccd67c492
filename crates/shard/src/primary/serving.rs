//! Requests of gateways: which are taken, in which order, when they are answered (DESIGN 6.3).
//!
//! Writes of a fragment may be on their way together, in the order of its chain. A read waits for the
//! writes that it overlaps and holds up those that come after it, so that it never shows bytes that
//! another takeover could take back.

use super::requests::Known;
use super::{Context, Phase, Primary, WAITING_MAX};
use crate::effect::{Effect, Token, head_of};
use crate::message::{Change, Done, Message, Order, Refusal, Replicate, Request, Response, Work};
use crate::rules::Rule;
use sheepdog_storelog::{Answer, Command};
use sheepdog_types::{DiskId, FragmentId, Process, RequestId, Result, Version};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A write that is not durable everywhere yet.
pub struct InFlight {
    pub(super) write: Replicate,
    pub(super) lacking: BTreeSet<DiskId>,
    /// Who is told when it is: the gateway, again if it asked again.
    pub(super) askers: Vec<(Process, RequestId)>,
}

/// What is on its way in a fragment.
#[derive(Default)]
pub struct Ordered {
    /// The version of the newest write.
    pub(super) head: Option<Version>,
    /// Sequence numbers of the writes.
    pub(super) writes: BTreeSet<u64>,
    /// Ranges being read, by token.
    pub(super) reads: BTreeMap<Token, (u32, u32)>,
    /// In the order in which they came.
    pub(super) waiting: VecDeque<(Process, Request)>,
}

/// A read whose bytes are being fetched.
pub struct Reading {
    pub(super) from: Process,
    pub(super) request: Request,
}

const fn overlap((a, m): (u32, u32), (b, n): (u32, u32)) -> bool {
    a < b.saturating_add(n) && b < a.saturating_add(m)
}

impl Primary {
    /// A gateway asks.
    pub fn request(&mut self, from: Process, request: Request, cx: &mut Context<'_>) {
        if self.phase == Phase::Stopped || request.interval != self.interval() {
            let result = Err(Refusal::Moved { interval: self.interval() });
            let Request { shard, interval, id, .. } = request;
            let response = Response { shard, interval, id, result };
            cx.out.push(Effect::Send(from, Message::Response(response)));
        } else if self.phase < Phase::Serving || self.is_behind(&request) {
            if self.waiting.len() >= WAITING_MAX {
                let interval = self.interval();
                self.respond(from, request.id, Err(Refusal::Moved { interval }), cx);
                return;
            }
            if self.phase == Phase::Serving {
                self.fetch(cx);
            }
            self.waiting.push_back((from, request));
        } else {
            self.take(from, request, cx);
        }
    }

    /// The gateway knows of a newer record.
    fn is_behind(&self, request: &Request) -> bool {
        request.revision > self.lineages.revision && self.rules.on(Rule::RecordFresh)
    }

    /// Those that waited until it serves, or knows enough.
    pub(super) fn run_waiting(&mut self, cx: &mut Context<'_>) {
        for (from, request) in std::mem::take(&mut self.waiting) {
            self.request(from, request, cx);
        }
    }

    /// Steps 1 and 2: whether it was executed, and may be.
    fn take(&mut self, from: Process, request: Request, cx: &mut Context<'_>) {
        let id = request.id;
        let newest = self.table.newest(id.gateway);
        if id.gateway.incarnation < newest {
            self.respond(from, id, Err(Refusal::Fenced), cx);
            return;
        }
        if matches!(request.work, Work::Change(_)) && self.is_known(from, &request, cx) {
            return;
        }
        if let Err(refusal) = self.allowed(&request) {
            self.respond(from, id, Err(refusal), cx);
            return;
        }
        if id.gateway.incarnation > newest {
            if self.rules.on(Rule::OldIncarnationEnds) && self.ends_older(&request, cx) {
                self.waiting.push_back((from, request));
                return;
            }
            self.table.seen(id.gateway);
        }
        let fragment = request.fragment;
        self.fragments.entry(fragment).or_default().waiting.push_back((from, request));
        self.run_fragment(fragment, cx);
    }

    /// Step 1: whether the table answers a write, or it is on its way or waits already.
    fn is_known(&mut self, from: Process, request: &Request, cx: &mut Context<'_>) -> bool {
        let id = request.id;
        let on = self.rules.on(Rule::RequestTable);
        match if on { self.table.look(id) } else { Known::New } {
            Known::Executed => self.respond(from, id, Ok(Done::Changed), cx),
            Known::InFlight(seq) => {
                if let Some(write) = self.writes.get_mut(&seq) {
                    write.askers.push((from, id));
                }
            }
            Known::Late if self.rules.on(Rule::LowerRefused) => {
                self.respond(from, id, Err(Refusal::Late), cx);
            }
            Known::Refused => self.respond(from, id, Err(Refusal::NoSpace), cx),
            Known::Late | Known::New => {
                let waits = |ordered: &Ordered| ordered.waiting.iter().any(|(_, r)| r.id == id);
                return self.fragments.get(&request.fragment).is_some_and(waits);
            }
        }
        true
    }

    /// Drops what an older incarnation of that gateway has waiting; whether something of it is on its
    /// way and must end first.
    fn ends_older(&mut self, request: &Request, cx: &mut Context<'_>) -> bool {
        let gateway = request.id.gateway;
        let older = |id: RequestId| {
            id.gateway.node == gateway.node && id.gateway.incarnation < gateway.incarnation
        };
        let mut dropped = Vec::new();
        for ordered in self.fragments.values_mut() {
            ordered.waiting.retain(|(from, request)| {
                let stays = !older(request.id);
                if !stays {
                    dropped.push((*from, request.id));
                }
                stays
            });
        }
        for (to, id) in dropped {
            self.respond(to, id, Err(Refusal::Fenced), cx);
        }
        self.writes.values().any(|write| write.write.request.is_some_and(older))
    }

    /// Whether the vid, the lock and the gateway may do it.
    fn allowed(&self, request: &Request) -> std::result::Result<(), Refusal> {
        if !self.rules.on(Rule::Fences) {
            return Ok(());
        }
        let gateway = request.id.gateway;
        let fenced = self.lineages.gateways.get(&gateway.node);
        if fenced.is_some_and(|below| gateway.incarnation < *below) {
            return Err(Refusal::Fenced);
        }
        let Some(record) = self.lineages.vids.get(&request.vid) else {
            return Err(Refusal::Unknown);
        };
        if request.fence < record.fence {
            return Err(Refusal::Fenced);
        }
        if !record.working && matches!(request.work, Work::Change(_)) {
            return Err(Refusal::ReadOnly);
        }
        Ok(())
    }

    /// New fences: what waits and may not is refused.
    pub(super) fn refuse_fenced(&mut self, cx: &mut Context<'_>) {
        let mut refused = Vec::new();
        let mut fragments = std::mem::take(&mut self.fragments);
        for ordered in fragments.values_mut() {
            ordered.waiting.retain(|(from, request)| match self.allowed(request) {
                Ok(()) => true,
                Err(refusal) => {
                    refused.push((*from, request.id, refusal));
                    false
                }
            });
        }
        self.fragments = fragments;
        for (to, id, refusal) in refused {
            self.respond(to, id, Err(refusal), cx);
        }
    }

    /// Nothing that these fences refuse is on its way any more: whoever set them may count on it. What
    /// is on its way was taken before they were known, and all of it is waited for.
    pub(super) fn tell_fences(&mut self, cx: &mut Context<'_>) {
        let (revision, behind) = self.fences;
        let ended = self.writes.keys().next().is_none_or(|first| *first > behind);
        if self.phase == Phase::Serving && self.fences_told < revision && ended {
            self.fences_told = revision;
            cx.out.push(Effect::FencesInForce(self.interval(), revision));
        }
    }

    /// Begins what may begin of a fragment's requests, in their order.
    pub(super) fn run_fragment(&mut self, fragment: FragmentId, cx: &mut Context<'_>) {
        if self.phase != Phase::Serving {
            return;
        }
        let Some(mut ordered) = self.fragments.remove(&fragment) else {
            return;
        };
        let mut held_up: VecDeque<(Process, Request)> = VecDeque::new();
        while let Some((from, request)) = ordered.waiting.pop_front() {
            let range = request.work.range();
            let reads = matches!(request.work, Work::Read { .. });
            let behind = held_up.iter().any(|(_, other)| {
                let other_reads = matches!(other.work, Work::Read { .. });
                (reads != other_reads || !reads) && overlap(other.work.range(), range)
            });
            // Chains are one after the other: no write overtakes one that waits.
            let behind = behind
                || (!reads
                    && held_up.iter().any(|(_, other)| matches!(other.work, Work::Change(_))));
            let busy = if reads {
                self.rules.on(Rule::ReadWaits)
                    && ordered.writes.iter().any(|seq| {
                        let write = self.writes.get(seq).map(|write| write.write.change.range());
                        write.is_some_and(|write| overlap(write, range))
                    })
            } else {
                self.rules.on(Rule::ReadWaits)
                    && ordered.reads.values().any(|read| overlap(*read, range))
            };
            let ready = match &request.work {
                Work::Read { .. } => self.is_whole_here(fragment),
                Work::Change(_) => self.takes_writes(fragment),
            };
            if behind || busy || !ready {
                held_up.push_back((from, request));
                continue;
            }
            self.begin(from, request, &mut ordered, cx);
        }
        ordered.waiting = held_up;
        let wanted = !ordered.waiting.is_empty();
        let idle = !wanted && ordered.writes.is_empty() && ordered.reads.is_empty();
        if !idle {
            self.fragments.insert(fragment, ordered);
        }
        if wanted && self.missing.contains_key(&fragment) {
            self.recover(fragment, cx);
        }
    }

    /// Whether the primary's own copy can be read.
    fn is_whole_here(&self, fragment: FragmentId) -> bool {
        self.missing.get(&fragment).is_none_or(|lacking| !lacking.contains(&self.local))
    }

    /// Whether a write would go to as many whole copies as are required, the primary's among them, and
    /// nothing is being copied.
    fn takes_writes(&self, fragment: FragmentId) -> bool {
        if self.copying.contains_key(&fragment) && self.rules.on(Rule::CopyFreezes) {
            return false;
        }
        if !self.rules.on(Rule::RequiredCopies) {
            return true;
        }
        // The coordinator begins intervals with fewer than that rather than none: they serve reads.
        let lacking = self.missing.get(&fragment);
        let whole = self.assignment.acting.len() - lacking.map_or(0, BTreeSet::len);
        let here = lacking.is_none_or(|lacking| !lacking.contains(&self.local));
        whole >= self.assignment.required && here
    }

    fn begin(
        &mut self,
        from: Process,
        request: Request,
        ordered: &mut Ordered,
        cx: &mut Context<'_>,
    ) {
        match request.work {
            Work::Read { start, count } => {
                let token = Token(*cx.next_token);
                *cx.next_token += 1;
                ordered.reads.insert(token, (start, count));
                let path = self.lineages.vids.get(&request.vid).map(|record| record.path.clone());
                let path = path.unwrap_or_else(|| [request.vid].into());
                let fragment = request.fragment;
                let read = Command::Read { fragment, path, start, count };
                cx.out.push(Effect::Store(self.local, token, read));
                self.reads.insert(token, Reading { from, request });
            }
            Work::Change(change) => {
                // Step 3: while it can still be refused.
                let spent = self.spent + change.bytes();
                let credit = |disk| self.members.get(disk).map_or(0, |member| member.credit);
                let least = self.assignment.acting.iter().map(credit).min().unwrap_or(0);
                if change.bytes() > 0 && spent > least && self.rules.on(Rule::SpaceFirst) {
                    // A copy of it must not be executed when there is space again.
                    self.table.refuse(request.id);
                    self.respond(from, request.id, Err(Refusal::NoSpace), cx);
                    return;
                }
                self.spent = spent;
                self.write(from, request.id, request.fragment, change, ordered, cx);
            }
        }
    }

    /// Steps 5: the next version of the fragment's chain, to everyone.
    fn write(
        &mut self,
        from: Process,
        id: RequestId,
        fragment: FragmentId,
        change: Change,
        ordered: &mut Ordered,
        cx: &mut Context<'_>,
    ) {
        self.seq += 1;
        let version = Version { interval: self.interval(), seq: self.seq };
        let floor = self.floor;
        let stored = cx.disks.disk(self.local).map(|disk| head_of(disk, fragment, floor));
        let prev = ordered.head.or(stored).unwrap_or_default();
        if prev >= version {
            let rule = "I4: versions of an interval grow";
            cx.out.push(Effect::Broken(self.shard, rule));
            return;
        }
        let write = Replicate { fragment, version, prev, floor, request: Some(id), change };
        self.table.begin(id, self.seq);
        ordered.head = Some(version);
        ordered.writes.insert(self.seq);
        for disk in self.assignment.acting.clone() {
            self.order(disk, Order::Replicate(write.clone()), cx);
        }
        let lacking = self.assignment.acting.iter().copied().collect();
        let in_flight = InFlight { write, lacking, askers: vec![(from, id)] };
        self.writes.insert(self.seq, in_flight);
    }

    /// Step 6: one more has it.
    pub(super) fn durable(&mut self, disk: DiskId, version: Version, cx: &mut Context<'_>) {
        if version.interval != self.interval() {
            return;
        }
        let Some(write) = self.writes.get_mut(&version.seq) else {
            return;
        };
        write.lacking.remove(&disk);
        if !write.lacking.is_empty() && self.rules.on(Rule::AllDurable) {
            return;
        }
        let Some(InFlight { write, askers, .. }) = self.writes.remove(&version.seq) else {
            return;
        };
        if let Some(id) = write.request {
            self.table.end(id);
        }
        for (to, id) in askers {
            self.respond(to, id, Ok(Done::Changed), cx);
        }
        let fragment = write.fragment;
        if let Some(ordered) = self.fragments.get_mut(&fragment) {
            ordered.writes.remove(&version.seq);
        }
        self.copy_when_quiet(fragment, cx);
        self.run_fragment(fragment, cx);
        self.tell_fences(cx);
        if !self.waiting.is_empty() {
            self.run_waiting(cx);
        }
    }

    /// To a process that may not have got it.
    pub(super) fn send_again(&mut self, disk: DiskId, cx: &mut Context<'_>) {
        if self.assignment.acting.contains(&disk) {
            let lost = self.writes.values().filter(|write| write.lacking.contains(&disk));
            let writes: Vec<Replicate> = lost.map(|write| write.write.clone()).collect();
            for write in writes {
                self.order(disk, Order::Replicate(write), cx);
            }
        }
        self.copy_again(disk, cx);
    }

    /// The bytes of a read are there.
    pub(super) fn bytes_read(
        &mut self,
        reading: Reading,
        result: Result<Answer>,
        cx: &mut Context<'_>,
    ) {
        let Reading { from, request } = reading;
        let fragment = request.fragment;
        let tokens = &self.reads;
        if let Some(ordered) = self.fragments.get_mut(&fragment) {
            ordered.reads.retain(|token, _| tokens.contains_key(token));
        }
        let result = match result {
            Ok(Answer::Data(pieces)) => Ok(Done::Read(pieces)),
            Ok(_) => Err(Refusal::Io("the store gave no data".to_owned())),
            Err(error) => Err(Refusal::Io(error.to_string())),
        };
        let interval = self.interval();
        let response = Response { shard: self.shard, interval, id: request.id, result };
        self.read.push((from, response));
        self.answer_reads(cx);
        self.run_fragment(fragment, cx);
    }

    /// Nobody has served writes since they were read, if the leases are still good.
    pub(super) fn answer_reads(&mut self, cx: &mut Context<'_>) {
        let checked = self.rules.on(Rule::LeaseAfterRead);
        if self.phase != Phase::Serving || (checked && !self.may_read(cx.now)) {
            return;
        }
        for (to, response) in std::mem::take(&mut self.read) {
            self.respond(to, response.id, response.result, cx);
        }
    }
}
