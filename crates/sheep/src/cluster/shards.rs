//! The shard records, packed: while one node has everything, all shards are in the same interval,
//! and one record says on which of the node's disks each of them is.

use bytes::Bytes;
use prost::Message;
use sheepdog_placement::{ClusterMap, Disk, Node, Placement, Policy, State, shard_of};
use sheepdog_types::limits::VNODES_DEFAULT;
use sheepdog_types::{DiskId, Error, ErrorKind, FragmentId, Interval, NodeId, Result};

/// Key of the one pack there is.
pub const SHARDS_KEY: &str = "shard/all";
/// Shards of a policy, as a power of two.
pub const SHARD_BITS: u8 = 12;
/// Disks of a node, as of old.
pub const DISKS_MAX: usize = 64;
/// All shards on one disk. Older programs read nothing else.
const FORMAT_ONE: u32 = 1;
/// With the place of each shard. The newest this program reads.
const FORMAT_SPREAD: u32 = 2;

/// The state of all shards. Those of all policies with the same number share a disk: there is one
/// zone, and so one copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardPack {
    /// The present interval. A single member is activated by its own start, so it is the last
    /// activated one too.
    pub interval: Interval,
    /// The disks; never none.
    pub disks: Vec<DiskId>,
    /// By shard, the position of its disk; empty if there is only one.
    places: Vec<u8>,
}

/// The fields as they are stored. Tags are for ever.
#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    interval: u64,
    #[prost(bytes = "vec", repeated, tag = "3")]
    acting: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    places: Vec<u8>,
}

impl ShardPack {
    /// The next interval of a cluster without data: shards spread over disks by their weights.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for no disk, too many, or one twice.
    pub fn spread(before: Option<Self>, disks: &[(DiskId, u64)]) -> Result<Self> {
        let interval =
            before.map_or(Ok(Interval(1)), |pack| pack.next().map(|pack| pack.interval))?;
        if disks.is_empty() || disks.len() > DISKS_MAX {
            let what = format!("{} disks, 1 to {DISKS_MAX}", disks.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let ids: Vec<DiskId> = disks.iter().map(|(id, _)| *id).collect();
        if ids.len() == 1 {
            return Ok(Self { interval, disks: ids, places: Vec::new() });
        }
        let disk = |(id, weight): &(DiskId, u64)| Disk {
            id: *id,
            // A full disk is a small one, not a lost one.
            weight: (*weight).max(1),
            state: State::Up,
        };
        let node = Node {
            id: NodeId([0; 16]),
            zone: 0,
            vnodes: VNODES_DEFAULT,
            state: State::Up,
            disks: disks.iter().map(disk).collect(),
        };
        let map = ClusterMap { nodes: vec![node] };
        let placement = Placement::fresh(&map, Policy::Copies(1), SHARD_BITS)?;
        let place = |shard: u32| {
            let disk = placement.acting_set(shard).first();
            let at = disk.and_then(|disk| ids.iter().position(|id| id == disk));
            at.and_then(|at| u8::try_from(at).ok()).ok_or_else(damaged)
        };
        let places = (0..placement.shards()).map(place).collect::<Result<_>>()?;
        Ok(Self { interval, disks: ids, places })
    }

    /// The same in the next interval.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when all numbers are used.
    pub fn next(mut self) -> Result<Self> {
        let next = self.interval.0.checked_add(1);
        let next = next.ok_or_else(|| Error::new(ErrorKind::Internal, "all intervals are used"))?;
        self.interval = Interval(next);
        Ok(self)
    }

    /// The same in an interval after this and after `known`.
    ///
    /// # Errors
    /// As [`ShardPack::next`].
    pub fn after(self, known: Interval) -> Result<Self> {
        let interval = self.interval.max(known);
        Self { interval, ..self }.next()
    }

    /// The position of a fragment's disk.
    #[must_use]
    pub fn place(&self, fragment: FragmentId) -> usize {
        let at = self.places.get(shard_of(fragment, SHARD_BITS) as usize);
        at.map_or(0, |at| usize::from(*at))
    }

    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Stored {
            format: if self.disks.len() == 1 { FORMAT_ONE } else { FORMAT_SPREAD },
            interval: self.interval.0,
            acting: self.disks.iter().map(|disk| disk.0.to_vec()).collect(),
            places: self.places.clone(),
        }
        .encode_to_vec()
        .into()
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] for what a newer version wrote, [`ErrorKind::Internal`] for
    /// what no version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let stored = Stored::decode(bytes).map_err(|_| damaged())?;
        if stored.format > FORMAT_SPREAD {
            return Err(Error::new(
                ErrorKind::VersionMismatch,
                "the shard records were written by a newer version",
            ));
        }
        let disks = stored.acting.iter().map(|id| <[u8; 16]>::try_from(id.as_slice()).map(DiskId));
        let disks: Vec<DiskId> = disks.collect::<Result<_, _>>().map_err(|_| damaged())?;
        let spread = disks.len() > 1;
        let good = (1..=DISKS_MAX).contains(&disks.len())
            && stored.format == if spread { FORMAT_SPREAD } else { FORMAT_ONE }
            && stored.places.len() == if spread { 1 << SHARD_BITS } else { 0 }
            && stored.places.iter().all(|at| usize::from(*at) < disks.len())
            && stored.interval > 0;
        if !good {
            return Err(damaged());
        }
        Ok(Self { interval: Interval(stored.interval), disks, places: stored.places })
    }
}

fn damaged() -> Error {
    Error::new(ErrorKind::Internal, "the shard records are damaged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_types::LineageId;

    const fn disk(id: u8) -> DiskId {
        DiskId([id; 16])
    }

    #[test]
    fn old_bytes_keep_their_meaning() {
        let disk = DiskId(std::array::from_fn(|i| i as u8));
        let first = ShardPack::spread(None, &[(disk, 0)]).expect("first");
        assert_eq!(first.interval, Interval(1));
        let bytes = first.encode();
        let old = b"\x08\x01\x10\x01\x1a\x10\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f";
        assert_eq!(&bytes[..], old);
        assert_eq!(ShardPack::decode(old).expect("decode"), first);
        assert_eq!(first.clone().next().expect("next").interval, Interval(2));
        let last = ShardPack { interval: Interval(u64::MAX), ..first };
        assert!(last.next().is_err());
    }

    #[test]
    fn fragments_are_spread_by_weight_and_stay_where_they_are() {
        let pack = ShardPack::spread(None, &[(disk(1), 3 << 30), (disk(2), 1 << 30), (disk(3), 0)])
            .expect("spread");
        let mut shards = [0; 3];
        pack.places.iter().for_each(|at| shards[usize::from(*at)] += 1);
        assert!((3020..=3120).contains(&shards[0]), "{shards:?}");
        assert!((1000..=1050).contains(&shards[1]) && shards[2] <= 1, "{shards:?}");
        let mut fragments = [0; 3];
        for number in 0..10_000 {
            let fragment = FragmentId { lineage: LineageId(7), number };
            fragments[pack.place(fragment)] += 1;
        }
        assert!((7300..=7700).contains(&fragments[0]), "{fragments:?}");
        let again = ShardPack::decode(&pack.encode()).expect("decode");
        assert_eq!(again, pack);
        assert!(ShardPack::spread(None, &[]).is_err());
        assert!(ShardPack::spread(None, &[(disk(1), 1), (disk(1), 1)]).is_err());
    }

    #[test]
    fn newer_and_damaged_records_are_told_apart() {
        let kind = |bytes: &[u8]| ShardPack::decode(bytes).expect_err("bad").kind();
        assert_eq!(kind(b"\x08\x03"), ErrorKind::VersionMismatch);
        for bytes in [&b""[..], b"\xff", b"\x08\x01\x10\x01", b"\x08\x01\x10\x01\x1a\x01x"] {
            assert_eq!(kind(bytes), ErrorKind::Internal, "{bytes:?}");
        }
        let mut pack = ShardPack::spread(None, &[(disk(1), 1), (disk(2), 1)]).expect("spread");
        pack.places[77] = 2;
        assert_eq!(kind(&pack.encode()), ErrorKind::Internal);
    }
}
