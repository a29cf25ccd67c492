//! What a replica knows durably of itself, beside its fragments and its table of requests: the
//! store keeps these bytes with the shard and does not look at them.

use crate::authority::Activation;
use sheepdog_types::{DiskId, Error, ErrorKind, Interval, Result, Version};

/// Version log. 1: first.
const FORMAT: u8 = 1;
/// Members of an acting set, at most: 31 copies, or 16 + 15 strips.
const MEMBERS_MAX: usize = 31;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplicaState {
    /// It takes part in no interval before this one.
    pub promised: Interval,
    /// The last interval it was activated in. Interval 0: it has no vote.
    pub les: Activation,
    /// It has everything that was acknowledged up to there, and so had every member then.
    pub clean: Version,
    /// Tombstones up to there may have been dropped, here or by who decided.
    pub floor: Version,
}

impl ReplicaState {
    /// Its bytes: format u8, promised u64, les u64, clean (u64, u64), floor (u64, u64), how many
    /// members u8, members (16 bytes each). Little-endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        let numbers = [
            self.promised.0,
            self.les.interval.0,
            self.clean.interval.0,
            self.clean.seq,
            self.floor.interval.0,
            self.floor.seq,
        ];
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        bytes.push(self.les.members.len() as u8);
        bytes.extend(self.les.members.iter().flat_map(|disk| disk.0));
        bytes
    }

    /// # Errors
    /// `Io`: these bytes are none, or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let malformed = || Error::new(ErrorKind::Io, "the state of a shard's copy is malformed");
        let (format, mut rest) = bytes.split_first().ok_or_else(malformed)?;
        if *format != FORMAT {
            let text = format!("the state of a shard's copy has format {format}, not {FORMAT}");
            return Err(Error::new(ErrorKind::Io, text));
        }
        let mut number = || {
            let (first, others) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
            rest = others;
            Ok::<u64, Error>(u64::from_le_bytes(*first))
        };
        let promised = Interval(number()?);
        let interval = Interval(number()?);
        let clean = Version { interval: Interval(number()?), seq: number()? };
        let floor = Version { interval: Interval(number()?), seq: number()? };
        let (count, members) = rest.split_first().ok_or_else(malformed)?;
        let (disks, odd) = members.as_chunks::<16>();
        if disks.len() != usize::from(*count) || disks.len() > MEMBERS_MAX || !odd.is_empty() {
            return Err(malformed());
        }
        let members = disks.iter().map(|disk| DiskId(*disk)).collect();
        Ok(Self { promised, les: Activation { interval, members }, clean, floor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let members = [DiskId([1; 16]), DiskId([2; 16])].into();
        let state = ReplicaState {
            promised: Interval(9),
            les: Activation { interval: Interval(8), members },
            clean: Version { interval: Interval(7), seq: 6 },
            floor: Version { interval: Interval(5), seq: 4 },
        };
        let bytes = state.encode();
        assert_eq!(ReplicaState::decode(&bytes).expect("its own bytes"), state);
        for len in 0..bytes.len() {
            assert!(ReplicaState::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(ReplicaState::decode(&longer).is_err());
        let newer = [&[2], &bytes[1..]].concat();
        assert!(ReplicaState::decode(&newer).expect_err("newer").to_string().contains("format 2"));
    }
}
