//! Pages of the index: root, entry pages, allocation pages, fragment pages.
#![no_main]

use sheepdog_fuzz::input::{Input, u64_at};
use sheepdog_fuzz::meter::bounded;
use sheepdog_fuzz::store::{AS_IT_IS, geometry, reframed, sample, seed};
use sheepdog_storelog::format::codec::FRAME_BYTES;
use sheepdog_storelog::format::fragment_page::{self, pages_max};
use sheepdog_storelog::format::index::{
    Root, SLOTS_PER_PAGE, UNITS_PER_PAGE, decode_entries, decode_space, encode_entries,
    encode_space,
};
use sheepdog_storelog::format::shards::{ShardPage, decode_missing, encode_missing};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Geometry, LineageId, ShardId};

sheepdog_fuzz::target!(seeds, run);

fn seeds() -> Vec<Vec<u8>> {
    let root = sample(include_str!("../../crates/storelog/tests/samples/root.txt"));
    let root_1 = sample(include_str!("../../crates/storelog/tests/samples/root_1.txt"));
    let root_2 = sample(include_str!("../../crates/storelog/tests/samples/root_2.txt"));
    let root_4 = sample(include_str!("../../crates/storelog/tests/samples/root_4.txt"));
    let missing = sample(include_str!("../../crates/storelog/tests/samples/missing_page.txt"));
    let shard = sample(include_str!("../../crates/storelog/tests/samples/shard_page.txt"));
    let entries = sample(include_str!("../../crates/storelog/tests/samples/entry_page.txt"));
    let space = sample(include_str!("../../crates/storelog/tests/samples/allocation_page.txt"));
    let fragment = sample(include_str!("../../crates/storelog/tests/samples/fragment_page.txt"));
    let fragment_of = |geometry: u8| seed(3 | geometry << 2, &fragment);
    vec![
        seed(0, &root),
        seed(0, &root_1),
        seed(0, &root_2),
        seed(0, &root_4),
        seed(2 | 1 << 2, &missing),
        seed(2 | 2 << 2, &shard),
        seed(1, &entries),
        seed(2, &space),
        fragment_of(0),
        fragment_of(1),
        seed(3 | 1 << 2 | AS_IT_IS, &fragment),
    ]
}

/// The first byte chooses the structure (low bits) and the geometry (the next ones).
fn run(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    let bytes = if choice & AS_IT_IS == 0 { reframed(bytes) } else { bytes.to_vec() };
    // A slot of 64 bytes takes 120 in memory; an empty fragment has a version for each chunk; a
    // chunk of 17 bytes on disk takes 100 in memory, in a tree that is half full.
    bounded((32 << 10) + 24 * bytes.len(), || match choice & 3 {
        0 => root(&bytes),
        1 => entries(&bytes),
        2 => match choice >> 2 & 7 {
            1 => missing(&bytes),
            2 => shard(&bytes),
            _ => space(&bytes),
        },
        _ => fragment(&bytes, geometry(choice >> 2 & 7)),
    });
}

fn root(bytes: &[u8]) {
    let serial = u64_at(bytes, FRAME_BYTES);
    assert!(Root::decode(!serial, bytes).is_err(), "another checkpoint's");
    let Ok(root) = Root::decode(serial, bytes) else {
        return;
    };
    let again = root.encode();
    let (entries, spaces) = (root.entry_pages.len(), root.space_pages.len());
    let units = root.unpunched.len() + root.whole.len();
    let parts = root.shards.iter().map(|(_, parts)| parts.len()).sum();
    let lists = (root.missing_pages.len(), root.shards.len(), parts);
    assert_eq!(again.len(), Root::encoded_bytes(entries, spaces, units, lists));
    // Former versions end before the durable batch, or before the units held whole; one of the
    // fourth that has none of what came with it is written in the third.
    let end = again.len()
        - match u16::from_le_bytes([bytes[4], bytes[5]]) {
            0..2 => 8 + 4,
            2 => 4,
            _ => 0,
        };
    assert!(end <= bytes.len());
    assert_eq!(again[FRAME_BYTES..end], bytes[FRAME_BYTES..end], "the same bytes");
    assert_eq!(Root::decode(serial, &again), Ok(root));
}

fn entries(bytes: &[u8]) {
    let Ok(slots) = decode_entries(bytes) else {
        return;
    };
    assert!(slots.len() <= SLOTS_PER_PAGE as usize, "{} slots in a page", slots.len());
    let again = encode_entries(&slots);
    assert!(again.len() <= BLOCK_SIZE, "it is one page");
    assert_eq!(decode_entries(&again), Ok(slots));
}

fn space(bytes: &[u8]) {
    let first_unit = Input::new(bytes.get(FRAME_BYTES..).unwrap_or_default()).u32();
    assert!(decode_space(!first_unit, bytes).is_err(), "another page");
    let Ok(words) = decode_space(first_unit, bytes) else {
        return;
    };
    assert_eq!(words.len() as u32 * 64, UNITS_PER_PAGE);
    let again = encode_space(first_unit, &words);
    assert!(again.len() <= BLOCK_SIZE, "it is one page");
    assert_eq!(again[FRAME_BYTES..], bytes[FRAME_BYTES..again.len()], "the same bytes");
    assert_eq!(decode_space(first_unit, &again), Ok(words));
}

fn missing(bytes: &[u8]) {
    let page = Input::new(bytes.get(FRAME_BYTES..).unwrap_or_default()).u32();
    assert!(decode_missing(!page, bytes).is_err(), "another page");
    let Ok(found) = decode_missing(page, bytes) else {
        return;
    };
    let again = encode_missing(page, &found);
    assert!(again.len() <= BLOCK_SIZE, "it is one page");
    assert_eq!(decode_missing(page, &again), Ok(found));
}

/// A shard of one part.
fn shard(bytes: &[u8]) {
    let head = u64_at(bytes, FRAME_BYTES);
    let id = ShardId { set: head as u16, number: (head >> 16) as u32 };
    let other = ShardId { number: !id.number, ..id };
    assert!(ShardPage::decode(other, [bytes].into_iter()).is_err(), "another shard's");
    let Ok(page) = ShardPage::decode(id, [bytes].into_iter()) else {
        return;
    };
    for per_unit in [1, 16] {
        let again = page.encode(id, per_unit);
        let back = ShardPage::decode(id, again.iter().map(Vec::as_slice));
        assert_eq!(back.as_ref(), Ok(&page));
    }
}

fn fragment(bytes: &[u8], geometry: Geometry) {
    let id = FragmentId {
        lineage: LineageId(u64_at(bytes, FRAME_BYTES)),
        number: u64_at(bytes, FRAME_BYTES + 8),
    };
    let other = FragmentId { number: !id.number, ..id };
    assert!(fragment_page::decode(other, bytes, geometry).is_err(), "another fragment's");
    let Ok(page) = fragment_page::decode(id, bytes, geometry) else {
        return;
    };
    let fragment = &page.fragment;
    let blocks = geometry.blocks_per_fragment();
    for owner in fragment.owners() {
        assert!(u32::from(owner.stored_blocks) <= blocks && owner.occupancy < 16);
    }
    let again = fragment_page::encode(id, page.head, page.batch, fragment, geometry);
    assert!(again.len() <= bytes.len());
    assert!(again.len() as u64 <= pages_max(fragment) * BLOCK_SIZE as u64);
    let back = fragment_page::decode(id, &again, geometry).expect("it was just written");
    assert!(back == page, "it is read back as it was");
}
