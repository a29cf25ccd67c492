//! The records of a batch: what happens to a fragment, and what to a shard.
//!
//! Kinds 1 to 3 are those of the first version. With the bit `EXTENDED` they tell whose request it
//! was, and whether the fragment was missing. That, and all other kinds, is of the second version.

use super::codec::{Malformed, Reader, Writer};
use super::shard_record::{
    DROP_SHARD, REQUEST_BYTES, SHARD_BYTES, ShardRecord, decode_request, decode_shard,
    decode_version, encode_request, encode_shard, encode_version,
};
use crate::fragment::full_mask;
use sheepdog_types::{FragmentId, Geometry, LineageId, RequestId, ShardId, Version, Vid};

/// What was done to a range of blocks that now read as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroKind {
    /// No longer owned; space is given back.
    Remove,
    /// Owned zeros that hold no space: an ancestor must not show through.
    Marker,
    /// Owned zeros with space reserved.
    Reserve,
}

/// A chunk of the fragment and the unit of the data area that it moved to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Index in the fragment.
    pub chunk: u8,
    /// Index in the data area.
    pub unit: u32,
}

/// What a record of the log is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogRecord {
    /// A fragment.
    Fragment(Record),
    /// A shard.
    Shard(ShardRecord),
}

/// As [`LogRecord`], of records that are elsewhere.
#[derive(Clone, Copy, Debug)]
pub enum LogRecordRef<'a> {
    /// A fragment.
    Fragment(&'a Record),
    /// A shard.
    Shard(&'a ShardRecord),
}

impl<'a> From<&'a LogRecord> for LogRecordRef<'a> {
    fn from(record: &'a LogRecord) -> Self {
        match record {
            LogRecord::Fragment(record) => Self::Fragment(record),
            LogRecord::Shard(record) => Self::Shard(record),
        }
    }
}

impl<'a> From<&'a Record> for LogRecordRef<'a> {
    fn from(record: &'a Record) -> Self {
        Self::Fragment(record)
    }
}

/// One step of a fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Of which fragment.
    pub fragment: FragmentId,
    /// The head after it, or what is needed if the fragment is missing.
    pub version: Version,
    /// The same before it.
    pub prev: Version,
    /// The fragment was missing: the head stays, chunks that are touched become unknown.
    pub missing: bool,
    /// Whose request it was.
    pub request: Option<(ShardId, RequestId)>,
    /// What it does.
    pub body: Body,
}

/// What a record does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Blocks `start..start + crcs.len()` get new bytes: in the extents for the chunks listed
    /// (whole chunks only), in the payload, in order, for all others.
    Write {
        /// Who owns them.
        vid: Vid,
        /// First block.
        start: u32,
        /// Checksum of every block.
        crcs: Vec<u32>,
        /// Chunks written to fresh extents.
        extents: Vec<Placed>,
    },
    /// Blocks read as zeros from now on.
    Zero {
        /// Whose.
        vid: Vid,
        /// First block.
        start: u32,
        /// How many.
        count: u32,
        /// And what becomes of their space.
        kind: ZeroKind,
        /// The home of every chunk touched ([`ZeroKind::Reserve`] only).
        units: Vec<Placed>,
    },
    /// The vid owns nothing here any more; with `forget`, a fragment that holds nothing else is
    /// dropped from the index.
    DeleteVid {
        /// Which.
        vid: Vid,
        /// See above.
        forget: bool,
    },
    /// The fragment is missing from now on; the record's version is what is needed.
    Miss,
    /// Chunks hold this and nothing else from now on. The record's version is that of the copies.
    Fill {
        /// Ascending.
        chunks: Vec<FilledChunk>,
        /// The fragment is complete.
        last: bool,
    },
    /// A fragment that holds nothing is dropped from the index.
    Forget,
}

/// All of a chunk that was copied from another replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilledChunk {
    /// Index in the fragment.
    pub chunk: u8,
    /// That it has from now on.
    pub version: Version,
    /// Who owns anything in it, ascending.
    pub vids: Vec<FilledVid>,
}

/// What one vid owns in such a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilledVid {
    /// Which.
    pub vid: Vid,
    /// The chunk's home, if anything needs space.
    pub unit: Option<u32>,
    /// Blocks with bytes, which are at home.
    pub data: u16,
    /// Owned zeros.
    pub zero: u16,
    /// Those of them with space.
    pub reserved: u16,
    /// Of the blocks with bytes, in order.
    pub crcs: Vec<u32>,
}

impl Record {
    /// Whether blocks may hold less space behind it than before.
    #[must_use]
    pub const fn may_clear(&self) -> bool {
        match &self.body {
            Body::Write { .. }
            | Body::Zero { kind: ZeroKind::Reserve, .. }
            | Body::Miss
            | Body::Forget => false,
            Body::Zero { .. } | Body::DeleteVid { .. } | Body::Fill { .. } => true,
        }
    }

    /// Whether it takes space, and so can be refused for want of it.
    #[must_use]
    pub const fn needs_space(&self) -> bool {
        matches!(
            self.body,
            Body::Write { .. } | Body::Zero { kind: ZeroKind::Reserve, .. } | Body::Fill { .. }
        )
    }

    /// Whether it is a write of the chain, whose version follows the one before it.
    #[must_use]
    pub const fn is_write(&self) -> bool {
        matches!(self.body, Body::Write { .. } | Body::Zero { .. } | Body::DeleteVid { .. })
    }

    /// Whose blocks it changes, if they are one vid's.
    #[must_use]
    pub const fn vid(&self) -> Option<Vid> {
        match self.body {
            Body::Write { vid, .. } | Body::Zero { vid, .. } | Body::DeleteVid { vid, .. } => {
                Some(vid)
            }
            Body::Miss | Body::Fill { .. } | Body::Forget => None,
        }
    }

    /// The units that it names, and of whose chunks they are the homes.
    #[must_use]
    pub fn homes(&self) -> Vec<(Vid, Placed)> {
        match &self.body {
            Body::Write { vid, extents: placed, .. } | Body::Zero { vid, units: placed, .. } => {
                placed.iter().map(|placed| (*vid, *placed)).collect()
            }
            Body::Fill { chunks, .. } => {
                let vids = chunks.iter().flat_map(|c| c.vids.iter().map(|vid| (c.chunk, vid)));
                vids.filter_map(|(chunk, filled)| {
                    Some((filled.vid, Placed { chunk, unit: filled.unit? }))
                })
                .collect()
            }
            Body::DeleteVid { .. } | Body::Miss | Body::Forget => Vec::new(),
        }
    }

    /// Blocks of payload that follow in the batch.
    #[must_use]
    pub fn payload_blocks(&self, geometry: Geometry) -> usize {
        match &self.body {
            Body::Write { crcs, extents, .. } => {
                crcs.len() - extents.len() * geometry.blocks_per_chunk() as usize
            }
            _ => 0,
        }
    }

    /// Bytes in the header.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        const FIXED: usize = 1 + 4 + 16 + 16 + 16;
        let extension = match self.request {
            _ if !self.is_extended() => 0,
            None => 1,
            Some(_) => 1 + SHARD_BYTES + REQUEST_BYTES,
        };
        FIXED
            + extension
            + match &self.body {
                Body::Write { crcs, extents, .. } => 4 + 4 + 2 + crcs.len() * 4 + extents.len() * 5,
                Body::Zero { units, .. } => 4 + 4 + 1 + 2 + units.len() * 5,
                Body::DeleteVid { .. } => 1,
                Body::Miss | Body::Forget => 0,
                Body::Fill { chunks, .. } => {
                    let vids = chunks.iter().flat_map(|chunk| &chunk.vids);
                    let vids = vids.map(|filled| 4 + 4 + 3 * 2 + filled.crcs.len() * 4);
                    1 + 1 + chunks.len() * (1 + 16 + 4) + vids.sum::<usize>()
                }
            }
    }

    const fn is_extended(&self) -> bool {
        self.is_write() && (self.missing || self.request.is_some())
    }

    fn encode(&self, w: &mut Writer) {
        let kind = match &self.body {
            Body::Write { .. } => 1,
            Body::Zero { .. } => 2,
            Body::DeleteVid { .. } => 3,
            Body::Miss => MISS,
            Body::Fill { .. } => FILL,
            Body::Forget => FORGET,
        };
        w.u8(kind | if self.is_extended() { EXTENDED } else { 0 });
        w.u32(self.vid().map_or(0, Vid::get));
        w.u64(self.fragment.lineage.0);
        w.u64(self.fragment.number);
        for version in [self.version, self.prev] {
            encode_version(w, version);
        }
        if self.is_extended() {
            w.u8(u8::from(self.missing) | u8::from(self.request.is_some()) << 1);
            if let Some((shard, id)) = &self.request {
                encode_shard(w, *shard);
                encode_request(w, id);
            }
        }
        match &self.body {
            Body::Write { start, crcs, extents, .. } => {
                w.u32(*start);
                w.u32(crcs.len() as u32);
                w.u16(extents.len() as u16);
                for crc in crcs {
                    w.u32(*crc);
                }
                encode_placed(w, extents);
            }
            Body::Zero { start, count, kind, units, .. } => {
                w.u32(*start);
                w.u32(*count);
                w.u8(match kind {
                    ZeroKind::Remove => 0,
                    ZeroKind::Marker => 1,
                    ZeroKind::Reserve => 2,
                });
                w.u16(units.len() as u16);
                encode_placed(w, units);
            }
            Body::DeleteVid { forget, .. } => w.u8(u8::from(*forget)),
            Body::Miss | Body::Forget => {}
            Body::Fill { chunks, last } => {
                w.u8(u8::from(*last));
                w.u8(chunks.len() as u8);
                chunks.iter().for_each(|chunk| chunk.encode(w));
            }
        }
    }

    fn decode(kind: u8, r: &mut Reader<'_>, geometry: Geometry) -> Result<Self, Malformed> {
        let vid = Vid::new(r.u32()?);
        let fragment = FragmentId { lineage: LineageId(r.u64()?), number: r.u64()? };
        let (version, prev) = (decode_version(r)?, decode_version(r)?);
        let (mut missing, mut request) = (false, None);
        if kind & EXTENDED != 0 {
            let flags = r.u8()?;
            if flags == 0 || flags > 3 {
                return Err(r.bad("unknown flags"));
            }
            missing = flags & 1 != 0;
            if flags & 2 != 0 {
                request = Some((decode_shard(r)?, decode_request(r)?));
            }
        }
        let kind = kind & !EXTENDED;
        if vid.is_some() != (kind < MISS) {
            return Err(r.bad("impossible vid"));
        }
        let body = match (kind, vid) {
            (1, Some(vid)) => {
                let (start, count) = decode_range(r, geometry)?;
                let placed = r.u16()?;
                let crcs = (0..count).map(|_| r.u32()).collect::<Result<Vec<_>, _>>()?;
                let extents = decode_placed(r, placed, geometry)?;
                let per_chunk = geometry.blocks_per_chunk();
                for placed in &extents {
                    let first = u32::from(placed.chunk) * per_chunk;
                    if first < start || first + per_chunk > start + count {
                        return Err(r.bad("an extent outside the write"));
                    }
                }
                Body::Write { vid, start, crcs, extents }
            }
            (2, Some(vid)) => {
                let (start, count) = decode_range(r, geometry)?;
                let kind = match r.u8()? {
                    0 => ZeroKind::Remove,
                    1 => ZeroKind::Marker,
                    2 => ZeroKind::Reserve,
                    _ => return Err(r.bad("unknown kind of zeros")),
                };
                let placed = r.u16()?;
                let units = decode_placed(r, placed, geometry)?;
                Body::Zero { vid, start, count, kind, units }
            }
            (3, Some(vid)) => Body::DeleteVid { vid, forget: r.u8()? != 0 },
            (MISS, _) => Body::Miss,
            (FILL, _) => {
                let (last, count) = (r.u8()? != 0, r.u8()?);
                let mut chunks: Vec<FilledChunk> = Vec::new();
                for _ in 0..count {
                    let next = FilledChunk::decode(r, geometry)?;
                    if chunks.last().is_some_and(|before| before.chunk >= next.chunk) {
                        return Err(r.bad("chunks out of order"));
                    }
                    chunks.push(next);
                }
                Body::Fill { chunks, last }
            }
            (FORGET, _) => Body::Forget,
            _ => return Err(r.bad(UNKNOWN_KIND)),
        };
        if version == Version::UNKNOWN {
            return Err(r.bad("impossible version"));
        }
        Ok(Self { fragment, version, prev, missing, request, body })
    }
}

impl FilledChunk {
    fn encode(&self, w: &mut Writer) {
        w.u8(self.chunk);
        encode_version(w, self.version);
        w.u32(self.vids.len() as u32);
        for filled in &self.vids {
            w.u32(filled.vid.get());
            w.u32(filled.unit.unwrap_or(NO_UNIT));
            for mask in [filled.data, filled.zero, filled.reserved] {
                w.u16(mask);
            }
            for crc in &filled.crcs {
                w.u32(*crc);
            }
        }
    }

    fn decode(r: &mut Reader<'_>, geometry: Geometry) -> Result<Self, Malformed> {
        let (chunk, version, count) = (r.u8()?, decode_version(r)?, r.u32()?);
        if u32::from(chunk) >= geometry.chunks_per_fragment() {
            return Err(r.bad("a chunk outside the fragment"));
        }
        let mut vids: Vec<FilledVid> = Vec::new();
        for _ in 0..count {
            let vid = Vid::new(r.u32()?).ok_or(r.bad("impossible vid"))?;
            let unit = Some(r.u32()?).filter(|unit| *unit != NO_UNIT);
            let (data, zero, reserved) = (r.u16()?, r.u16()?, r.u16()?);
            if (data | zero) & !full_mask(geometry) != 0
                || data & zero != 0
                || reserved & !zero != 0
                || data | zero == 0
                || unit.is_some() != (data | reserved != 0)
                || vids.last().is_some_and(|before| before.vid >= vid)
            {
                return Err(r.bad("impossible chunk"));
            }
            let crcs = (0..data.count_ones()).map(|_| r.u32()).collect::<Result<_, _>>()?;
            vids.push(FilledVid { vid, unit, data, zero, reserved, crcs });
        }
        Ok(Self { chunk, version, vids })
    }
}

impl LogRecordRef<'_> {
    /// Bytes in the header.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Fragment(record) => record.encoded_bytes(),
            Self::Shard(record) => record.encoded_bytes(),
        }
    }

    /// Whether programs that know the first version only cannot read it.
    #[must_use]
    pub const fn is_of_second_version(&self) -> bool {
        match self {
            Self::Fragment(record) => record.is_extended() || !record.is_write(),
            Self::Shard(_) => true,
        }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        match self {
            Self::Fragment(record) => record.encode(w),
            Self::Shard(record) => record.encode(w),
        }
    }
}

impl LogRecord {
    /// That of a fragment.
    #[must_use]
    pub const fn fragment(&self) -> Option<&Record> {
        match self {
            Self::Fragment(record) => Some(record),
            Self::Shard(_) => None,
        }
    }

    /// Blocks of payload that follow in the batch.
    #[must_use]
    pub fn payload_blocks(&self, geometry: Geometry) -> usize {
        self.fragment().map_or(0, |record| record.payload_blocks(geometry))
    }

    pub(super) fn decode(
        version: u16,
        r: &mut Reader<'_>,
        geometry: Geometry,
    ) -> Result<Self, Malformed> {
        let kind = r.u8()?;
        let legal = match kind & !EXTENDED {
            1..=3 => kind & EXTENDED == 0 || version >= 2,
            MISS..=DROP_SHARD => kind & EXTENDED == 0 && version >= 2,
            _ => false,
        };
        if !legal {
            return Err(r.bad(UNKNOWN_KIND));
        }
        if kind & !EXTENDED <= FORGET {
            Record::decode(kind, r, geometry).map(Self::Fragment)
        } else {
            ShardRecord::decode(kind, r).map(Self::Shard)
        }
    }
}

const MISS: u8 = 4;
const FILL: u8 = 5;
const FORGET: u8 = 6;
/// Of kinds 1 to 3: whose request, and whether the fragment was missing, follows.
const EXTENDED: u8 = 0x80;
pub(super) const UNKNOWN_KIND: &str = "unknown kind of record";
const NO_UNIT: u32 = u32::MAX;

fn decode_range(r: &mut Reader<'_>, geometry: Geometry) -> Result<(u32, u32), Malformed> {
    let (start, count) = (r.u32()?, r.u32()?);
    let blocks = geometry.blocks_per_fragment();
    if count == 0 || start >= blocks || count > blocks - start {
        return Err(r.bad("blocks outside the fragment"));
    }
    Ok((start, count))
}

fn encode_placed(w: &mut Writer, placed: &[Placed]) {
    for p in placed {
        w.u8(p.chunk);
        w.u32(p.unit);
    }
}

fn decode_placed(
    r: &mut Reader<'_>,
    count: u16,
    geometry: Geometry,
) -> Result<Vec<Placed>, Malformed> {
    let mut placed: Vec<Placed> = Vec::new();
    for _ in 0..count {
        let next = Placed { chunk: r.u8()?, unit: r.u32()? };
        if u32::from(next.chunk) >= geometry.chunks_per_fragment()
            || placed.last().is_some_and(|last| last.chunk >= next.chunk)
        {
            return Err(r.bad("chunks out of order"));
        }
        placed.push(next);
    }
    Ok(placed)
}
