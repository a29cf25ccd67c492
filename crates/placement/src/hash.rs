//! The hashes of placement, frozen for ever: which shard a fragment belongs to, and the draw a
//! disk makes for a shard. Integer arithmetic only; `tests/vectors/` pins every number.

use sheepdog_types::{DiskId, FragmentId};

/// Largest number of shard bits a policy may have.
pub const BITS_MAX: u8 = 20;

/// Fractional bits of a draw.
const SCALE: u32 = 57;
/// Index bits of the logarithm table.
const TABLE_BITS: u32 = 10;
const TABLE_LEN: usize = (1 << TABLE_BITS) + 1;
/// Mantissa bits below the table's index.
const REST_BITS: u32 = 63 - TABLE_BITS;

// Separate the uses of one mixing function, so that no two of them are correlated.
const SEED_FRAGMENT: u64 = 0x7368_6565_7064_6f67;
const SEED_SHARD: u64 = 0x706c_6163_656d_656e;
const SEED_DISK: u64 = 0x6469_736b_2d75_7569;
const SEED_ORDER: u64 = 0x7072_696d_6172_7920;

/// `log2(1 + i/1024)` with [`SCALE`] fractional bits.
static LOG2: [u64; TABLE_LEN] = log2_table();

const fn log2_table() -> [u64; TABLE_LEN] {
    let mut table = [0; TABLE_LEN];
    let mut i = 0;
    while i + 1 < TABLE_LEN {
        // Squaring a number in [1, 2) doubles its logarithm; the carry is the next digit.
        let mut x = (1 << 63) | (i as u64) << REST_BITS;
        let mut log = 0;
        let mut digit = 0;
        while digit < SCALE {
            let square = (x as u128 * x as u128) >> 63;
            log <<= 1;
            if square >> 64 == 1 {
                log |= 1;
                x = (square >> 1) as u64;
            } else {
                x = square as u64;
            }
            digit += 1;
        }
        table[i] = log;
        i += 1;
    }
    table[TABLE_LEN - 1] = 1 << SCALE;
    table
}

/// Every output bit depends on every input bit; a bijection.
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^= x >> 29;
    x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 32
}

const fn absorb(state: u64, word: u64) -> u64 {
    mix(mix(state) ^ word)
}

/// The hash range a fragment belongs to: `hash(lineage, number) mod 2^bits`. Snapshots share their
/// VDI's lineage, so a fragment number is on the same shard in all of them.
///
/// `bits` above [`BITS_MAX`] count as that many.
#[must_use]
pub const fn shard_of(fragment: FragmentId, bits: u8) -> u32 {
    let bits = if bits > BITS_MAX { BITS_MAX } else { bits };
    let hash = absorb(absorb(SEED_FRAGMENT, fragment.lineage.0), fragment.number);
    (hash & ((1 << bits) - 1)) as u32
}

/// A disk's part of all its draws. Only the uuid enters: a disk may change its path, node, address
/// or zone without changing a draw.
pub(crate) fn disk_key(disk: DiskId) -> u64 {
    let word = u128::from_le_bytes(disk.0);
    absorb(absorb(SEED_DISK, word as u64), (word >> 64) as u64)
}

/// A shard's part of all its draws. Policy and number of bits stay out: 2 and 3 copies of a shard
/// number want the same first disks, so that raising copies moves little.
pub(crate) const fn shard_key(shard: u32) -> u64 {
    absorb(SEED_SHARD, shard as u64)
}

/// What a disk drew for a shard: `-log2(u)` for a uniform `u`, exponentially distributed, never 0.
/// Divided by the disk's weight it is the score; the lowest score wins.
pub(crate) fn draw(shard_key: u64, disk_key: u64) -> u64 {
    negative_log2(mix(shard_key ^ disk_key))
}

/// Orders the members of an acting set. Weights stay out, so each member is as likely as any other
/// to be first.
pub(crate) fn order_key(shard_key: u64, disk_key: u64) -> u64 {
    mix(mix(shard_key ^ SEED_ORDER) ^ disk_key)
}

/// `64 - log2(h)`, interpolated between the table's points.
fn negative_log2(hash: u64) -> u64 {
    let hash = hash.max(1);
    let zeros = hash.leading_zeros();
    let mantissa = hash << zeros;
    let index = (mantissa >> REST_BITS) as usize & ((1 << TABLE_BITS) - 1);
    let rest = mantissa & ((1 << REST_BITS) - 1);
    let (below, above) = (LOG2[index], LOG2[index + 1]);
    let part = (u128::from(above - below) * u128::from(rest)) >> REST_BITS;
    (u64::from(zeros + 1) << SCALE) - below - part as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn logarithm_is_right_at_its_ends_and_never_zero() {
        assert_eq!(negative_log2(0), 64 << SCALE);
        assert_eq!(negative_log2(1), 64 << SCALE);
        assert_eq!(negative_log2(1 << 63), 1 << SCALE);
        assert!(negative_log2(u64::MAX) > 0);
        assert!(LOG2.windows(2).all(|w| w[0] < w[1]));
    }

    proptest! {
            #[test]
            fn logarithm_is_that_of_floating_point(hash in 1u64.., small in 0u32..64) {
                for hash in [hash, (hash >> small).max(1), !(hash >> small)] {
                    let ours = negative_log2(hash) as f64 / f64::from(SCALE).exp2();
                    // ln_1p keeps the precision where the hash is almost 2^64.
                    let real = -(-((!hash) as f64 + 1.0) / 64f64.exp2()).ln_1p() / 2f64.ln();
                    let real = if hash < 1 << 53 { 64.0 - (hash as f64).log2() } else { real };
    // The table's error, and that of the last digit where the logarithm is tiny.
                    let error = 6e-4 * real + 2.0 * (-f64::from(SCALE)).exp2();
                    prop_assert!((ours - real).abs() < error, "{hash:x} {ours} {real}");
                }
            }

            #[test]
            fn a_lower_hash_draws_no_less(a: u64, b: u64) {
                prop_assert!(negative_log2(a.min(b)) >= negative_log2(a.max(b)));
            }

            #[test]
            fn halving_the_shards_keeps_the_low_bits(lineage: u64, number: u64, bits in 1u8..=BITS_MAX) {
                let fragment = FragmentId { lineage: sheepdog_types::LineageId(lineage), number };
                prop_assert_eq!(
                    shard_of(fragment, bits) & ((1 << (bits - 1)) - 1),
                    shard_of(fragment, bits - 1)
                );
            }
        }

    #[test]
    fn draws_are_frozen() {
        let mut text = String::from("# disk shard draw order\n");
        for byte in [0, 1, 0x5d, 0xff] {
            let disk = DiskId(std::array::from_fn(|i| byte ^ i as u8));
            for shard in [0, 1, 2, 4095, (1 << BITS_MAX) - 1] {
                let (s, d) = (shard_key(shard), disk_key(disk));
                let line = format!("{disk} {shard} {} {}\n", draw(s, d), order_key(s, d));
                text.push_str(&line);
            }
        }
        for hash in [0, 1, 2, 3, 1 << 63, 3 << 62, 0xdead_beef_0123_4567, u64::MAX] {
            text.push_str(&format!("{hash:016x} {}\n", negative_log2(hash)));
        }
        // Each entry of the logarithm table, weighed by its place.
        let sum = (1u64..)
            .zip(&LOG2)
            .fold(0u64, |sum, (i, log)| sum.wrapping_add(log.wrapping_mul(2 * i + 1)));
        text.push_str(&format!("table {sum}\n"));
        if text != include_str!("../tests/vectors/draws.txt") {
            panic!("tests/vectors/draws.txt is not what is drawn now:\n{text}");
        }
    }

    #[test]
    fn consecutive_fragments_spread_evenly() {
        let mut counts = [0u32; 256];
        for number in 0..25_600 {
            let lineage = sheepdog_types::LineageId(1);
            counts[shard_of(FragmentId { lineage, number }, 8) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|c| (f64::from(*c) - 100.0).powi(2) / 100.0).sum();
        // 255 degrees of freedom: mean 255, deviation 22.6.
        assert!((150.0..360.0).contains(&chi), "{chi}");
    }
}
