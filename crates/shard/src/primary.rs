//! The process that orders the writes of a shard in one interval: it takes over (`peering`), serves
//! requests (`serving`), brings missing fragments up to date (`copying`), and ends for good when the
//! interval does.

use crate::authority::{Activation, Candidates, Copy};
use crate::effect::{Assignment, Disks, Effect, Token};
use crate::lineages::Lineages;
use crate::message::{Message, Order, Refusal, Report, Request, Response, ToPrimary, ToReplica};
use crate::rules::{Rule, Rules};
use sheepdog_storelog::{Answer, RequestEntry};
use sheepdog_types::{DiskId, FragmentId, Interval, Process, RequestId, Result, ShardId, Version};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

mod copying;
mod peering;
mod requests;
mod serving;

/// Nanoseconds for which a primary reads under a lease, from the moment it asked: an eighth less
/// than [`crate::replica::LEASE`], for clocks that do not run alike.
pub const LEASE_USED: u64 = 350_000_000;
/// Nanoseconds between two requests for a lease.
pub const LEASE_RENEW: u64 = 100_000_000;
/// Nanoseconds after which a primary asks again for what it waits for.
const AGAIN: u64 = 1_000_000_000;
/// Requests that may wait for a shard that does not serve yet; more are told to come again.
const WAITING_MAX: usize = 4096;

/// How far a takeover is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// P0: promises.
    Promising,
    /// P1 passed: what is above the baseline.
    Listing,
    /// What was not listed by all.
    Asking,
    /// Nobody that answered has the bytes that some fragments must have: disks are waited for.
    Lacking,
    /// P3.
    Activating,
    /// P4: the registry.
    Committing,
    /// P4: leases, fences.
    Waiting,
    /// Requests are executed.
    Serving,
    /// The interval is over.
    Stopped,
}

/// A disk whose replica takes part in the takeover.
#[derive(Default)]
struct Member {
    process: Process,
    acting: bool,
    promised: Option<Promised>,
    /// What it holds, as far as it told.
    copies: BTreeMap<FragmentId, Copy>,
    requests: Vec<(RequestId, RequestEntry)>,
    listed: bool,
    asked: BTreeSet<FragmentId>,
    activated: bool,
    credit: u64,
    /// Requests for a lease that are not answered: number, when it was sent.
    lease_asked: VecDeque<(u64, u64)>,
    lease_until: u64,
    clean: Version,
}

#[derive(Clone)]
struct Promised {
    les: Activation,
    clean: Version,
    floor: Version,
    /// When the last lease it granted to somebody else is over.
    lease_over: u64,
}

/// What the primary works with while it handles an event.
pub struct Context<'a> {
    /// Nanoseconds of the process's clock.
    pub now: u64,
    /// The process's disks.
    pub disks: &'a dyn Disks,
    /// Where the next token comes from.
    pub next_token: &'a mut u64,
    /// What it wants.
    pub out: &'a mut Vec<Effect>,
}

/// See the module.
pub struct Primary {
    shard: ShardId,
    rules: Rules,
    assignment: Assignment,
    /// The acting disk of this process.
    local: DiskId,
    phase: Phase,
    members: BTreeMap<DiskId, Member>,
    baseline: Version,
    /// Tombstones up to there count as nothing: what members told, and were told since.
    floor: Version,
    candidates: Option<Candidates>,
    heads: Vec<(FragmentId, Version)>,
    adopted: Arc<[(RequestId, RequestEntry)]>,
    /// Nobody that is there has what they should hold.
    lacking: BTreeSet<FragmentId>,
    /// When the whole acting set had promised.
    judged_at: Option<u64>,
    fetched: bool,
    lineages: Arc<Lineages>,
    fetching: bool,
    /// Acting members that lack a fragment's bytes.
    missing: BTreeMap<FragmentId, BTreeSet<DiskId>>,
    /// Members that have them, should the primary lack them too.
    sources: BTreeMap<FragmentId, BTreeSet<DiskId>>,
    copying: BTreeMap<FragmentId, copying::Copying>,
    clean_told: bool,
    seq: u64,
    /// Writes that are not durable everywhere, by sequence number.
    writes: BTreeMap<u64, serving::InFlight>,
    fragments: BTreeMap<FragmentId, serving::Ordered>,
    reads: BTreeMap<Token, serving::Reading>,
    /// Reads with their bytes that wait for a lease.
    read: Vec<(Process, Response)>,
    table: requests::Table,
    /// Bytes of clients that got a version in this interval.
    spent: u64,
    /// Until it serves, or has the records that they need.
    waiting: VecDeque<(Process, Request)>,
    lease_number: u64,
    lease_next: u64,
    /// The newest fences that are known, and the last write that was begun before they were.
    fences: (u64, u64),
    fences_told: u64,
    /// When what waits for others is looked at again, and whether it was before.
    again_at: u64,
    again: bool,
}

impl Primary {
    /// Takes over, if a disk of the acting set is here.
    #[must_use]
    pub fn new(
        shard: ShardId,
        me: Process,
        rules: Rules,
        assignment: Assignment,
        cx: &mut Context<'_>,
    ) -> Option<Self> {
        let here = |disk: &&DiskId| assignment.hosts.get(*disk) == Some(&me);
        let local = *assignment.acting.iter().find(here)?;
        let mut primary = Self {
            shard,
            rules,
            local,
            phase: Phase::Promising,
            members: BTreeMap::new(),
            baseline: Version::ZERO,
            floor: Version::ZERO,
            candidates: None,
            heads: Vec::new(),
            adopted: Arc::from([]),
            lacking: BTreeSet::new(),
            judged_at: None,
            fetched: false,
            lineages: Arc::default(),
            fetching: false,
            missing: BTreeMap::new(),
            sources: BTreeMap::new(),
            copying: BTreeMap::new(),
            clean_told: false,
            seq: 0,
            writes: BTreeMap::new(),
            fragments: BTreeMap::new(),
            reads: BTreeMap::new(),
            read: Vec::new(),
            table: requests::Table::default(),
            spent: 0,
            waiting: VecDeque::new(),
            lease_number: 0,
            lease_next: 0,
            fences: (0, 0),
            fences_told: 0,
            again_at: cx.now + AGAIN,
            again: false,
            assignment,
        };
        primary.ask_promises(cx);
        Some(primary)
    }

    /// How far it is.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Its interval.
    #[must_use]
    pub const fn interval(&self) -> Interval {
        self.assignment.interval
    }

    /// Fragments that an acting member lacks.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing.len() + self.lacking.len()
    }

    /// The disks whose return would help while it cannot go on.
    #[must_use]
    pub fn waits_for(&self) -> BTreeSet<DiskId> {
        let silent = |(_, member): &(&DiskId, &Member)| match self.phase {
            Phase::Promising | Phase::Lacking => member.promised.is_none(),
            Phase::Activating => member.acting && !member.activated,
            _ => false,
        };
        self.members.iter().filter(silent).map(|(disk, _)| *disk).collect()
    }

    /// The same interval, but disks are elsewhere, or are there now.
    pub fn assigned(&mut self, assignment: Assignment, cx: &mut Context<'_>) {
        if self.phase == Phase::Stopped || assignment.interval != self.assignment.interval {
            return;
        }
        let eased = assignment.required < self.assignment.required;
        self.assignment = assignment;
        if eased && self.phase == Phase::Serving {
            // What waited for more copies than are required now.
            for fragment in self.fragments.keys().copied().collect::<Vec<_>>() {
                self.run_fragment(fragment, cx);
            }
        }
        if self.phase == Phase::Promising || self.wants_more() {
            self.ask_promises(cx);
        } else if self.phase < Phase::Lacking && self.has_lost_help() {
            // Who was to help and went answers no more, and nobody else replaces it.
            cx.out.push(Effect::Again(self.interval()));
        }
        if self.phase == Phase::Committing && self.assignment.last.interval == self.interval() {
            self.committed(self.interval(), cx);
        }
        self.drop_lost_sources(cx);
    }

    /// Somebody who was not asked or did not answer may have what nobody else has.
    fn wants_more(&self) -> bool {
        self.phase == Phase::Lacking || (self.phase == Phase::Serving && !self.stuck().is_empty())
    }

    /// The interval is over: nothing is promised any more, every request is told to move.
    pub fn stop(&mut self, newest: Interval, cx: &mut Context<'_>) {
        if self.phase == Phase::Stopped {
            return;
        }
        self.phase = Phase::Stopped;
        let mut open: Vec<(Process, RequestId)> = Vec::new();
        open.extend(self.waiting.drain(..).map(|(from, request)| (from, request.id)));
        open.extend(self.writes.values().flat_map(|write| write.askers.iter().copied()));
        open.extend(self.reads.values().map(|read| (read.from, read.request.id)));
        open.extend(self.read.drain(..).map(|(from, response)| (from, response.id)));
        let queued = self.fragments.values().flat_map(|ordered| ordered.waiting.iter());
        open.extend(queued.map(|(from, request)| (*from, request.id)));
        for (to, id) in open {
            self.respond(to, id, Err(Refusal::Moved { interval: newest }), cx);
        }
        self.writes.clear();
        self.reads.clear();
        self.fragments.clear();
        self.copying.clear();
    }

    /// A replica says something.
    pub fn report(&mut self, report: ToPrimary, cx: &mut Context<'_>) {
        if self.phase == Phase::Stopped {
            if matches!(report.body, Report::Revoke) {
                self.order(report.disk, Order::Revoked, cx);
            }
            return;
        }
        let disk = report.disk;
        if !self.members.contains_key(&disk) {
            return;
        }
        match report.body {
            Report::Refused { promised, les } => {
                if promised > self.interval() {
                    cx.out.push(Effect::KnowsLater { disk, promised, les });
                    self.stop(promised, cx);
                }
            }
            Report::Promised { les, clean, floor, lease_left } => {
                // Its clock and ours need not run alike.
                let lease_over = cx.now + lease_left + lease_left / 8;
                self.promised(disk, Promised { les, clean, floor, lease_over }, cx);
            }
            Report::LeaseOver => {
                if let Some(promised) = self.member(disk).promised.as_mut() {
                    promised.lease_over = cx.now;
                }
                self.advance(cx);
            }
            Report::Listed { copies, requests } => {
                if self.phase == Phase::Listing {
                    let member = self.member(disk);
                    member.copies = copies.into_iter().collect();
                    member.requests = requests;
                    member.listed = true;
                    self.advance(cx);
                }
            }
            Report::Asked { copies } => {
                if self.phase == Phase::Asking {
                    let member = self.member(disk);
                    for (fragment, copy) in copies {
                        member.asked.remove(&fragment);
                        member.copies.insert(fragment, copy);
                    }
                    self.advance(cx);
                }
            }
            Report::Activated { credit } => {
                let member = self.member(disk);
                if !member.activated {
                    member.activated = true;
                    member.credit = credit;
                    self.advance(cx);
                }
            }
            Report::Done { version, .. } => self.durable(disk, version, cx),
            Report::Versions { fragment, copy, chunks } => {
                self.copy_versions(disk, fragment, copy, chunks, cx);
            }
            Report::Chunks { fragment, head, chunks } => {
                self.copy_chunks(disk, fragment, head, chunks, cx);
            }
            Report::Unreadable { fragment } => self.copy_failed(disk, fragment, cx),
            Report::Filled { fragment, at } => self.copy_filled(disk, fragment, at, cx),
            Report::Granted { number, credit, clean } => {
                self.granted(disk, number, credit, clean, cx);
            }
            Report::Revoke => {
                let newest = Interval(self.interval().0 + 1);
                self.stop(newest, cx);
                self.order(disk, Order::Revoked, cx);
            }
        }
    }

    /// The store of the local disk has done something. Gives back what was not for the primary.
    pub fn stored(
        &mut self,
        token: Token,
        result: Result<Answer>,
        cx: &mut Context<'_>,
    ) -> Option<Result<Answer>> {
        let Some(reading) = self.reads.remove(&token) else {
            return Some(result);
        };
        self.bytes_read(reading, result, cx);
        None
    }

    /// There is a connection to that process again: what was said to it may have been lost.
    pub fn connected(&mut self, process: Process, cx: &mut Context<'_>) {
        let there = |(_, member): &(&DiskId, &Member)| member.process == process;
        let disks: Vec<DiskId> = self.members.iter().filter(there).map(|(disk, _)| *disk).collect();
        for disk in disks {
            match self.phase {
                Phase::Promising | Phase::Listing | Phase::Asking | Phase::Activating => {
                    self.ask_again(disk, cx);
                }
                Phase::Serving => {
                    self.send_again(disk, cx);
                    self.promise_again(disk, cx);
                }
                Phase::Lacking => self.promise_again(disk, cx),
                Phase::Committing | Phase::Waiting | Phase::Stopped => {}
            }
        }
    }

    /// The registry has the activation.
    pub fn committed(&mut self, interval: Interval, cx: &mut Context<'_>) {
        if interval == self.interval() && self.phase == Phase::Committing {
            self.phase = Phase::Waiting;
            self.fetch(cx);
            self.advance(cx);
        }
    }

    /// Records and fences. Only what was read for this interval, after it was activated, is known to be
    /// as new as every fence that a former primary said to be in force.
    pub fn lineages(
        &mut self,
        fetched: Option<Interval>,
        lineages: Arc<Lineages>,
        cx: &mut Context<'_>,
    ) {
        if lineages.revision > self.lineages.revision {
            self.fences = (lineages.revision, self.seq);
            self.lineages = lineages;
        }
        if fetched == Some(self.interval()) || !self.rules.on(Rule::FencesFirst) {
            self.fetching = false;
            self.fetched = true;
        }
        self.advance(cx);
        if self.phase == Phase::Serving {
            self.refuse_fenced(cx);
            self.run_waiting(cx);
            self.tell_fences(cx);
        }
    }

    /// Time passed.
    pub fn tick(&mut self, cx: &mut Context<'_>) {
        if cx.now >= self.again_at {
            self.again_at = cx.now + AGAIN;
            match self.phase {
                // Somebody who could be done without does not answer any more.
                Phase::Listing | Phase::Asking if self.again => {
                    cx.out.push(Effect::Again(self.interval()));
                }
                Phase::Committing => cx.out.push(Effect::Activated(self.interval())),
                Phase::Serving => self.recover_more(cx),
                _ => {}
            }
            self.again = true;
        }
        if self.phase == Phase::Promising {
            self.advance(cx);
        } else if self.phase >= Phase::Committing && self.phase < Phase::Stopped {
            if cx.now >= self.lease_next {
                self.ask_leases(cx);
            }
            self.advance(cx);
            self.answer_reads(cx);
        }
    }

    // ---- leases --------------------------------------------------------------------------------

    fn ask_leases(&mut self, cx: &mut Context<'_>) {
        self.lease_next = cx.now + LEASE_RENEW;
        self.lease_number += 1;
        let number = self.lease_number;
        let clean = self.clean_version();
        let floor = self.tombstone_floor();
        self.floor = self.floor.max(floor);
        for disk in self.assignment.acting.clone() {
            let member = self.member(disk);
            member.lease_asked.push_back((number, cx.now));
            // Older ones would hardly help any more.
            while member.lease_asked.len() > 8 {
                member.lease_asked.pop_front();
            }
            self.order(disk, Order::Lease { number, clean, floor }, cx);
        }
    }

    fn granted(
        &mut self,
        disk: DiskId,
        number: u64,
        credit: u64,
        clean: Version,
        cx: &mut Context<'_>,
    ) {
        let member = self.member(disk);
        let Some(at) = member.lease_asked.iter().position(|(asked, _)| *asked == number) else {
            return;
        };
        let (_, sent) = member.lease_asked[at];
        member.lease_asked.drain(..=at);
        member.lease_until = member.lease_until.max(sent + LEASE_USED);
        member.credit = credit;
        member.clean = member.clean.max(clean);
        self.answer_reads(cx);
    }

    /// Whether nobody else can be serving writes now.
    fn may_read(&self, now: u64) -> bool {
        !self.rules.on(Rule::Leases)
            || self
                .assignment
                .acting
                .iter()
                .all(|disk| self.members.get(disk).is_some_and(|member| member.lease_until > now))
    }

    /// Up to which version every member of a full acting set has everything.
    fn clean_version(&self) -> Option<Version> {
        let whole = self.missing.is_empty();
        if !self.assignment.full || self.phase != Phase::Serving {
            return None;
        }
        if !whole && self.rules.on(Rule::CleanWhole) {
            return None;
        }
        let open = self.writes.keys().next().map_or(self.seq, |first| first - 1);
        Some(Version { interval: self.interval(), seq: open })
    }

    /// Below it no member of the full set needs tombstones.
    fn tombstone_floor(&self) -> Version {
        if self.clean_version().is_none() {
            return Version::ZERO;
        }
        let clean = |disk| self.members.get(disk).map_or(Version::ZERO, |member| member.clean);
        self.assignment.acting.iter().map(clean).min().unwrap_or_default()
    }

    // ---- shared --------------------------------------------------------------------------------

    fn member(&mut self, disk: DiskId) -> &mut Member {
        self.members.entry(disk).or_default()
    }

    fn order(&self, disk: DiskId, body: Order, cx: &mut Context<'_>) {
        let Some(member) = self.members.get(&disk) else {
            return;
        };
        let order = ToReplica { shard: self.shard, disk, interval: self.interval(), body };
        cx.out.push(Effect::Send(member.process, Message::Order(order)));
    }

    fn respond(
        &self,
        to: Process,
        id: RequestId,
        result: std::result::Result<crate::message::Done, Refusal>,
        cx: &mut Context<'_>,
    ) {
        let interval = self.interval();
        let response = Response { shard: self.shard, interval, id, result };
        cx.out.push(Effect::Send(to, Message::Response(response)));
    }

    fn fetch(&mut self, cx: &mut Context<'_>) {
        if !self.fetching {
            self.fetching = true;
            cx.out.push(Effect::Fetch(self.interval()));
        }
    }

    fn tell_clean(&mut self, cx: &mut Context<'_>) {
        let whole = self.missing.is_empty();
        if whole && !self.clean_told && self.phase == Phase::Serving {
            self.clean_told = true;
            cx.out.push(Effect::Clean(self.interval()));
        }
    }
}
