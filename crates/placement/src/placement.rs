//! The placement of one policy's shards under one map: built fresh, followed through changes of
//! the map, and read back from its table of exceptions.

use crate::hash::{BITS_MAX, order_key, shard_key};
use crate::level::{Leveller, NONE, tidied};
use crate::map::{ClusterMap, Policy, Roster, WIDTH_MAX, invalid};
use crate::quota::{QUOTA_BITS, Quota, quotas};
use crate::rendezvous::{ranking, wanted, wanted_after};
use sheepdog_types::{DiskId, Result};
use std::collections::BTreeMap;

/// A replica that is not where rendezvous hashing wants it, so that loads are level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Exception {
    /// Of which shard.
    pub shard: u32,
    /// A disk that the shard wants.
    pub wanted: DiskId,
    /// The disk that it has instead.
    pub instead: DiskId,
}

/// Where the shards of one policy live. A value: a change of the map makes a new one.
///
/// Two placements with equal maps, policies, bits and exceptions are equal, on any machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    policy: Policy,
    bits: u8,
    roster: Roster,
    stride: usize,
    quotas: Vec<Quota>,
    /// Wanted members, `stride` per shard, best first.
    wanted: Vec<u32>,
    /// Members, `stride` per shard, in the order of the acting set.
    sets: Vec<u32>,
    /// The same as ids.
    ids: Vec<DiskId>,
}

/// How many replicas one disk holds and should hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskLoad {
    /// Which.
    pub disk: DiskId,
    /// Replicas on it.
    pub replicas: u32,
    /// Its share of the best that the zone rule allows, in replicas times 2^32.
    pub quota: u64,
}

/// A replica that a change of placement makes on a disk that did not have it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Move {
    /// Of which shard.
    pub shard: u32,
    /// The disk that had a replica and is to drop it; none if the shard gains one.
    pub from: Option<DiskId>,
    /// The disk that gets a replica.
    pub to: DiskId,
}

impl Placement {
    /// The placement of shards that hold nothing yet: level, whatever it takes. A function of its
    /// arguments alone.
    ///
    /// # Errors
    /// [`sheepdog_types::ErrorKind::Invalid`] for a map that names a disk twice, weights out of
    /// range, more than [`BITS_MAX`] bits and a policy of no or too many disks.
    pub fn fresh(map: &ClusterMap, policy: Policy, bits: u8) -> Result<Self> {
        let mut new = Self::frame(map, policy, bits)?;
        new.wanted = wanted(&new.roster, new.stride, new.shards());
        let sets = Leveller::fresh(&new.roster, &new.quotas, new.stride, &new.wanted);
        new.finish(sets);
        Ok(new)
    }

    /// The placement after a change of the map: as [`Placement::fresh`], but moving no more than
    /// the change makes necessary. A function of this placement and the map.
    ///
    /// # Errors
    /// As [`Placement::fresh`].
    pub fn after(&self, map: &ClusterMap) -> Result<Self> {
        let mut new = Self::frame(map, self.policy, self.bits)?;
        let (old_roster, shards) = (&self.roster, new.shards());
        new.wanted = if self.stride == new.stride {
            wanted_after(old_roster, &self.wanted, &new.roster, new.stride, shards)
        } else {
            wanted(&new.roster, new.stride, shards)
        };
        let position: Vec<Option<u32>> =
            old_roster.members.iter().map(|m| new.roster.position(m.id)).collect();
        let mut sets = vec![NONE; shards as usize * new.stride];
        for shard in 0..shards {
            let mut kept: Vec<u32> = Vec::with_capacity(new.stride);
            for m in self.members(shard) {
                let Some(m) = position[*m as usize] else {
                    continue;
                };
                // Nodes may have changed their zone: of two that now share one, the first stays.
                let zone = new.roster.zone(m);
                if kept.len() < new.stride && kept.iter().all(|k| new.roster.zone(*k) != zone) {
                    kept.push(m);
                }
            }
            let at = shard as usize * new.stride;
            sets[at..at + kept.len()].copy_from_slice(&kept);
        }
        let budget = self.unavoidable(&new);
        let sets =
            Leveller::change(&new.roster, &new.quotas, new.stride, &new.wanted, &sets, budget);
        new.finish(sets);
        Ok(new)
    }

    /// The placement with fewer exceptions: up to `copies` replicas move, each to a disk that its
    /// shard wants, and every load stays within its band. For a cluster that is idle; each search
    /// for moves takes time in proportion to the table.
    #[must_use]
    pub fn tidied(&self, copies: u64) -> Self {
        let mut new = self.clone();
        let (roster, quotas) = (&self.roster, &self.quotas);
        let sets = tidied(roster, quotas, self.stride, &self.wanted, &self.sets, copies);
        new.finish(sets);
        new
    }

    /// The placement that has these [`Placement::exceptions`] under this map.
    ///
    /// # Errors
    /// As [`Placement::fresh`], and if the exceptions are not of this map, policy and bits.
    pub fn with_exceptions(
        map: &ClusterMap,
        policy: Policy,
        bits: u8,
        exceptions: &[Exception],
    ) -> Result<Self> {
        let mut new = Self::frame(map, policy, bits)?;
        new.wanted = wanted(&new.roster, new.stride, new.shards());
        let mut sets = new.wanted.clone();
        if exceptions.len() > sets.len() {
            let (many, most) = (exceptions.len(), sets.len());
            return Err(invalid(format!("{many} exceptions for {most} replicas")));
        }
        for e in exceptions {
            let member = |disk| {
                let found = new.roster.position(disk);
                found.ok_or_else(|| invalid(format!("an exception names disk {disk}")))
            };
            let (from, to) = (member(e.wanted)?, member(e.instead)?);
            let at = e.shard as usize * new.stride;
            let part = at..at + new.stride;
            let is_wanted = |m| new.wanted.get(part.clone()).is_some_and(|w| w.contains(&m));
            let known = is_wanted(from) && !is_wanted(to);
            let set = sets.get_mut(part.clone()).filter(|_| known);
            let slot = set.and_then(|set| set.iter_mut().find(|m| **m == from));
            let slot = slot.ok_or_else(|| {
                let (shard, disk) = (e.shard, e.wanted);
                invalid(format!("an exception of shard {shard} from disk {disk}"))
            })?;
            *slot = to;
        }
        if new.stride > 0 {
            for (shard, set) in sets.chunks_exact(new.stride).enumerate() {
                let mut zones: Vec<u32> = set.iter().map(|m| new.roster.zone(*m)).collect();
                zones.sort_unstable();
                if zones.windows(2).any(|w| w[0] == w[1]) {
                    let text = format!("exceptions put two replicas of shard {shard} in one zone");
                    return Err(invalid(text));
                }
            }
        }
        new.finish(sets);
        Ok(new)
    }

    fn frame(map: &ClusterMap, policy: Policy, bits: u8) -> Result<Self> {
        if bits > BITS_MAX {
            return Err(invalid(format!("{bits} shard bits, at most {BITS_MAX}")));
        }
        if policy.width() == 0 || policy.width() > u32::from(WIDTH_MAX) {
            let width = policy.width();
            return Err(invalid(format!("{width} disks per shard, 1 to {WIDTH_MAX}")));
        }
        let roster = Roster::of(map)?;
        let stride = roster.stride(policy);
        let quotas = quotas(&roster, stride, 1 << bits);
        Ok(Self {
            policy,
            bits,
            roster,
            stride,
            quotas,
            wanted: Vec::new(),
            sets: Vec::new(),
            ids: Vec::new(),
        })
    }

    fn finish(&mut self, mut sets: Vec<u32>) {
        let members = &self.roster.members;
        if self.stride > 0 {
            for (shard, set) in (0..).zip(sets.chunks_exact_mut(self.stride)) {
                let shard = shard_key(shard);
                set.sort_by_key(|m| (order_key(shard, members[*m as usize].key), *m));
            }
        }
        self.ids = sets.iter().map(|m| members[*m as usize].id).collect();
        self.sets = sets;
    }

    /// The redundancy it is for.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Number of shard bits.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// Number of shards.
    #[must_use]
    pub const fn shards(&self) -> u32 {
        1 << self.bits
    }

    /// Disks of every acting set: the policy's, or one per zone where there are fewer zones.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.stride
    }

    /// The disks of a shard, no two of one zone. The first is the natural place of the primary;
    /// every member is equally often first, and those that stay through a change keep their order.
    /// Empty if no disk takes part, or for a shard there is not.
    #[must_use]
    pub fn acting_set(&self, shard: u32) -> &[DiskId] {
        let at = shard as usize * self.stride;
        self.ids.get(at..at + self.stride).unwrap_or(&[])
    }

    /// Where a shard turns when members of its acting set cannot act: the disks it wants most in
    /// zones that the acting set does not have, best first, at most `count`.
    #[must_use]
    pub fn substitutes(&self, shard: u32, count: usize) -> Vec<DiskId> {
        let zones: Vec<u32> = self.members(shard).iter().map(|m| self.roster.zone(*m)).collect();
        let count = count.min(self.roster.zones.len());
        let best = ranking(&self.roster, count + zones.len(), shard);
        let others = best.iter().filter(|m| !zones.contains(&self.roster.zone(**m)));
        let ids = others.map(|m| self.roster.members[*m as usize].id);
        ids.take(count).collect()
    }

    fn members(&self, shard: u32) -> &[u32] {
        let at = shard as usize * self.stride;
        self.sets.get(at..at + self.stride).unwrap_or(&[])
    }

    /// The table of exceptions, by shard. Together with the map it is the placement.
    #[must_use]
    pub fn exceptions(&self) -> Vec<Exception> {
        let mut table = Vec::new();
        if self.stride == 0 {
            return table;
        }
        let id = |m: u32| self.roster.members[m as usize].id;
        for shard in 0..self.shards() {
            let at = shard as usize * self.stride;
            let wants = &self.wanted[at..at + self.stride];
            let set = self.members(shard);
            let missed = wants.iter().filter(|m| !set.contains(m));
            let instead = set.iter().filter(|m| !wants.contains(m));
            table.extend(missed.zip(instead).map(|(missed, instead)| Exception {
                shard,
                wanted: id(*missed),
                instead: id(*instead),
            }));
        }
        table
    }

    /// Every disk that takes part, by id.
    #[must_use]
    pub fn loads(&self) -> Vec<DiskLoad> {
        let mut replicas = vec![0; self.roster.members.len()];
        for m in &self.sets {
            replicas[*m as usize] += 1;
        }
        let members = self.roster.members.iter().zip(&self.quotas).zip(replicas);
        members
            .map(|((m, quota), replicas)| DiskLoad { disk: m.id, replicas, quota: quota.exact })
            .collect()
    }

    /// How many replicas *have* to move for the quotas of this map to become those of `new`: the
    /// sum over all disks of what their quotas grow, rounded down.
    #[must_use]
    pub fn unavoidable(&self, new: &Self) -> u64 {
        let grown = new.roster.members.iter().zip(&new.quotas).map(|(m, quota)| {
            let old = self.roster.position(m.id);
            let old = old.map_or(0, |o| self.quotas[o as usize].exact);
            u128::from(quota.exact.saturating_sub(old))
        });
        (grown.sum::<u128>() >> QUOTA_BITS) as u64
    }
}

/// What has to be copied to get from one placement to another of the same policy and bits, by
/// shard. Drops that make room for nothing are not listed.
#[must_use]
pub fn movement(old: &Placement, new: &Placement) -> Vec<Move> {
    let mut moves = Vec::new();
    for shard in 0..new.shards() {
        let (before, after) = (old.acting_set(shard), new.acting_set(shard));
        let mut dropped = before.iter().filter(|d| !after.contains(d));
        for to in after.iter().filter(|d| !before.contains(d)) {
            moves.push(Move { shard, from: dropped.next().copied(), to: *to });
        }
    }
    moves
}

/// The loads of several placements of one map, added up by disk: what a disk holds of all policies.
#[must_use]
pub fn total_loads(placements: &[&Placement]) -> Vec<DiskLoad> {
    let mut total: BTreeMap<DiskId, DiskLoad> = BTreeMap::new();
    for load in placements.iter().flat_map(|p| p.loads()) {
        let entry =
            total.entry(load.disk).or_insert(DiskLoad { disk: load.disk, replicas: 0, quota: 0 });
        entry.replicas += load.replicas;
        entry.quota += load.quota;
    }
    total.into_values().collect()
}
