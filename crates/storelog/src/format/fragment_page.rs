//! The page that holds what a fragment is made of: chunk versions and, per vid and chunk, home,
//! masks and checksums. Written whole, never in place. It also says which batch of the log was the
//! last one whose records it includes: replay starts earlier, and must change it by later records
//! only.

use super::codec::{Malformed, Reader, Writer, frame, unframe};
use crate::fragment::{Chunk, Fragment, full_mask};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Geometry, Interval, LineageId, Version, Vid};

const WHAT: &str = "fragment page";
const MAGIC: u32 = 0x5344_4650; // "PFDS"
/// Version log. 1: first.
const VERSION: u16 = 1;
const NO_UNIT: u32 = u32::MAX;

/// # Panics
/// Never: lengths are bounded by the geometry.
#[must_use]
pub fn encode(
    id: FragmentId,
    head: Version,
    batch: u64,
    fragment: &Fragment,
    geometry: Geometry,
) -> Vec<u8> {
    let mut w = Writer::default();
    w.u64(id.lineage.0);
    w.u64(id.number);
    encode_version(&mut w, head);
    w.u64(batch);
    let versions = fragment.chunk_versions();
    let touched = versions
        .iter()
        .enumerate()
        .filter(|(_, v)| **v != Version::ZERO)
        .fold(0u64, |mask, (i, _)| mask | (1 << i));
    w.u64(touched);
    for version in versions.iter().filter(|v| **v != Version::ZERO) {
        encode_version(&mut w, *version);
    }
    w.u32(fragment.chunks().count() as u32);
    for (vid, index, chunk) in fragment.chunks() {
        w.u32(vid.get());
        w.u8(index);
        w.u32(chunk.unit.unwrap_or(NO_UNIT));
        for mask in [chunk.data, chunk.zero, chunk.backed, chunk.stale | chunk.doubtful] {
            w.u16(mask);
        }
        for slot in 0..geometry.blocks_per_chunk() as usize {
            if chunk.data & (1 << slot) != 0 {
                w.u32(chunk.crcs[slot]);
            }
        }
    }
    let bytes = frame(MAGIC, VERSION, &w.bytes);
    assert!(bytes.len().div_ceil(BLOCK_SIZE) as u64 <= pages_max(fragment), "a page has room");
    bytes
}

/// Pages that [`encode`] needs at most.
#[must_use]
pub fn pages_max(fragment: &Fragment) -> u64 {
    const FRAME_AND_IDS: usize = 16 + 8 + 8 + 16 + 8 + 8 + 4;
    let (chunks, owned) = fragment.extent();
    let bytes = FRAME_AND_IDS
        + size_of_val(fragment.chunk_versions())
        + chunks * (4 + 1 + 4 + 4 * 2)
        + owned * 4;
    bytes.div_ceil(BLOCK_SIZE) as u64
}

/// What a page holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FragmentPage {
    /// Version of the newest write it includes.
    pub head: Version,
    /// Batch of the newest record it includes.
    pub batch: u64,
    /// The bookkeeping itself.
    pub fragment: Fragment,
}

/// # Errors
/// When it is not the page of that fragment, or not what was written.
pub fn decode(id: FragmentId, bytes: &[u8], geometry: Geometry) -> Result<FragmentPage, Malformed> {
    let mut r = Reader::new(WHAT, unframe(WHAT, MAGIC, VERSION, bytes)?);
    if id != (FragmentId { lineage: LineageId(r.u64()?), number: r.u64()? }) {
        return Err(r.bad("it belongs to another fragment"));
    }
    let head = decode_version(&mut r)?;
    let batch = r.u64()?;
    let mut fragment = Fragment::new(geometry);
    let touched = r.u64()?;
    for chunk in (0..64).filter(|i| touched & (1 << i) != 0) {
        if u32::from(chunk) >= geometry.chunks_per_fragment() {
            return Err(r.bad("a chunk outside the fragment"));
        }
        fragment.touch(chunk, decode_version(&mut r)?);
    }
    let mut last = None;
    for _ in 0..r.u32()? {
        let vid = Vid::new(r.u32()?).ok_or(r.bad("impossible vid"))?;
        let index = r.u8()?;
        if u32::from(index) >= geometry.chunks_per_fragment()
            || last.is_some_and(|last| last >= (vid, index))
        {
            return Err(r.bad("chunks out of order"));
        }
        last = Some((vid, index));
        let unit = Some(r.u32()?).filter(|unit| *unit != NO_UNIT);
        let (data, zero, backed, stale) = (r.u16()?, r.u16()?, r.u16()?, r.u16()?);
        let mut crcs = [0; 16];
        if (data | zero | backed | stale) & !full_mask(geometry) != 0
            || data & zero != 0
            || backed & stale != 0
            || (unit.is_none() && backed | stale != 0)
            || (unit.is_none() && data | zero == 0)
        {
            return Err(r.bad("impossible chunk"));
        }
        for (slot, crc) in crcs.iter_mut().enumerate() {
            if data & (1 << slot) != 0 {
                *crc = r.u32()?;
            }
        }
        let chunk = Chunk { unit, data, zero, backed, stale, doubtful: 0, crcs };
        fragment.insert(vid, index, chunk);
    }
    Ok(FragmentPage { head, batch, fragment })
}

fn encode_version(w: &mut Writer, version: Version) {
    w.u64(version.interval.0);
    w.u64(version.seq);
}

fn decode_version(r: &mut Reader<'_>) -> Result<Version, Malformed> {
    Ok(Version { interval: Interval(r.u64()?), seq: r.u64()? })
}
