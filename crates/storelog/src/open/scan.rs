//! Reading the log: batches from the replay position on, where they end, and whether the end is
//! torn or rot.

use super::{Opening, Replayed, TailBlocks, WINDOW_BYTES, Want, damaged, not_ours, write_block};
use crate::format::batch::{self, BATCH_BYTES_MAX, BatchHeader, Body};
use crate::format::codec::Malformed;
use crate::format::superblock::{LogPosition, SLOT_OFFSETS, Superblock};
use crate::io::{Area, DiskOp};
use crate::write::mask_runs;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, FragmentId, PageBuf, Result, Vid};
use std::collections::BTreeSet;

impl Opening {
    pub(super) fn ask_for_window(&mut self) -> Result<()> {
        let size = self.superblock()?.log_bytes;
        let offset = self.scan.pos % size;
        let len = WINDOW_BYTES.max(batch::RECORDS_BYTES_MAX as u64).min(size - offset);
        self.read(Want::Window(self.scan.pos), Area::Log, offset, len as usize);
        Ok(())
    }

    /// Takes batches from a window that begins at the scan's position.
    pub(super) fn scan_window(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let superblock = self.superblock()?.clone();
        let size = superblock.log_bytes;
        loop {
            let at = (self.scan.pos - start) as usize;
            let lap_ends = self.scan.pos.is_multiple_of(size) && self.scan.pos != start;
            if lap_ends || at >= bytes.len() {
                return self.ask_for_window();
            }
            let rest = &bytes[at..];
            match self.take_batch(&superblock, rest) {
                Ok(true) => {}
                Ok(false) => return self.ask_for_window(),
                Err(malformed) if malformed.newer => return Err(damaged(malformed)),
                Err(_) => {
                    self.check_first(&superblock, rest)?;
                    // Not here. A batch that did not fit behind this place is at the start of the
                    // next lap; should nothing be there either, the log ends here.
                    if let Some(end) = self.end_unless_wrapped.take() {
                        self.scan.pos = end;
                        return Ok(());
                    }
                    if self.scan.pos.is_multiple_of(size) {
                        return Ok(());
                    }
                    self.end_unless_wrapped = Some(self.scan.pos);
                    self.scan.pos = self.scan.pos.next_multiple_of(size);
                    return self.ask_for_window();
                }
            }
        }
    }

    /// Where the replay position has a batch of another log, the log was replaced. Only for stores
    /// whose log does not say whose it is, and not where the log is on the data's device: it is not
    /// zeroed there, and may hold batches of what the device was before.
    fn check_first(&mut self, superblock: &Superblock, bytes: &[u8]) -> Result<()> {
        let Superblock { log_id, log_unit, geometry, .. } = *superblock;
        if !superblock.log_has_owner()
            && !self.limits.whole_units
            && self.scan == self.slot.replay
            && BatchHeader::is_foreign(bytes, log_id, log_unit, geometry)
        {
            const WHAT: &str = "log batch";
            self.damage(not_ours(Malformed::new(WHAT, "it belongs to another log")))?;
        }
        Ok(())
    }

    /// Takes the batch at the start of `bytes`. `false` when the window ends before its records
    /// do.
    pub(super) fn take_batch(
        &mut self,
        superblock: &Superblock,
        bytes: &[u8],
    ) -> std::result::Result<bool, Malformed> {
        const WHAT: &str = "log batch";
        let size = superblock.log_bytes;
        let offset = self.scan.pos % size;
        let window_is_whole = bytes.len() as u64 >= batch::RECORDS_BYTES_MAX as u64
            || offset + bytes.len() as u64 == size;
        if bytes.len() < superblock.log_unit as usize {
            return if window_is_whole {
                Err(Malformed::new(WHAT, "cut short"))
            } else {
                Ok(false)
            };
        }
        let header = BatchHeader::peek(bytes, superblock.log_id, superblock.log_unit)?;
        if header.seq != self.scan.seq || header.prev_crc != self.scan.prev_crc {
            return Err(Malformed::new(WHAT, "not the next one"));
        }
        if offset + header.total_bytes() > size {
            return Err(Malformed::new(WHAT, "it would not fit the log"));
        }
        if bytes.len() < header.header_bytes as usize {
            return if window_is_whole {
                Err(Malformed::new(WHAT, "cut short"))
            } else {
                Ok(false)
            };
        }
        let mut payload_pos = self.scan.pos + u64::from(header.header_bytes);
        let records = batch::decode(&header, bytes, superblock.geometry)?;
        for record in records {
            let payload = record.payload_blocks(superblock.geometry) * BLOCK_SIZE;
            self.records.push(Replayed { record, payload_pos, seq: header.seq });
            payload_pos += payload as u64;
        }
        self.last = Some((header, self.scan));
        self.end_unless_wrapped = None;
        self.scan = LogPosition {
            pos: self.scan.pos + header.total_bytes(),
            seq: header.seq + 1,
            prev_crc: header.crc,
        };
        Ok(true)
    }

    /// The log seems to end. If the index was written when more of it was durable, that is rot: its
    /// pages may include what cannot be read, and a next batch of the same number would be taken for
    /// included too. Asks for what lies behind the end, where a later batch would begin.
    pub(super) fn ask_for_later(&mut self) -> Result<()> {
        let proved = self.proved();
        if self.scan.seq <= proved {
            self.damage(Error::new(
                ErrorKind::Io,
                format!(
                    "the log is damaged: batch {} cannot be read although batch {proved} was durable",
                    self.scan.seq
                ),
            ))?;
        }
        let size = self.superblock()?.log_bytes;
        let reach = 2 * BATCH_BYTES_MAX as u64;
        let offset = self.scan.pos % size;
        let len = reach.min(size - offset);
        self.read(Want::Later(self.scan.pos), Area::Log, offset, len as usize);
        if offset > 0 {
            let next_lap = self.scan.pos.next_multiple_of(size);
            self.read(Want::Later(next_lap), Area::Log, 0, reach.min(offset) as usize);
        }
        Ok(())
    }

    pub(super) fn look_for_later(&mut self, pos: u64, bytes: &[u8]) -> Result<()> {
        let superblock = self.superblock()?.clone();
        if let Ok(header) = BatchHeader::peek(bytes, superblock.log_id, superblock.log_unit)
            && header.seq == self.scan.seq
        {
            // A batch that was cut short, its first sector being here: the rest of it could be
            // completed by a later batch that is cut short in the same place.
            self.wipe.push(pos);
        }
        for (at, rest) in
            (0..bytes.len()).step_by(superblock.log_unit as usize).map(|at| (at, &bytes[at..]))
        {
            let Ok(header) = BatchHeader::peek(rest, superblock.log_id, superblock.log_unit) else {
                continue;
            };
            if header.seq > self.scan.seq
                && rest.len() >= header.header_bytes as usize
                && batch::decode(&header, rest, superblock.geometry).is_ok()
            {
                let offset = (pos + at as u64) % superblock.log_bytes;
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "the log is damaged: batch {} cannot be read although batch {} follows at \
                         byte {offset}",
                        self.scan.seq, header.seq
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The last batch may be torn: what it brought is compared with its checksums. Blocks that a
    /// later record of the same batch replaced do not count: if the batch was durable after all,
    /// their space may have been used again.
    pub(super) fn ask_for_tail(&mut self) -> Result<()> {
        let Some((header, _)) = self.last else {
            return Ok(());
        };
        if header.seq <= self.proved() {
            // It was durable: what is bad now is rot, and reading it will be an error.
            return Ok(());
        }
        let superblock = self.superblock()?.clone();
        let per_chunk = superblock.geometry.blocks_per_chunk();
        let chunk_bytes = superblock.geometry.chunk_bytes();
        let mut tail: Vec<(TailBlocks, Area, u64)> = Vec::new();
        let mut replaced: BTreeSet<(FragmentId, Vid, u32)> = BTreeSet::new();
        let mut deleted: BTreeSet<(FragmentId, Vid)> = BTreeSet::new();
        for Replayed { record: found, payload_pos, seq } in self.records.iter().rev() {
            if *seq != header.seq {
                break;
            }
            let Some(found) = found.fragment() else {
                continue;
            };
            let fragment = found.fragment;
            let (vid, start, count) = match &found.body {
                Body::Write { vid, start, crcs, .. } => (*vid, *start, crcs.len() as u32),
                Body::Zero { vid, start, count, .. } => (*vid, *start, *count),
                Body::DeleteVid { vid, .. } => {
                    deleted.insert((fragment, *vid));
                    continue;
                }
                // It is alone of its fragment in the batch.
                Body::Fill { chunks, .. } => {
                    for filled in chunks {
                        let first = u32::from(filled.chunk) * per_chunk;
                        for vid in &filled.vids {
                            let base = u64::from(vid.unit.unwrap_or_default()) * chunk_bytes;
                            let mut crcs = vid.crcs.iter().copied();
                            for (slot, blocks) in mask_runs(vid.data) {
                                let crcs = crcs.by_ref().take(blocks as usize).collect();
                                let blocks = TailBlocks { fragment, first: first + slot, crcs };
                                let offset = base + u64::from(slot) * BLOCK_SIZE as u64;
                                tail.push((blocks, Area::Data, offset));
                            }
                        }
                    }
                    continue;
                }
                Body::Miss | Body::Forget => continue,
            };
            let mut pos = *payload_pos;
            for (chunk, mask) in crate::write::chunk_masks(start, count, per_chunk) {
                let Body::Write { crcs, extents, .. } = &found.body else {
                    break;
                };
                let first = u32::from(chunk) * per_chunk;
                let (area, base) = match extents.iter().find(|placed| placed.chunk == chunk) {
                    Some(placed) => (Area::Data, u64::from(placed.unit) * chunk_bytes),
                    None => {
                        let bytes = u64::from(mask.count_ones()) * BLOCK_SIZE as u64;
                        let skipped = u64::from(mask.trailing_zeros()) * BLOCK_SIZE as u64;
                        pos += bytes;
                        // The place where the chunk's first block would be; may lie before the log.
                        (Area::Log, ((pos - bytes) % superblock.log_bytes).wrapping_sub(skipped))
                    }
                };
                let visible = (0..per_chunk).filter(|slot| mask & (1 << slot) != 0).fold(
                    0,
                    |visible, slot| {
                        let key = (fragment, vid, first + slot);
                        let gone = deleted.contains(&(fragment, vid)) || replaced.contains(&key);
                        visible | (u16::from(!gone) << slot)
                    },
                );
                for (slot, blocks) in mask_runs(visible) {
                    let block = first + slot;
                    let at = (block - start) as usize;
                    let crcs = crcs[at..at + blocks as usize].to_vec();
                    let offset = base.wrapping_add(u64::from(slot) * BLOCK_SIZE as u64);
                    tail.push((TailBlocks { fragment, first: block, crcs }, area, offset));
                }
            }
            replaced.extend((start..start + count).map(|block| (fragment, vid, block)));
        }
        for (blocks, area, offset) in tail {
            let len = blocks.crcs.len() * BLOCK_SIZE;
            self.read(Want::Tail(self.tail.len()), area, offset, len);
            self.tail.push(blocks);
        }
        Ok(())
    }

    /// Drops the last batch if it is torn, and wipes what is left of any: the next batch has the
    /// same number and may go to another place, and then a later opening must not find this one.
    pub(super) fn drop_torn_tail(&mut self) -> Result<()> {
        if let Some((header, start)) = self.last
            && self.torn
        {
            self.wipe.push(start.pos);
            self.records.retain(|replayed| replayed.seq != header.seq);
            self.scan = start;
        }
        let (size, unit) = (self.superblock()?.log_bytes, self.superblock()?.log_unit);
        for pos in std::mem::take(&mut self.wipe) {
            let op = DiskOp::Write {
                area: Area::Log,
                offset: pos % size,
                data: vec![PageBuf::zeroed(BLOCK_SIZE).freeze().slice(..unit as usize)],
                durable: true,
            };
            self.queue.push_back((Want::Flush, op));
        }
        Ok(())
    }

    /// Makes both slots say the same, as everywhere outside of a checkpoint's last step.
    pub(super) fn even_slots(&mut self) -> Result<()> {
        let encoded = self.slot.encode(self.superblock()?.log_id);
        for which in std::mem::take(&mut self.behind) {
            let op = write_block(Area::Data, SLOT_OFFSETS[which], &encoded);
            self.queue.push_back((Want::Flush, op));
        }
        Ok(())
    }
}
