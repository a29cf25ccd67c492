//! What checkpoints keep for replication, in pages of their own that the root names: the state and
//! the requests of a shard, and which fragments of an entry page are missing.

use super::codec::{FRAME_BYTES, Malformed, Reader, Writer, frame, unframe};
use super::index::SLOTS_PER_PAGE;
use super::shard_record::{
    decode_requests, decode_shard, decode_state, decode_version, encode_requests, encode_shard,
    encode_version, requests_bytes,
};
use crate::replica::RequestEntry;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, RequestId, ShardId, Version};

const SHARD_MAGIC: u32 = 0x5344_4853; // "SHDS"
const MISSING_MAGIC: u32 = 0x5344_534d; // "MSDS"
/// Version log of both. 1: first.
const VERSION: u16 = 1;

/// Before what a part holds: frame, shard, which part, and of how many.
const PART_HEAD: usize = FRAME_BYTES + 6 + 4 + 4;

/// All of a shard. It is written in parts, each at most a unit: on a full disk there may be no
/// longer run of free pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardPage {
    /// Opaque.
    pub state: Bytes,
    /// Its table, ascending by gateway and slot.
    pub requests: Vec<(RequestId, RequestEntry)>,
    /// Parts of a table that is on its way.
    pub staged: Vec<(RequestId, RequestEntry)>,
}

impl ShardPage {
    /// Pages of each part that [`ShardPage::encode`] gives, for so much state and so many requests.
    #[must_use]
    pub fn parts(state: usize, requests: usize, per_unit: u32) -> Vec<u32> {
        let bytes =
            4 + state + 2 * requests_bytes(0) + requests * (requests_bytes(1) - requests_bytes(0));
        let most = per_unit as usize * BLOCK_SIZE - PART_HEAD;
        let mut parts = vec![per_unit; bytes / most];
        if !bytes.is_multiple_of(most) {
            parts.push((PART_HEAD + bytes % most).div_ceil(BLOCK_SIZE) as u32);
        }
        parts
    }

    /// Parts of at most `per_unit` pages.
    #[must_use]
    pub fn encode(&self, shard: ShardId, per_unit: u32) -> Vec<Vec<u8>> {
        let mut w = Writer::default();
        w.u32(self.state.len() as u32);
        w.raw(&self.state);
        encode_requests(&mut w, &self.requests);
        encode_requests(&mut w, &self.staged);
        let pieces = w.bytes.chunks(per_unit as usize * BLOCK_SIZE - PART_HEAD);
        let count = pieces.len() as u32;
        (0..)
            .zip(pieces)
            .map(|(part, piece)| {
                let mut w = Writer::default();
                encode_shard(&mut w, shard);
                w.u32(part);
                w.u32(count);
                w.raw(piece);
                frame(SHARD_MAGIC, VERSION, &w.bytes)
            })
            .collect()
    }

    /// All its parts, in order.
    ///
    /// # Errors
    /// When they are not those of that shard, or not what was written.
    pub fn decode<'a>(
        shard: ShardId,
        parts: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, Malformed> {
        const WHAT: &str = "shard page";
        let (count, mut whole) = (parts.len() as u32, Vec::new());
        for (part, bytes) in (0..).zip(parts) {
            let body = unframe(WHAT, SHARD_MAGIC, VERSION, bytes)?;
            let mut r = Reader::new(WHAT, body);
            if decode_shard(&mut r)? != shard {
                return Err(r.bad("it belongs to another shard"));
            }
            if (r.u32()?, r.u32()?) != (part, count) {
                return Err(r.bad("it is another part"));
            }
            whole.extend_from_slice(body.get(PART_HEAD - FRAME_BYTES..).unwrap_or_default());
        }
        let mut r = Reader::new(WHAT, &whole);
        let state = decode_state(&mut r)?;
        let (requests, staged) = (decode_requests(&mut r)?, decode_requests(&mut r)?);
        Ok(Self { state, requests, staged })
    }
}

/// One missing page: slots of the entry page of that number, ascending, and what is needed of the
/// fragments in them.
#[must_use]
pub fn encode_missing(page: u32, missing: &[(u8, Version)]) -> Vec<u8> {
    let mut w = Writer::default();
    w.u32(page);
    w.u8(missing.len() as u8);
    for (slot, needed) in missing {
        w.u8(*slot);
        encode_version(&mut w, *needed);
    }
    frame(MISSING_MAGIC, VERSION, &w.bytes)
}

/// # Errors
/// When it is not that page, or not what was written.
pub fn decode_missing(page: u32, bytes: &[u8]) -> Result<Vec<(u8, Version)>, Malformed> {
    const WHAT: &str = "missing page";
    let mut r = Reader::new(WHAT, unframe(WHAT, MISSING_MAGIC, VERSION, bytes)?);
    if r.u32()? != page {
        return Err(r.bad("it belongs to another entry page"));
    }
    let mut missing: Vec<(u8, Version)> = Vec::new();
    for _ in 0..r.u8()? {
        let next = (r.u8()?, decode_version(&mut r)?);
        if u32::from(next.0) >= SLOTS_PER_PAGE || missing.last().is_some_and(|l| l.0 >= next.0) {
            return Err(r.bad("slots out of order"));
        }
        if next.1 == Version::UNKNOWN {
            return Err(r.bad("impossible version"));
        }
        missing.push(next);
    }
    Ok(missing)
}
