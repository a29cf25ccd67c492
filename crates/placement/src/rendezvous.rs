//! Weighted rendezvous hashing: which disks a shard *wants*.
//!
//! Each disk draws a number for each shard ([`draw`]); divided by its weight that is its score, and
//! low scores win. A node's score is the lowest of its disks', a zone's the lowest of its nodes',
//! and the zones with the lowest scores are taken, with their best node and that node's best disk.
//!
//! The lowest of several exponential draws is itself an exponential draw of the summed weight, so
//! this has exactly the distribution of drawing zone, node and disk one after the other. But it
//! moves less: when one disk's weight changes, only that disk's scores do, while with separate
//! draws a node that leaves would reshuffle its zone and, by the zone's lost weight, the cluster.

use crate::hash::{draw, shard_key};
use crate::map::Roster;

/// The score of a member for a shard. Compared exactly, as fractions.
#[derive(Clone, Copy, Debug)]
struct Score {
    draw: u64,
    weight: u64,
    member: u32,
}

impl Score {
    fn of(roster: &Roster, shard: u64, member: u32) -> Self {
        let m = &roster.members[member as usize];
        Self { draw: draw(shard, m.key), weight: m.weight, member }
    }

    /// Ties go to the lower disk id, the order of members.
    fn beats(&self, other: &Self) -> bool {
        let ours = u128::from(self.draw) * u128::from(other.weight);
        let theirs = u128::from(other.draw) * u128::from(self.weight);
        (ours, self.member) < (theirs, other.member)
    }
}

/// The best member of each of the best zones, best first.
struct Podium<'a> {
    roster: &'a Roster,
    shard: u64,
    stride: usize,
    best: Vec<Score>,
}

impl Podium<'_> {
    fn offer(&mut self, member: u32) {
        let score = Score::of(self.roster, self.shard, member);
        if self.best.len() == self.stride && self.best.last().is_none_or(|w| !score.beats(w)) {
            return;
        }
        let zone = self.roster.zone(member);
        let mut zones = self.best.iter().map(|s| self.roster.zone(s.member));
        match zones.position(|z| z == zone) {
            Some(i) if !score.beats(&self.best[i]) => return,
            Some(i) => {
                self.best.remove(i);
            }
            None => self.best.truncate(self.stride - 1),
        }
        let at = self.best.partition_point(|s| s.beats(&score));
        self.best.insert(at, score);
    }
}

/// The wanted members of all shards, `stride` for each, best first.
pub(crate) fn wanted(roster: &Roster, stride: usize, shards: u32) -> Vec<u32> {
    let mut table = Vec::with_capacity(shards as usize * stride);
    let mut podium = Podium { roster, shard: 0, stride, best: Vec::with_capacity(stride) };
    for shard in 0..shards {
        fill(&mut podium, shard);
        table.extend(podium.best.iter().map(|s| s.member));
    }
    table
}

fn fill(podium: &mut Podium<'_>, shard: u32) {
    podium.shard = shard_key(shard);
    podium.best.clear();
    for member in 0..podium.roster.members.len() as u32 {
        podium.offer(member);
    }
}

/// The best members for one shard, best first, at most one of a zone and `count` in all.
pub(crate) fn ranking(roster: &Roster, count: usize, shard: u32) -> Vec<u32> {
    let mut podium = Podium { roster, shard: 0, stride: count, best: Vec::new() };
    if count > 0 {
        fill(&mut podium, shard);
    }
    podium.best.iter().map(|s| s.member).collect()
}

/// [`wanted`] of `new`, from that of `old`: only disks that came or became heavier draw again, and
/// only shards that wanted a disk that went or became lighter are looked at in full.
pub(crate) fn wanted_after(
    old: &Roster,
    old_table: &[u32],
    new: &Roster,
    stride: usize,
    shards: u32,
) -> Vec<u32> {
    if stride == 0 || old_table.len() != shards as usize * stride {
        return wanted(new, stride, shards);
    }
    // Where each old member is now; none if it went, became lighter or changed its zone.
    let kept: Vec<Option<u32>> = old
        .members
        .iter()
        .map(|o| {
            let position = new.position(o.id)?;
            let n = &new.members[position as usize];
            let same_zone = new.zones[n.zone as usize] == old.zones[o.zone as usize];
            (same_zone && n.weight >= o.weight).then_some(position)
        })
        .collect();
    // Those whose scores may have become better.
    let rising: Vec<u32> = (0..new.members.len() as u32)
        .filter(|i| {
            let n = &new.members[*i as usize];
            old.position(n.id).is_none_or(|o| {
                let o = &old.members[o as usize];
                n.weight > o.weight || new.zones[n.zone as usize] != old.zones[o.zone as usize]
            })
        })
        .collect();
    let mut table = Vec::with_capacity(old_table.len());
    let mut podium = Podium { roster: new, shard: 0, stride, best: Vec::with_capacity(stride) };
    for (shard, before) in (0..shards).zip(old_table.chunks_exact(stride)) {
        if before.iter().any(|m| kept[*m as usize].is_none()) {
            fill(&mut podium, shard);
        } else {
            podium.shard = shard_key(shard);
            podium.best.clear();
            for member in before.iter().filter_map(|m| kept[*m as usize]) {
                podium.offer(member);
            }
            for member in &rising {
                podium.offer(*member);
            }
        }
        table.extend(podium.best.iter().map(|s| s.member));
    }
    table
}

#[cfg(test)]
mod tests;
