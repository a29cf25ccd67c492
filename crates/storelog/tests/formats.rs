//! Structures on disk: read back as written, frozen byte by byte (users' disks hold them), and
//! whatever else is read instead is an error and never a panic.

use proptest::prelude::*;
use sheepdog_storelog::checksum::crc32c;
use sheepdog_storelog::format::batch::{
    self, BatchHeader, Body, FilledChunk, FilledVid, LogRecord, LogRecordRef, Placed, Record,
    RequestPart, ShardChange, ShardRecord, ZeroKind,
};
use sheepdog_storelog::format::codec::frame;
use sheepdog_storelog::format::fragment_page;
use sheepdog_storelog::format::index::{
    Owners, PageRun, Root, Slot, UNITS_PER_PAGE, decode_entries, decode_space, encode_entries,
    encode_space,
};
use sheepdog_storelog::format::shards::{ShardPage, decode_missing, encode_missing};
use sheepdog_storelog::format::superblock::{CheckpointSlot, LogOwner, LogPosition};
use sheepdog_storelog::fragment::{Fragment, OwnerSummary};
use sheepdog_storelog::{LOG_ELSEWHERE, LOG_HAS_OWNER, RequestEntry, Superblock};
use sheepdog_types::{
    DiskId, FragmentId, Geometry, Interval, LineageId, NodeId, Process, RequestId, ShardId,
    Version, Vid,
};

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

fn record(seq: u64, body: Body) -> Record {
    let (version, prev) = (version(2, seq), version(2, seq - 1));
    Record { fragment: ID, version, prev, missing: false, request: None, body }
}

fn records() -> Vec<LogRecord> {
    let placed = |chunk, unit| Placed { chunk, unit };
    let (crcs, extents) = ((100..106).collect(), vec![placed(1, 50)]);
    let write = Body::Write { vid: VIDS[0], start: 3, crcs, extents };
    let zero = |vid, kind, units| Body::Zero { vid, start: 4, count: 8, kind, units };
    let units = vec![placed(1, 51), placed(2, 52)];
    let records = [
        record(5, write),
        record(6, zero(VIDS[1], ZeroKind::Remove, vec![])),
        record(7, zero(VIDS[0], ZeroKind::Marker, vec![])),
        record(8, zero(VIDS[1], ZeroKind::Reserve, units)),
        record(9, Body::DeleteVid { vid: VIDS[0], forget: true }),
    ];
    records.map(LogRecord::Fragment).into()
}

const SHARD: ShardId = ShardId { set: 3, number: 0x4321 };

fn requests() -> Vec<(RequestId, RequestEntry)> {
    let gateway = Process { node: NodeId(*b"node node node 1"), incarnation: 7 };
    let request = |slot, seq| {
        let entry = RequestEntry { seq, version: version(2, seq + 100), fragment: ID };
        (RequestId { gateway, slot, seq }, entry)
    };
    vec![request(0, 5), request(255, 6)]
}

/// What is of the second version.
fn records_2() -> Vec<LogRecord> {
    let (id, _) = requests()[1];
    let data = FilledVid {
        vid: VIDS[0],
        unit: Some(60),
        data: 0b0011,
        zero: 0b1100,
        reserved: 0b1000,
        crcs: vec![7, 8],
    };
    let zeros = FilledVid { vid: VIDS[1], unit: None, data: 0, zero: 1, reserved: 0, crcs: vec![] };
    let chunks = vec![
        FilledChunk { chunk: 1, version: version(2, 3), vids: vec![data, zeros] },
        FilledChunk { chunk: 7, version: Version::ZERO, vids: vec![] },
    ];
    let delete = Body::DeleteVid { vid: VIDS[0], forget: false };
    let marker =
        Body::Zero { vid: VIDS[1], start: 1, count: 2, kind: ZeroKind::Marker, units: vec![] };
    let mut records: Vec<LogRecord> = [
        Record { request: Some((SHARD, id)), ..record(5, delete.clone()) },
        record(6, Body::Miss),
        Record { missing: true, ..record(7, marker) },
        Record { missing: true, request: Some((SHARD, id)), ..record(8, delete) },
        record(8, Body::Fill { chunks, last: true }),
        record(8, Body::Forget),
    ]
    .map(LogRecord::Fragment)
    .into();
    let part = |first| RequestPart { first, requests: requests() };
    let state = bytes::Bytes::from_static(b"the state of a shard");
    for change in [
        ShardChange::Stage(part(true)),
        ShardChange::State { state: state.clone(), requests: Some(part(false)) },
        ShardChange::State { state, requests: None },
        ShardChange::DropRequests(id.gateway),
        ShardChange::Drop,
    ] {
        records.push(LogRecord::Shard(ShardRecord { shard: SHARD, change }));
    }
    records
}

fn encoded_batch_2() -> (BatchHeader, Vec<u8>) {
    let header = BatchHeader { payload_bytes: 0, ..encoded_batch().0 };
    batch::encode(header, records_2().iter(), 512)
}

fn shard_page() -> ShardPage {
    let state = bytes::Bytes::from_static(b"the state of a shard");
    ShardPage { state, requests: requests(), staged: requests()[..1].to_vec() }
}

fn missing() -> Vec<(u8, Version)> {
    vec![(0, Version::ZERO), (62, version(5, 6))]
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
        missing_pages: vec![],
        shards: vec![],
    }
}

fn root_4() -> Root {
    Root {
        missing_pages: vec![(0, 15), (2, 16)],
        shards: vec![(SHARD, vec![PageRun { page: 20, count: 3 }, PageRun { page: 9, count: 1 }])],
        ..root()
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
        ("batch_2", encoded_batch_2().1),
        ("root_4", root_4().encode()),
        ("shard_page", shard_page().encode(SHARD, 1).concat()),
        ("missing_page", encode_missing(3, &missing())),
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
        "batch_2" => {
            let header = BatchHeader::peek(bytes, LOG_ID, 512).ok()?;
            let found = batch::decode(&header, bytes, geometry()).ok()?;
            Some(found == records_2() && header == encoded_batch_2().0)
        }
        "root_4" => Root::decode(9, bytes).ok().map(|r| r == root_4()),
        "shard_page" => {
            ShardPage::decode(SHARD, [bytes].into_iter()).ok().map(|page| page == shard_page())
        }
        "missing_page" => decode_missing(3, bytes).ok().map(|found| found == missing()),
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
        ("batch_2", include_str!("samples/batch_2.txt")),
        ("root_4", include_str!("samples/root_4.txt")),
        ("shard_page", include_str!("samples/shard_page.txt")),
        ("missing_page", include_str!("samples/missing_page.txt")),
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
    let (_, mut bytes) = encoded_batch_2();
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

/// Older programs read what holds nothing that they do not know, and refuse the rest.
#[test]
fn the_lowest_version_that_says_it_is_written() {
    let version = |bytes: &[u8]| u16::from_le_bytes([bytes[4], bytes[5]]);
    assert_eq!((version(&encoded_batch().1), version(&encoded_batch_2().1)), (1, 2));
    assert_eq!((version(&root().encode()), version(&root_4().encode())), (3, 4));
    for record in &records_2() {
        let records = records().into_iter().chain([record.clone()]).collect::<Vec<_>>();
        let (header, mut bytes) = batch::encode(encoded_batch().0, records.iter(), 512);
        let found = batch::decode(&header, &bytes, geometry());
        assert_eq!(found.as_ref(), Ok(&records));
        assert_eq!(version(&bytes), 2, "{record:?}");
        // In a batch of the first version there is no such record.
        bytes[4] = 1;
        let bytes = with_right_checksum("batch", bytes);
        let header = BatchHeader::peek(&bytes, LOG_ID, 512).expect("a header");
        assert!(batch::decode(&header, &bytes, geometry()).is_err(), "{record:?}");
    }
}

#[test]
fn records_have_the_length_that_is_foretold() {
    for record in records().iter().chain(&records_2()) {
        let header = BatchHeader { payload_bytes: 0, ..encoded_batch().0 };
        let (_, bytes) = batch::encode(header, [record].into_iter(), 1);
        assert_eq!(bytes.len(), 64 + LogRecordRef::from(record).encoded_bytes(), "{record:?}");
    }
    assert_eq!(root_4().encode().len(), Root::encoded_bytes(3, 1, 4, (2, 1, 2)));
    assert_eq!(root().encode().len(), Root::encoded_bytes(3, 1, 4, (0, 0, 0)));
    let full: Vec<(u8, Version)> = (0..63).map(|slot| (slot, version(1, 1))).collect();
    assert!(encode_missing(0, &full).len() <= 4096, "one page");
}

#[test]
fn a_shard_of_any_length_is_written_in_parts() {
    for len in [0, 4000, 4028, 4029, 8100, 8130, 8131, 60_000] {
        let state = bytes::Bytes::from(vec![7; len]);
        let page = ShardPage { state, ..shard_page() };
        for per_unit in [1, 2, 16] {
            let parts = page.encode(SHARD, per_unit);
            let pages: Vec<u32> = parts.iter().map(|p| p.len().div_ceil(4096) as u32).collect();
            assert_eq!(pages, ShardPage::parts(len, 3, per_unit), "{len} {per_unit}");
            assert!(pages.iter().all(|pages| *pages <= per_unit));
            let back = ShardPage::decode(SHARD, parts.iter().map(Vec::as_slice));
            assert_eq!(back.as_ref(), Ok(&page));
            if parts.len() > 1 {
                assert!(ShardPage::decode(SHARD, parts.iter().rev().map(Vec::as_slice)).is_err());
                assert!(ShardPage::decode(SHARD, parts[1..].iter().map(Vec::as_slice)).is_err());
            }
        }
    }
}

#[test]
fn a_newer_root_is_refused() {
    let bytes = root_4().encode();
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
    let parts = shard_page().encode(SHARD, 1);
    let parts = parts.iter().map(Vec::as_slice);
    assert!(ShardPage::decode(ShardId { set: 2, ..SHARD }, parts).is_err());
    assert!(decode_missing(2, &encode_missing(3, &missing())).is_err());
    let page = fragment_page::encode(ID, version(2, 3), 40, &fragment(), geometry());
    let other = FragmentId { number: 4, ..ID };
    assert!(fragment_page::decode(other, &page, geometry()).is_err());
}

/// Gives damaged bytes the checksum that makes them look whole.
fn with_right_checksum(name: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    if name.starts_with("batch") {
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
        which in 0..12_usize,
        changes in prop::collection::vec((any::<u16>(), any::<u8>()), 1..6),
        cut in prop::option::of(16..600_usize),
    ) {
        let (name, mut bytes) = encoded().swap_remove(which);
        for (at, value) in changes {
            // Mostly where the fields are.
            let at = 16 + usize::from(at) % (bytes.len() - 16).min(300);
            bytes[at] = value;
        }
        if let Some(cut) = cut && !name.starts_with("batch") {
            bytes.truncate(cut);
        }
        decoded(name, &with_right_checksum(name, bytes));
    }
}
