//! What writes put into blocks: bytes that tell which write, which VDI, which block, and which part of
//! it, so that a block that was torn, mixed or put in the wrong place does not pass for another.

use crate::history::{DAMAGED, Value, ZEROS};
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Vid};
use std::fmt;

/// Each so many bytes tell everything.
const UNIT: usize = 16;

/// What a block holds that is one whole write's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Which write.
    pub value: Value,
    /// To which VDI; a clone shows its base's.
    pub vid: Vid,
}

/// A block that is no whole write's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The first byte that does not belong there.
    pub at: usize,
    /// What the beginning of the block says, and what is said there: value, block, VDI, part.
    pub found: [(Value, u32, u32, u8); 2],
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} does not belong there:", self.at)?;
        for (value, block, vid, part) in self.found {
            write!(f, " value {value} block {block} vid {vid:x} part {part};")?;
        }
        Ok(())
    }
}

fn unit(value: Value, vid: u32, block: u64, part: u8) -> [u8; UNIT] {
    let mut bytes = [0; UNIT];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..12].copy_from_slice(&(block as u32).to_le_bytes());
    bytes[12..].copy_from_slice(&(vid << 8 | u32::from(part)).to_le_bytes());
    bytes
}

fn told(unit: &[u8; UNIT]) -> (Value, u32, u32, u8) {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let block = number(&unit[8..12]) as u32;
    (number(&unit[..8]), block, number(&unit[13..]) as u32, unit[12])
}

/// The bytes with which a write fills a block.
///
/// # Panics
/// For values that are not a write's.
#[must_use]
pub fn fill(value: Value, vid: Vid, block: u64) -> Bytes {
    assert!(value != ZEROS && value != DAMAGED, "not the value of a write");
    let mut bytes = Vec::with_capacity(BLOCK_SIZE);
    for part in 0..=u8::MAX {
        bytes.extend_from_slice(&unit(value, vid.get(), block, part));
    }
    bytes.into()
}

/// What a block holds; `None` for zeros.
///
/// # Errors
/// When it is no whole write's to that block.
pub fn read_back(bytes: &[u8], block: u64) -> Result<Option<Stamp>, Damage> {
    let (units, rest) = bytes.as_chunks::<UNIT>();
    assert!(units.len() == BLOCK_SIZE / UNIT && rest.is_empty(), "not a block");
    let (value, _, vid, _) = told(&units[0]);
    let zeros = units[0] == [0; UNIT];
    for (part, found) in units.iter().enumerate() {
        let right = if zeros { [0; UNIT] } else { unit(value, vid, block, part as u8) };
        if *found != right {
            return Err(Damage { at: part * UNIT, found: [told(&units[0]), told(found)] });
        }
    }
    if zeros {
        return Ok(None);
    }
    let vid = Vid::new(vid).filter(|_| value != ZEROS && value != DAMAGED);
    let damage = Damage { at: 0, found: [told(&units[0]); 2] };
    vid.map(|vid| Some(Stamp { value, vid })).ok_or(damage)
}

/// What a read of a block saw, for a history: [`DAMAGED`] also for what was written to another VDI.
#[must_use]
pub fn value_of(bytes: &[u8], vid: Vid, block: u64) -> Value {
    match read_back(bytes, block) {
        Ok(None) => ZEROS,
        Ok(Some(stamp)) if stamp.vid == vid => stamp.value,
        Ok(Some(_)) | Err(_) => DAMAGED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    const VID: Vid = Vid::new(0xab_cdef).expect("in range");
    const OTHER: Vid = Vid::new(1).expect("in range");

    #[test]
    fn whole_blocks_are_told_from_mixed_and_misplaced_ones() {
        let whole = fill(77, VID, 5);
        assert_eq!(whole.len(), BLOCK_SIZE);
        assert_eq!(read_back(&whole, 5), Ok(Some(Stamp { value: 77, vid: VID })));
        assert_eq!(value_of(&whole, VID, 5), 77);
        assert_eq!(value_of(&whole, OTHER, 5), DAMAGED);
        assert_eq!(value_of(&whole, VID, 6), DAMAGED);
        assert_eq!(value_of(&[0; BLOCK_SIZE], VID, 5), ZEROS);
        let torn = [&whole[..512], &fill(78, VID, 5)[512..]].concat();
        let damage = read_back(&torn, 5).expect_err("it is torn");
        assert_eq!((damage.at, damage.found[1]), (512, (78, 5, VID.get(), 32)));
        assert!(damage.to_string().contains("value 78 block 5 vid abcdef part 32"));
        let moved = [&whole[512..], &whole[..512]].concat();
        assert_eq!(value_of(&moved, VID, 5), DAMAGED);
        let half = [&[0; 2048], &whole[2048..]].concat();
        assert_eq!(value_of(&half, VID, 5), DAMAGED);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut rng = Rng::new(1);
        for _ in 0..2000 {
            let mut bytes = fill(1 + rng.below(1000), VID, rng.below(100)).to_vec();
            let block = u64::from(told(bytes.first_chunk().expect("not empty")).1);
            bytes[rng.index(BLOCK_SIZE)] ^= 1 << rng.below(8);
            assert!(read_back(&bytes, block).is_err());
        }
    }
}
