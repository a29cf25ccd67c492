//! The index on disk: entry pages (one fixed slot per fragment), allocation pages (one bit per
//! unit) and the root that finds them. All written to fresh pages at a checkpoint; only what
//! changed is written.

use super::codec::{Malformed, Reader, Writer, frame, unframe, version};
use super::shard_record::{decode_shard, encode_shard};
use crate::fragment::OwnerSummary;
use sheepdog_types::{BLOCK_SIZE, FragmentId, Interval, LineageId, ShardId, Version, Vid};

const ENTRY_MAGIC: u32 = 0x5344_4549; // "IEDS"
const SPACE_MAGIC: u32 = 0x5344_4153; // "SADS"
const ROOT_MAGIC: u32 = 0x5344_5254; // "TRDS"
/// Version log. 1: first.
const VERSION: u16 = 1;

/// Slots of one entry page: 64 bytes each, one block with its frame.
pub const SLOTS_PER_PAGE: u32 = 63;
const SLOT_BYTES: usize = 64;
/// Units covered by one allocation page.
pub const UNITS_PER_PAGE: u32 = 4000 * 8;
/// Owners that fit a slot; with more, the fragment's page must be read to know them.
pub const OWNERS_IN_SLOT: usize = 3;

/// Where pages lie: contiguous blocks of the data area. 0 blocks: nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PageRun {
    /// Byte offset divided by the block size; below 2^48.
    pub page: u64,
    /// Blocks.
    pub count: u16,
}

impl PageRun {
    const fn pack(self) -> u64 {
        (self.page << 16) | self.count as u64
    }

    const fn unpack(value: u64) -> Self {
        Self { page: value >> 16, count: value as u16 }
    }

    /// Byte offset in the data area.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.page * BLOCK_SIZE as u64
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.count as usize * BLOCK_SIZE
    }
}

/// A fragment as the index on disk knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Which.
    pub id: FragmentId,
    /// Its head when its page was written.
    pub head: Version,
    /// Its page.
    pub page: PageRun,
    /// Who holds what in it.
    pub owners: Owners,
}

/// The owners of a fragment, as far as its slot tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owners {
    /// All of them, at most [`OWNERS_IN_SLOT`].
    Few([Option<OwnerSummary>; OWNERS_IN_SLOT]),
    /// More; the fragment's page tells.
    Many {
        /// Blocks that hold space, of all owners.
        stored_blocks: u32,
    },
}

impl Owners {
    /// No owner.
    pub const NONE: Self = Self::Few([None; OWNERS_IN_SLOT]);

    /// Whether nobody owns a block. More owners than the slot has room for are taken to.
    #[must_use]
    pub fn own_nothing(&self) -> bool {
        match self {
            Self::Few(owners) => owners.iter().flatten().all(|owner| owner.occupancy == 0),
            Self::Many { .. } => false,
        }
    }

    /// Whether nobody holds anything.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    /// As many as fit.
    #[must_use]
    pub fn of(owners: impl Iterator<Item = OwnerSummary>) -> Self {
        let mut few = [None; OWNERS_IN_SLOT];
        let (mut count, mut stored_blocks) = (0, 0);
        for owner in owners {
            if let Some(slot) = few.get_mut(count) {
                *slot = Some(owner);
            }
            count += 1;
            stored_blocks += u32::from(owner.stored_blocks);
        }
        if count <= OWNERS_IN_SLOT { Self::Few(few) } else { Self::Many { stored_blocks } }
    }

    /// Blocks that hold space, of all owners.
    #[must_use]
    pub fn stored_blocks(&self) -> u64 {
        match self {
            Self::Few(few) => few.iter().flatten().map(|o| u64::from(o.stored_blocks)).sum(),
            Self::Many { stored_blocks } => u64::from(*stored_blocks),
        }
    }
}

const OWNERS_UNKNOWN: u32 = u32::MAX;

/// One entry page; empty slots are `None`.
#[must_use]
pub fn encode_entries(slots: &[Option<Slot>]) -> Vec<u8> {
    let mut w = Writer::default();
    for slot in slots {
        let start = w.bytes.len();
        if let Some(slot) = slot {
            w.u64(slot.id.lineage.0);
            w.u64(slot.id.number);
            w.u64(slot.head.interval.0);
            w.u64(slot.head.seq);
            w.u64(slot.page.pack());
            match &slot.owners {
                Owners::Many { stored_blocks } => {
                    w.u32(OWNERS_UNKNOWN);
                    w.u32(*stored_blocks);
                }
                Owners::Few(owners) => {
                    for owner in owners.iter().flatten() {
                        w.u32(owner.vid.get() | (u32::from(owner.occupancy) << 24));
                        w.u32(u32::from(owner.stored_blocks));
                    }
                }
            }
        }
        w.bytes.resize(start + SLOT_BYTES, 0);
    }
    frame(ENTRY_MAGIC, VERSION, &w.bytes)
}

/// # Errors
/// When the page is not what was written.
pub fn decode_entries(bytes: &[u8]) -> Result<Vec<Option<Slot>>, Malformed> {
    const WHAT: &str = "entry page";
    let body = unframe(WHAT, ENTRY_MAGIC, VERSION, bytes)?;
    // A slot behind the last one would be the next page's first.
    if !body.len().is_multiple_of(SLOT_BYTES) || body.len() > SLOTS_PER_PAGE as usize * SLOT_BYTES {
        return Err(Reader::new(WHAT, body).bad("impossible length"));
    }
    body.chunks(SLOT_BYTES)
        .map(|bytes| {
            let mut r = Reader::new(WHAT, bytes);
            let id = FragmentId { lineage: LineageId(r.u64()?), number: r.u64()? };
            let head = Version { interval: Interval(r.u64()?), seq: r.u64()? };
            let page = PageRun::unpack(r.u64()?);
            if page.count == 0 {
                return Ok(None);
            }
            let mut owners = [None; OWNERS_IN_SLOT];
            for owner in &mut owners {
                let (word, stored) = (r.u32()?, r.u32()?);
                if word == OWNERS_UNKNOWN {
                    let owners = Owners::Many { stored_blocks: stored };
                    return Ok(Some(Slot { id, head, page, owners }));
                }
                let Some(vid) = Vid::new(word & 0xff_ffff) else {
                    break;
                };
                *owner = Some(OwnerSummary {
                    vid,
                    stored_blocks: u16::try_from(stored).map_err(|_| r.bad("impossible space"))?,
                    occupancy: (word >> 24) as u8,
                });
            }
            Ok(Some(Slot { id, head, page, owners: Owners::Few(owners) }))
        })
        .collect()
}

/// One allocation page: the words of a bitmap, a set bit is a unit in use.
#[must_use]
pub fn encode_space(first_unit: u32, words: &[u64]) -> Vec<u8> {
    let mut w = Writer::default();
    w.u32(first_unit);
    for word in words {
        w.u64(*word);
    }
    frame(SPACE_MAGIC, VERSION, &w.bytes)
}

/// # Errors
/// When the page is not what was written, or another page.
pub fn decode_space(first_unit: u32, bytes: &[u8]) -> Result<Vec<u64>, Malformed> {
    const WHAT: &str = "allocation page";
    let mut r = Reader::new(WHAT, unframe(WHAT, SPACE_MAGIC, VERSION, bytes)?);
    if r.u32()? != first_unit {
        return Err(r.bad("it covers other units"));
    }
    (0..UNITS_PER_PAGE / 64).map(|_| r.u64()).collect()
}

/// Finds everything else.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Root {
    /// Of the checkpoint that wrote it.
    pub serial: u64,
    /// Entry pages in order of their slots.
    pub entry_pages: Vec<u64>,
    /// Allocation pages in order of their units.
    pub space_pages: Vec<u64>,
    /// Free units whose space the host has not got back yet.
    pub unpunched: Vec<u32>,
    /// Every batch up to this one was durable when it was written, and may be included in pages.
    pub durable: u64,
    /// Units that the host held whole for pages of the index: spare ones, and those of which some
    /// pages are free.
    pub whole: Vec<u32>,
    /// Entry pages with missing fragments, ascending, and the page that tells which.
    pub missing_pages: Vec<(u32, u64)>,
    /// Shards, ascending, and the pages of their parts.
    pub shards: Vec<(ShardId, Vec<PageRun>)>,
}

/// Version log of the root. 1: first. 2: the durable batch. 3: units held whole. 4: missing
/// fragments and shards; a root without any is written in the third version, so that older programs
/// read it.
const ROOT_VERSION: u16 = 4;

impl Root {
    /// Any number of blocks.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u64(self.serial);
        w.u32(self.entry_pages.len() as u32);
        w.u32(self.space_pages.len() as u32);
        w.u32(self.unpunched.len() as u32);
        for page in self.entry_pages.iter().chain(&self.space_pages) {
            w.u64(*page);
        }
        for unit in &self.unpunched {
            w.u32(*unit);
        }
        w.u64(self.durable);
        w.u32(self.whole.len() as u32);
        for unit in &self.whole {
            w.u32(*unit);
        }
        if self.missing_pages.is_empty() && self.shards.is_empty() {
            return frame(ROOT_MAGIC, 3, &w.bytes);
        }
        w.u32(self.missing_pages.len() as u32);
        for (entry_page, page) in &self.missing_pages {
            w.u32(*entry_page);
            w.u64(*page);
        }
        w.u32(self.shards.len() as u32);
        for (shard, parts) in &self.shards {
            encode_shard(&mut w, *shard);
            w.u32(parts.len() as u32);
            for run in parts {
                w.u64(run.pack());
            }
        }
        frame(ROOT_MAGIC, ROOT_VERSION, &w.bytes)
    }

    /// Bytes that [`Root::encode`] gives; `units` are those of both lists, `lists` the missing
    /// pages, the shards and all their parts.
    #[must_use]
    pub const fn encoded_bytes(
        entry_pages: usize,
        space_pages: usize,
        units: usize,
        lists: (usize, usize, usize),
    ) -> usize {
        let lists = match lists {
            (0, 0, _) => 0,
            (missing_pages, shards, parts) => 8 + missing_pages * 12 + shards * 10 + parts * 8,
        };
        super::codec::FRAME_BYTES + 32 + (entry_pages + space_pages) * 8 + units * 4 + lists
    }

    /// # Errors
    /// When it is not the root of that checkpoint.
    pub fn decode(serial: u64, bytes: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "root";
        let mut r = Reader::new(WHAT, unframe(WHAT, ROOT_MAGIC, ROOT_VERSION, bytes)?);
        if r.u64()? != serial {
            return Err(r.bad("it belongs to another checkpoint"));
        }
        let version = version(bytes);
        let (entries, spaces, unpunched) = (r.u32()?, r.u32()?, r.u32()?);
        Ok(Self {
            serial,
            entry_pages: (0..entries).map(|_| r.u64()).collect::<Result<_, _>>()?,
            space_pages: (0..spaces).map(|_| r.u64()).collect::<Result<_, _>>()?,
            unpunched: (0..unpunched).map(|_| r.u32()).collect::<Result<_, _>>()?,
            durable: if version < 2 { 0 } else { r.u64()? },
            whole: {
                let whole = if version < 3 { 0 } else { r.u32()? };
                (0..whole).map(|_| r.u32()).collect::<Result<_, _>>()?
            },
            missing_pages: {
                let pages = if version < 4 { 0 } else { r.u32()? };
                (0..pages).map(|_| Ok((r.u32()?, r.u64()?))).collect::<Result<_, _>>()?
            },
            shards: {
                let shards = if version < 4 { 0 } else { r.u32()? };
                (0..shards)
                    .map(|_| {
                        let (shard, parts) = (decode_shard(&mut r)?, r.u32()?);
                        let parts = (0..parts).map(|_| r.u64().map(PageRun::unpack));
                        Ok((shard, parts.collect::<Result<_, _>>()?))
                    })
                    .collect::<Result<_, _>>()?
            },
        })
    }
}
