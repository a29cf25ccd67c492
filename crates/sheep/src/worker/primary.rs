//! Versions. One process is the primary of every shard while there is one node: it gives each
//! write the next version of its shard, in the interval of this run.

use crate::cluster::SHARD_BITS;
use sheepdog_placement::shard_of;
use sheepdog_types::{FragmentId, Interval, Version};

/// Hands out versions.
pub struct Primary {
    interval: Interval,
    /// The last sequence number given, by shard.
    seqs: Vec<u64>,
}

impl Primary {
    /// For one run of the process.
    pub fn new(interval: Interval) -> Self {
        Self { interval, seqs: vec![0; 1 << SHARD_BITS] }
    }

    /// The next version of a fragment. Commands must be given to the store in the order of their
    /// versions.
    pub fn next(&mut self, fragment: FragmentId) -> Version {
        let seq = &mut self.seqs[shard_of(fragment, SHARD_BITS) as usize];
        *seq += 1;
        Version { interval: self.interval, seq: *seq }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_types::LineageId;

    #[test]
    fn versions_of_a_fragment_grow_also_across_runs() {
        let fragment = FragmentId { lineage: LineageId(3), number: 9 };
        let mut first = Primary::new(Interval(4));
        let (a, b) = (first.next(fragment), first.next(fragment));
        let c = Primary::new(Interval(5)).next(fragment);
        assert!(a < b && b < c);
    }
}
