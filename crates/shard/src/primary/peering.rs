//! Taking over: promises, who decides, what every fragment holds from now on, activation, and what
//! must have ended before the first request (DESIGN 6.2, P0 to P4).

use super::{Context, Member, Phase, Primary, Promised};
use crate::authority::{Candidates, Copy, Decision};
use crate::effect::Effect;
use crate::message::Order;
use crate::rules::Rule;
use sheepdog_storelog::RequestEntry;
use sheepdog_types::{DiskId, FragmentId, Process, RequestId, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Nanoseconds for which a takeover waits for disks that it could do without.
const SOURCES_WAIT: u64 = 200_000_000;

impl Primary {
    /// P0, of the acting set and of the last activated one: of everyone that is there and was not
    /// asked in the process that it is now.
    pub(super) fn ask_promises(&mut self, cx: &mut Context<'_>) {
        let mut wanted: BTreeSet<DiskId> = self.assignment.acting.iter().copied().collect();
        let acting = wanted.clone();
        wanted.extend(self.assignment.last.members.iter().copied());
        wanted.extend(self.assignment.older.iter().copied());
        for disk in wanted {
            let Some(process) = self.assignment.hosts.get(&disk).copied() else {
                continue;
            };
            let known = self.members.get(&disk).is_some_and(|member| member.process == process);
            // An acting member's other process needs another interval.
            let late = self.phase >= Phase::Listing && acting.contains(&disk);
            if !known && !late {
                let member =
                    Member { process, acting: acting.contains(&disk), ..Member::default() };
                self.members.insert(disk, member);
                self.order(disk, Order::Promise, cx);
            }
        }
        self.advance(cx);
    }

    /// It did not answer by then, and may have what nobody else has.
    pub(super) fn promise_again(&self, disk: DiskId, cx: &mut Context<'_>) {
        let silent = |member: &Member| member.promised.is_none();
        if self.wants_more() && self.members.get(&disk).is_some_and(silent) {
            self.order(disk, Order::Promise, cx);
        }
    }

    /// What it was asked last, once more.
    pub(super) fn ask_again(&mut self, disk: DiskId, cx: &mut Context<'_>) {
        let Some(member) = self.members.get(&disk) else {
            return;
        };
        match self.phase {
            Phase::Promising if member.promised.is_none() => self.order(disk, Order::Promise, cx),
            Phase::Listing if member.promised.is_some() && !member.listed => {
                self.order(disk, Order::List { baseline: self.baseline }, cx);
            }
            Phase::Asking if !member.asked.is_empty() => {
                let fragments = member.asked.iter().copied().collect();
                self.order(disk, Order::Ask { fragments }, cx);
            }
            Phase::Activating if member.acting && !member.activated => self.activate(disk, cx),
            _ => {}
        }
    }

    pub(super) fn promised(&mut self, disk: DiskId, promised: Promised, cx: &mut Context<'_>) {
        if self.phase == Phase::Promising {
            self.member(disk).promised = Some(promised);
            self.advance(cx);
        } else if self.wants_more() && self.member(disk).promised.is_none() {
            self.member(disk).promised = Some(promised);
            cx.out.push(Effect::Again(self.interval()));
        }
    }

    /// Goes on as far as the answers allow.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) {
        loop {
            let before = self.phase;
            match self.phase {
                Phase::Promising => self.judge_promises(cx),
                Phase::Listing => self.judge_lists(cx),
                Phase::Asking => {
                    if self.taking_part().all(|(_, member)| member.asked.is_empty()) {
                        self.decide(cx);
                    }
                }
                Phase::Activating => {
                    let mut acting = self.members.values().filter(|member| member.acting);
                    let done = if self.rules.on(Rule::AllActivate) {
                        acting.all(|member| member.activated)
                    } else {
                        acting.any(|member| member.activated)
                    };
                    if done {
                        self.activated(cx);
                    }
                }
                Phase::Waiting => self.judge_leases(cx),
                Phase::Lacking | Phase::Committing | Phase::Serving | Phase::Stopped => {}
            }
            if self.phase == before {
                return;
            }
        }
    }

    /// Whether somebody outside the acting set, which has an end of its own, promised and is gone
    /// before it told everything.
    pub(super) fn has_lost_help(&self) -> bool {
        self.taking_part().any(|(disk, member)| {
            let open = !member.listed || !member.asked.is_empty();
            let there = self.assignment.hosts.get(disk) == Some(&member.process);
            open && !member.acting && !there
        })
    }

    fn taking_part(&self) -> impl Iterator<Item = (&DiskId, &Member)> {
        self.members.iter().filter(|(_, member)| member.promised.is_some())
    }

    /// All of the acting set must confirm in the end, so all must have promised; who else answered by
    /// then helps to decide.
    fn judge_promises(&mut self, cx: &mut Context<'_>) {
        let answered =
            |disk: &DiskId| self.members.get(disk).is_some_and(|member| member.promised.is_some());
        if !self.assignment.acting.iter().all(answered) {
            return;
        }
        // Others may have what is missing: they get a while.
        let all = self.members.keys().all(answered);
        let since = *self.judged_at.get_or_insert(cx.now);
        if !all && cx.now < since + SOURCES_WAIT {
            return;
        }
        let les = self.taking_part().filter_map(|(disk, member)| {
            member.promised.as_ref().map(|promised| (*disk, promised.les.interval))
        });
        let les: BTreeMap<_, _> = les.collect();
        let mut last = self.assignment.last.clone();
        if !self.rules.on(Rule::Quorum) {
            last.members.clear();
        }
        if !self.rules.on(Rule::Candidates) {
            last = crate::authority::Activation::default();
        }
        match Candidates::of(&last, &les) {
            Ok(candidates) => self.candidates = Some(candidates),
            Err(_) => return,
        }
        let promised = || self.taking_part().filter_map(|(_, member)| member.promised.as_ref());
        let floor = promised().map(|promised| promised.floor).max().unwrap_or_default();
        let baseline = promised().map(|promised| promised.clean).min().unwrap_or_default();
        (self.floor, self.baseline) = (floor, baseline);
        if self.floor > self.baseline && self.rules.on(Rule::FloorListsAll) {
            // Somebody dropped tombstones that another one never saw: what is not listed above the
            // baseline could have been deleted.
            self.baseline = Version::ZERO;
        }
        self.phase = Phase::Listing;
        let disks: Vec<DiskId> = self.taking_part().map(|(disk, _)| *disk).collect();
        for disk in disks {
            self.order(disk, Order::List { baseline: self.baseline }, cx);
        }
    }

    fn judge_lists(&mut self, cx: &mut Context<'_>) {
        if !self.taking_part().all(|(_, member)| member.listed) {
            return;
        }
        let listed = self.taking_part().flat_map(|(_, member)| member.copies.keys().copied());
        let all: BTreeSet<FragmentId> = listed.collect();
        self.phase = Phase::Asking;
        if self.baseline == Version::ZERO || !self.rules.on(Rule::AskUnlisted) {
            return;
        }
        let disks: Vec<DiskId> = self.taking_part().map(|(disk, _)| *disk).collect();
        for disk in disks {
            let member = self.member(disk);
            let lacks = |id: &&FragmentId| !member.copies.contains_key(*id);
            let lacking: BTreeSet<FragmentId> = all.iter().filter(lacks).copied().collect();
            if !lacking.is_empty() {
                let fragments = lacking.iter().copied().collect();
                member.asked = lacking;
                self.order(disk, Order::Ask { fragments }, cx);
            }
        }
    }

    /// P2 for all fragments that are not equal everywhere.
    fn decide(&mut self, cx: &mut Context<'_>) {
        let Some(candidates) = self.candidates.clone() else {
            return;
        };
        let all: BTreeSet<FragmentId> =
            self.taking_part().flat_map(|(_, member)| member.copies.keys().copied()).collect();
        let mut chosen: BTreeMap<FragmentId, Version> = BTreeMap::new();
        for fragment in all {
            let copies: BTreeMap<DiskId, Copy> = self
                .taking_part()
                .map(|(disk, member)| {
                    let mut copy = member.copies.get(&fragment).copied().unwrap_or_default();
                    if !self.rules.on(Rule::NeededCounts) {
                        copy.needed = None;
                    }
                    (*disk, copy)
                })
                .collect();
            match candidates.decide(&copies) {
                Decision::Take { head, sources } => {
                    chosen.insert(fragment, head);
                    let differs = |disk: &&DiskId| copies.get(*disk) != Some(&Copy::complete(head));
                    let lacking: BTreeSet<DiskId> =
                        self.assignment.acting.iter().filter(differs).copied().collect();
                    if !lacking.is_empty() {
                        self.heads.push((fragment, head));
                        self.missing.insert(fragment, lacking);
                        self.sources.insert(fragment, sources);
                    }
                }
                Decision::Wait { .. } => {
                    self.lacking.insert(fragment);
                }
            }
        }
        if !self.lacking.is_empty() {
            // Not without them: whoever has them decides no more once this interval is activated
            // (docs/replication.md).
            self.phase = Phase::Lacking;
            return;
        }
        self.adopt_requests(&chosen, &candidates);
        self.phase = Phase::Activating;
        for disk in self.assignment.acting.clone() {
            self.activate(disk, cx);
        }
    }

    /// Of each slot the newest request that a candidate knows. If its write is not part of what was
    /// decided it was not executed; older ones of the slot were answered and must not come again.
    fn adopt_requests(&mut self, chosen: &BTreeMap<FragmentId, Version>, candidates: &Candidates) {
        let mut slots: BTreeMap<(Process, u8), (RequestId, RequestEntry)> = BTreeMap::new();
        for (disk, member) in &self.members {
            if !candidates.disks().contains(disk) {
                continue;
            }
            for (id, entry) in &member.requests {
                let mut entry = *entry;
                let beyond = chosen.get(&entry.fragment).is_some_and(|head| entry.version > *head);
                if beyond && self.rules.on(Rule::RequestsOfAuthority) {
                    entry.version = Version::ZERO;
                }
                let slot = (id.gateway, id.slot);
                let newer = slots.get(&slot).is_none_or(|(_, known)| {
                    (known.seq, known.version) < (entry.seq, entry.version)
                });
                if newer {
                    slots.insert(slot, (*id, entry));
                }
            }
        }
        // Nobody takes requests of an incarnation before the newest.
        let mut newest: BTreeMap<_, u64> = BTreeMap::new();
        for (process, _) in slots.keys() {
            let known = newest.entry(process.node).or_default();
            *known = (*known).max(process.incarnation);
        }
        slots.retain(|(process, _), _| newest.get(&process.node) == Some(&process.incarnation));
        self.adopted = slots.into_values().collect();
        self.table.adopt(&self.adopted);
    }

    /// P3.
    fn activate(&self, disk: DiskId, cx: &mut Context<'_>) {
        let heads = self.heads.clone();
        let order = Order::Activate {
            members: self.assignment.acting.clone(),
            heads,
            requests: self.adopted.clone(),
            floor: self.floor,
        };
        self.order(disk, order, cx);
    }

    fn activated(&mut self, cx: &mut Context<'_>) {
        for member in self.members.values_mut() {
            member.copies = BTreeMap::new();
            member.requests = Vec::new();
        }
        self.heads = Vec::new();
        self.phase = Phase::Committing;
        self.ask_leases(cx);
        cx.out.push(Effect::Activated(self.interval()));
        if !self.rules.on(Rule::CommitFirst) {
            self.phase = Phase::Waiting;
            self.fetch(cx);
        }
    }

    /// P4: nobody reads under an older interval any more, and every fence is known.
    fn judge_leases(&mut self, cx: &mut Context<'_>) {
        let over = |member: &Member| {
            member.promised.as_ref().is_none_or(|promised| promised.lease_over <= cx.now)
        };
        let out = self.members.values().all(over) || !self.rules.on(Rule::LeasesOut);
        let known = self.fetched || !self.rules.on(Rule::FencesFirst);
        if out && known {
            self.phase = Phase::Serving;
            self.ask_leases(cx);
            self.tell_clean(cx);
            self.recover_more(cx);
            self.run_waiting(cx);
            self.tell_fences(cx);
        }
    }
}
