//! A batch of the write-ahead log: one header with all its records, padded to the log unit, then
//! the payload blocks of small writes. One batch is one durability point.
//!
//! The header carries the checksum of the batch before it, its sequence number and the durable
//! watermark (the last batch known to be on stable storage when this one was formed), so that a
//! torn tail can be told from rot. Payload and extents are covered by the block checksums in the
//! records, not by the header's.

use super::codec::{Malformed, Reader, Writer};
use crate::checksum::crc32c;
use sheepdog_types::{BLOCK_SIZE, FragmentId, Geometry, Interval, LineageId, Version, Vid};

const MAGIC: u32 = 0x5344_4c42; // "BLDS"
/// Version log of batches and records. 1: first.
const VERSION: u16 = 1;
/// Bytes before the first record.
pub const HEADER_BYTES: usize = 64;
/// Bytes of header and records of one batch, at most.
pub const RECORDS_BYTES_MAX: usize = 1 << 20;
/// Bytes of a whole batch, at most: one that holds all blocks of the largest write.
pub const BATCH_BYTES_MAX: usize = 6 << 20;

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

/// One write of a fragment's chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Of which fragment.
    pub fragment: FragmentId,
    /// Who owns the blocks.
    pub vid: Vid,
    /// The head after it.
    pub version: Version,
    /// The head before it.
    pub prev: Version,
    /// What it does.
    pub body: Body,
}

impl Record {
    /// Whether blocks may hold less space behind it than before.
    #[must_use]
    pub const fn may_clear(&self) -> bool {
        match &self.body {
            Body::Write { .. } | Body::Zero { kind: ZeroKind::Reserve, .. } => false,
            Body::Zero { .. } | Body::DeleteVid { .. } => true,
        }
    }
}

/// What a record does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// Blocks `start..start + crcs.len()` get new bytes: in the extents for the chunks listed
    /// (whole chunks only), in the payload, in order, for all others.
    Write {
        /// First block.
        start: u32,
        /// Checksum of every block.
        crcs: Vec<u32>,
        /// Chunks written to fresh extents.
        extents: Vec<Placed>,
    },
    /// Blocks read as zeros from now on.
    Zero {
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
        /// See above.
        forget: bool,
    },
}

impl Record {
    /// The units that it names.
    #[must_use]
    pub fn placed(&self) -> &[Placed] {
        match &self.body {
            Body::Write { extents, .. } => extents,
            Body::Zero { units, .. } => units,
            Body::DeleteVid { .. } => &[],
        }
    }

    /// Blocks of payload that follow in the batch.
    #[must_use]
    pub fn payload_blocks(&self, geometry: Geometry) -> usize {
        match &self.body {
            Body::Write { crcs, extents, .. } => {
                crcs.len() - extents.len() * geometry.blocks_per_chunk() as usize
            }
            Body::Zero { .. } | Body::DeleteVid { .. } => 0,
        }
    }

    /// Bytes in the header.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        const FIXED: usize = 1 + 4 + 16 + 16 + 16;
        FIXED
            + match &self.body {
                Body::Write { crcs, extents, .. } => 4 + 4 + 2 + crcs.len() * 4 + extents.len() * 5,
                Body::Zero { units, .. } => 4 + 4 + 1 + 2 + units.len() * 5,
                Body::DeleteVid { .. } => 1,
            }
    }

    fn encode(&self, w: &mut Writer) {
        w.u8(match &self.body {
            Body::Write { .. } => 1,
            Body::Zero { .. } => 2,
            Body::DeleteVid { .. } => 3,
        });
        w.u32(self.vid.get());
        w.u64(self.fragment.lineage.0);
        w.u64(self.fragment.number);
        for version in [self.version, self.prev] {
            w.u64(version.interval.0);
            w.u64(version.seq);
        }
        match &self.body {
            Body::Write { start, crcs, extents } => {
                w.u32(*start);
                w.u32(crcs.len() as u32);
                w.u16(extents.len() as u16);
                for crc in crcs {
                    w.u32(*crc);
                }
                encode_placed(w, extents);
            }
            Body::Zero { start, count, kind, units } => {
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
            Body::DeleteVid { forget } => w.u8(u8::from(*forget)),
        }
    }

    fn decode(r: &mut Reader<'_>, geometry: Geometry) -> Result<Self, Malformed> {
        let kind = r.u8()?;
        let vid = Vid::new(r.u32()?).ok_or(r.bad("impossible vid"))?;
        let fragment = FragmentId { lineage: LineageId(r.u64()?), number: r.u64()? };
        let mut versions = [Version::ZERO; 2];
        for version in &mut versions {
            *version = Version { interval: Interval(r.u64()?), seq: r.u64()? };
        }
        let body = match kind {
            1 => {
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
                Body::Write { start, crcs, extents }
            }
            2 => {
                let (start, count) = decode_range(r, geometry)?;
                let kind = match r.u8()? {
                    0 => ZeroKind::Remove,
                    1 => ZeroKind::Marker,
                    2 => ZeroKind::Reserve,
                    _ => return Err(r.bad("unknown kind of zeros")),
                };
                let placed = r.u16()?;
                let units = decode_placed(r, placed, geometry)?;
                Body::Zero { start, count, kind, units }
            }
            3 => Body::DeleteVid { forget: r.u8()? != 0 },
            _ => return Err(r.bad("unknown kind of record")),
        };
        Ok(Self { fragment, vid, version: versions[0], prev: versions[1], body })
    }
}

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

/// The fixed part of a batch's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// Of which log.
    pub log_id: u64,
    /// Counts batches, without gaps.
    pub seq: u64,
    /// [`BatchHeader::crc`] of the batch before it.
    pub prev_crc: u32,
    /// Every batch up to this one was durable when this one was formed.
    pub watermark: u64,
    /// Bytes of header and records, padded to the log unit.
    pub header_bytes: u32,
    /// Bytes of payload behind them.
    pub payload_bytes: u32,
    /// Records.
    pub records: u32,
    /// Of header and records, this field taken as zero.
    pub crc: u32,
}

impl BatchHeader {
    /// Bytes of the whole batch in the log.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.header_bytes as u64 + self.payload_bytes as u64
    }

    /// Reads the fixed part only; lengths are checked against the limits, the checksum is not.
    ///
    /// # Errors
    /// When there is no batch of this log.
    pub fn peek(bytes: &[u8], log_id: u64, log_unit: u32) -> Result<Self, Malformed> {
        let mut r = Reader::new("log batch", bytes);
        if r.u32()? != MAGIC {
            return Err(r.bad("wrong magic number"));
        }
        let _version = r.u16()?;
        let _reserved = r.u16()?;
        let header = Self {
            log_id: r.u64()?,
            seq: r.u64()?,
            prev_crc: r.u32()?,
            header_bytes: r.u32()?,
            watermark: r.u64()?,
            payload_bytes: r.u32()?,
            records: r.u32()?,
            crc: r.u32()?,
        };
        if header.log_id != log_id {
            return Err(r.bad("it belongs to another log"));
        }
        if !header.header_bytes.is_multiple_of(log_unit)
            || !(HEADER_BYTES..=RECORDS_BYTES_MAX).contains(&(header.header_bytes as usize))
            || !(header.payload_bytes as usize).is_multiple_of(BLOCK_SIZE)
            || header.total_bytes() > BATCH_BYTES_MAX as u64
        {
            return Err(r.bad("impossible length"));
        }
        Ok(header)
    }

    /// Whether a whole batch of another log begins here.
    #[must_use]
    pub fn is_foreign(bytes: &[u8], log_id: u64, log_unit: u32, geometry: Geometry) -> bool {
        let other = bytes.get(8..).and_then(|rest| rest.first_chunk().copied());
        let Some(other) = other.map(u64::from_le_bytes).filter(|other| *other != log_id) else {
            return false;
        };
        Self::peek(bytes, other, log_unit).is_ok_and(|header| {
            bytes.len() >= header.header_bytes as usize && decode(&header, bytes, geometry).is_ok()
        })
    }
}

/// Byte offset of the checksum in the header.
const CRC_AT: usize = 48;
/// Behind the magic number; both stay where they are, and the checksum, in every version.
const VERSION_AT: usize = 4;

/// Lays out header and records, padded to the log unit, and fills in lengths and checksum.
#[must_use]
pub fn encode<'a>(
    mut header: BatchHeader,
    records: impl Iterator<Item = &'a Record>,
    log_unit: u32,
) -> (BatchHeader, Vec<u8>) {
    let mut w = Writer::default();
    w.bytes.resize(HEADER_BYTES, 0);
    header.records = 0;
    for record in records {
        record.encode(&mut w);
        header.records += 1;
    }
    w.bytes.resize(w.bytes.len().next_multiple_of(log_unit as usize), 0);
    header.header_bytes = w.bytes.len() as u32;
    let mut fixed = Writer::default();
    fixed.u32(MAGIC);
    fixed.u16(VERSION);
    fixed.u16(0);
    fixed.u64(header.log_id);
    fixed.u64(header.seq);
    fixed.u32(header.prev_crc);
    fixed.u32(header.header_bytes);
    fixed.u64(header.watermark);
    fixed.u32(header.payload_bytes);
    fixed.u32(header.records);
    assert!(fixed.bytes.len() == CRC_AT, "the checksum has moved");
    w.bytes[..CRC_AT].copy_from_slice(&fixed.bytes);
    header.crc = crc32c(&w.bytes);
    w.set_u32(CRC_AT, header.crc);
    (header, w.bytes)
}

/// Checks the checksum and reads all records; `bytes` holds at least `header_bytes`.
///
/// # Errors
/// When the header or a record is not what was written.
pub fn decode(
    header: &BatchHeader,
    bytes: &[u8],
    geometry: Geometry,
) -> Result<Vec<Record>, Malformed> {
    let mut r = Reader::new("log batch", bytes);
    let mut whole = r.take(header.header_bytes as usize)?.to_vec();
    whole[CRC_AT..CRC_AT + 4].fill(0);
    if crc32c(&whole) != header.crc {
        return Err(r.bad("wrong checksum"));
    }
    // Before the checksum is known to be right, that would be rot.
    if Reader::new("log batch", &whole[VERSION_AT..]).u16()? > VERSION {
        return Err(Malformed::newer("log batch"));
    }
    let mut r = Reader::new("log record", &whole[HEADER_BYTES..]);
    let records = (0..header.records)
        .map(|_| Record::decode(&mut r, geometry))
        .collect::<Result<Vec<_>, _>>()?;
    let payload: usize = records.iter().map(|record| record.payload_blocks(geometry)).sum();
    if payload * BLOCK_SIZE != header.payload_bytes as usize {
        return Err(r.bad("records and payload disagree"));
    }
    Ok(records)
}
