//! One copy of a shard, on one disk: what it promised, in which interval it was activated, which
//! writes it takes, whom it grants leases.
//!
//! Everything that a later primary must know is in the store before it is answered. What is only in
//! memory ends with the process: that it is active, and to whom it granted a lease.

use crate::authority::{Activation, Copy};
use crate::effect::{Disk, Effect, Token, copy_of, head_of};
use crate::message::{Change, Message, Order, Replicate, Report, ToPrimary};
use crate::rules::{Rule, Rules};
use crate::state::ReplicaState;
use bytes::Bytes;
use sheepdog_storelog::{Answer, ChunkCopy, Command, RequestEntry};
use sheepdog_types::{
    DiskId, ErrorKind, FragmentId, Interval, Process, RequestId, Result, ShardId, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nanoseconds for which a replica lets a primary read, from the moment it says so.
pub const LEASE: u64 = 400_000_000;
/// A clean version that grew is made durable after so many nanoseconds.
const CLEAN_SAVE: u64 = 1_000_000_000;

/// Who is waiting for a command to the store.
enum Job {
    /// The promise of that interval.
    Promise(Interval, Saved),
    /// A fragment that is missing from that activation on.
    Miss(Interval),
    /// The activation itself.
    Activate(Interval, Saved),
    /// A write.
    Replicate {
        to: Process,
        interval: Interval,
        fragment: FragmentId,
        version: Version,
        /// Nothing may be left in the fragment.
        clears: bool,
    },
    /// Chunk versions.
    Versions { to: Process, interval: Interval, fragment: FragmentId },
    /// Chunks.
    Chunks { to: Process, interval: Interval, fragment: FragmentId },
    /// A missing fragment's chunks.
    Fill { to: Process, interval: Interval, fragment: FragmentId, at: Version },
    /// The state with what is clean.
    Clean(Saved),
    /// The loss of the vote.
    Vote(Saved),
    /// A tombstone goes.
    Forget(FragmentId),
}

/// What a state that is being made durable says of what is clean, and of tombstones.
#[derive(Clone, Copy, Default)]
struct Saved {
    clean: Version,
    floor: Version,
}

/// A promise on its way.
struct Answering {
    to: Process,
    interval: Interval,
    saved: bool,
}

/// An activation of which fragments are still being marked.
struct Activating {
    to: Process,
    interval: Interval,
    members: BTreeSet<DiskId>,
    requests: Arc<[(RequestId, RequestEntry)]>,
    floor: Version,
    left: usize,
}

/// See the module.
pub struct Replica {
    shard: ShardId,
    disk: DiskId,
    rules: Rules,
    /// As given to the store last; durable when no job is left.
    state: ReplicaState,
    /// All fragments of the shard that are held here.
    fragments: BTreeSet<FragmentId>,
    /// Those of them that may hold nothing but a head; their space can take a while to be given back.
    tombstones: BTreeSet<FragmentId>,
    /// The interval that was activated in this process, and its primary.
    active: Option<(Interval, Process)>,
    promising: Option<Answering>,
    activating: Option<Activating>,
    /// Versions on their way to the store: the newest of each fragment.
    heads: BTreeMap<FragmentId, (Version, u32)>,
    jobs: BTreeMap<Token, Job>,
    /// Somebody may read until then, under the lease of that interval.
    lease: Option<(Interval, u64)>,
    /// Who wanted the last promise.
    asked: Option<Process>,
    /// What is durable of the state.
    saved: Saved,
    /// Bytes of clients that were taken in the active interval.
    taken: u64,
    clean_save_at: Option<u64>,
}

/// What a replica works with while it handles an event.
pub struct Context<'a> {
    /// Nanoseconds of the process's clock.
    pub now: u64,
    /// Its disk.
    pub disk: &'a dyn Disk,
    /// Where the next token comes from.
    pub next_token: &'a mut u64,
    /// What it wants.
    pub out: &'a mut Vec<Effect>,
}

impl Replica {
    /// A copy as its disk has it: what the store kept of its state, and which fragments it holds. A
    /// process that just started knows nothing of the leases of the one before: a full term is left.
    #[must_use]
    pub fn new(
        shard: ShardId,
        disk: DiskId,
        rules: Rules,
        state: ReplicaState,
        fragments: BTreeSet<FragmentId>,
        view: &dyn Disk,
        now: u64,
    ) -> Self {
        let empty = |id: &&FragmentId| view.held(**id).is_some_and(|held| held.empty);
        let tombstones = fragments.iter().filter(empty).copied().collect();
        let granted = state.les.interval > Interval(0) && rules.on(Rule::LeaseAfterStart);
        let lease = granted.then_some((state.les.interval, now + LEASE));
        Self {
            shard,
            disk,
            rules,
            saved: Saved { clean: state.clean, floor: state.floor },
            asked: None,
            taken: 0,
            state,
            fragments,
            tombstones,
            active: None,
            promising: None,
            activating: None,
            heads: BTreeMap::new(),
            jobs: BTreeMap::new(),
            lease,
            clean_save_at: None,
        }
    }

    /// Its disk lost what it should have, or shows what it once was: it decides nothing any more, and
    /// is compared in full. To be saved before anything else is said.
    pub fn lose_vote(&mut self, cx: &mut Context<'_>) {
        self.state.les = Activation::default();
        self.state.clean = Version::ZERO;
        self.saved.clean = Version::ZERO;
        self.save(Job::Vote, None, cx);
    }

    /// Whether the loss of its vote is not durable yet.
    #[must_use]
    pub fn is_losing_vote(&self) -> bool {
        self.jobs.values().any(|job| matches!(job, Job::Vote(_)))
    }

    /// What it durably promised and so on.
    #[must_use]
    pub const fn state(&self) -> &ReplicaState {
        &self.state
    }

    /// The interval in which it takes writes.
    #[must_use]
    pub fn active(&self) -> Option<Interval> {
        self.active.map(|(interval, _)| interval)
    }

    /// Fragments held.
    pub fn fragments(&self) -> impl Iterator<Item = FragmentId> {
        self.fragments.iter().copied()
    }

    /// A primary says something.
    pub fn order(&mut self, from: Process, interval: Interval, order: Order, cx: &mut Context<'_>) {
        if interval < self.state.promised && self.rules.on(Rule::PromiseRefuses) {
            if let Order::Revoked = order {
                self.revoked(interval, cx);
                return;
            }
            let (promised, les) = (self.state.promised, self.state.les.clone());
            self.report(from, interval, Report::Refused { promised, les }, cx);
            return;
        }
        match order {
            Order::Promise => self.promise(from, interval, cx),
            Order::List { baseline } => self.list(from, interval, baseline, cx),
            Order::Ask { fragments } => {
                if self.has_promised(interval) {
                    let copies = fragments.iter().map(|id| (*id, copy_of(cx.disk, *id))).collect();
                    self.report(from, interval, Report::Asked { copies }, cx);
                }
            }
            Order::Activate { members, heads, requests, floor } => {
                let members = members.into_iter().collect();
                let activating =
                    Activating { to: from, interval, members, requests, floor, left: 0 };
                self.activate(activating, heads, cx);
            }
            Order::Replicate(write) => self.replicate(from, interval, write, cx),
            Order::Versions { fragment } => {
                if self.has_promised(interval) {
                    let job = Job::Versions { to: from, interval, fragment };
                    self.store(job, Command::Versions { fragment }, cx);
                }
            }
            Order::Chunks { fragment, head, have } => {
                if !self.has_promised(interval) {
                    return;
                }
                if copy_of(cx.disk, fragment) == Copy::complete(head) {
                    let job = Job::Chunks { to: from, interval, fragment };
                    self.store(job, Command::Chunks { fragment, have }, cx);
                } else {
                    self.report(from, interval, Report::Unreadable { fragment }, cx);
                }
            }
            Order::Fill { fragment, at, chunks } => {
                self.fill(from, interval, fragment, at, chunks, cx);
            }
            Order::Lease { number, clean, floor } => {
                self.lease(from, interval, number, clean, floor, cx);
            }
            Order::Revoked => self.revoked(interval, cx),
        }
    }

    /// Its promise of that interval holds, durably: what older ones had on its way has ended.
    fn has_promised(&self, interval: Interval) -> bool {
        self.state.promised == interval && self.promising.is_none()
    }

    fn is_active(&self, interval: Interval) -> bool {
        let here = self.active.is_some_and(|(active, _)| active == interval)
            || !self.rules.on(Rule::ActiveProcess);
        let promised = self.state.promised == interval || !self.rules.on(Rule::PromiseRefuses);
        here && promised && self.state.les.interval == interval
    }

    // ---- P0 ------------------------------------------------------------------------------------

    fn promise(&mut self, from: Process, interval: Interval, cx: &mut Context<'_>) {
        self.asked = Some(from);
        if self.state.promised == interval {
            // Asked again: what was said may have been lost.
            if self.promising.is_none() && !self.is_losing_vote() {
                self.report_promised(from, interval, cx);
            } else {
                self.promising.get_or_insert(Answering { to: from, interval, saved: true });
            }
            return;
        }
        self.activating = None;
        // Nobody reads under an older interval from here on: who may still do is asked to stop.
        if let Some((of, until)) = self.lease
            && until > cx.now
            && let Some((active, primary)) = self.active
            && active == of
        {
            self.report(primary, of, Report::Revoke, cx);
        }
        self.active = None;
        self.state.promised = interval;
        let saved = !self.rules.on(Rule::PromiseDurable);
        self.promising = Some(Answering { to: from, interval, saved });
        if saved {
            self.answer_promise(cx);
        } else {
            self.save(|saved| Job::Promise(interval, saved), None, cx);
        }
    }

    /// Once the promise and all that was on its way before are durable.
    fn answer_promise(&mut self, cx: &mut Context<'_>) {
        let Some(promising) = &self.promising else {
            return;
        };
        let changes = |job: &Job| {
            matches!(
                job,
                Job::Miss(_)
                    | Job::Activate(..)
                    | Job::Vote(_)
                    | Job::Replicate { .. }
                    | Job::Fill { .. }
            )
        };
        let busy = self.jobs.values().any(changes) && self.rules.on(Rule::PromiseBarrier);
        if !promising.saved || busy {
            return;
        }
        let (to, interval) = (promising.to, promising.interval);
        self.promising = None;
        self.report_promised(to, interval, cx);
    }

    fn report_promised(&self, to: Process, interval: Interval, cx: &mut Context<'_>) {
        let left = self.lease.map_or(0, |(_, until)| until.saturating_sub(cx.now));
        let lease_left = if self.rules.on(Rule::LeaseLeftTold) { left } else { 0 };
        let report = Report::Promised {
            les: self.state.les.clone(),
            clean: self.saved.clean,
            floor: self.state.floor,
            lease_left,
        };
        self.report(to, interval, report, cx);
    }

    fn list(&self, from: Process, interval: Interval, baseline: Version, cx: &mut Context<'_>) {
        if !self.has_promised(interval) {
            return;
        }
        let copies = self.fragments.iter().map(|id| (*id, copy_of(cx.disk, *id)));
        let above = |(_, copy): &(FragmentId, Copy)| {
            copy.head > baseline || copy.needed.is_some() || baseline == Version::ZERO
        };
        // Tombstones too, however old: others may have dropped theirs, and the next write of that
        // fragment must find the same head everywhere.
        let above = |copy: &(FragmentId, Copy)| above(copy) || self.is_tombstone(copy.0, cx.disk);
        let copies = copies.filter(above).collect();
        let requests = cx.disk.requests(self.shard);
        self.report(from, interval, Report::Listed { copies, requests }, cx);
    }

    fn is_tombstone(&self, fragment: FragmentId, disk: &dyn Disk) -> bool {
        self.tombstones.contains(&fragment)
            && self.rules.on(Rule::TombstonesListed)
            && disk.held(fragment).is_some_and(|held| held.empty)
    }

    // ---- P3 ------------------------------------------------------------------------------------

    fn activate(
        &mut self,
        mut activating: Activating,
        heads: Vec<(FragmentId, Version)>,
        cx: &mut Context<'_>,
    ) {
        let (to, interval) = (activating.to, activating.interval);
        if !self.has_promised(interval) {
            return;
        }
        // Asked again while it is not durable yet: the answer comes then.
        if self.activating.as_ref().is_some_and(|on_its_way| on_its_way.interval == interval)
            || self.jobs.values().any(|job| matches!(job, Job::Activate(of, _) if *of == interval))
        {
            return;
        }
        if self.active.is_some_and(|(active, _)| active == interval) {
            let credit = self.credit(cx);
            self.report(to, interval, Report::Activated { credit }, cx);
            return;
        }
        for (fragment, head) in heads {
            let copy = copy_of(cx.disk, fragment);
            let as_it_should_be = copy == Copy::complete(head) || copy.needed == Some(head);
            let older_only = !self.rules.on(Rule::DiffersIsMissing) && copy.counted() >= head;
            if as_it_should_be || older_only {
                continue;
            }
            self.fragments.insert(fragment);
            self.tombstones.remove(&fragment);
            activating.left += 1;
            self.store(Job::Miss(interval), Command::Miss { fragment, needed: head }, cx);
        }
        let all = activating.left == 0 || !self.rules.on(Rule::ActivateBarrier);
        self.activating = Some(activating);
        if all {
            self.save_activation(cx);
        }
    }

    /// Once every missing fragment is durably known as missing.
    fn save_activation(&mut self, cx: &mut Context<'_>) {
        let Some(done) = self.activating.take() else {
            return;
        };
        self.state.les = Activation { interval: done.interval, members: done.members };
        self.state.floor = self.state.floor.max(done.floor);
        self.active = Some((done.interval, done.to));
        self.taken = 0;
        let requests = Some(done.requests.to_vec());
        self.save(|saved| Job::Activate(done.interval, saved), requests, cx);
    }

    // ---- what an active replica does -------------------------------------------------------------

    fn replicate(
        &mut self,
        from: Process,
        interval: Interval,
        write: Replicate,
        cx: &mut Context<'_>,
    ) {
        let Replicate { fragment, version, prev, floor, request, change } = write;
        if !self.is_active(interval) {
            return;
        }
        let known = floor.max(self.state.floor);
        if version <= known && self.rules.on(Rule::FloorIsDone) {
            // A late copy: everybody has had it, and its fragment may have been deleted since.
            self.report(from, interval, Report::Done { fragment, version }, cx);
            return;
        }
        let on_its_way = self.heads.get(&fragment).map(|(head, _)| *head);
        let head = on_its_way.unwrap_or_else(|| head_of(cx.disk, fragment, known));
        if version <= head && self.rules.on(Rule::Chain) {
            // Sent again. If it is still on its way its end will be told.
            if on_its_way.is_none_or(|_| head_of(cx.disk, fragment, known) >= version) {
                self.report(from, interval, Report::Done { fragment, version }, cx);
            }
            return;
        }
        if prev != head && self.rules.on(Rule::Chain) {
            // Something before it was lost, and will come again, and this too.
            return;
        }
        self.heads.entry(fragment).or_default().0 = version;
        self.heads.entry(fragment).or_default().1 += 1;
        self.fragments.insert(fragment);
        self.tombstones.remove(&fragment);
        self.taken += change.bytes();
        let clears = !matches!(change, Change::Write { .. });
        let request = request.map(|id| (self.shard, id));
        let command = match change {
            Change::Write { vid, start, data } => {
                Command::Write { fragment, vid, version, start, data, request }
            }
            Change::Zero { vid, start, count, kind } => {
                Command::Zero { fragment, vid, version, start, count, kind, request }
            }
            Change::Delete { vid } => {
                let forget = !self.rules.on(Rule::Tombstones);
                Command::DeleteVid { fragment, vid, version, forget, request }
            }
        };
        self.store(Job::Replicate { to: from, interval, fragment, version, clears }, command, cx);
    }

    fn fill(
        &mut self,
        from: Process,
        interval: Interval,
        fragment: FragmentId,
        at: Version,
        chunks: Vec<ChunkCopy>,
        cx: &mut Context<'_>,
    ) {
        if !self.is_active(interval) {
            return;
        }
        let copy = copy_of(cx.disk, fragment);
        if copy == Copy::complete(at) {
            self.report(from, interval, Report::Filled { fragment, at }, cx);
        } else if copy.needed == Some(at) {
            let job = Job::Fill { to: from, interval, fragment, at };
            self.store(job, Command::Fill { fragment, at, chunks, last: true }, cx);
        }
    }

    fn lease(
        &mut self,
        from: Process,
        interval: Interval,
        number: u64,
        clean: Option<Version>,
        floor: Version,
        cx: &mut Context<'_>,
    ) {
        if !self.is_active(interval) {
            return;
        }
        self.lease = Some((interval, cx.now + LEASE));
        if let Some(clean) = clean.filter(|clean| *clean > self.state.clean) {
            self.state.clean = clean;
            self.clean_save_at.get_or_insert(cx.now + CLEAN_SAVE);
        }
        if floor > self.state.floor && !self.tombstones.is_empty() {
            self.state.floor = floor;
            self.clean_save_at = Some(cx.now);
        }
        let (credit, clean) = (self.credit(cx), self.saved.clean);
        self.report(from, interval, Report::Granted { number, credit, clean }, cx);
    }

    /// Bytes that clients may write in all in the active interval: what was taken, and what there is
    /// room for. Absolute, so that an answer that comes late promises nothing twice.
    fn credit(&self, cx: &Context<'_>) -> u64 {
        self.taken + cx.disk.room()
    }

    fn revoked(&mut self, interval: Interval, cx: &mut Context<'_>) {
        if self.lease.is_some_and(|(of, _)| of == interval) {
            self.lease = None;
            // A promise that is not answered yet will say that nothing is left.
            if let Some(to) = self.asked.filter(|_| self.promising.is_none()) {
                self.report(to, self.state.promised, Report::LeaseOver, cx);
            }
        }
    }

    /// Time passed.
    pub fn tick(&mut self, cx: &mut Context<'_>) {
        if self.clean_save_at.is_some_and(|at| at <= cx.now) {
            self.clean_save_at = None;
            self.save(Job::Clean, None, cx);
        }
    }

    // ---- the store -------------------------------------------------------------------------------

    /// The store has done something. `Err` means that the disk cannot go on.
    pub fn stored(
        &mut self,
        token: Token,
        result: Result<Answer>,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        let Some(job) = self.jobs.remove(&token) else {
            return Ok(());
        };
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => return self.refused(&job, error, cx),
        };
        match job {
            Job::Promise(interval, saved) => {
                self.note_saved(saved);
                if let Some(promising) = self.promising.as_mut().filter(|p| p.interval == interval)
                {
                    promising.saved = true;
                }
            }
            Job::Miss(interval) => {
                if let Some(activating) =
                    self.activating.as_mut().filter(|a| a.interval == interval)
                {
                    activating.left -= 1;
                    if activating.left == 0 {
                        self.save_activation(cx);
                    }
                }
            }
            Job::Activate(interval, saved) => {
                self.note_saved(saved);
                if let Some((active, primary)) = self.active
                    && active == interval
                {
                    let credit = self.credit(cx);
                    self.report(primary, interval, Report::Activated { credit }, cx);
                }
            }
            Job::Replicate { to, interval, fragment, version, clears } => {
                if let Some((_, left)) = self.heads.get_mut(&fragment) {
                    *left -= 1;
                    if *left == 0 {
                        self.heads.remove(&fragment);
                    }
                }
                if clears {
                    self.tombstones.insert(fragment);
                }
                self.report(to, interval, Report::Done { fragment, version }, cx);
            }
            Job::Versions { to, interval, fragment } => {
                if let Answer::Versions { head, needed, chunks } = answer {
                    let copy = Copy { head, needed };
                    self.report(to, interval, Report::Versions { fragment, copy, chunks }, cx);
                }
            }
            Job::Chunks { to, interval, fragment } => {
                if let Answer::Chunks { head, needed, copies, .. } = answer {
                    let report = match needed {
                        None => Report::Chunks { fragment, head, chunks: copies },
                        Some(_) => Report::Unreadable { fragment },
                    };
                    self.report(to, interval, report, cx);
                }
            }
            Job::Fill { to, interval, fragment, at } => {
                self.note_held(fragment, cx);
                self.report(to, interval, Report::Filled { fragment, at }, cx);
            }
            Job::Clean(saved) => {
                self.note_saved(saved);
                self.drop_tombstones(cx);
            }
            Job::Vote(saved) => self.note_saved(saved),
            Job::Forget(fragment) => self.note_held(fragment, cx),
        }
        self.answer_promise(cx);
        Ok(())
    }

    /// A command failed. Reads of chunks may; anything else is the end of the disk, for what was
    /// ordered must be done.
    fn refused(
        &mut self,
        job: &Job,
        error: sheepdog_types::Error,
        cx: &mut Context<'_>,
    ) -> Result<()> {
        match job {
            Job::Chunks { to, interval, fragment } | Job::Versions { to, interval, fragment }
                if error.kind() != ErrorKind::Internal =>
            {
                self.report(*to, *interval, Report::Unreadable { fragment: *fragment }, cx);
                Ok(())
            }
            // Its space is not all free yet, or it was written meanwhile.
            Job::Forget(fragment) if error.kind() == ErrorKind::Conflict => {
                self.tombstones.insert(*fragment);
                Ok(())
            }
            // It is not missing any more, or must come to hold something else, or there is no space
            // now: the primary tries again.
            Job::Fill { to, interval, fragment, .. }
                if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NoSpace) =>
            {
                self.report(*to, *interval, Report::Unreadable { fragment: *fragment }, cx);
                self.answer_promise(cx);
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// After a fill or a tombstone's end: whether it is held, and may be a tombstone.
    fn note_held(&mut self, fragment: FragmentId, cx: &Context<'_>) {
        match cx.disk.held(fragment) {
            None if !self.heads.contains_key(&fragment) => {
                self.fragments.remove(&fragment);
                self.tombstones.remove(&fragment);
            }
            Some(held) if held.empty && held.needed.is_none() => {
                self.tombstones.insert(fragment);
            }
            _ => {}
        }
    }

    /// Those at or below the floor, which is durable.
    fn drop_tombstones(&mut self, cx: &mut Context<'_>) {
        let floor = self.saved.floor;
        let gone: Vec<(FragmentId, Version)> = self
            .tombstones
            .iter()
            .filter_map(|id| cx.disk.held(*id).map(|held| (*id, held)))
            .filter(|(id, held)| held.empty && held.head <= floor && !self.heads.contains_key(id))
            .map(|(id, held)| (id, held.head))
            .collect();
        for (fragment, head) in gone {
            self.tombstones.remove(&fragment);
            self.store(Job::Forget(fragment), Command::Forget { fragment, head }, cx);
        }
    }

    fn note_saved(&mut self, saved: Saved) {
        self.saved.clean = self.saved.clean.max(saved.clean);
        self.saved.floor = self.saved.floor.max(saved.floor);
    }

    fn save(
        &mut self,
        job: impl FnOnce(Saved) -> Job,
        requests: Option<Vec<(RequestId, RequestEntry)>>,
        cx: &mut Context<'_>,
    ) {
        let job = job(Saved { clean: self.state.clean, floor: self.state.floor });
        let state = Bytes::from(self.state.encode());
        self.store(job, Command::Shard { shard: self.shard, state, requests }, cx);
    }

    fn store(&mut self, job: Job, command: Command, cx: &mut Context<'_>) {
        let token = Token(*cx.next_token);
        *cx.next_token += 1;
        self.jobs.insert(token, job);
        cx.out.push(Effect::Store(self.disk, token, command));
    }

    fn report(&self, to: Process, interval: Interval, body: Report, cx: &mut Context<'_>) {
        let report = ToPrimary { shard: self.shard, disk: self.disk, interval, body };
        cx.out.push(Effect::Send(to, Message::Report(report)));
    }
}
