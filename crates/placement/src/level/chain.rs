//! Chains of moves, for when the zone rule allows no single move from a disk that can give to one
//! that can take: replicas move over disks in between, whose loads stay as they are.

use super::{Kind, Leveller};
use std::collections::VecDeque;

impl Leveller<'_> {
    /// Finds and makes a shortest chain that takes a replica from `end` (`giving`) or brings one
    /// there. With [`Kind::Displaced`] it costs nothing; with [`Kind::Settled`] any replica may
    /// move.
    pub(super) fn chain(&mut self, end: u32, giving: bool, kind: Kind) -> bool {
        // How each disk was reached: by which shard's move, from or to which disk.
        let mut reached: Vec<Option<(u32, u32)>> = vec![None; self.loads.len()];
        let mut queue = VecDeque::from([end]);
        let mut found = None;
        'search: while let Some(at) = queue.pop_front() {
            let steps = if giving {
                self.steps_from(at, kind, &reached)
            } else {
                self.steps_to(at, kind, &reached)
            };
            for (shard, next) in steps {
                if next == end || reached[next as usize].is_some() {
                    continue;
                }
                reached[next as usize] = Some((shard, at));
                if giving && self.may_gain(next) || !giving && self.may_lose(next) {
                    found = Some(next);
                    break 'search;
                }
                queue.push_back(next);
            }
        }
        let Some(mut at) = found else {
            return false;
        };
        // From the far end back. Every step was allowed by itself; together they are because the
        // chain is a shortest one: had two moves of one shard ended in one zone, the earlier could
        // have gone straight to where the later went. So no check ever fails, but a failed one
        // must not break the zone rule or go round for ever.
        let mut made = Vec::new();
        while let Some((shard, next)) = reached[at as usize] {
            let (from, to) = if giving { (next, at) } else { (at, next) };
            if !self.set(shard).contains(&from) || !self.allowed(shard, from, to) {
                for (shard, from, to) in made.into_iter().rev() {
                    self.put(shard, to, from);
                }
                return false;
            }
            self.put(shard, from, to);
            made.push((shard, from, to));
            at = next;
        }
        true
    }

    fn movable(&self, member: u32, kind: Kind) -> impl Iterator<Item = u32> {
        let settled = match kind {
            Kind::Displaced => &[][..],
            Kind::Settled => self.held(member, Kind::Settled),
        };
        let displaced = self.held(member, Kind::Displaced);
        displaced.iter().chain(settled).copied()
    }

    /// Moves away from `at`, one to each disk that is not reached yet.
    fn steps_from(&self, at: u32, kind: Kind, reached: &[Option<(u32, u32)>]) -> Vec<(u32, u32)> {
        // Which shard can go to a zone: all disks of a zone are alike to it.
        let mut by_zone: Vec<Option<u32>> = vec![None; self.roster.zones.len()];
        let mut open = by_zone.len();
        for shard in self.movable(at, kind) {
            let mut taken: Vec<u32> = Vec::with_capacity(self.stride);
            let others = self.set(shard).iter().filter(|m| **m != at);
            taken.extend(others.map(|m| self.roster.zone(*m)));
            for (zone, entry) in (0..).zip(&mut by_zone) {
                if entry.is_none() && !taken.contains(&zone) {
                    *entry = Some(shard);
                    open -= 1;
                }
            }
            if open == 0 {
                break;
            }
        }
        let disks = 0..self.loads.len() as u32;
        disks
            .filter(|to| *to != at && reached[*to as usize].is_none())
            .filter_map(|to| Some((by_zone[self.roster.zone(to) as usize]?, to)))
            .collect()
    }

    /// Moves to `at`, one from each disk that is not reached yet.
    fn steps_to(&self, at: u32, kind: Kind, reached: &[Option<(u32, u32)>]) -> Vec<(u32, u32)> {
        let disks = 0..self.loads.len() as u32;
        disks
            .filter(|from| *from != at && reached[*from as usize].is_none())
            .filter_map(|from| {
                let mut shards = self.movable(from, kind);
                Some((shards.find(|s| self.allowed(*s, from, at))?, from))
            })
            .collect()
    }
}
