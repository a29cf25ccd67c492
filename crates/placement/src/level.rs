//! Levelling: from the disks shards have (or want) to loads within the band of every quota, with
//! as few moves as possible and with those moves that leave the fewest exceptions.
//!
//! A replica is *displaced* if it is on a disk that did not have it before the change: it has to
//! be copied anyway, so where to is free. Moving any other replica costs a copy. An *exception* is
//! a replica on a disk that its shard does not want. Each step takes the cheapest kind of move
//! that helps, and among those one that ends an exception rather than one that makes one.

use crate::map::Roster;
use crate::quota::Quota;
use std::collections::BTreeSet;

mod chain;
mod home;
mod tidy;

pub(crate) use tidy::tidied;

/// A replica that has no disk yet.
pub(crate) const NONE: u32 = u32::MAX;

/// How far to level.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// Into the band.
    Band,
    /// To the quota, rounded down or up.
    Quota,
}

/// Which replicas may be moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Those that have to be copied anyway.
    Displaced,
    /// Those that are where they were.
    Settled,
}

/// From which disks a replica may be pulled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Donor {
    /// From those that hold more than they may.
    Over,
    /// From those above their quota.
    Surplus,
    /// From all that may lose one.
    Any,
}

/// Shards and their disks while they are being levelled.
pub(crate) struct Leveller<'a> {
    roster: &'a Roster,
    quotas: &'a [Quota],
    stride: usize,
    /// Wanted members, `stride` per shard.
    wanted: &'a [u32],
    /// Where the data is: members or [`NONE`], `stride` per shard.
    origin: &'a [u32],
    /// Members, `stride` per shard; no two of one zone.
    sets: Vec<u32>,
    loads: Vec<u32>,
    /// Fewest and most replicas of each member under the present goal.
    bounds: Vec<(u32, u32)>,
    /// The shards of each member, settled and displaced ones apart.
    settled: Vec<Vec<u32>>,
    displaced: Vec<Vec<u32>>,
    /// The shards that want each member, ascending.
    suitors: Vec<Vec<u32>>,
    /// Members by fill, emptiest first.
    by_fill: BTreeSet<(i64, u32)>,
    /// Replicas below and above the bounds, over all members.
    under: u64,
    over: u64,
    /// Displaced replicas: what the change costs so far.
    copies: u64,
    /// Moves made since somebody began to note them, to take them back.
    journal: Option<Vec<(u32, u32, u32)>>,
}

impl<'a> Leveller<'a> {
    /// All replicas are where their shards want them, and none has data yet.
    fn unplaced(
        roster: &'a Roster,
        quotas: &'a [Quota],
        stride: usize,
        wanted: &'a [u32],
        origin: &'a [u32],
    ) -> Self {
        let count = roster.members.len();
        let mut suitors = vec![Vec::new(); count];
        for (shard, set) in (0..).zip(wanted.chunks_exact(stride.max(1))) {
            for m in set {
                suitors[*m as usize].push(shard);
            }
        }
        let fills = (0u32..).zip(quotas).map(|(m, q)| (q.fill(0), m));
        Self {
            roster,
            quotas,
            stride,
            wanted,
            origin,
            sets: vec![NONE; wanted.len()],
            loads: vec![0; count],
            bounds: vec![(0, 0); count],
            settled: vec![Vec::new(); count],
            displaced: vec![Vec::new(); count],
            suitors,
            by_fill: fills.collect(),
            under: 0,
            over: 0,
            copies: 0,
            journal: None,
        }
    }

    /// The sets of shards that hold nothing yet.
    pub fn fresh(roster: &Roster, quotas: &[Quota], stride: usize, wanted: &[u32]) -> Vec<u32> {
        let origin = vec![NONE; wanted.len()];
        let mut leveller = Leveller::unplaced(roster, quotas, stride, wanted, &origin);
        leveller.adopt(wanted);
        leveller.level(Goal::Quota, u64::MAX);
        leveller.sets
    }

    /// The sets after a change. `origin` has [`NONE`] entries for replicas to be made and otherwise
    /// obeys the zone rule. Loads are levelled into their bands and, as long as no more than
    /// `budget` replicas move in all, on towards the quotas.
    pub fn change(
        roster: &Roster,
        quotas: &[Quota],
        stride: usize,
        wanted: &[u32],
        origin: &[u32],
        budget: u64,
    ) -> Vec<u32> {
        let mut leveller = Leveller::unplaced(roster, quotas, stride, wanted, origin);
        leveller.adopt(origin);
        leveller.place_missing();
        leveller.level(Goal::Band, u64::MAX);
        leveller.send_home(budget);
        leveller.level(Goal::Quota, budget);
        leveller.sets
    }

    /// Takes over sets as they are.
    fn adopt(&mut self, sets: &[u32]) {
        for (at, member) in sets.iter().enumerate().filter(|(_, m)| **m != NONE) {
            self.sets[at] = *member;
            self.gain((at / self.stride) as u32, *member);
        }
    }

    fn may_lose(&self, member: u32) -> bool {
        self.loads[member as usize] > self.bounds[member as usize].0
    }

    fn may_gain(&self, member: u32) -> bool {
        self.loads[member as usize] < self.bounds[member as usize].1
    }

    fn is_under(&self, member: u32) -> bool {
        self.loads[member as usize] < self.bounds[member as usize].0
    }

    fn is_over(&self, member: u32) -> bool {
        self.loads[member as usize] > self.bounds[member as usize].1
    }

    fn fill(&self, member: u32) -> i64 {
        self.quotas[member as usize].fill(self.loads[member as usize])
    }

    fn part<'t>(&self, table: &'t [u32], shard: u32) -> &'t [u32] {
        let at = shard as usize * self.stride;
        &table[at..at + self.stride]
    }

    fn set(&self, shard: u32) -> &[u32] {
        self.part(&self.sets, shard)
    }

    fn wants(&self, shard: u32) -> &'a [u32] {
        self.part(self.wanted, shard)
    }

    fn is_wanted(&self, shard: u32, member: u32) -> bool {
        self.wants(shard).contains(&member)
    }

    fn kind(&self, shard: u32, member: u32) -> Kind {
        if self.part(self.origin, shard).contains(&member) {
            Kind::Settled
        } else {
            Kind::Displaced
        }
    }

    fn held(&self, member: u32, kind: Kind) -> &[u32] {
        match kind {
            Kind::Settled => &self.settled[member as usize],
            Kind::Displaced => &self.displaced[member as usize],
        }
    }

    /// Whether the shard may exchange `from`, which it has, for `to`.
    fn allowed(&self, shard: u32, from: u32, to: u32) -> bool {
        let zone = self.roster.zone(to);
        let mut others = self.set(shard).iter().filter(|m| **m != from);
        others.all(|m| *m == NONE || self.roster.zone(*m) != zone)
    }

    /// Changes a load and all that is counted of it.
    fn set_load(&mut self, member: u32, load: u32) {
        let i = member as usize;
        let (low, high) = self.bounds[i];
        let loose = |load: u32| (low.saturating_sub(load), load.saturating_sub(high));
        let (under, over) = loose(self.loads[i]);
        self.under -= u64::from(under);
        self.over -= u64::from(over);
        self.by_fill.remove(&(self.fill(member), member));
        self.loads[i] = load;
        self.by_fill.insert((self.fill(member), member));
        let (under, over) = loose(load);
        self.under += u64::from(under);
        self.over += u64::from(over);
    }

    fn aim(&mut self, goal: Goal) {
        self.under = 0;
        self.over = 0;
        for (i, quota) in self.quotas.iter().enumerate() {
            let (low, high) = match goal {
                Goal::Band => quota.band(),
                Goal::Quota => (quota.floor(), quota.ceil()),
            };
            self.bounds[i] = (low, high);
            self.under += u64::from(low.saturating_sub(self.loads[i]));
            self.over += u64::from(self.loads[i].saturating_sub(high));
        }
    }

    fn gain(&mut self, shard: u32, member: u32) {
        match self.kind(shard, member) {
            Kind::Settled => self.settled[member as usize].push(shard),
            Kind::Displaced => {
                self.displaced[member as usize].push(shard);
                self.copies += 1;
            }
        }
        self.set_load(member, self.loads[member as usize] + 1);
    }

    fn lose(&mut self, shard: u32, member: u32) {
        let held = match self.kind(shard, member) {
            Kind::Settled => &mut self.settled[member as usize],
            Kind::Displaced => {
                self.copies -= 1;
                &mut self.displaced[member as usize]
            }
        };
        if let Some(i) = held.iter().position(|s| *s == shard) {
            held.swap_remove(i);
        }
        self.set_load(member, self.loads[member as usize] - 1);
    }

    fn put(&mut self, shard: u32, from: u32, to: u32) {
        let at = shard as usize * self.stride;
        let set = &mut self.sets[at..at + self.stride];
        if let Some(slot) = set.iter_mut().find(|m| **m == from) {
            *slot = to;
        }
        if from != NONE {
            self.lose(shard, from);
        }
        self.gain(shard, to);
        if let Some(journal) = &mut self.journal {
            journal.push((shard, from, to));
        }
    }

    /// Gives every missing replica a disk: a wanted one that is below its quota, else the emptiest.
    fn place_missing(&mut self) {
        self.aim(Goal::Quota);
        let mut left = Vec::new();
        for shard in 0..(self.sets.len() / self.stride.max(1)) as u32 {
            let missing = self.set(shard).iter().filter(|m| **m == NONE).count();
            for _ in 0..missing {
                let mut wants = self.wants(shard).iter().copied();
                let fits = wants.find(|w| {
                    !self.set(shard).contains(w)
                        && self.allowed(shard, NONE, *w)
                        && self.may_gain(*w)
                });
                match fits {
                    Some(to) => self.put(shard, NONE, to),
                    None => left.push(shard),
                }
            }
        }
        for shard in left {
            let mut emptiest = self.by_fill.iter().map(|(_, m)| *m);
            // There are at least as many zones as replicas, so one is free.
            if let Some(to) = emptiest.find(|m| self.allowed(shard, NONE, *m)) {
                self.put(shard, NONE, to);
            }
        }
    }

    fn level(&mut self, goal: Goal, budget: u64) {
        self.aim(goal);
        for member in 0..self.loads.len() as u32 {
            while self.is_under(member) && self.pull(member, budget) {}
        }
        for member in 0..self.loads.len() as u32 {
            while self.is_over(member) && self.push(member, budget) {}
        }
    }

    /// Brings replicas to a disk that has too few, in the cheapest way there is.
    fn pull(&mut self, to: u32, budget: u64) -> bool {
        use Kind::{Displaced, Settled};
        if self.pull_wanted(to, Displaced, Donor::Any, budget)
            || self.pull_one(to, Displaced, Donor::Any)
            || self.chain(to, false, Displaced)
        {
            return true;
        }
        if self.copies >= budget {
            return false;
        }
        self.pull_wanted(to, Settled, Donor::Over, budget)
            || self.over > 0 && self.pull_one(to, Settled, Donor::Over)
            || self.pull_wanted(to, Settled, Donor::Surplus, budget)
            || self.pull_wanted(to, Settled, Donor::Any, budget)
            || self.pull_one(to, Settled, Donor::Any)
            || self.chain(to, false, Settled)
    }

    fn gives(&self, member: u32, donor: Donor) -> bool {
        match donor {
            Donor::Over => self.is_over(member),
            Donor::Surplus => self.may_lose(member) && self.fill(member) > 0,
            Donor::Any => self.may_lose(member),
        }
    }

    /// Brings shards that want `to` there, from disks that they do not want, as many as it lacks.
    fn pull_wanted(&mut self, to: u32, kind: Kind, donor: Donor, budget: u64) -> bool {
        let suitors = std::mem::take(&mut self.suitors[to as usize]);
        let mut moved = false;
        for shard in &suitors {
            // What is lacking is first made of what is too much elsewhere; only the rest may come
            // from disks that could keep what they have.
            let spare = donor == Donor::Over || self.under > self.over;
            if !self.is_under(to) || kind == Kind::Settled && (self.copies >= budget || !spare) {
                break;
            }
            if self.set(*shard).contains(&to) {
                continue;
            }
            let from = self.set(*shard).iter().copied().filter(|m| {
                self.kind(*shard, *m) == kind
                    && !self.is_wanted(*shard, *m)
                    && self.allowed(*shard, *m, to)
                    && self.gives(*m, donor)
            });
            if let Some(from) = from.max_by_key(|m| self.fill(*m)) {
                self.put(*shard, from, to);
                moved = true;
            }
        }
        self.suitors[to as usize] = suitors;
        moved
    }

    /// Moves one replica to `to`, from the fullest disk that can give one.
    fn pull_one(&mut self, to: u32, kind: Kind, donor: Donor) -> bool {
        let found = self.by_fill.iter().rev().find_map(|(_, from)| {
            if *from == to || self.held(*from, kind).is_empty() || !self.gives(*from, donor) {
                return None;
            }
            let shard = self.best_shard(*from, to, kind)?;
            Some((shard, *from))
        });
        found.is_some_and(|(shard, from)| {
            self.put(shard, from, to);
            true
        })
    }

    /// Takes a replica from a disk that has too many, in the cheapest way there is.
    fn push(&mut self, from: u32, budget: u64) -> bool {
        use Kind::{Displaced, Settled};
        if self.push_home(from, Displaced)
            || self.push_one(from, Displaced)
            || self.chain(from, true, Displaced)
        {
            return true;
        }
        self.copies < budget
            && (self.push_home(from, Settled)
                || self.push_one(from, Settled)
                || self.chain(from, true, Settled))
    }

    /// Moves one replica from `from`, where it is not wanted, to a disk where it is.
    fn push_home(&mut self, from: u32, kind: Kind) -> bool {
        let found = self.held(from, kind).iter().find_map(|shard| {
            if self.is_wanted(*shard, from) {
                return None;
            }
            let mut wants = self.wants(*shard).iter();
            let home = wants.find(|to| {
                !self.set(*shard).contains(to)
                    && self.may_gain(**to)
                    && self.allowed(*shard, from, **to)
            })?;
            Some((*shard, *home))
        });
        found.is_some_and(|(shard, to)| {
            self.put(shard, from, to);
            true
        })
    }

    /// Moves one replica from `from` to the emptiest disk that can take one.
    fn push_one(&mut self, from: u32, kind: Kind) -> bool {
        if self.held(from, kind).is_empty() {
            return false;
        }
        let found = self.by_fill.iter().find_map(|(_, to)| {
            if *to == from || !self.may_gain(*to) {
                return None;
            }
            let shard = self.best_shard(from, *to, kind)?;
            Some((shard, *to))
        });
        found.is_some_and(|(shard, to)| {
            self.put(shard, from, to);
            true
        })
    }

    /// The shard whose move from one disk to the other leaves the fewest exceptions.
    fn best_shard(&self, from: u32, to: u32, kind: Kind) -> Option<u32> {
        let held = self.held(from, kind).iter().copied();
        held.filter(|s| self.allowed(*s, from, to)).min_by_key(|s| {
            let exception = i8::from(self.is_wanted(*s, from)) - i8::from(self.is_wanted(*s, to));
            (exception, *s)
        })
    }
}
