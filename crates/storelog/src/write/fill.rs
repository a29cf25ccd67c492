//! Missing fragments: marking them, bringing them the chunks of other replicas, and forgetting
//! tombstones. Each of these is alone in its fragment, so what is seen when it is admitted holds when
//! it is applied.
//!
//! What is filled goes to fresh places, never by way of the log: it comes in large pieces, and a crash
//! leaves either the old chunk or all of the new one. Blocks that are to be reserved get their space
//! there too.

use super::{PendingWrite, no_space};
use crate::checksum::block_crc;
use crate::command::{Answer, ChunkCopy, CommandId, Effect, Piece};
use crate::format::batch::{Body, FilledChunk, FilledVid, HEADER_BYTES, RECORDS_BYTES_MAX, Record};
use crate::format::index::Owners;
use crate::io::{Area, DiskOp};
use crate::space::UnitRun;
use crate::store::{Purpose, Store};
use bytes::Bytes;
use sheepdog_types::{
    BLOCK_SIZE, Error, ErrorKind, FragmentId, Geometry, PageBuf, Result, Version, Vid,
};

/// Checkpoints that a fill waits for, at most.
const CHECKPOINTS_MAX: u64 = 3;

/// Bytes of a chunk, or space for them, on their way to its home.
enum Part {
    Bytes(Vec<Bytes>),
    Space,
}

/// One vid's part of a chunk, before it has a home.
struct Planned {
    filled: FilledVid,
    /// Runs of blocks: first, how many, what of them.
    parts: Vec<(u32, u32, Part)>,
}

impl Store {
    pub(crate) fn run_miss(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        needed: Version,
        out: &mut Vec<Effect>,
    ) {
        if needed == Version::UNKNOWN {
            return out.push(Effect::Reply(command, Err(invalid("nobody holds that version"))));
        }
        if self.index.needed(fragment) == Some(needed) {
            return out.push(Effect::Reply(command, Ok(Answer::Done)));
        }
        // A fragment that is not there yet needs a page.
        let adds = if self.index.get(fragment).is_none() { BLOCK_SIZE as u64 } else { 0 };
        if adds > 0 && !self.has_room_for_recovery(adds) {
            return out.push(Effect::Reply(command, Err(no_space())));
        }
        let record = self.record(fragment, needed, None, Body::Miss);
        self.admit(PendingWrite::new(command, record), true);
    }

    pub(crate) fn run_forget(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        head: Version,
        out: &mut Vec<Effect>,
    ) {
        let is_tombstone = self
            .index
            .get(fragment)
            .is_some_and(|entry| entry.owners == Owners::NONE && entry.head == head);
        if !is_tombstone || self.index.needed(fragment).is_some() {
            let what = format!("fragment {fragment} is no tombstone of version {head}");
            return out.push(Effect::Reply(command, Err(conflict(what))));
        }
        let record = self.record(fragment, head, None, Body::Forget);
        self.admit(PendingWrite::new(command, record), true);
    }

    pub(crate) fn run_fill(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        at: Version,
        chunks: Vec<ChunkCopy>,
        last: bool,
        out: &mut Vec<Effect>,
    ) {
        let planned = self.plan_fill(fragment, at, chunks, last);
        let admitted = planned.and_then(|(record, planned)| {
            let mut write = PendingWrite::new(command, record);
            self.place_fill(&mut write, planned, out).map(|()| write)
        });
        match admitted {
            Ok(write) => self.admit(write, true),
            Err(error) => out.push(Effect::Reply(command, Err(error))),
        }
    }

    /// Whether what comes home with the next checkpoint must be waited for, as the host has no room
    /// for what is filled before it gets back what nobody wants. The checkpoint is asked for.
    pub(crate) fn fill_must_wait(&mut self, fragment: FragmentId, chunks: &[ChunkCopy]) -> bool {
        let ended = self.stats.checkpoints;
        let since = self.space_wanted.get(&fragment).copied().unwrap_or(ended);
        // The one that runs may have begun too early, and the next one gives back what that replaced.
        let hopeful = !self.short_of_space && ended - since < CHECKPOINTS_MAX;
        let bytes = fresh_bytes(chunks, self.geometry(), self.limits.whole_units);
        let waits = hopeful && !self.has_host_room(bytes);
        if waits {
            self.space_wanted.insert(fragment, since);
            self.pages_wanted = true;
        }
        waits
    }

    /// What the record will say, but for the homes.
    fn plan_fill(
        &mut self,
        fragment: FragmentId,
        at: Version,
        mut chunks: Vec<ChunkCopy>,
        last: bool,
    ) -> Result<(Record, Vec<Planned>)> {
        let needed = self.index.needed(fragment);
        if needed != Some(at) {
            let needed = needed.map_or("nothing".to_owned(), |needed| needed.to_string());
            return Err(conflict(format!("fragment {fragment} needs {needed}, not {at}")));
        }
        let geometry = self.geometry();
        chunks.sort_by_key(|copy| copy.chunk);
        let twice = chunks.windows(2).any(|pair| pair[0].chunk == pair[1].chunk);
        let outside = |copy: &ChunkCopy| u32::from(copy.chunk) >= geometry.chunks_per_fragment();
        if twice || chunks.iter().any(|copy| outside(copy) || copy.version == Version::UNKNOWN) {
            return Err(invalid("chunks that cannot be"));
        }
        let mut planned = Vec::new();
        let mut filled = Vec::new();
        for mut copy in chunks {
            copy.vids.sort_by_key(|(vid, _)| *vid);
            if copy.vids.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return Err(invalid("a chunk that names a vid twice"));
            }
            let mut vids = Vec::new();
            for (vid, pieces) in copy.vids {
                let plan = plan_vid(fragment, copy.chunk, vid, pieces, geometry)?;
                if plan.filled.data | plan.filled.zero != 0 {
                    vids.push(plan.filled.clone());
                    planned.push(plan);
                }
            }
            filled.push(FilledChunk { chunk: copy.chunk, version: copy.version, vids });
        }
        if last && !self.is_complete_with(fragment, at, &filled) {
            let what = format!("fragment {fragment} would not be complete at {at}");
            return Err(conflict(what));
        }
        let record = self.record(fragment, at, None, Body::Fill { chunks: filled, last });
        let unit = self.superblock.log_unit as usize;
        let limit = RECORDS_BYTES_MAX.min(self.superblock.log_bytes as usize / 4);
        if record.encoded_bytes() > limit - HEADER_BYTES - unit {
            return Err(invalid("too much in one fill"));
        }
        Ok((record, planned))
    }

    /// Whether with these chunks all is known, or nothing is left if nothing is needed.
    fn is_complete_with(&mut self, id: FragmentId, at: Version, filled: &[FilledChunk]) -> bool {
        let Some(loaded) = self.index.loaded(id) else {
            return false;
        };
        let fragment = &loaded.fragment;
        let replaced = |chunk: u8| filled.iter().any(|filled| filled.chunk == chunk);
        if at == Version::ZERO {
            filled.iter().all(|filled| filled.vids.is_empty())
                && fragment.chunks().all(|(_, chunk, _)| replaced(chunk))
        } else {
            let versions = (0..).zip(fragment.chunk_versions());
            versions.into_iter().all(|(chunk, v)| *v != Version::UNKNOWN || replaced(chunk))
        }
    }

    /// Gives everything that needs space its home, and begins to write it there.
    fn place_fill(
        &mut self,
        write: &mut PendingWrite,
        mut planned: Vec<Planned>,
        out: &mut Vec<Effect>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let Body::Fill { chunks, .. } = &mut write.record.body else {
            return Err(Error::new(ErrorKind::Internal, "not a fill"));
        };
        let stored = |filled: &FilledVid| filled.data | filled.reserved;
        let homes = planned.iter().filter(|plan| stored(&plan.filled) != 0).count() as u64;
        let blocks = planned.iter().map(|plan| u64::from(stored(&plan.filled).count_ones()));
        let blocks: u64 = blocks.sum();
        let (had_blocks, had_homes) =
            self.index.loaded(write.record.fragment).map_or((0, 0), |l| {
                l.fragment.stored_in(|chunk| chunks.iter().any(|filled| filled.chunk == chunk))
            });
        let (fresh, adds) = if self.limits.whole_units {
            let bytes = geometry.chunk_bytes();
            (homes * bytes, homes.saturating_sub(had_homes) * bytes)
        } else {
            let bytes = BLOCK_SIZE as u64;
            (blocks * bytes, blocks.saturating_sub(had_blocks) * bytes)
        };
        if !self.has_room_for_recovery(adds) || !self.has_host_room(fresh) {
            return Err(no_space());
        }
        let mut units = Vec::new();
        while (units.len() as u64) < homes {
            let Some(run) = self.claim_for_log((homes - units.len() as u64) as u32) else {
                self.release_units(&write.units);
                return Err(no_space());
            };
            units.extend(run.unit..run.unit + run.count);
            write.units.push(UnitRun { unit: run.unit, count: run.count });
        }
        let mut units = units.into_iter();
        let mut ops: Vec<(u64, u64, Part)> = Vec::new();
        for filled in chunks.iter_mut().flat_map(|chunk| &mut chunk.vids) {
            if stored(filled) != 0 {
                filled.unit = units.next();
            }
        }
        let homes = chunks.iter().flat_map(|chunk| &chunk.vids).map(|filled| filled.unit);
        for (plan, unit) in planned.iter_mut().zip(homes) {
            for (first, count, part) in plan.parts.drain(..) {
                let at = self.unit_offset(unit.unwrap_or_default());
                let offset = at + u64::from(first) * BLOCK_SIZE as u64;
                let len = u64::from(count) * BLOCK_SIZE as u64;
                match (ops.last_mut(), part) {
                    (Some((from, so_far, Part::Bytes(data))), Part::Bytes(more))
                        if *from + *so_far == offset =>
                    {
                        *so_far += len;
                        data.extend(more);
                    }
                    (_, part) => ops.push((offset, len, part)),
                }
            }
        }
        write.need = adds;
        write.ops_left = ops.len() as u32;
        write.flush_data = !ops.is_empty();
        for (offset, len, part) in ops {
            write.asked += self.ask(offset, len);
            let op = match part {
                Part::Bytes(data) => {
                    DiskOp::Write { area: Area::Data, offset, data, durable: false }
                }
                Part::Space => DiskOp::Allocate { offset, len },
            };
            self.disk(Purpose::Extent { write: self.next_write, offset, len }, op, out);
        }
        Ok(())
    }
}

/// Bytes of fresh places that copies take.
fn fresh_bytes(chunks: &[ChunkCopy], geometry: Geometry, whole_units: bool) -> u64 {
    let stored = |pieces: &[Piece]| -> u64 {
        let blocks = pieces.iter().map(|piece| match piece {
            Piece::Data(bytes) => bytes.len() as u64,
            Piece::Reserved(count) => u64::from(*count) * BLOCK_SIZE as u64,
            Piece::Zero(_) | Piece::Hole(_) => 0,
        });
        let bytes = blocks.sum();
        if whole_units && bytes > 0 { geometry.chunk_bytes() } else { bytes }
    };
    chunks.iter().flat_map(|copy| &copy.vids).map(|(_, pieces)| stored(pieces)).sum()
}

/// What a vid will own in a chunk.
fn plan_vid(
    fragment: FragmentId,
    chunk: u8,
    vid: Vid,
    pieces: Vec<Piece>,
    geometry: Geometry,
) -> Result<Planned> {
    const WRONG: &str = "pieces that do not cover their chunk";
    let per_chunk = geometry.blocks_per_chunk();
    let first = u32::from(chunk) * per_chunk;
    let mut filled = FilledVid { vid, unit: None, data: 0, zero: 0, reserved: 0, crcs: Vec::new() };
    let mut parts: Vec<(u32, u32, Part)> = Vec::new();
    let mut at = 0;
    for piece in pieces {
        let count = match &piece {
            Piece::Data(bytes) if !bytes.len().is_multiple_of(BLOCK_SIZE) => {
                return Err(invalid(WRONG));
            }
            Piece::Data(bytes) => bytes.len() / BLOCK_SIZE,
            Piece::Reserved(count) | Piece::Zero(count) | Piece::Hole(count) => *count as usize,
        };
        if count == 0 || count > (per_chunk - at) as usize {
            return Err(invalid(WRONG));
        }
        let count = count as u32;
        let mask = (((1u32 << count) - 1) << at) as u16;
        match piece {
            Piece::Data(mut bytes) => {
                // As for writes: direct I/O needs aligned memory.
                if !(bytes.as_ptr() as usize).is_multiple_of(512) {
                    bytes = PageBuf::copy_of(&bytes).freeze();
                }
                let blocks = (first + at..).zip(bytes.chunks_exact(BLOCK_SIZE));
                let crcs = blocks.map(|(block, bytes)| block_crc(fragment, block, bytes));
                filled.crcs.extend(crcs);
                filled.data |= mask;
                parts.push((at, count, Part::Bytes(vec![bytes])));
            }
            Piece::Reserved(_) => {
                filled.zero |= mask;
                filled.reserved |= mask;
                parts.push((at, count, Part::Space));
            }
            Piece::Zero(_) => filled.zero |= mask,
            Piece::Hole(_) => {}
        }
        at += count;
    }
    if at != per_chunk {
        return Err(invalid(WRONG));
    }
    Ok(Planned { filled, parts })
}

fn conflict(what: String) -> Error {
    Error::new(ErrorKind::Conflict, what)
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, what.to_owned())
}
