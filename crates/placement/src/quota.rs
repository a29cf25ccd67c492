//! How many replicas each disk should hold: the best that the zone rule allows, and the band
//! around it that is left alone.
//!
//! **The best.** With `2^b` shards and one replica per zone, no zone can hold more than `2^b`.
//! Water is filled into the zones in proportion to their weights; a zone that would overflow is
//! full, and the rest goes to the others, still in proportion. Within a zone nothing stands in the
//! way, so each disk's *quota* is its zone's load in proportion to its weight.

use crate::map::Roster;
use std::cmp::Reverse;

/// Fractional bits of a quota.
pub(crate) const QUOTA_BITS: u32 = 32;
/// A disk may stray from its quota by one part in so many (1.56 %), or by rounding to a neighbour.
const BAND: u64 = 64;

/// What one disk should hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Quota {
    /// Replicas, times 2^32; never 0.
    pub exact: u64,
}

impl Quota {
    pub fn floor(self) -> u32 {
        (self.exact >> QUOTA_BITS) as u32
    }

    pub fn ceil(self) -> u32 {
        (self.exact.div_ceil(1 << QUOTA_BITS)) as u32
    }

    /// Fewest and most replicas that need no correction.
    pub fn band(self) -> (u32, u32) {
        let slack = self.exact / BAND;
        let low = (self.exact - slack).div_ceil(1 << QUOTA_BITS) as u32;
        let high = ((self.exact + slack) >> QUOTA_BITS) as u32;
        (low.min(self.floor()), high.max(self.ceil()))
    }

    /// How much fuller than its quota a disk is, in parts of 2^20 of the quota.
    pub fn fill(self, load: u32) -> i64 {
        let surplus = (i128::from(load) << QUOTA_BITS) - i128::from(self.exact);
        let parts = (surplus << 20) / i128::from(self.exact);
        parts.min(i128::from(i64::MAX)) as i64
    }
}

/// The quota of every member.
pub(crate) fn quotas(roster: &Roster, stride: usize, shards: u32) -> Vec<Quota> {
    let mut weights = vec![0u128; roster.zones.len()];
    for m in &roster.members {
        weights[m.zone as usize] += u128::from(m.weight);
    }
    // Heaviest zones first: those overflow first.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|z| (Reverse(weights[*z]), *z));
    let mut open: u128 = weights.iter().sum();
    let mut copies = stride as u128;
    let mut full = vec![false; weights.len()];
    for z in order {
        if copies == 0 || weights[z] * copies < open {
            break;
        }
        full[z] = true;
        copies -= 1;
        open -= weights[z];
    }
    let quota = |weight: u64, zone: usize| {
        let (copies, total) = if full[zone] { (1, weights[zone]) } else { (copies, open) };
        let exact = (u128::from(shards) << QUOTA_BITS) * copies * u128::from(weight) / total;
        Quota { exact: (exact as u64).max(1) }
    };
    let members = roster.members.iter();
    members.map(|m| quota(m.weight, m.zone as usize)).collect()
}

#[cfg(test)]
mod tests;
