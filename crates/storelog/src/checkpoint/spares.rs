//! Spare units: pages of the index whose space is asked for while the host has some.

use super::{CheckpointOp, RETRY_MS};
use crate::command::Effect;
use crate::io::DiskOp;
use crate::store::Store;
use sheepdog_types::BLOCK_SIZE;

impl Store {
    /// Whether a checkpoint would find space for spare units that are missing.
    pub(super) fn spares_due(&self) -> bool {
        let missing = self.space.spare_missing();
        missing > 0
            && self.now >= self.retry_spares_at
            && (self.space.recycled_units() > 0
                || self.room_for_spares() > self.unit_offset(missing as u32))
    }

    fn room_for_spares(&self) -> u64 {
        self.room().min(self.host_room()).saturating_sub(self.reserve_bytes())
    }

    /// Units that become spare in this checkpoint: of those that would be given back, fullest
    /// first, or free ones if the host has room.
    pub(super) fn choose_spares(&mut self, units: &mut Vec<u32>) -> Vec<u32> {
        let missing = self.space.spare_missing();
        let mut spares = Vec::new();
        let mut room = self.host_room() / BLOCK_SIZE as u64;
        units.sort_by_key(|unit| self.space.loose_of(*unit).count_ones());
        while spares.len() < missing
            && let Some(unit) = units.last().copied()
        {
            let held = self.space.loose_of(unit).count_ones();
            let lacking = u64::from(self.geometry().blocks_per_chunk() - held);
            if lacking > room {
                break;
            }
            room -= lacking;
            units.pop();
            spares.push(unit);
        }
        units.sort_unstable();
        let per_unit = self.geometry().chunk_bytes();
        let room = self.room_for_spares().min(room * BLOCK_SIZE as u64) / per_unit;
        let wanted = missing.min(spares.len() + room as usize);
        while spares.len() < wanted
            && let Some(run) = self.space.claim(1)
        {
            spares.push(run.unit);
        }
        if spares.len() < missing {
            self.retry_spares_at = self.now + RETRY_MS;
        }
        for unit in &spares {
            self.space.prepare_spare(*unit);
        }
        spares
    }

    pub(super) fn ask_for_spares(&mut self, out: &mut Vec<Effect>) {
        let spares = self.checkpoint.as_mut().map(|c| std::mem::take(&mut c.spares));
        for unit in spares.unwrap_or_default() {
            let (offset, len) = (self.unit_offset(unit), self.geometry().chunk_bytes());
            self.checkpoint_op(CheckpointOp::Spare { unit }, DiskOp::Allocate { offset, len }, out);
        }
    }
}
