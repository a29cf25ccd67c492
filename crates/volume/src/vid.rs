//! Which id a new VDI gets: the hash of its name, or the first free id after it. Old clients find
//! snapshots by walking from that hash, so the rule is part of the contract.

use sheepdog_types::Vid;
use std::collections::BTreeMap;

/// Where the ids of a name begin: FNV-1a-64 of its bytes, cut to 24 bits, 0 replaced by 1.
#[must_use]
pub fn home(name: &str) -> Vid {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    cut(hash as u32 & (Vid::COUNT - 1))
}

/// The first id at or after `home` that is no key of `taken`, wrapping from the last id to 1;
/// `None` when all are taken.
#[must_use]
pub fn first_free<V>(home: Vid, taken: &BTreeMap<Vid, V>) -> Option<Vid> {
    first_free_below(Vid::COUNT, home, taken)
}

/// As [`first_free`], were there only the ids `1..count`.
fn first_free_below<V>(count: u32, home: Vid, taken: &BTreeMap<Vid, V>) -> Option<Vid> {
    first_gap(home.get(), count, taken).or_else(|| first_gap(1, home.get(), taken))
}

/// The first id of `from..end` that is not taken. Costs as many steps as there are taken ids in a
/// row.
fn first_gap<V>(from: u32, end: u32, taken: &BTreeMap<Vid, V>) -> Option<Vid> {
    let mut candidate = from;
    for (vid, _) in taken.range(cut(from)..) {
        if vid.get() != candidate {
            break;
        }
        candidate += 1;
    }
    (candidate < end).then(|| Vid::new(candidate)).flatten()
}

/// A number below 2^24 as an id, 0 replaced by 1.
fn cut(value: u32) -> Vid {
    const FIRST: Vid = match Vid::new(1) {
        Some(vid) => vid,
        None => panic!("1 is an id"),
    };
    Vid::new(value).unwrap_or(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vid(value: u32) -> Vid {
        Vid::new(value).expect("1..2^24")
    }

    #[test]
    fn names_hash_as_of_old() {
        for (name, value) in [
            ("test", 0x7c_2b25),
            ("test0", 0xfd_34af),
            ("test1", 0xfd_32fc),
            ("test2", 0xfd_3815),
            ("test3", 0xfd_3662),
            ("test4", 0xfd_2de3),
            ("test5", 0xfd_2c30),
            ("test6", 0xfd_3149),
            ("test7", 0xfd_2f96),
            ("test8", 0xfd_4247),
            ("test9", 0xfd_4094),
            ("foo", 0xd9_d577),
            ("base", 0x54_c278),
            ("clone", 0x72_a1e2),
            ("sd", 0x79_27f2),
            ("sd/sheep", 0x8a_d11e),
            ("sd/dog", 0x5a_5cbf),
            ("sd/sheep/allocator", 0xfd_57fc),
            ("00471718", 0xff_fff9),
            ("05421217", 0xff_ffff),
            ("01909709", 1),
        ] {
            assert_eq!(home(name), vid(value), "{name}");
        }
    }

    #[test]
    fn the_search_wraps_from_the_last_id_to_one() {
        let mut taken: BTreeMap<_, _> = (0xff_fff9..Vid::COUNT).map(|v| (vid(v), ())).collect();
        assert_eq!(first_free(vid(0xff_fff8), &taken), Some(vid(0xff_fff8)));
        assert_eq!(first_free(vid(0xff_fff9), &taken), Some(vid(1)));
        taken.insert(vid(1), ());
        assert_eq!(first_free(vid(0xff_ffff), &taken), Some(vid(2)));
        taken.remove(&vid(0xff_fffe));
        assert_eq!(first_free(vid(0xff_fff9), &taken), Some(vid(0xff_fffe)));
        assert_eq!(first_free(vid(0xff_ffff), &taken), Some(vid(2)));
    }

    /// The rule as one would say it: look at one id after the other.
    fn scan(count: u32, home: Vid, taken: &BTreeMap<Vid, ()>) -> Option<Vid> {
        let mut value = home.get();
        for _ in 1..count {
            if !taken.contains_key(&vid(value)) {
                return Some(vid(value));
            }
            value = if value == count - 1 { 1 } else { value + 1 };
        }
        None
    }

    #[test]
    fn few_ids_in_every_combination() {
        const COUNT: u32 = 9;
        for mask in 0..1u32 << COUNT {
            let taken = (1..COUNT).filter(|v| mask >> v & 1 == 1).map(|v| (vid(v), ())).collect();
            for home in (1..COUNT).map(vid) {
                let want = scan(COUNT, home, &taken);
                assert_eq!(first_free_below(COUNT, home, &taken), want);
                assert_eq!(want.is_none(), taken.len() as u32 == COUNT - 1);
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(
            home in -20i32..20,
            taken in proptest::collection::btree_set(-20i32..20, 0..40),
        ) {
            // Around the seam, where all the cases are.
            let near = |v: i32| vid(if v < 0 { Vid::COUNT - v.unsigned_abs() } else { v as u32 + 1 });
            let taken = taken.into_iter().map(|v| (near(v), ())).collect();
            let want = scan(Vid::COUNT, near(home), &taken);
            prop_assert_eq!(first_free(near(home), &taken), want);
        }
    }
}
