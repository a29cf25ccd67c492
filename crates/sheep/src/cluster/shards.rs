//! The shard records, packed: while one node has everything, all shards of all policies are in
//! the same interval on the same disk, and one record says so.

use bytes::Bytes;
use prost::Message;
use sheepdog_types::{DiskId, Error, ErrorKind, Interval, Result};

/// Key of the one pack there is.
pub const SHARDS_KEY: &str = "shard/all";
/// The newest format this program reads, and the one it writes.
const FORMAT: u32 = 1;

/// The state that all shards share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardPack {
    /// The present interval. A single member is activated by its own start, so it is the last
    /// activated one too.
    pub interval: Interval,
    /// The acting set.
    pub disk: DiskId,
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
}

impl ShardPack {
    /// The next interval, on this disk.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when all numbers are used.
    pub fn after(before: Option<&Self>, disk: DiskId) -> Result<Self> {
        let last = before.map_or(0, |pack| pack.interval.0);
        let next = last
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "all intervals are used"))?;
        Ok(Self { interval: Interval(next), disk })
    }

    /// The bytes the registry keeps.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Stored { format: FORMAT, interval: self.interval.0, acting: vec![self.disk.0.to_vec()] }
            .encode_to_vec()
            .into()
    }

    /// The record those bytes hold.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] for what a newer version wrote, [`ErrorKind::Internal`] for
    /// what no version writes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Internal, "the shard records are damaged");
        let stored = Stored::decode(bytes).map_err(|_| damaged())?;
        if stored.format > FORMAT {
            return Err(Error::new(
                ErrorKind::VersionMismatch,
                "the shard records were written by a newer version",
            ));
        }
        let [disk] = stored.acting.as_slice() else {
            return Err(damaged());
        };
        let disk = <[u8; 16]>::try_from(disk.as_slice()).map_err(|_| damaged())?;
        if stored.format == 0 || stored.interval == 0 {
            return Err(damaged());
        }
        Ok(Self { interval: Interval(stored.interval), disk: DiskId(disk) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_bytes_keep_their_meaning() {
        let disk = DiskId(std::array::from_fn(|i| i as u8));
        let first = ShardPack::after(None, disk).expect("first");
        assert_eq!(first.interval, Interval(1));
        let bytes = first.encode();
        let old = b"\x08\x01\x10\x01\x1a\x10\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f";
        assert_eq!(&bytes[..], old);
        assert_eq!(ShardPack::decode(old).expect("decode"), first);
        let last = ShardPack { interval: Interval(u64::MAX), disk };
        assert!(ShardPack::after(Some(&last), disk).is_err());
    }

    #[test]
    fn newer_and_damaged_records_are_told_apart() {
        let kind = |bytes: &[u8]| ShardPack::decode(bytes).expect_err("bad").kind();
        assert_eq!(kind(b"\x08\x02"), ErrorKind::VersionMismatch);
        for bytes in [&b""[..], b"\xff", b"\x08\x01\x10\x01", b"\x08\x01\x10\x01\x1a\x01x"] {
            assert_eq!(kind(bytes), ErrorKind::Internal, "{bytes:?}");
        }
    }
}
