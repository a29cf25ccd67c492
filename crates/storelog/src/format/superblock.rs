//! Block 0 of the data area: who this store is. Blocks 1 and 2: two checkpoint slots, the same but
//! while they are written, one after the other. So neither a torn one nor one that rots hides the
//! current checkpoint. And the block behind the log's ring, which says whose log it is.

use super::codec::{Malformed, Reader, Writer, frame, unframe, version};
use sheepdog_types::{BLOCK_SIZE, DiskId, Geometry};

/// Units kept free at the start of the data area for these blocks.
pub const RESERVED_UNITS: u32 = 1;
/// Byte offsets of the two checkpoint slots.
pub const SLOT_OFFSETS: [u64; 2] = [BLOCK_SIZE as u64, 2 * BLOCK_SIZE as u64];

const SUPER_MAGIC: u32 = 0x5344_5342; // "BSDS"
const SLOT_MAGIC: u32 = 0x5344_5343; // "CSDS"
const OWNER_MAGIC: u32 = 0x5344_574f; // "OWDS"
/// Version log of the superblock. 1: first.
pub const STORE_VERSION: u16 = 1;
/// Version log of the checkpoint slots. 1: first. 2: the mark, and that it is being raised.
const SLOT_VERSION: u16 = 2;
/// Version log of the owner block. 1: first. 2: the mark.
const OWNER_VERSION: u16 = 2;
/// Bytes of the owner block.
pub const OWNER_BYTES: u64 = BLOCK_SIZE as u64;

/// Written once, when the disk is prepared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// This disk, for ever.
    pub disk: DiskId,
    /// The cluster it belongs to.
    pub cluster: [u8; 16],
    /// Chosen at random; a batch of another log is never taken for one of this.
    pub log_id: u64,
    /// Bytes of the log's ring; see [`Superblock::log_area_bytes`].
    pub log_bytes: u64,
    /// What log writes are aligned to: a power of two from 512 to 4096, not below the device's
    /// physical block, so that a torn write never touches an acknowledged batch.
    pub log_unit: u32,
    /// How fragments divide.
    pub geometry: Geometry,
    /// Durable log writes by one write with FUA semantics rather than by write and flush.
    pub log_fua: bool,
    /// Features a program must know to open the store.
    pub features: u64,
}

/// Feature of a raw device: its log is in a file elsewhere. Who took it for one on the device would
/// look for log and units in the wrong places.
pub const LOG_ELSEWHERE: u64 = 1;
/// Feature of a store whose log says whose it is, in a block behind the ring. Who did not compare it
/// would take another log for an empty one.
pub const LOG_HAS_OWNER: u64 = 2;

impl Superblock {
    /// Whether it says that the log is not on this device. Devices prepared before that was noted do
    /// not say it.
    #[must_use]
    pub const fn log_is_elsewhere(&self) -> bool {
        self.features & LOG_ELSEWHERE != 0
    }

    /// Whether there is an owner block behind the log's ring. Stores prepared before there was one
    /// have none.
    #[must_use]
    pub const fn log_has_owner(&self) -> bool {
        self.features & LOG_HAS_OWNER != 0
    }

    /// Bytes of the log area: the ring, and the owner block behind it if there is one.
    #[must_use]
    pub const fn log_area_bytes(&self) -> u64 {
        self.log_bytes + if self.log_has_owner() { OWNER_BYTES } else { 0 }
    }

    /// The owner block of this store's log at that mark.
    #[must_use]
    pub const fn log_owner(&self, mark: u64) -> LogOwner {
        LogOwner { log_id: self.log_id, disk: self.disk, mark }
    }

    /// One block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.raw(&self.disk.0);
        w.raw(&self.cluster);
        w.u64(self.log_id);
        w.u64(self.log_bytes);
        w.u32(self.log_unit);
        w.u16(self.geometry.blocks_per_chunk() as u16);
        w.u16(self.geometry.chunks_per_fragment() as u16);
        w.u8(u8::from(self.log_fua));
        w.u64(self.features);
        frame(SUPER_MAGIC, STORE_VERSION, &w.bytes)
    }

    /// # Errors
    /// Not a superblock, rotten, or newer.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "superblock";
        let mut r = Reader::new(WHAT, unframe(WHAT, SUPER_MAGIC, STORE_VERSION, bytes)?);
        let disk = DiskId(r.bytes16()?);
        let cluster = r.bytes16()?;
        let log_id = r.u64()?;
        let log_bytes = r.u64()?;
        let log_unit = r.u32()?;
        let geometry = Geometry::new(r.u16()?, r.u16()?).ok_or(r.bad("impossible geometry"))?;
        let log_fua = r.u8()? != 0;
        let features = r.u64()?;
        if features & !(LOG_ELSEWHERE | LOG_HAS_OWNER) != 0 {
            return Err(Malformed::newer(WHAT));
        }
        if !log_unit.is_power_of_two() || !(512..=BLOCK_SIZE as u32).contains(&log_unit) {
            return Err(r.bad("impossible log unit"));
        }
        // No disk is so long; and places behind the ring can be told without a thought.
        let possible = 64 * BLOCK_SIZE as u64..=1 << 60;
        if !log_bytes.is_multiple_of(BLOCK_SIZE as u64) || !possible.contains(&log_bytes) {
            return Err(r.bad("impossible log size"));
        }
        Ok(Self { disk, cluster, log_id, log_bytes, log_unit, geometry, log_fua, features })
    }
}

/// Whose a log is. Before its first batch nothing else tells an empty log of this store from zeros
/// that somebody put in its place, or from a log of another store. Written before the superblock
/// that counts on it, and again at each opening, as `open/mark.rs` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOwner {
    /// [`Superblock::log_id`].
    pub log_id: u64,
    /// [`Superblock::disk`].
    pub disk: DiskId,
    /// Counts the openings for writing; see [`CheckpointSlot::mark`].
    pub mark: u64,
}

impl LogOwner {
    const WHAT: &str = "owner block of the log";

    /// One block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.log_id);
        w.raw(&self.disk.0);
        if self.mark == 0 {
            return frame(OWNER_MAGIC, 1, &w.bytes);
        }
        w.u64(self.mark);
        frame(OWNER_MAGIC, OWNER_VERSION, &w.bytes)
    }

    /// # Errors
    /// Not an owner block, rotten, or newer.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let body = unframe(Self::WHAT, OWNER_MAGIC, OWNER_VERSION, bytes)?;
        let mut r = Reader::new(Self::WHAT, body);
        let (log_id, disk) = (r.u64()?, DiskId(r.bytes16()?));
        let mark = if version(bytes) < 2 { 0 } else { r.u64()? };
        if mark > u64::MAX / 2 {
            return Err(r.bad("impossible mark"));
        }
        Ok(Self { log_id, disk, mark })
    }

    /// # Errors
    /// When it is not that of this store's log.
    pub fn check(&self, superblock: &Superblock) -> Result<(), Malformed> {
        if *self != superblock.log_owner(self.mark) {
            return Err(Malformed::new(Self::WHAT, "it names another store"));
        }
        Ok(())
    }
}

/// Where replay starts: everything before is home and in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogPosition {
    /// Monotonic byte position; modulo the log's size it is the offset.
    pub pos: u64,
    /// Sequence number of the batch that is or will be there.
    pub seq: u64,
    /// Header checksum of the batch before it.
    pub prev_crc: u32,
}

/// A finished checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CheckpointSlot {
    /// Counts checkpoints; the higher valid slot is the current one, and the other one is made equal
    /// to it before anything of the older checkpoint is used again.
    pub serial: u64,
    /// First page of the root and the bytes of all its pages; 0 bytes for an empty store.
    pub root_page: u64,
    /// See `root_page`.
    pub root_bytes: u64,
    /// Where replay starts.
    pub replay: LogPosition,
    /// Counts the openings for writing, as the owner block of the log does: where they differ, one
    /// of the two areas was put back from a copy. 0 for stores of before, and where there is no
    /// owner block.
    pub mark: u64,
    /// Not 0 while the owner block is written with the next mark: it may say either then, or be torn.
    /// It is the number of the batch after the last one that the log had, all of which were durable;
    /// none was acknowledged since.
    pub raising: u64,
}

impl CheckpointSlot {
    /// One block.
    #[must_use]
    pub fn encode(&self, log_id: u64) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(log_id);
        w.u64(self.serial);
        w.u64(self.root_page);
        w.u64(self.root_bytes);
        w.u64(self.replay.pos);
        w.u64(self.replay.seq);
        w.u32(self.replay.prev_crc);
        if (self.mark, self.raising) == (0, 0) {
            return frame(SLOT_MAGIC, 1, &w.bytes);
        }
        w.u64(self.mark);
        w.u64(self.raising);
        frame(SLOT_MAGIC, SLOT_VERSION, &w.bytes)
    }

    /// # Errors
    /// Torn, rotten, newer, or of another store.
    pub fn decode(log_id: u64, bytes: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "checkpoint slot";
        let mut r = Reader::new(WHAT, unframe(WHAT, SLOT_MAGIC, SLOT_VERSION, bytes)?);
        if r.u64()? != log_id {
            return Err(r.bad("it belongs to another store"));
        }
        let has_mark = version(bytes) >= 2;
        let slot = Self {
            serial: r.u64()?,
            root_page: r.u64()?,
            root_bytes: r.u64()?,
            replay: LogPosition { pos: r.u64()?, seq: r.u64()?, prev_crc: r.u32()? },
            mark: if has_mark { r.u64()? } else { 0 },
            raising: if has_mark { r.u64()? } else { 0 },
        };
        // All of them are counted up, for longer than any disk lives.
        let counters = [slot.serial, slot.replay.pos, slot.replay.seq, slot.mark, slot.raising];
        if slot.replay.seq == 0 || counters.iter().any(|counter| *counter > u64::MAX / 2) {
            return Err(r.bad("impossible position"));
        }
        Ok(slot)
    }
}
