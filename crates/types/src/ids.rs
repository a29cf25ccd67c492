//! Newtypes for ids and versions. No arithmetic on them happens outside this file.

use std::fmt;
use std::num::NonZeroU32;

/// Id of a VDI: 24 bits, never 0. Shown as lower-case hex without prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vid(NonZeroU32);

impl Vid {
    /// Number of ids there are, 0 (never used) included.
    pub const COUNT: u32 = 1 << 24;

    /// `None` for 0 and for values beyond 24 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(found) if value < Self::COUNT => Some(Self(found)),
            _ => None,
        }
    }

    /// The bare number, in `1..2^24`.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vid:{:x}", self.0)
    }
}

/// A VDI with all its snapshots and rollback branches. Given out by a counter in the registry,
/// never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineageId(pub u64);

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The unit of ordering, storage and recovery: one piece of a lineage's address space, holding
/// the blocks of all its vids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentId {
    /// Whose address space.
    pub lineage: LineageId,
    /// Byte offset in the disk divided by the fragment size.
    pub number: u64,
}

impl FragmentId {
    /// Smallest and largest possible fragment of a lineage, for range scans.
    #[must_use]
    pub const fn range_of(lineage: LineageId) -> std::ops::RangeInclusive<Self> {
        Self { lineage, number: 0 }..=Self { lineage, number: u64::MAX }
    }
}

impl fmt::Display for FragmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.lineage, self.number)
    }
}

/// Version of one shard's acting set; a new one starts whenever that set or its primary changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Interval(pub u64);

/// Version of a fragment, given only by the primary of `interval`; ordered lexicographically.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Version {
    /// In which interval it was given.
    pub interval: Interval,
    /// Strictly increasing within (shard, interval).
    pub seq: u64,
}

impl Version {
    /// The head of a fragment that was never written.
    pub const ZERO: Self = Self { interval: Interval(0), seq: 0 };
    /// Of a chunk that was written while the rest of its bytes was missing: it says nothing of what
    /// the chunk holds, so two of them are never the same (see [`Version::matches`]).
    pub const UNKNOWN: Self = Self { interval: Interval(u64::MAX), seq: u64::MAX };

    /// Whether chunks of these versions hold the same.
    #[must_use]
    pub fn matches(self, other: Self) -> bool {
        self == other && self != Self::UNKNOWN
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.interval.0, self.seq)
    }
}

/// One of the hash ranges of the fragments under one redundancy policy: the unit of ordering, peering
/// and recovery.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ShardId {
    /// The set of shards of one policy, numbered in the order in which policies came into use.
    pub set: u16,
    /// Which of them, below 2^b.
    pub number: u32,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:x}", self.set, self.number)
    }
}

/// Names a node for ever, across restarts and changes of address. It does not enter any hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(pub [u8; 16]);

/// One run of a node's process. Grows with each start; given by the registry, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Process {
    /// Whose.
    pub node: NodeId,
    /// Which of its runs.
    pub incarnation: u64,
}

/// Slots that one gateway may have in use in one shard.
pub const GATEWAY_SLOTS: usize = 256;

/// Names one request of a gateway to a shard, so that it is executed at most once however often it is
/// sent. A slot is used again only when its request was answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId {
    /// The gateway.
    pub gateway: Process,
    /// The lowest that was free.
    pub slot: u8,
    /// Grows with each request in the slot, from 1.
    pub seq: u64,
}

/// A disk (one data path of a node), named for ever by the uuid in its superblock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub [u8; 16]);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk:{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vid_has_24_bits_and_is_never_zero() {
        assert_eq!(Vid::new(0), None);
        assert_eq!(Vid::new(1 << 24), None);
        assert_eq!(Vid::new(0x7c_2b25).map(|v| v.to_string()), Some("7c2b25".to_owned()));
        assert_eq!(Vid::new(0xff_ffff).map(Vid::get), Some(0xff_ffff));
    }

    #[test]
    fn versions_order_by_interval_first() {
        let v = |i, seq| Version { interval: Interval(i), seq };
        assert!(v(1, u64::MAX) < v(2, 0));
        assert!(v(2, 1) < v(2, 2));
        assert!(Version::ZERO < v(1, 0));
    }

    #[test]
    fn what_is_unknown_matches_nothing() {
        assert!(Version::ZERO.matches(Version::ZERO));
        assert!(!Version::ZERO.matches(Version::UNKNOWN));
        assert!(!Version::UNKNOWN.matches(Version::UNKNOWN));
    }
}
