//! Opening a disk whose structures have right checksums and make no sense: an error that says so,
//! and with salvage what is left, but never a panic or memory without bound.

use sheepdog_storelog::format::batch::{self, BatchHeader, Body, Placed, Record};
use sheepdog_storelog::format::index::{
    Owners, PageRun, Root, Slot, UNITS_PER_PAGE, encode_entries, encode_space,
};
use sheepdog_storelog::format::superblock::{CheckpointSlot, LogPosition};
use sheepdog_storelog::io::{Area, Completion, DiskOp, OpId};
use sheepdog_storelog::{
    Effect, LOG_HAS_OWNER, Limits, OWNER_BYTES, OpenReport, Opening, Superblock, prepare,
};
use sheepdog_types::{
    BLOCK_SIZE, DiskId, Error, ErrorKind, FragmentId, Geometry, LineageId, PageBuf, Result,
    Version, Vid,
};

const LOG_ID: u64 = 77;
const LOG_BYTES: u64 = 256 << 10;
const LIMITS: Limits = Limits { units_max: 1 << 16, ..Limits::STANDARD };
/// Pages of the data area there can be, two in each unit.
const PAGES: u64 = 2 << 16;

/// Both areas.
struct Disk {
    data: Vec<u8>,
    log: Vec<u8>,
}

impl Disk {
    /// An empty store.
    fn new() -> Self {
        Self::with_features(LOG_HAS_OWNER)
    }

    fn with_features(features: u64) -> Self {
        Self::of(LOG_ID, DiskId([1; 16]), features)
    }

    fn of(log_id: u64, disk: DiskId, features: u64) -> Self {
        let superblock = Superblock {
            disk,
            cluster: [2; 16],
            log_id,
            log_bytes: LOG_BYTES,
            log_unit: 512,
            geometry: Geometry::new(2, 4).expect("legal"),
            log_fua: true,
            features,
        };
        let log = vec![0; superblock.log_area_bytes() as usize];
        let mut disk = Self { data: vec![0; 16 * BLOCK_SIZE], log };
        for op in prepare(&superblock).expect("the log is large enough") {
            disk.perform(OpId(0), &op);
        }
        disk
    }

    fn put(&mut self, page: usize, bytes: &[u8]) {
        self.data[page * BLOCK_SIZE..][..bytes.len()].copy_from_slice(bytes);
    }

    /// With both slots like this.
    fn with_slot(mut self, slot: CheckpointSlot) -> Self {
        self.put(1, &slot.encode(LOG_ID));
        self.put(2, &slot.encode(LOG_ID));
        self
    }

    /// With this root, in page 4.
    fn with_root(mut self, root: &Root) -> Self {
        let bytes = root.encode();
        self.put(4, &bytes);
        self.with_slot(slot(4, bytes.len() as u64))
    }

    /// With these fragments in one entry page, page 5.
    fn with_slots(mut self, slots: &[Option<Slot>]) -> Self {
        self.put(5, &encode_entries(slots));
        self.with_root(&Root { serial: 1, entry_pages: vec![5], ..Root::default() })
    }

    fn perform(&mut self, op: OpId, what: &DiskOp) -> Completion {
        let area = match what {
            DiskOp::Read { area: Area::Log, .. } | DiskOp::Write { area: Area::Log, .. } => {
                &mut self.log
            }
            _ => &mut self.data,
        };
        let bytes = match what {
            DiskOp::Read { offset, len, .. } => {
                assert!(offset + *len as u64 <= 1 << 40, "a read behind the end of any disk");
                let from = (*offset as usize).min(area.len());
                PageBuf::copy_of(&[&area[from..], &vec![0; *len]].concat()[..*len]).freeze()
            }
            DiskOp::Write { offset, data, .. } => {
                let bytes = data.concat();
                area[*offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                bytes::Bytes::new()
            }
            _ => bytes::Bytes::new(),
        };
        Completion { op, result: Ok(bytes) }
    }

    fn open(&mut self, salvage: bool) -> Result<(OpenReport, Vec<String>)> {
        let mut out = Vec::new();
        let mut opening = match salvage {
            true => Opening::salvage(LIMITS, &mut out),
            false => Opening::start(LIMITS, &mut out),
        };
        loop {
            let Some(Effect::Disk(id, op)) = out.pop() else { panic!("opening came to a stop") };
            if let Some(done) = opening.completed(self.perform(id, &op), &mut out) {
                return done.map(|(_, report)| (report, opening.take_damage()));
            }
        }
    }

    /// Opening refuses it with this reason, and opening for a look leaves it out.
    fn refuse(mut self, reason: &str) {
        let error: Error = self.open(false).expect_err(reason);
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.full().ends_with(reason), "{}", error.full());
        let (report, damage) = self.open(true).expect("a look");
        assert_eq!((report.fragments, damage.len()), (0, 1), "{damage:?}");
        assert!(damage[0].ends_with(reason), "{damage:?}");
    }
}

fn slot(root_page: u64, root_bytes: u64) -> CheckpointSlot {
    let replay = LogPosition { pos: 0, seq: 1, prev_crc: 0 };
    CheckpointSlot { serial: 1, root_page, root_bytes, replay, mark: 0, raising: 0 }
}

fn entry(number: u64, page: u64, count: u16) -> Option<Slot> {
    Some(Slot {
        id: FragmentId { lineage: LineageId(1), number },
        head: Version::ZERO,
        page: PageRun { page, count },
        owners: Owners::NONE,
    })
}

#[test]
fn a_sound_disk_opens() {
    let mut disk = Disk::new();
    for mark in 1..4 {
        let (report, damage) = disk.open(false).expect("it is empty");
        assert_eq!((report, damage.len()), (OpenReport { mark, ..OpenReport::default() }, 0));
    }
    let mut disk = Disk::new().with_slots(&[entry(1, 6, 1), None, entry(2, PAGES - 1, 1)]);
    assert_eq!(disk.open(false).expect("sound").0.fragments, 2);
}

#[test]
fn nothing_is_looked_for_outside_of_the_disk() {
    for (page, bytes) in
        [(PAGES, 1), (u64::MAX / 2, 1), (u64::MAX, 100), (4, u64::MAX), (4, 1 << 28)]
    {
        Disk::new().with_slot(slot(page, bytes)).refuse("its root is outside of the disk");
    }
    let reason = "it names what is outside of the disk";
    let root = || Root { serial: 1, ..Root::default() };
    for page in [PAGES, 1 << 52, u64::MAX] {
        Disk::new().with_root(&Root { entry_pages: vec![0, page], ..root() }).refuse(reason);
        Disk::new().with_root(&Root { space_pages: vec![page], ..root() }).refuse(reason);
    }
    Disk::new().with_root(&Root { unpunched: vec![1 << 16], ..root() }).refuse(reason);
    Disk::new().with_root(&Root { whole: vec![1 << 16], ..root() }).refuse(reason);
    // Three allocation pages cover all units there can be.
    Disk::new().with_root(&Root { space_pages: vec![0; 4], ..root() }).refuse(reason);
    Disk::new().with_slots(&[entry(1, PAGES, 1)]).refuse(reason);
    Disk::new().with_slots(&[entry(1, PAGES - 1, 2)]).refuse(reason);
}

fn outside(unit: u32) -> String {
    format!("unit {unit} is in use and outside of the disk, which may have been larger")
}

/// A disk that is smaller than before is not opened: what it would write there, allocation pages
/// without the units that are gone, would be in the way of whoever makes it as large again.
#[test]
fn units_in_use_are_on_the_disk() {
    for (unit, page) in [(1 << 16, 2), ((1 << 16) + 65, 2), (95_999, 2)] {
        let mut words = [0; 500];
        let within = unit as usize - page * 32_000;
        words[within / 64] |= 1 << (within % 64);
        let mut disk = Disk::new();
        disk.put(6, &encode_space(page as u32 * UNITS_PER_PAGE, &words));
        let root = Root { serial: 1, space_pages: vec![0, 0, 6], ..Root::default() };
        disk.with_root(&root).refuse(&outside(unit));
    }
}

#[test]
fn a_fragment_is_named_once() {
    let twice = [entry(1, 6, 1), entry(2, 7, 1), entry(1, 8, 1)];
    Disk::new().with_slots(&twice).refuse("it names a fragment twice");
}

#[test]
fn a_unit_is_whole_once_and_not_given_back() {
    let root = || Root { serial: 1, ..Root::default() };
    for root in [
        Root { whole: vec![9, 8, 9], ..root() },
        Root { whole: vec![9], unpunched: vec![8, 9], ..root() },
    ] {
        Disk::new().with_root(&root).refuse("it names a unit twice");
    }
}

#[test]
fn a_batch_that_names_what_is_outside_of_the_disk_is_not_dropped() {
    let fragment = FragmentId { lineage: LineageId(1), number: 1 };
    let version = Version { seq: 1, ..Version::ZERO };
    for unit in [9, 1 << 16, u32::MAX] {
        let vid = Vid::new(5).expect("vid");
        let extents = vec![Placed { chunk: 0, unit }];
        let body = Body::Write { vid, start: 0, crcs: vec![0; 2], extents };
        let (prev, missing, request) = (Version::ZERO, false, None);
        let first = Record { fragment, version, prev, missing, request, body };
        // Its blocks count no more, so it does not look torn.
        let second = Record { body: Body::DeleteVid { vid, forget: false }, ..first.clone() };
        let mut disk = Disk::new();
        let (_, bytes) = batch::encode(first_batch(LOG_ID), [first, second].iter(), 512);
        disk.log[..bytes.len()].copy_from_slice(&bytes);
        if unit == 9 {
            assert_eq!(disk.open(false).expect("it opens").0.batches, 1);
        } else {
            disk.refuse(&outside(unit));
        }
    }
}

#[test]
fn positions_are_those_of_a_log() {
    let sound = slot(0, 0);
    let replay = |pos, seq| LogPosition { pos, seq, prev_crc: 0 };
    for bad in [
        CheckpointSlot { serial: u64::MAX, ..sound },
        CheckpointSlot { replay: replay(0, 0), ..sound },
        CheckpointSlot { replay: replay(0, u64::MAX), ..sound },
        CheckpointSlot { replay: replay(u64::MAX, 1), ..sound },
        CheckpointSlot { mark: u64::MAX, ..sound },
        CheckpointSlot { raising: u64::MAX, ..sound },
    ] {
        let error = Disk::new().with_slot(bad).open(true).expect_err("no log");
        assert!(error.full().ends_with("impossible position"), "{}", error.full());
    }
}

/// The header of a log's first batch, before its lengths are known.
const fn first_batch(log_id: u64) -> BatchHeader {
    BatchHeader {
        log_id,
        seq: 1,
        prev_crc: 0,
        watermark: 0,
        header_bytes: 0,
        payload_bytes: 0,
        records: 0,
        crc: 0,
    }
}

const NOT_OURS: &str = "the log is not this store's: it was replaced or lost its contents";

impl Disk {
    /// A batch at the log's start that deletes one fragment's vid.
    fn with_batch(mut self, log_id: u64) -> Self {
        let record = Record {
            fragment: FragmentId { lineage: LineageId(1), number: 1 },
            version: Version { seq: 1, ..Version::ZERO },
            prev: Version::ZERO,
            missing: false,
            request: None,
            body: Body::DeleteVid { vid: Vid::new(5).expect("vid"), forget: false },
        };
        let (_, bytes) = batch::encode(first_batch(log_id), [record].iter(), 512);
        self.log[..bytes.len()].copy_from_slice(&bytes);
        self
    }

    /// With the log area of another disk.
    fn with_log_of(mut self, other: Self) -> Self {
        self.log = other.log;
        self
    }

    /// Opening refuses it as one whose log was replaced; who looks is told and sees so many batches.
    fn refuse_log(mut self, batches: u64) {
        let error = self.open(false).expect_err("another log");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.full().contains(NOT_OURS), "{}", error.full());
        assert_eq!(error.full().lines().count(), 1);
        let (report, damage) = self.open(true).expect("a look");
        assert_eq!((report.batches, damage.len()), (batches, 1), "{damage:?}");
        assert!(damage[0].contains(NOT_OURS), "{damage:?}");
    }
}

/// A log that was lost or replaced is never taken for an empty one.
#[test]
fn a_log_of_nobody_or_of_another_store_is_refused() {
    let ours = || Disk::new().with_batch(LOG_ID);
    assert_eq!(ours().open(false).expect("sound").0.batches, 1);
    let mut zeroed = ours();
    zeroed.log.fill(0);
    zeroed.refuse_log(0);
    let of = |log_id, disk| Disk::of(log_id, DiskId([disk; 16]), LOG_HAS_OWNER);
    ours().with_log_of(of(LOG_ID + 1, 1).with_batch(LOG_ID + 1)).refuse_log(0);
    ours().with_log_of(of(LOG_ID + 1, 3)).refuse_log(0);
    ours().with_log_of(of(LOG_ID, 3)).refuse_log(0);
    // The owner block alone is bad: batches name their log themselves, and there they are.
    for byte in 0..16 + 8 + 16 {
        let mut rotten = ours();
        rotten.log[LOG_BYTES as usize + byte] ^= 1 << (byte % 8);
        rotten.refuse_log(1);
    }
    // What is behind the frame does not count.
    let mut harmless = ours();
    harmless.log[LOG_BYTES as usize + 40] ^= 1;
    assert_eq!(harmless.open(false).expect("sound").0.batches, 1);
}

#[test]
fn an_owner_block_of_a_newer_version_is_refused() {
    let mut disk = Disk::new();
    let block = &disk.log[LOG_BYTES as usize..][..40];
    let magic = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let newer = sheepdog_storelog::format::codec::frame(magic, 3, &block[16..]);
    disk.log[LOG_BYTES as usize..][..newer.len()].copy_from_slice(&newer);
    for salvage in [false, true] {
        let error = disk.open(salvage).expect_err("newer");
        assert_eq!(error.kind(), ErrorKind::VersionMismatch, "{}", error.full());
    }
}

/// Stores of before there were owner blocks have nothing behind the ring.
#[test]
fn a_store_without_an_owner_block_opens_as_it_did() {
    let mut disk = Disk::with_features(0).with_batch(LOG_ID);
    assert_eq!(disk.log.len() as u64, LOG_BYTES);
    assert_eq!(disk.open(false).expect("sound").0.batches, 1);
    // What can be told is that there is something of another log where ours must go on.
    Disk::with_features(0).with_batch(LOG_ID + 1).refuse_log(0);
    let mut torn = Disk::with_features(0).with_batch(LOG_ID + 1);
    torn.log[100] ^= 1;
    assert_eq!(torn.open(false).expect("no batch").0.batches, 0);
}

/// The block that the superblock counts on is durable before it.
#[test]
fn the_owner_block_is_prepared_before_the_superblock() {
    let superblock = Superblock::decode(&Disk::new().data).expect("a superblock");
    let places = |superblock: &Superblock| -> Vec<(Area, u64, bool)> {
        let ops = prepare(superblock).expect("the log is large enough");
        ops.iter()
            .map(|op| match op {
                DiskOp::Write { area, offset, durable, .. } => (*area, *offset, *durable),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(places(&superblock), [(Area::Log, LOG_BYTES, true), (Area::Data, 0, true)]);
    assert_eq!(superblock.log_area_bytes(), LOG_BYTES + OWNER_BYTES);
    let before = Superblock { features: 0, ..superblock };
    assert_eq!(places(&before), [(Area::Data, 0, true)]);
}
