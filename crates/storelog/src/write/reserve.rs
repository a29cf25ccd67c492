//! Zeroing, and reservations: space that a client gets before it writes. What was asked of the host
//! is what the record names, and the chunk's home from then on: nothing else may become it while
//! the reservation is on its way.

use super::{PendingWrite, Request, chunk_masks, mask_runs, no_space, table_full};
use crate::command::{CommandId, Effect, ZeroKind};
use crate::format::batch::{Body, Placed};
use crate::io::DiskOp;
use crate::store::{Purpose, Store, out_of_range};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Version, Vid};

impl Store {
    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(crate) fn run_zero(
        &mut self,
        command: CommandId,
        fragment: FragmentId,
        vid: Vid,
        version: Version,
        (start, count): (u32, u32),
        kind: ZeroKind,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        if !self.in_fragment(start, count) {
            return out.push(Effect::Reply(command, out_of_range()));
        }
        if !self.takes(request) {
            return out.push(Effect::Reply(command, Err(table_full())));
        }
        let body = Body::Zero { vid, start, count, kind, units: Vec::new() };
        let record = self.record(fragment, version, request, body);
        let mut write = PendingWrite::new(command, record);
        let exclusive = kind == ZeroKind::Reserve;
        if exclusive && !self.plan_reservation(&mut write, out) {
            return out.push(Effect::Reply(command, Err(no_space())));
        }
        self.admit(write, exclusive);
    }

    /// Asks the host for the space of a reservation: chunks without a home get one, blocks without
    /// space get it. Nothing else of the fragment is on its way, so what is seen now holds when
    /// the record is applied.
    fn plan_reservation(&mut self, write: &mut PendingWrite, out: &mut Vec<Effect>) -> bool {
        let fragment = write.record.fragment;
        let Body::Zero { vid, start, count, units, .. } = &mut write.record.body else {
            return false;
        };
        let (vid, start, count) = (*vid, *start, *count);
        write.need = self.adds(fragment, vid, start, count);
        if !self.has_room(write.need) {
            return false;
        }
        let geometry = self.geometry();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (chunk, mask) in chunk_masks(start, count, geometry.blocks_per_chunk()) {
            let (own, backed, data) = self
                .index
                .loaded(fragment)
                .and_then(|loaded| loaded.fragment.chunk(vid, chunk))
                .map_or((None, 0, 0), |c| (c.unit, c.backed | c.stale, c.data));
            let unit = match own {
                Some(unit) => unit,
                None => {
                    // Destaging may make it the home of blocks that are in the log, before the
                    // record is durable: such homes were free.
                    let claimed =
                        if data == 0 { self.claim_for_log(1) } else { self.space.claim(1) };
                    let Some(run) = claimed else {
                        self.release_units(&write.units);
                        return false;
                    };
                    write.units.push(run);
                    run.unit
                }
            };
            // Named even if it is the chunk's own: a home given by destaging is not in the log.
            units.push(Placed { chunk, unit });
            for (slot, blocks) in mask_runs(mask & !backed) {
                let offset = self.unit_offset(unit) + u64::from(slot) * BLOCK_SIZE as u64;
                let len = u64::from(blocks) * BLOCK_SIZE as u64;
                match ranges.last_mut() {
                    Some(last) if last.0 + last.1 == offset => last.1 += len,
                    _ => ranges.push((offset, len)),
                }
            }
        }
        write.ops_left = ranges.len() as u32;
        write.flush_data = !ranges.is_empty();
        for (offset, len) in ranges {
            write.asked += self.ask(offset, len);
            let purpose = Purpose::Extent { write: self.next_write, offset, len };
            self.disk(purpose, DiskOp::Allocate { offset, len }, out);
        }
        true
    }

    /// The unit that a reservation on its way names for a chunk, which becomes its home now: the
    /// space that was asked for is there, and only there.
    pub(crate) fn unit_on_its_way(&mut self, id: FragmentId, vid: Vid, chunk: u8) -> Option<u32> {
        if !self.active.get(&id)?.exclusive {
            return None;
        }
        self.writes.values_mut().find_map(|write| {
            let Body::Zero { vid: owner, kind: ZeroKind::Reserve, units, .. } = &write.record.body
            else {
                return None;
            };
            if (write.record.fragment, *owner) != (id, vid) {
                return None;
            }
            let unit = units.iter().find(|placed| placed.chunk == chunk)?.unit;
            let before = write.units().count();
            write.units.retain(|run| run.unit != unit);
            self.claimed_units -= (before - write.units().count()) as u64;
            Some(unit)
        })
    }

    /// A reservation that was refused may have got some of its space in units that stay.
    pub(crate) fn release_reservation(&mut self, write: &PendingWrite) {
        let record = &write.record;
        let Body::Zero { vid, kind: ZeroKind::Reserve, units, .. } = &record.body else {
            return;
        };
        let chunk_of = |unit| units.iter().find(|placed| placed.unit == unit).map(|p| p.chunk);
        self.index.change_space(record.fragment, |loaded| {
            let fragment = &mut loaded.fragment;
            for (unit, mask) in &write.given {
                if let Some(chunk) = chunk_of(*unit) {
                    fragment.set_backed(*vid, chunk, *unit, *mask);
                }
            }
            for (unit, mask) in &write.doubtful {
                if let Some(chunk) = chunk_of(*unit) {
                    fragment.add_doubtful(*vid, chunk, *unit, *mask);
                }
            }
        });
        self.index.mark_dirty(record.fragment);
        self.dirty_since.get_or_insert(self.now);
        self.stale_pending = true;
    }
}
