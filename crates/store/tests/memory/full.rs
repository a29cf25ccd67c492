//! A store as random writes of whole chunks everywhere leave it, made in seconds: the index is
//! written, the data area is a hole. What a hole holds is zeros, and the checksums are those of
//! zeros, so all of it can be read.

use sheepdog_store::offline::OfflineStore;
use sheepdog_storelog::checksum::{block_crc, crc32c};
use sheepdog_storelog::format::fragment_page;
use sheepdog_storelog::format::index::{
    Owners, PageRun, Root, SLOTS_PER_PAGE, Slot, UNITS_PER_PAGE, encode_entries, encode_space,
};
use sheepdog_storelog::format::superblock::{CheckpointSlot, SLOT_OFFSETS, Superblock};
use sheepdog_storelog::fragment::Fragment;
use sheepdog_storelog::{Answer, Command};
use sheepdog_testkit::rng::Rng;
use sheepdog_types::{BLOCK_SIZE, FragmentId, Geometry, Version, Vid};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = BLOCK_SIZE as u64;
const GEOMETRY: Geometry = Geometry::STANDARD;

/// Fills the first `fragments` of the only VDI of a stopped store. Something of the first one must
/// have been written, so that the store says whose they are.
pub fn fill(dir: &Path, fragments: u64) {
    let (id, vid, version) = first_written(dir);
    let file = File::options().read(true).write(true).open(dir.join("data")).expect("the data");
    let mut fixed = vec![0; 3 * BLOCK_SIZE];
    file.read_exact_at(&mut fixed, 0).expect("superblock and slots");
    let superblock = Superblock::decode(&fixed).expect("a superblock");
    let slot = CheckpointSlot::decode(superblock.log_id, &fixed[BLOCK_SIZE..]).expect("a slot");
    let mut bytes = vec![0; (slot.root_bytes as usize).next_multiple_of(BLOCK_SIZE)];
    file.read_exact_at(&mut bytes, slot.root_page * BLOCK).expect("the root");
    let old = Root::decode(slot.serial, &bytes).expect("a root");

    let mut rng = Rng::new(1);
    // Which fragment gets which slot and which chunk which unit says the order of the writes.
    let order = shuffled(fragments as u32, &mut rng);
    let mut pages = Pages { file: &file, next: u64::from(GEOMETRY.blocks_per_chunk()) };
    // Two pages a fragment, and what finds them.
    let for_pages = fragments.div_ceil(8) + fragments / 128 + 64;
    let chunks = fragments * u64::from(GEOMETRY.chunks_per_fragment());
    let mut homes = shuffled(chunks as u32, &mut rng).into_iter();
    let mut slots = Vec::with_capacity(order.len());
    for number in order {
        let id = FragmentId { lineage: id.lineage, number: u64::from(number) };
        let units = homes.by_ref().map(|unit| for_pages as u32 + unit);
        let fragment = full_fragment(id, vid, version, units);
        let page = fragment_page::encode(id, version, 0, &fragment, GEOMETRY);
        let owners = Owners::of(fragment.owners());
        slots.push(Some(Slot { id, head: version, page: pages.write(&page), owners }));
    }
    let entry_pages =
        slots.chunks(SLOTS_PER_PAGE as usize).map(|slots| pages.write(&encode_entries(slots)).page);
    let entry_pages: Vec<u64> = entry_pages.collect();
    let units = for_pages + chunks;
    let words_per_page = UNITS_PER_PAGE as usize / 64;
    let space_pages = units.div_ceil(u64::from(UNITS_PER_PAGE)) as usize;
    let root_bytes = Root::encoded_bytes(entry_pages.len(), space_pages, 0, (0, 0, 0));
    // Without holes: all units of pages count as used.
    let mut words = vec![u64::MAX; (units / 64) as usize];
    words.push((1 << (units % 64)) - 1);
    words.resize(space_pages * words_per_page, 0);
    let space_pages = (0..).zip(words.chunks(words_per_page)).map(|(page, words)| {
        let first = page * UNITS_PER_PAGE;
        pages.write(&encode_space(first, words)).page
    });
    let space_pages = space_pages.collect();
    let serial = slot.serial + 1;
    let root =
        Root { serial, entry_pages, space_pages, unpunched: Vec::new(), whole: Vec::new(), ..old };
    let root = root.encode();
    assert_eq!(root.len(), root_bytes);
    let run = pages.write(&root);
    assert!(pages.next < for_pages * 16, "the index is larger than was thought");
    let slot =
        CheckpointSlot { serial, root_page: run.page, root_bytes: run.bytes() as u64, ..slot };
    file.set_len(units * GEOMETRY.chunk_bytes()).expect("size the data area");
    for at in SLOT_OFFSETS {
        file.write_all_at(&slot.encode(superblock.log_id), at).expect("write a slot");
    }
    file.sync_all().expect("sync");
}

/// Who wrote the first block there is.
fn first_written(dir: &Path) -> (FragmentId, Vid, Version) {
    let (mut store, found) = OfflineStore::open(dir, None).expect("a stopped store");
    assert_eq!(found.damage, Vec::<String>::new());
    let lineages = store.store().lineages();
    let id = lineages.iter().flat_map(|lineage| store.store().fragments(*lineage)).next();
    let id = id.expect("a fragment");
    let map = Command::Map { fragment: id, path: [].into(), start: 0, count: 1 };
    assert!(matches!(store.ask(map), Ok(Answer::Map(_))));
    let vid = store.store().vids(id)[0];
    (id, vid, store.store().head(id).expect("it was written"))
}

fn full_fragment(
    id: FragmentId,
    vid: Vid,
    version: Version,
    mut units: impl Iterator<Item = u32>,
) -> Fragment {
    let mut fragment = Fragment::new(GEOMETRY);
    // The checksum of nothing is the seed alone.
    let zeros = crc32c(&[0; BLOCK_SIZE]);
    for chunk in 0..GEOMETRY.chunks_per_fragment() {
        let first = chunk * GEOMETRY.blocks_per_chunk();
        let blocks = first..first + GEOMETRY.blocks_per_chunk();
        let crcs: Vec<u32> = blocks.map(|block| zeros ^ block_crc(id, block, &[])).collect();
        let unit = units.next().expect("a unit for each chunk");
        let _ = fragment.set_extent(vid, chunk as u8, unit, &crcs);
        fragment.touch(chunk as u8, version);
    }
    fragment
}

fn shuffled(count: u32, rng: &mut Rng) -> Vec<u32> {
    let mut all: Vec<u32> = (0..count).collect();
    for at in (1..all.len()).rev() {
        all.swap(at, rng.below(at as u64 + 1) as usize);
    }
    all
}

/// Pages of the index, one after the other.
struct Pages<'a> {
    file: &'a File,
    next: u64,
}

impl Pages<'_> {
    fn write(&mut self, bytes: &[u8]) -> PageRun {
        let count = bytes.len().div_ceil(BLOCK_SIZE) as u64;
        let per_unit = u64::from(GEOMETRY.blocks_per_chunk());
        // Short runs do not go over the end of a unit, long ones have units of their own.
        if self.next % per_unit + count > per_unit {
            self.next = self.next.next_multiple_of(per_unit);
        }
        let run = PageRun { page: self.next, count: count as u16 };
        let mut whole = bytes.to_vec();
        whole.resize(run.bytes(), 0);
        self.file.write_all_at(&whole, run.offset()).expect("write pages");
        self.next += count;
        run
    }
}
