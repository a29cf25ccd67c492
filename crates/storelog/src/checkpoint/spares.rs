//! Spare units: pages of the index whose space is asked for while the host has some.

use super::{CheckpointOp, RETRY_MS};
use crate::command::Effect;
use crate::io::DiskOp;
use crate::store::Store;

impl Store {
    /// Whether a checkpoint would find space for spare units that are missing, or has to ask for
    /// those of the installed root.
    pub(super) fn spares_due(&self) -> bool {
        let missing = self.space.spare_missing();
        !self.space.preparing().is_empty()
            || missing > 0
                && self.now >= self.retry_spares_at
                && self.room_for_spares() > self.unit_offset(missing as u32)
    }

    /// What spare units may take: nothing that was promised to clients, who may count on what is
    /// given back.
    fn room_for_spares(&self) -> u64 {
        self.room().min(self.host_room()).saturating_sub(self.reserve_bytes())
    }

    /// Units that become spare in this checkpoint: of those that would be given back, fullest
    /// first, or free ones.
    pub(super) fn choose_spares(&mut self, units: &mut Vec<u32>) {
        let missing = self.space.spare_missing();
        let room = self.room_for_spares() / self.geometry().chunk_bytes();
        let wanted = missing.min(usize::try_from(room).unwrap_or(usize::MAX));
        units.sort_by_key(|unit| self.space.loose_of(*unit).count_ones());
        let mut spares = units.split_off(units.len().saturating_sub(wanted));
        units.sort_unstable();
        while spares.len() < wanted
            && let Some(run) = self.space.claim(1)
        {
            spares.push(run.unit);
        }
        if spares.len() < missing {
            self.retry_spares_at = self.now + RETRY_MS;
        }
        for unit in spares {
            self.space.prepare_spare(unit);
        }
    }

    pub(super) fn ask_for_spares(&mut self, out: &mut Vec<Effect>) {
        for unit in self.space.preparing().clone() {
            let (offset, len) = (self.unit_offset(unit), self.geometry().chunk_bytes());
            self.checkpoint_op(CheckpointOp::Spare { unit }, DiskOp::Allocate { offset, len }, out);
        }
    }
}
