use super::*;
use proptest::prelude::*;
use sheepdog_types::BLOCK_SIZE;
use std::collections::{BTreeMap, BTreeSet};

/// Fragments of 4 KiB to 64 KiB, few enough bytes to walk one by one.
fn small() -> impl Strategy<Value = Geometry> {
    (0..3u32, 0..3u32).prop_map(|(b, c)| Geometry::new(1 << b, 1 << c).expect("powers of two"))
}

/// Pieces by looking at each byte.
fn walk(geometry: Geometry, offset: u64, len: u64) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    for byte in offset..offset + len {
        let fragment = byte / geometry.fragment_bytes();
        match out.last_mut() {
            Some(piece) if piece.fragment == fragment => piece.len += 1,
            _ => out.push(Piece {
                fragment,
                offset: (byte % geometry.fragment_bytes()) as u32,
                len: 1,
            }),
        }
    }
    out
}

/// `used` and `shared` from sets of bytes: an object is used if one of its bytes is owned.
fn slow_usage(shift: u8, size: u64, own: &BTreeSet<u64>, other: &BTreeSet<u64>) -> (u64, u64) {
    let objects = |bytes: &BTreeSet<u64>| {
        bytes
            .iter()
            .filter(|b| **b >> shift << shift < size)
            .map(|b| b >> shift)
            .collect::<BTreeSet<_>>()
    };
    let (own, other) = (objects(own), objects(other));
    let bytes = |count: usize| (count as u64) << shift;
    (bytes(own.len()), bytes(other.difference(&own).count()))
}

/// The masks a store would report for the blocks of these bytes.
fn masks(geometry: Geometry, objects: Objects, bytes: &BTreeSet<u64>) -> BTreeMap<u64, u64> {
    let mut masks = BTreeMap::new();
    for byte in bytes {
        let offset = (byte % geometry.fragment_bytes()) as u32;
        *masks.entry(byte / geometry.fragment_bytes()).or_default() |= objects.parts_of(offset, 1);
    }
    masks
}

#[test]
fn standard_edges() {
    let all = |offset, len| pieces(Geometry::STANDARD, offset, len).collect::<Vec<_>>();
    let piece = |fragment, offset, len| Piece { fragment, offset, len };
    assert_eq!(all(5, 0), []);
    assert_eq!(all(0, 4 << 20), [piece(0, 0, 4 << 20)]);
    assert_eq!(all((4 << 20) - 1, 2), [piece(0, (4 << 20) - 1, 1), piece(1, 0, 1)]);
    assert_eq!(all((16 << 50) - 1, 1), [piece((1 << 32) - 1, (4 << 20) - 1, 1)]);
    assert_eq!(all(u64::MAX, 1), []);
    assert_eq!(all(u64::MAX - 1, u64::MAX), [piece(u64::MAX >> 22, (4 << 20) - 2, 1)]);
    let whole = pieces(Geometry::STANDARD, 0, 16 << 50);
    assert_eq!(whole.size_hint(), (1 << 32, Some(1 << 32)));
    assert_eq!(pieces(Geometry::STANDARD, 0, u64::MAX).size_hint().0, 1 << 42);
}

#[test]
fn objects_of_every_legal_size_fit_every_geometry() {
    for b in 0..=4 {
        for c in 0..=6 {
            let geometry = Geometry::new(1 << b, 1 << c).expect("geometry");
            for shift in 20..=31 {
                let objects = Objects::new(geometry, shift).expect("legal");
                assert!(objects.parts() <= 4);
            }
        }
    }
    let standard = |shift| Objects::new(Geometry::STANDARD, shift);
    for shift in [0, 11, 15, 64, 255] {
        assert_eq!(standard(shift), None, "{shift}");
    }
    let at = |shift| standard(shift).expect("fits");
    assert_eq!((at(20).parts(), at(21).parts(), at(22).parts(), at(31).parts()), (4, 2, 1, 1));
    assert_eq!(at(20).of_fragment(3), 12..16);
    assert_eq!(at(20).fragments_of(13), 3..4);
    assert_eq!(at(22).of_fragment(3), 3..4);
    assert_eq!(at(24).of_fragment(7), 1..2);
    assert_eq!(at(24).fragments_of(1), 4..8);
    assert_eq!(at(20).of_fragment(u64::MAX), u64::MAX..u64::MAX);
    assert_eq!(at(31).fragments_of(u64::MAX), u64::MAX..u64::MAX);
    assert_eq!(at(16).parts_of(0, u32::MAX), u64::MAX);
    assert_eq!(at(20).parts_of((1 << 20) - 1, 2), 0b11);
    assert_eq!(at(20).parts_of(3 << 20, u32::MAX), 0b1000);
    assert_eq!(at(20).parts_of(u32::MAX, u32::MAX), 0);
    assert_eq!(at(20).parts_of(7, 0), 0);
}

#[test]
fn sums_stay_exact_at_the_largest_disk() {
    let mut usage = Objects::new(Geometry::STANDARD, 20).expect("20").usage(16 << 50);
    // Four billion fragments are too many to walk here: the last few, with parts beyond the end.
    for fragment in (1u64 << 32) - 3..(1 << 32) + 2 {
        usage.add(fragment, 0b0101, 0b1111);
    }
    assert_eq!(usage.finish(), (6 << 20, 6 << 20));
    // All of it, as the sum itself.
    let all = Usage {
        objects: Objects::new(Geometry::STANDARD, 20).expect("20"),
        count: 1 << 34,
        current: 0,
        own: 0,
        other: 0,
        used: 1 << 34,
        shared: 0,
    };
    assert_eq!(all.finish(), (16 << 50, 0));
    // A disk that ends inside an object owns that object whole.
    let mut odd = Objects::new(Geometry::STANDARD, 22).expect("22").usage((4 << 20) + 1);
    for fragment in 0..9 {
        odd.add(fragment, 1, 1);
    }
    assert_eq!(odd.finish(), (8 << 20, 0));
    let mut empty = Objects::new(Geometry::STANDARD, 22).expect("22").usage(0);
    empty.add(0, u64::MAX, u64::MAX);
    assert_eq!(empty.finish(), (0, 0));
    let mut top = Objects::new(Geometry::STANDARD, 63).expect("63").usage(u64::MAX);
    top.add(0, 1, 0);
    top.add(1 << 41, 1, 0);
    assert_eq!(top.finish().0, u64::MAX);
}

proptest! {
    #[test]
    fn pieces_are_those_of_a_walk(
        geometry in small(),
        start in prop_oneof![0..200_000u64, (16 << 50) - 100_000..16u64 << 50],
        len in 0..100_000u64,
    ) {
        let mut iter = pieces(geometry, start, len);
        let want = walk(geometry, start, len);
        for (i, piece) in want.iter().enumerate() {
            prop_assert_eq!(iter.size_hint(), (want.len() - i, Some(want.len() - i)));
            prop_assert_eq!(iter.next(), Some(*piece));
        }
        prop_assert_eq!(iter.size_hint(), (0, Some(0)));
        prop_assert_eq!(iter.next(), None);
    }

    #[test]
    fn objects_and_fragments_meet_where_their_bytes_do(
        geometry in small(),
        shift in 12u8..18,
        byte in 0..1u64 << 20,
    ) {
        let objects = Objects::new(geometry, shift).expect("small");
        let (fragment, object) = (byte / geometry.fragment_bytes(), byte >> shift);
        prop_assert!(objects.of_fragment(fragment).contains(&object));
        prop_assert!(objects.fragments_of(object).contains(&fragment));
        // And nothing else: both ranges cover exactly the larger of the two.
        let larger = geometry.fragment_bytes().max(1 << shift);
        let of_fragment = objects.of_fragment(fragment);
        prop_assert_eq!((of_fragment.end - of_fragment.start) << shift, larger);
        let fragments = objects.fragments_of(object);
        prop_assert_eq!((fragments.end - fragments.start) * geometry.fragment_bytes(), larger);
        let part = objects.parts_of((byte % geometry.fragment_bytes()) as u32, 1);
        prop_assert_eq!(part, 1 << (object - of_fragment.start));
    }

    #[test]
    fn parts_are_those_of_each_byte(
        geometry in small(),
        shift in 12u8..18,
        range in (0..70_000u32, 0..70_000u32),
    ) {
        let objects = Objects::new(geometry, shift).expect("small");
        let (offset, len) = range;
        let fragment = geometry.fragment_bytes() as u32;
        let want = (offset..offset + len)
            .filter(|byte| *byte < fragment)
            .fold(0u64, |mask, byte| mask | 1 << (byte >> shift));
        prop_assert_eq!(objects.parts_of(offset, len), want);
    }

    #[test]
    fn usage_is_that_of_the_bytes(
        geometry in small(),
        shift in 12u8..18,
        blocks in 0..64u64,
        tail in 0..BLOCK_SIZE as u64,
        own in proptest::collection::btree_set(0..80u64, 0..30),
        other in proptest::collection::btree_set(0..80u64, 0..30),
        split in any::<bool>(),
    ) {
        let size = blocks * BLOCK_SIZE as u64 + tail;
        let bytes = |blocks: &BTreeSet<u64>| blocks.iter().map(|b| b * BLOCK_SIZE as u64 + b % 7).collect();
        let (own, other) = (bytes(&own), bytes(&other));
        let objects = Objects::new(geometry, shift).expect("small");
        let (own_masks, other_masks) = (masks(geometry, objects, &own), masks(geometry, objects, &other));
        let mut usage = objects.usage(size);
        for fragment in 0..100 {
            let own = own_masks.get(&fragment).copied().unwrap_or(0);
            let other = other_masks.get(&fragment).copied().unwrap_or(0);
            if split {
                usage.add(fragment, 0, other);
                usage.add(fragment, own, 0);
            } else if own | other != 0 {
                usage.add(fragment, own, other);
            }
        }
        prop_assert_eq!(usage.finish(), slow_usage(shift, size, &own, &other));
    }
}
