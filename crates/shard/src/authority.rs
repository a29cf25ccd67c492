//! What a new primary decides from the answers of replicas: who may decide at all (P1), and what
//! each fragment holds from then on (P2).
//!
//! Why it is safe. A write is acknowledged when every acting replica of an activated interval has it
//! durable, so each member of the last activated interval J that still has its disk (`les >= J`) has
//! every acknowledged write, as bytes or as a needed head. Therefore nothing that is above the
//! lowest head of *any* of them was acknowledged, and everything acknowledged is at or below it:
//! that is the floor. Above the floor all is free to be kept or dropped, below it nothing may be
//! chosen; the newest that can be completed is chosen so that nothing is copied in vain.

use sheepdog_types::{DiskId, Interval, Version};
use std::collections::{BTreeMap, BTreeSet};

/// An interval that served, and who had to confirm every write in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Activation {
    /// Which.
    pub interval: Interval,
    /// Its acting set.
    pub members: BTreeSet<DiskId>,
}

/// One replica's copy of one fragment, deleted or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copy {
    /// The version of the bytes that it holds; of all of them, unless it is missing.
    pub head: Version,
    /// The fragment is missing here: the version that it must come to hold.
    pub needed: Option<Version>,
}

impl Copy {
    /// A copy with all its bytes.
    #[must_use]
    pub const fn complete(head: Version) -> Self {
        Self { head, needed: None }
    }

    /// The version with which it counts when a candidate has it.
    #[must_use]
    pub fn counted(self) -> Version {
        self.needed.unwrap_or(self.head)
    }

    /// Whether others can copy that version from it. Old bytes of a missing fragment may be written
    /// over in part: they only help to choose chunks.
    #[must_use]
    pub fn is_source_of(self, version: Version) -> bool {
        self.needed.is_none() && self.head == version
    }
}

/// Not enough of the last activated interval is left or answers: the shard waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incomplete {
    /// Any of these would help, if it still has what it had.
    pub would_help: BTreeSet<DiskId>,
}

/// The replicas that may decide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidates(BTreeSet<DiskId>);

impl Candidates {
    /// P1: those that answered and were activated in the last activated interval or later. `les` is,
    /// by replica that answered, the last interval it was activated in; 0 for one that was wiped or
    /// lost its vote. An earlier interval is never gone back to.
    ///
    /// # Errors
    /// When no member of that interval is among them.
    pub fn of(last: &Activation, les: &BTreeMap<DiskId, Interval>) -> Result<Self, Incomplete> {
        let voters = les.iter().filter(|(_, les)| **les >= last.interval);
        let candidates: BTreeSet<DiskId> = voters.map(|(disk, _)| *disk).collect();
        // Before the first activation nothing was ever acknowledged.
        if last.members.is_empty() || !candidates.is_disjoint(&last.members) {
            return Ok(Self(candidates));
        }
        let silent = last.members.iter().filter(|disk| !les.contains_key(*disk));
        Err(Incomplete { would_help: silent.copied().collect() })
    }

    /// Them.
    #[must_use]
    pub const fn disks(&self) -> &BTreeSet<DiskId> {
        &self.0
    }

    /// P2 for one fragment, of which every replica that answered has told its copy. A fragment that
    /// nobody listed above the common baseline is equal everywhere and needs no decision.
    #[must_use]
    pub fn decide(&self, copies: &BTreeMap<DiskId, Copy>) -> Decision {
        let deciding = copies.iter().filter(|(disk, _)| self.0.contains(*disk));
        let counted: BTreeSet<Version> = deciding.map(|(_, copy)| copy.counted()).collect();
        // All of them are at or above the floor, which is the lowest.
        for head in counted.iter().rev() {
            let sources = copies.iter().filter(|(_, copy)| copy.is_source_of(*head));
            let sources: BTreeSet<DiskId> = sources.map(|(disk, _)| *disk).collect();
            if !sources.is_empty() {
                return Decision::Take { head: *head, sources };
            }
        }
        let floor = counted.first().copied().unwrap_or_default();
        Decision::Wait { floor }
    }
}

/// What becomes of a fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It holds this from now on.
    Take {
        /// The version.
        head: Version,
        /// Who has all bytes of it.
        sources: BTreeSet<DiskId>,
    },
    /// Nobody that answered has the bytes of what may be taken. A disk that has them at the floor or
    /// above would help.
    Wait {
        /// Everything acknowledged is at or below it.
        floor: Version,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn disk(number: u8) -> DiskId {
        DiskId([number; 16])
    }

    const fn at(interval: u64, seq: u64) -> Version {
        Version { interval: Interval(interval), seq }
    }

    fn last(interval: u64, members: &[u8]) -> Activation {
        let members = members.iter().map(|number| disk(*number)).collect();
        Activation { interval: Interval(interval), members }
    }

    fn answered(les: &[(u8, u64)]) -> BTreeMap<DiskId, Interval> {
        les.iter().map(|(number, les)| (disk(*number), Interval(*les))).collect()
    }

    fn copies(copies: &[(u8, Copy)]) -> BTreeMap<DiskId, Copy> {
        copies.iter().map(|(number, copy)| (disk(*number), *copy)).collect()
    }

    #[test]
    fn one_member_that_has_its_disk_is_enough_and_a_wiped_one_is_none() {
        let j = last(5, &[1, 2, 3]);
        let found = Candidates::of(&j, &answered(&[(1, 0), (2, 5), (9, 4)])).expect("2 has it");
        assert_eq!(found.disks().iter().copied().collect::<Vec<_>>(), [disk(2)]);
        let wiped = Candidates::of(&j, &answered(&[(1, 0), (2, 4), (9, 4)]));
        let would_help = BTreeSet::from([disk(3)]);
        assert_eq!(wiped, Err(Incomplete { would_help }), "never go further back");
        // One that was activated later, though that never served, is no member of J.
        let stranger = Candidates::of(&j, &answered(&[(9, 6)]));
        assert!(stranger.is_err());
        assert!(Candidates::of(&Activation::default(), &answered(&[])).is_ok());
    }

    #[test]
    fn the_newest_that_can_be_completed_is_taken() {
        let all = Candidates::of(&last(5, &[1, 2]), &answered(&[(1, 5), (2, 5), (3, 2)]));
        let all = all.expect("both");
        let take = |head, from: &[u8]| Decision::Take {
            head,
            sources: from.iter().map(|number| disk(*number)).collect(),
        };
        let complete = |seq| Copy::complete(at(5, seq));
        // The newest of the candidates, whether it was acknowledged or not.
        let decided = all.decide(&copies(&[(1, complete(7)), (2, complete(6))]));
        assert_eq!(decided, take(at(5, 7), &[1]));
        // Of another one it is not even looked at, but it is a source.
        let decided = all.decide(&copies(&[(1, complete(4)), (2, complete(4)), (3, complete(9))]));
        assert_eq!(decided, take(at(5, 4), &[1, 2]));
        let missing = Copy { head: at(2, 1), needed: Some(at(5, 4)) };
        let decided = all.decide(&copies(&[(1, missing), (2, missing), (3, complete(4))]));
        assert_eq!(decided, take(at(5, 4), &[3]));
        // What is missing and nowhere to be had was not acknowledged if another one has less.
        let decided = all.decide(&copies(&[(1, missing), (2, complete(3))]));
        assert_eq!(decided, take(at(5, 3), &[2]));
    }

    #[test]
    fn nothing_below_the_floor_is_taken() {
        let both = Candidates::of(&last(5, &[1, 2]), &answered(&[(1, 5), (2, 5), (3, 2)]));
        let missing = Copy { head: at(2, 1), needed: Some(at(5, 4)) };
        let old = Copy::complete(at(2, 1));
        let decided = both.expect("both").decide(&copies(&[(1, missing), (2, missing), (3, old)]));
        assert_eq!(decided, Decision::Wait { floor: at(5, 4) });
    }
}
