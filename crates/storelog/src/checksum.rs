//! CRC32C of blocks and of the store's own structures.

use crc_fast::{CrcAlgorithm, checksum};
use sheepdog_types::FragmentId;

/// Plain CRC32C (iSCSI), for the store's own structures.
#[must_use]
pub fn crc32c(data: &[u8]) -> u32 {
    // The low 32 bits are the whole value of a 32-bit algorithm.
    checksum(CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// CRC32C of a block, seeded with where the block belongs, so that a block read from the wrong
/// place or never written there is seen.
///
/// CRC is linear: starting it from another value equals XOR-ing the result with a function of
/// that value and the (constant) length. So the seed is mixed to 32 bits and XOR-ed in, which
/// lets the fast path stay a plain CRC.
#[must_use]
pub fn block_crc(fragment: FragmentId, block: u32, data: &[u8]) -> u32 {
    crc32c(data) ^ seed(fragment, block)
}

/// Mixes a block's address to 32 bits (the finaliser of splitmix64 over the three numbers).
fn seed(fragment: FragmentId, block: u32) -> u32 {
    let mut hash = mix(fragment.lineage.0 ^ 0x9e37_79b9_7f4a_7c15);
    hash = mix(hash ^ fragment.number);
    hash = mix(hash ^ u64::from(block));
    (hash >> 32) as u32
}

const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheepdog_types::LineageId;

    #[test]
    fn crc_matches_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_same_bytes_elsewhere_have_another_checksum() {
        let id = |lineage, number| FragmentId { lineage: LineageId(lineage), number };
        let data = [0u8; 4096];
        let here = block_crc(id(1, 2), 3, &data);
        // Frozen: this is on users' disks.
        assert_eq!(here, 0xd036_11a1, "{here:#x}");
        for (fragment, block) in [(id(1, 2), 4), (id(1, 3), 3), (id(2, 2), 3), (id(2, 1), 3)] {
            assert_ne!(here, block_crc(fragment, block, &data));
        }
    }
}
