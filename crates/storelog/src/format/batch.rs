//! A batch of the write-ahead log: one header with all its records, padded to the log unit, then
//! the payload blocks of small writes. One batch is one durability point.
//!
//! The header carries the checksum of the batch before it, its sequence number and the durable
//! watermark (the last batch known to be on stable storage when this one was formed), so that a
//! torn tail can be told from rot. Payload and extents are covered by the block checksums in the
//! records, not by the header's.

use super::codec::{Malformed, Reader, Writer};
use crate::checksum::crc32c;
use sheepdog_types::{BLOCK_SIZE, Geometry};

pub use super::record::{
    Body, FilledChunk, FilledVid, LogRecord, LogRecordRef, Placed, Record, ZeroKind,
};
pub use super::shard_record::{RequestPart, ShardChange, ShardRecord};

const MAGIC: u32 = 0x5344_4c42; // "BLDS"
/// Version log of batches and records. 1: first. 2: requests, missing fragments, shards; a batch
/// without any of these is written in the first version, so that older programs read it.
const VERSION: u16 = 2;
/// Bytes before the first record.
pub const HEADER_BYTES: usize = 64;
/// Bytes of header and records of one batch, at most.
pub const RECORDS_BYTES_MAX: usize = 1 << 20;
/// Bytes of a whole batch, at most: one that holds all blocks of the largest write.
pub const BATCH_BYTES_MAX: usize = 6 << 20;

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
pub fn encode<'a, R: Into<LogRecordRef<'a>>>(
    mut header: BatchHeader,
    records: impl Iterator<Item = R>,
    log_unit: u32,
) -> (BatchHeader, Vec<u8>) {
    let mut w = Writer::default();
    w.bytes.resize(HEADER_BYTES, 0);
    header.records = 0;
    let mut version = 1;
    for record in records.map(Into::into) {
        record.encode(&mut w);
        header.records += 1;
        version = if record.is_of_second_version() { VERSION } else { version };
    }
    w.bytes.resize(w.bytes.len().next_multiple_of(log_unit as usize), 0);
    header.header_bytes = w.bytes.len() as u32;
    let mut fixed = Writer::default();
    fixed.u32(MAGIC);
    fixed.u16(version);
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
) -> Result<Vec<LogRecord>, Malformed> {
    let mut r = Reader::new("log batch", bytes);
    let mut whole = r.take(header.header_bytes as usize)?.to_vec();
    whole[CRC_AT..CRC_AT + 4].fill(0);
    if crc32c(&whole) != header.crc {
        return Err(r.bad("wrong checksum"));
    }
    // Before the checksum is known to be right, that would be rot.
    let version = Reader::new("log batch", &whole[VERSION_AT..]).u16()?;
    if version > VERSION {
        return Err(Malformed::newer("log batch"));
    }
    let mut r = Reader::new("log record", &whole[HEADER_BYTES..]);
    let records = (0..header.records)
        .map(|_| LogRecord::decode(version, &mut r, geometry))
        .collect::<Result<Vec<_>, _>>()?;
    let payload: usize = records.iter().map(|record| record.payload_blocks(geometry)).sum();
    if payload * BLOCK_SIZE != header.payload_bytes as usize {
        return Err(r.bad("records and payload disagree"));
    }
    Ok(records)
}
