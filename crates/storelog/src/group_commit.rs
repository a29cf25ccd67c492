//! Group commit: the writes at hand become one batch of the log, with one durability point; never
//! more than one flush is in flight, what arrives meanwhile rides the next. A durable batch
//! changes the index, and its writes are acknowledged in log order.

use crate::command::{Answer, Effect};
use crate::format::batch::{self, BatchHeader, HEADER_BYTES, RECORDS_BYTES_MAX};
use crate::io::{Area, DiskError, DiskErrorKind, DiskOp};
use crate::room::Dirtied;
use crate::store::{Purpose, Store};
use crate::write::{PendingWrite, no_space};
use sheepdog_types::{FragmentId, PageBuf, Version};
use std::collections::BTreeMap;

/// Bytes of a batch, unless its first write alone has more.
const BATCH_BYTES_TARGET: usize = 4 << 20;

/// The batch on its way to stable storage.
pub(crate) struct InFlightBatch {
    header: BatchHeader,
    /// Monotonic position of its first byte.
    pos: u64,
    writes: Vec<u64>,
    ops_left: u32,
}

impl Store {
    /// Forms the next batch, if none is on its way: never more than one flush in flight, what
    /// arrives meanwhile rides the next.
    pub(crate) fn start_batch(&mut self, out: &mut Vec<Effect>) {
        if self.log.in_flight.is_some() {
            return;
        }
        self.refuse_failed(out);
        let unit = self.superblock.log_unit as usize;
        let limit = BATCH_BYTES_TARGET.min(self.superblock.log_bytes as usize / 4);
        let (spare, mut dirtied) = (self.pages_to_spare(), Dirtied::default());
        let (mut records_bytes, mut payload_bytes, mut taken) = (HEADER_BYTES, 0, 0);
        for id in &self.log.queue {
            let Some((record, payload)) = self.queued(*id) else {
                break;
            };
            if self.writes.get(id).is_some_and(|write| write.failed.is_some()) {
                break;
            }
            if !self.may_dirty(record, &mut dirtied, spare) {
                self.pages_wanted = true;
                break;
            }
            let records = records_bytes + record.encoded_bytes();
            let payload = payload_bytes + payload;
            if taken > 0
                && (records > RECORDS_BYTES_MAX - unit
                    || records.next_multiple_of(unit) + payload > limit)
            {
                break;
            }
            (records_bytes, payload_bytes, taken) = (records, payload, taken + 1);
        }
        if taken == 0 {
            if self.pages_wanted && self.bring_reservation_forward() {
                return self.start_batch(out);
            }
            if self.pages_wanted && self.short_of_space && self.refuse_queued() {
                self.start_batch(out);
            }
            return;
        }
        let total = (records_bytes.next_multiple_of(unit) + payload_bytes) as u64;
        let Some(pos) = self.room_in_log(total) else {
            if self.short_of_space && self.refuse_queued() {
                self.start_batch(out);
            }
            return;
        };
        let writes: Vec<u64> = self.log.queue.drain(..taken).collect();

        // The version before each record: the index's, or that of an earlier record of this batch.
        let mut flush_data = false;
        let mut earlier: BTreeMap<FragmentId, Version> = BTreeMap::new();
        for id in &writes {
            let Some(write) = self.writes.get_mut(id) else {
                continue;
            };
            let record = &mut write.record;
            let (fragment, version) = (record.fragment, record.version);
            let before = earlier.insert(fragment, version);
            record.prev = before.unwrap_or_else(|| self.index.newest(fragment));
            flush_data |= write.flush_data && !self.limits.nosync;
            if record.is_write() && version <= record.prev {
                return self.broken("versions of a fragment grow", out);
            }
        }
        let header = BatchHeader {
            log_id: self.superblock.log_id,
            seq: self.log.next.seq,
            prev_crc: self.log.next.prev_crc,
            watermark: self.log.durable,
            header_bytes: 0,
            payload_bytes: payload_bytes as u32,
            records: 0,
            crc: 0,
        };
        let records = writes.iter().filter_map(|id| Some(self.queued(*id)?.0));
        let (header, bytes) = batch::encode(header, records, self.superblock.log_unit);
        assert!(header.total_bytes() == total, "a batch has the length that was reserved");
        let head = PageBuf::copy_of(&bytes).freeze().slice(..bytes.len());
        let mut data = vec![head];
        for write in writes.iter().filter_map(|id| self.writes.get(id)) {
            data.extend(write.payload.iter().cloned());
        }
        let offset = pos % self.superblock.log_bytes;
        self.disk(
            Purpose::Batch,
            DiskOp::Write { area: Area::Log, offset, data, durable: !self.limits.nosync },
            out,
        );
        if flush_data {
            self.disk(Purpose::Batch, DiskOp::Sync { area: Area::Data }, out);
        }
        self.log.in_flight =
            Some(InFlightBatch { header, pos, writes, ops_left: 1 + u32::from(flush_data) });
    }

    /// The first write in the queue waits until dirty fragments are clean. A fragment with space to
    /// give back gets clean only when no reservation is on its way there, and one that waits behind
    /// that write would wait for ever. It is the only write of its fragment, so the order of the
    /// queue is nothing to it. Whether there was one.
    fn bring_reservation_forward(&mut self) -> bool {
        let hinders = |id: &u64| {
            self.writes.get(id).is_some_and(|write| {
                let fragment = write.record.fragment;
                self.index.dirty().contains(&fragment)
                    && self.active.get(&fragment).is_some_and(|active| active.exclusive)
            })
        };
        let Some(at) = self.log.queue.iter().position(hinders).filter(|at| *at > 0) else {
            return false;
        };
        let id = self.log.queue.remove(at);
        id.into_iter().for_each(|id| self.log.queue.push_front(id));
        true
    }

    /// The log is full and the host has no space to empty it: writes that need space must not keep
    /// deletes and discards waiting. Whether there were any.
    fn refuse_queued(&mut self) -> bool {
        let mut any = false;
        for id in &self.log.queue {
            if let Some(write) = self.writes.get_mut(id)
                && write.record.needs_space()
                && write.failed.is_none()
            {
                write.failed = Some(DiskError {
                    kind: DiskErrorKind::NoSpace,
                    text: "the log is full and cannot be emptied".to_owned(),
                });
                any = true;
            }
        }
        any
    }

    /// Answers writes at the queue's front whose extents found no space.
    fn refuse_failed(&mut self, out: &mut Vec<Effect>) {
        while let Some(id) = self.log.queue.front().copied() {
            if self.writes.get(&id).is_none_or(|write| write.failed.is_none()) {
                break;
            }
            self.log.queue.pop_front();
            let Some(write) = self.writes.remove(&id) else {
                continue;
            };
            self.release_units(&write.units);
            self.release_reservation(&write);
            out.push(Effect::Reply(write.command, Err(no_space())));
            self.finish_write(&write, out);
        }
    }

    fn finish_write(&mut self, write: &PendingWrite, out: &mut Vec<Effect>) {
        self.pending_bytes -= write.need;
        self.asked_blocks -= write.asked;
        self.claimed_units -= write.units().count() as u64;
        let fragment = write.record.fragment;
        if let Some(active) = self.active.get_mut(&fragment) {
            active.unapplied -= 1;
            active.clearing -= u32::from(write.record.may_clear());
            if active.unapplied == 0 {
                active.exclusive = false;
            }
        }
        self.drain_waiting(fragment, out);
    }

    /// Where a batch of `total` bytes goes; it never wraps. `None` while the log is full.
    fn room_in_log(&self, total: u64) -> Option<u64> {
        let size = self.superblock.log_bytes;
        let offset = self.log.next.pos % size;
        let skip = if offset + total > size { size - offset } else { 0 };
        let pos = self.log.next.pos + skip;
        (pos + total - self.log.head.pos <= size).then_some(pos)
    }

    pub(crate) fn batch_done(&mut self, error: Option<&DiskError>, out: &mut Vec<Effect>) {
        if let Some(error) = error {
            return self.fail_op("write the log", error, out);
        }
        let Some(batch) = &mut self.log.in_flight else {
            return;
        };
        batch.ops_left -= 1;
        if batch.ops_left > 0 {
            return;
        }
        let Some(batch) = self.log.in_flight.take() else {
            return;
        };
        self.log.next.pos = batch.pos + batch.header.total_bytes();
        self.log.next.seq = batch.header.seq + 1;
        self.log.next.prev_crc = batch.header.crc;
        self.log.durable = batch.header.seq;
        self.stats.batches += 1;
        self.dirty_since.get_or_insert(self.now);
        let mut payload_pos = batch.pos + u64::from(batch.header.header_bytes);
        for id in batch.writes {
            if let Some(pending) = self.shard_writes.remove(&id) {
                self.shards.apply(pending.record);
                self.stats.records += 1;
                out.extend(pending.command.map(|id| Effect::Reply(id, Ok(Answer::Done))));
                continue;
            }
            let Some(write) = self.writes.remove(&id) else {
                continue;
            };
            self.apply(&write.record, Some(&write.payload), payload_pos, batch.header.seq);
            payload_pos += write.payload.iter().map(|piece| piece.len() as u64).sum::<u64>();
            self.stats.records += 1;
            // The acknowledgement: durable, and visible to the next read.
            out.push(Effect::Reply(write.command, Ok(Answer::Done)));
            self.finish_write(&write, out);
        }
    }
}
