//! Structures on disk: read back as written, frozen byte by byte (users' disks hold them), and
//! whatever else is read instead is an error and never a panic.

use proptest::prelude::*;
use sheepdog_storelog::checksum::crc32c;
use sheepdog_storelog::format::batch::{self, BatchHeader, Body, Placed, Record, ZeroKind};
use sheepdog_storelog::format::codec::frame;
use sheepdog_storelog::format::fragment_page;
use sheepdog_storelog::format::index::{
    Owners, PageRun, Root, Slot, UNITS_PER_PAGE, decode_entries, decode_space, encode_entries,
    encode_space,
};
use sheepdog_storelog::format::superblock::{CheckpointSlot, LogOwner, LogPosition};
use sheepdog_storelog::fragment::{Fragment, OwnerSummary};
use sheepdog_storelog::{LOG_ELSEWHERE, LOG_HAS_OWNER, Superblock};
use sheepdog_types::{DiskId, FragmentId, Geometry, Interval, LineageId, Version, Vid};

const LOG_ID: u64 = 0x1122_3344_5566_7788;
const ID: FragmentId = FragmentId { lineage: LineageId(7), number: 3 };
const VIDS: [Vid; 2] = [Vid::new(5).expect("in range"), Vid::new(0xab_cdef).expect("in range")];

const fn version(interval: u64, seq: u64) -> Version {
    Version { interval: Interval(interval), seq }
}

fn geometry() -> Geometry {
    Geometry::new(4, 8).expect("legal")
}

fn superblock() -> Superblock {
    Superblock {
        disk: DiskId(*b"disk disk disk 1"),
        cluster: *b"cluster cluster1",
        log_id: LOG_ID,
        log_bytes: 1 << 30,
        log_unit: 512,
        geometry: Geometry::STANDARD,
        log_fua: true,
        features: 0,
    }
}

fn slot() -> CheckpointSlot {
    CheckpointSlot {
        serial: 9,
        root_page: 1234,
        root_bytes: 5678,
        replay: LogPosition { pos: 0x1_0000_2000, seq: 77, prev_crc: 0xdead_beef },
        mark: 6,
        raising: 80,
    }
}

fn owner() -> LogOwner {
    superblock().log_owner(6)
}

fn records() -> Vec<Record> {
    let record = |seq, vid, body| Record {
        fragment: ID,
        vid,
        version: version(2, seq),
        prev: version(2, seq - 1),
        body,
    };
    let placed = |chunk, unit| Placed { chunk, unit };
    let write = Body::Write { start: 3, crcs: (100..106).collect(), extents: vec![placed(1, 50)] };
    let zero = |kind, units| Body::Zero { start: 4, count: 8, kind, units };
    vec![
        record(5, VIDS[0], write),
        record(6, VIDS[1], zero(ZeroKind::Remove, vec![])),
        record(7, VIDS[0], zero(ZeroKind::Marker, vec![])),
        record(8, VIDS[1], zero(ZeroKind::Reserve, vec![placed(1, 51), placed(2, 52)])),
        record(9, VIDS[0], Body::DeleteVid { forget: true }),
    ]
}

/// With two blocks of payload for the write's edges.
fn encoded_batch() -> (BatchHeader, Vec<u8>) {
    let header = BatchHeader {
        log_id: LOG_ID,
        seq: 42,
        prev_crc: 0x0102_0304,
        watermark: 41,
        header_bytes: 0,
        payload_bytes: 2 * 4096,
        records: 0,
        crc: 0,
    };
    batch::encode(header, records().iter(), 512)
}

fn fragment() -> Fragment {
    let mut fragment = Fragment::new(geometry());
    fragment.set_extent(VIDS[0], 1, 50, &[1, 2, 3, 4]);
    fragment.clear(VIDS[0], 1, 0b0001, false);
    fragment.set_inline(VIDS[0], 9, 77);
    fragment.reserve(VIDS[1], 2, 0b0110, 51);
    fragment.clear(VIDS[1], 7, 0b1000, true);
    fragment.touch(1, version(1, 2));
    fragment.touch(7, version(2, 3));
    fragment
}

fn slots() -> Vec<Option<Slot>> {
    let owner = |vid, stored_blocks| OwnerSummary { vid, stored_blocks, occupancy: 0b0101 };
    let slot =
        |owners| Slot { id: ID, head: version(4, 5), page: PageRun { page: 99, count: 2 }, owners };
    let few = [owner(VIDS[0], 6), owner(VIDS[1], 1024)];
    vec![
        Some(slot(Owners::of(few.into_iter()))),
        None,
        Some(slot(Owners::Many { stored_blocks: 70 })),
    ]
}

fn words() -> Vec<u64> {
    (0..u64::from(UNITS_PER_PAGE) / 64)
        .map(|word| if word < 4 { word * 0x0101 + 1 } else { 0 })
        .collect()
}

fn root() -> Root {
    Root {
        serial: 9,
        entry_pages: vec![5, 0, 7],
        space_pages: vec![6],
        unpunched: vec![11, 12],
        durable: 33,
        whole: vec![13, 14],
    }
}

/// Every structure by the name of its sample.
fn encoded() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("superblock", superblock().encode()),
        ("slot", slot().encode(LOG_ID)),
        ("batch", encoded_batch().1),
        ("fragment_page", fragment_page::encode(ID, version(2, 3), 40, &fragment(), geometry())),
        ("entry_page", encode_entries(&slots())),
        ("allocation_page", encode_space(UNITS_PER_PAGE, &words())),
        ("root", root().encode()),
        ("log_owner", owner().encode()),
    ]
}

/// Reads bytes as the structure of that name. `None`: not one. Otherwise whether it is the one
/// that was written.
fn decoded(name: &str, bytes: &[u8]) -> Option<bool> {
    match name {
        "superblock" => Superblock::decode(bytes).ok().map(|s| s == superblock()),
        "slot" => CheckpointSlot::decode(LOG_ID, bytes).ok().map(|s| s == slot()),
        "batch" => {
            let header = BatchHeader::peek(bytes, LOG_ID, 512).ok()?;
            let found = batch::decode(&header, bytes, geometry()).ok()?;
            Some(found == records() && header == encoded_batch().0)
        }
        "fragment_page" => {
            let page = fragment_page::decode(ID, bytes, geometry()).ok()?;
            // Checksums of blocks without bytes are not kept, so it is compared as written.
            let again =
                fragment_page::encode(ID, page.head, page.batch, &page.fragment, geometry());
            let written = fragment_page::encode(ID, version(2, 3), 40, &fragment(), geometry());
            Some(again == written)
        }
        "entry_page" => decode_entries(bytes).ok().map(|s| s == slots()),
        "allocation_page" => decode_space(UNITS_PER_PAGE, bytes).ok().map(|w| w == words()),
        "log_owner" => LogOwner::decode(bytes).ok().map(|o| o == owner()),
        "root" => Root::decode(9, bytes).ok().map(|r| r == root()),
        other => panic!("{other}?"),
    }
}

/// Bytes as text, 32 in a line; zeros at the end are only counted.
fn to_text(bytes: &[u8]) -> String {
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    let mut text = String::new();
    for line in bytes[..bytes.len() - zeros].chunks(32) {
        text.extend(line.iter().map(|byte| format!("{byte:02x}")));
        text.push('\n');
    }
    text + &format!("and {zeros} zeros\n")
}

#[test]
fn structures_read_back_as_written() {
    for (name, mut bytes) in encoded() {
        assert_eq!(decoded(name, &bytes), Some(true), "{name}");
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        assert_eq!(decoded(name, &bytes), Some(true), "{name}, padded");
    }
}

#[test]
fn structures_on_users_disks_do_not_change() {
    let samples = [
        ("superblock", include_str!("samples/superblock.txt")),
        ("slot", include_str!("samples/slot.txt")),
        ("batch", include_str!("samples/batch.txt")),
        ("fragment_page", include_str!("samples/fragment_page.txt")),
        ("entry_page", include_str!("samples/entry_page.txt")),
        ("allocation_page", include_str!("samples/allocation_page.txt")),
        ("root", include_str!("samples/root.txt")),
        ("log_owner", include_str!("samples/log_owner.txt")),
    ];
    for ((name, bytes), (sample, text)) in encoded().into_iter().zip(samples) {
        assert_eq!(name, sample);
        let found = to_text(&bytes);
        assert!(found == text, "{name} is now\n{found}");
    }
}

/// The bytes of a sample.
fn from_text(text: &str) -> Vec<u8> {
    let digits: String = text.lines().take_while(|line| !line.starts_with("and")).collect();
    let mut bytes: Vec<u8> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits"))
        .collect();
    let zeros = text.lines().last().and_then(|line| line.split(' ').nth(1)).expect("zeros");
    bytes.resize(bytes.len() + zeros.parse::<usize>().expect("a number"), 0);
    bytes
}

#[test]
fn structures_of_former_versions_are_read() {
    let found = |text| Root::decode(9, &from_text(text)).ok();
    let second = Root { whole: vec![], ..root() };
    assert_eq!(found(include_str!("samples/root_2.txt")).as_ref(), Some(&second));
    let first = Root { durable: 0, ..second };
    assert_eq!(found(include_str!("samples/root_1.txt")), Some(first));
    let first = CheckpointSlot { mark: 0, raising: 0, ..slot() };
    let sample = from_text(include_str!("samples/slot_1.txt"));
    assert_eq!(CheckpointSlot::decode(LOG_ID, &sample), Ok(first));
    let owner = from_text(include_str!("samples/log_owner_1.txt"));
    assert_eq!(LogOwner::decode(&owner), Ok(superblock().log_owner(0)));
    // Where there is no mark, programs of before go on reading.
    assert_eq!(first.encode(LOG_ID), sample);
    assert_eq!(superblock().log_owner(0).encode(), owner);
}

#[test]
fn only_a_whole_batch_can_be_of_a_newer_version() {
    let (_, mut bytes) = encoded_batch();
    bytes[4] += 1;
    let read = |bytes: &[u8]| {
        let header = BatchHeader::peek(bytes, LOG_ID, 512)?;
        batch::decode(&header, bytes, geometry())
    };
    assert!(read(&bytes).is_err_and(|malformed| !malformed.newer), "it is rot");
    bytes[48..52].fill(0);
    let crc = crc32c(&bytes);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    assert!(read(&bytes).is_err_and(|malformed| malformed.newer));
}

#[test]
fn a_newer_root_is_refused() {
    let bytes = root().encode();
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    let magic = u32::from_le_bytes([0x54, 0x52, 0x44, 0x53]);
    let newer = frame(magic, version + 1, &bytes[16..]);
    assert!(Root::decode(9, &newer).is_err_and(|malformed| malformed.newer));
}

#[test]
fn a_feature_nobody_knows_is_of_a_newer_version() {
    let elsewhere = Superblock { features: LOG_ELSEWHERE, ..superblock() };
    assert_eq!(Superblock::decode(&elsewhere.encode()), Ok(elsewhere.clone()));
    assert!(elsewhere.log_is_elsewhere() && !superblock().log_is_elsewhere());
    let both = Superblock { features: LOG_ELSEWHERE | LOG_HAS_OWNER, ..superblock() };
    assert_eq!(Superblock::decode(&both.encode()), Ok(both.clone()));
    assert!(both.log_has_owner() && !elsewhere.log_has_owner());
    assert_eq!(both.log_area_bytes(), superblock().log_area_bytes() + 4096);
    assert_eq!((LOG_ELSEWHERE, LOG_HAS_OWNER), (1, 2), "bits on users' disks");
    for bit in 2..64 {
        let newer = Superblock { features: LOG_ELSEWHERE | 1 << bit, ..superblock() };
        assert!(Superblock::decode(&newer.encode()).is_err_and(|e| e.newer), "bit {bit}");
    }
}

#[test]
fn every_bit_counts() {
    for (name, bytes) in encoded() {
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert_eq!(decoded(name, &damaged), None, "{name} byte {at}");
        }
        let lens = [0, 1, 15, 16, 17, 63, 64, bytes.len() - 1];
        for len in lens.into_iter().filter(|len| *len < bytes.len()) {
            assert_eq!(decoded(name, &bytes[..len]), None, "{name} cut to {len}");
        }
    }
}

/// There are 63 slots in a page, whole ones: another would be taken for one of the next page.
#[test]
fn an_entry_page_holds_its_slots_and_no_more() {
    let full = slots().into_iter().cycle().take(63).collect::<Vec<_>>();
    let page = encode_entries(&full);
    assert_eq!(decode_entries(&page), Ok(full));
    let (head, body) = page.split_at(16);
    let framed = |body: &[u8]| frame(u32::from_le_bytes([0x49, 0x45, 0x44, 0x53]), 1, body);
    assert_eq!(framed(body)[..16], *head);
    // What is left of a page behind 63 slots is most of a slot.
    for more in [1, 48, 64] {
        let long = [body, &body[..more]].concat();
        assert!(decode_entries(&framed(&long)).is_err(), "{more} bytes more");
    }
    assert!(decode_entries(&framed(&body[..100])).is_err());
}

#[test]
fn another_stores_structures_are_refused() {
    assert!(CheckpointSlot::decode(LOG_ID + 1, &slot().encode(LOG_ID)).is_err());
    assert!(BatchHeader::peek(&encoded_batch().1, LOG_ID + 1, 512).is_err());
    assert_eq!(owner().check(&superblock()), Ok(()));
    for other in
        [LogOwner { log_id: LOG_ID + 1, ..owner() }, LogOwner { disk: DiskId([1; 16]), ..owner() }]
    {
        assert!(other.check(&superblock()).is_err());
    }
    assert!(decode_space(0, &encode_space(UNITS_PER_PAGE, &words())).is_err());
    assert!(Root::decode(8, &root().encode()).is_err());
    let page = fragment_page::encode(ID, version(2, 3), 40, &fragment(), geometry());
    let other = FragmentId { number: 4, ..ID };
    assert!(fragment_page::decode(other, &page, geometry()).is_err());
}

/// Gives damaged bytes the checksum that makes them look whole.
fn with_right_checksum(name: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    if name == "batch" {
        bytes[48..52].fill(0);
        let crc = crc32c(&bytes);
        bytes[48..52].copy_from_slice(&crc.to_le_bytes());
        return bytes;
    }
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let version = u16::from_le_bytes([bytes[4], bytes[5]]);
    frame(u32::from_le_bytes(word(0)), version, &bytes[16..])
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
        for (name, _) in encoded() {
            prop_assert_eq!(decoded(name, &bytes), None);
        }
    }

    /// A program error or an attacker may write what has a checksum and makes no sense.
    #[test]
    fn senseless_structures_never_panic(
        which in 0..8_usize,
        changes in prop::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        cut in prop::option::of(16..600_usize),
    ) {
        let (name, mut bytes) = encoded().swap_remove(which);
        for (at, value) in changes {
            // Mostly where the fields are.
            let at = 16 + usize::from(at) % (bytes.len() - 16).min(300);
            bytes[at] = value;
        }
        if let Some(cut) = cut && name != "batch" {
            bytes.truncate(cut);
        }
        decoded(name, &with_right_checksum(name, bytes));
    }
}
