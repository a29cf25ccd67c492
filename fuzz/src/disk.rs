//! A small store in memory: made by the store itself, then opened again with its bytes changed.

use crate::store::resealed;
use bytes::Bytes;
use sheepdog_storelog::format::batch::BatchHeader;
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, LOG_HAS_OWNER, Limits, Opening, Store, Superblock,
    ZeroKind, prepare,
};
use sheepdog_types::{
    BLOCK_SIZE, DiskId, Error, FragmentId, Geometry, Interval, LineageId, PageBuf, Version, Vid,
};
use std::sync::Arc;

/// Bytes of the log, and what its writes are aligned to.
const LOG_BYTES: u64 = 256 << 10;
const LOG_UNIT: u32 = 512;
const LOG_ID: u64 = 0x1122_3344_5566_7788;
/// Longest read that this machine has memory for; the longest of a sound store is 1 MiB.
const READ_MAX: usize = 4 << 20;
/// Fragments that are written.
pub const FRAGMENTS: u64 = 3;
/// Blocks of each.
pub const BLOCKS: u32 = 8;

/// Everything is one vid's.
pub const VID: Vid = Vid::new(5).expect("in range");

/// What the store may use, little of each.
pub const LIMITS: Limits = Limits {
    cache_bytes: 1 << 20,
    logged_bytes: 0,
    units_max: 1 << 20,
    recycled_units: 2,
    spare_pages: 4,
    give_back_units: 8,
    extent_blocks_min: 2,
    ..Limits::STANDARD
};

/// Fragment by number.
#[must_use]
pub const fn fragment(number: u64) -> FragmentId {
    FragmentId { lineage: LineageId(7), number }
}

/// Where structures lie: offset and bytes.
pub type Places = Vec<(usize, usize)>;

/// Both areas. Behind their ends all is zero.
#[derive(Clone, Default)]
pub struct Disk {
    /// The data area.
    pub data: Vec<u8>,
    /// The log area.
    pub log: Vec<u8>,
}

impl Disk {
    fn area(&mut self, area: Area) -> &mut Vec<u8> {
        match area {
            Area::Data => &mut self.data,
            Area::Log => &mut self.log,
        }
    }

    /// Does what is asked, at once.
    pub fn perform(&mut self, op: OpId, what: &DiskOp) -> Completion {
        let result = match what {
            DiskOp::Read { area, offset, len } => self.read(*area, *offset, *len),
            DiskOp::Write { area, offset, data, .. } => {
                let (bytes, mut at) = (data.concat(), *offset as usize);
                let area = self.area(*area);
                if at + bytes.len() > 64 << 20 {
                    at = area.len();
                }
                area.resize(area.len().max(at + bytes.len()), 0);
                area[at..at + bytes.len()].copy_from_slice(&bytes);
                Ok(Bytes::new())
            }
            DiskOp::Punch { offset, len } => {
                let end = self.data.len();
                let from = (*offset as usize).min(end);
                self.data[from..from.saturating_add(*len as usize).min(end)].fill(0);
                Ok(Bytes::new())
            }
            DiskOp::Sync { .. } | DiskOp::Allocate { .. } | DiskOp::Extend { .. } => {
                Ok(Bytes::new())
            }
        };
        Completion { op, result }
    }

    fn read(&mut self, area: Area, offset: u64, len: usize) -> Result<Bytes, DiskError> {
        if len > READ_MAX {
            return Err(DiskError { kind: DiskErrorKind::Io, text: "too long".to_owned() });
        }
        let area = self.area(area);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(area.len());
        let found = &area[from..from.saturating_add(len).min(area.len())];
        let mut pages = PageBuf::zeroed(len);
        pages.as_mut()[..found.len()].copy_from_slice(found);
        Ok(pages.freeze().slice(..len))
    }

    /// Opens the store on it. Gives what was read of the data area as well.
    ///
    /// # Errors
    /// Why it cannot be opened.
    ///
    /// # Panics
    /// When opening comes to a stop.
    pub fn open(&mut self, salvage: bool) -> Result<(Box<Store>, Places), Error> {
        let (mut effects, mut places) = (Vec::new(), Vec::new());
        let mut opening = match salvage {
            true => Opening::salvage(LIMITS, &mut effects),
            false => Opening::start(LIMITS, &mut effects),
        };
        loop {
            let Some(Effect::Disk(id, op)) = effects.pop() else {
                panic!("opening came to a stop");
            };
            if let DiskOp::Read { area: Area::Data, offset, len } = op {
                places.push((offset as usize, len));
            }
            if let Some(opened) = opening.completed(self.perform(id, &op), &mut effects) {
                return opened.map(|(store, _)| (store, places));
            }
        }
    }

    /// Gives a store a command and the disk until nothing is left to do.
    pub fn ask(&mut self, store: &mut Store, command: Command) -> Option<Result<Answer, Error>> {
        let mut effects = Vec::new();
        store.handle(Input::HostFree(1 << 30), &mut effects);
        self.run(store, command, effects, true)
    }

    /// Asks a store that is only looked at, so that nothing of its own is ever begun.
    pub fn look(&mut self, store: &mut Store, command: Command) -> Option<Result<Answer, Error>> {
        self.run(store, command, Vec::new(), false)
    }

    fn run(
        &mut self,
        store: &mut Store,
        command: Command,
        mut effects: Vec<Effect>,
        pump: bool,
    ) -> Option<Result<Answer, Error>> {
        store.handle(Input::Command(CommandId(1), command), &mut effects);
        let mut answer = None;
        loop {
            if pump {
                store.pump(&mut effects);
            }
            let Some(effect) = effects.pop() else {
                return answer;
            };
            match effect {
                Effect::Disk(id, op) => {
                    let done = self.perform(id, &op);
                    store.handle(Input::Completed(done), &mut effects);
                }
                Effect::Reply(_, result) => answer = Some(result),
            }
        }
    }
}

/// A store with some work behind it, and what it holds.
pub struct Made {
    /// The disk.
    pub disk: Disk,
    /// Places in the data area that opening reads: the structures there are.
    pub places: Places,
    /// Places of the batches in the log that are replayed: header and records, payload behind.
    pub batches: Places,
    /// Every block ever written, with its history: 0 is a hole.
    pub history: Vec<Vec<Vec<u64>>>,
}

/// Bytes of a block, named by a number.
#[must_use]
pub fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK_SIZE / 8)
}

impl Made {
    /// Makes it.
    ///
    /// # Panics
    /// When the store does not do its work.
    #[must_use]
    pub fn new() -> Self {
        let superblock = Superblock {
            disk: DiskId([1; 16]),
            cluster: [2; 16],
            log_id: LOG_ID,
            log_bytes: LOG_BYTES,
            log_unit: LOG_UNIT,
            geometry: Geometry::new(2, 4).expect("legal"),
            log_fua: true,
            features: LOG_HAS_OWNER,
        };
        let mut disk = Disk { data: Vec::new(), log: vec![0; LOG_BYTES as usize] };
        for op in prepare(&superblock).expect("the log is large enough") {
            disk.perform(OpId(0), &op);
        }
        let (mut store, _) = disk.open(false).expect("it is sound");
        let mut made = Self {
            disk: Disk::default(),
            places: Vec::new(),
            batches: Vec::new(),
            history: vec![vec![vec![0]; BLOCKS as usize]; FRAGMENTS as usize],
        };
        let mut seq = 0;
        for round in 0..3 {
            for number in 0..FRAGMENTS {
                // An edge and whole chunks; one block; a few holes.
                for (start, count) in [(1, 5), (number as u32, 1), (6, 2)] {
                    seq += 1;
                    let version = Version { interval: Interval(1), seq };
                    let (vid, fragment) = (VID, fragment(number));
                    let holes = start == 6;
                    let command = if holes {
                        let kind = [ZeroKind::Remove, ZeroKind::Reserve, ZeroKind::Marker];
                        let kind = kind[round];
                        Command::Zero { fragment, vid, version, start, count, kind, request: None }
                    } else {
                        let blocks = (0..count).flat_map(|_| block(seq)).collect::<Vec<_>>();
                        let data = vec![PageBuf::copy_of(&blocks).freeze()];
                        Command::Write { fragment, vid, version, start, data, request: None }
                    };
                    let done = disk.ask(&mut store, command).expect("an answer");
                    assert_eq!(done.expect("success"), Answer::Done);
                    for at in start..start + count {
                        let value = if holes { 0 } else { seq };
                        made.history[number as usize][at as usize].push(value);
                    }
                }
            }
            if round == 1 {
                let done = disk.ask(&mut store, Command::Checkpoint).expect("an answer");
                assert_eq!(done.expect("success"), Answer::Done);
            }
        }
        made.disk = disk.clone();
        let (_, places) = disk.open(false).expect("it is sound");
        made.places = places;
        // The three blocks that are read at once.
        made.places[0] = (0, BLOCK_SIZE);
        made.places.extend([(BLOCK_SIZE, BLOCK_SIZE), (2 * BLOCK_SIZE, BLOCK_SIZE)]);
        made.batches = made.disk.batches();
        assert!(made.batches.len() >= 9, "{} batches", made.batches.len());
        made
    }
}

impl Default for Made {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk {
    /// The batches since the last checkpoint: in a chain to the newest.
    fn batches(&self) -> Places {
        let unit = LOG_UNIT as usize;
        let mut found = Vec::new();
        for at in (0..self.log.len()).step_by(unit) {
            if let Ok(header) = BatchHeader::peek(&self.log[at..], LOG_ID, LOG_UNIT) {
                found.push((header.seq, at, header.header_bytes as usize));
            }
        }
        found.sort_unstable();
        found.split_off(found.len().saturating_sub(9)).into_iter().map(|f| (f.1, f.2)).collect()
    }

    /// Makes checksums right again, as far as lengths can be followed, those of the batches with
    /// their chain.
    pub fn reseal(&mut self, made: &Made) {
        for (at, len) in &made.places {
            if let Some(bytes) = self.data.get_mut(*at..at + len) {
                resealed(bytes);
            }
        }
        let mut before = None;
        for (at, len) in &made.batches {
            let bytes = &mut self.log[*at..at + len];
            if let Some(crc) = before {
                bytes[24..28].copy_from_slice(&u32::to_le_bytes(crc));
            }
            bytes[48..52].fill(0);
            let crc = sheepdog_storelog::checksum::crc32c(bytes);
            bytes[48..52].copy_from_slice(&crc.to_le_bytes());
            before = Some(crc);
        }
    }
}

/// Reads a whole fragment.
#[must_use]
pub fn whole(number: u64) -> Command {
    Command::Read { fragment: fragment(number), path: Arc::from([VID]), start: 0, count: BLOCKS }
}
