//! The mark counts the openings of a store for writing. The checkpoint slots have it, and the owner
//! block of the log, so that an older copy of one area under the other is not taken for the store:
//! writes that were acknowledged would be gone without a line.
//!
//! It is raised from `m` to `m + 1` when all else is done and before anything is acknowledged, by
//! writes that are durable one after the other:
//!
//! 1. both slots, one and then the other: `m`, *raising*, and where the log ends, all of which was
//!    flushed just before;
//! 2. the owner block: `m + 1`;
//! 3. both slots: `m + 1`.
//!
//! A power failure may leave what is just written old, new, or torn:
//!
//! * in 1, one slot is good, and the owner block says `m`: right for the old slot and the new one;
//! * in 2, both slots say *raising*: the owner block may say `m` or `m + 1`, or be torn, and be
//!   written again. That nobody replaced the log meanwhile is known by its end, which must be
//!   reached: nothing was acknowledged since;
//! * in 3, one slot is good, and the owner block says `m + 1`: right for *raising* from `m` and for
//!   `m + 1`.
//!
//! Of slots with the same checkpoint the higher mark counts, and one that is not *raising* before
//! one that is: both must be there before the owner block is written or anything is acknowledged, and
//! opening makes them equal first. Without *raising*, the marks must be the same.

use super::{Opening, damaged, not_ours, write_block};
use crate::format::superblock::{CheckpointSlot, LogOwner, SLOT_OFFSETS};
use crate::io::Area;
use sheepdog_types::{Error, ErrorKind, Result};

impl Opening {
    pub(super) fn owner_read(&mut self, bytes: &[u8]) -> Result<()> {
        let superblock = self.superblock()?;
        match LogOwner::decode(bytes) {
            Err(malformed) if malformed.newer => Err(damaged(malformed)),
            // A power failure while it was written.
            Err(_) if self.slot.raising > 0 => Ok(()),
            // Who only looks goes on: batches name their log themselves, so what is found of this
            // one, should the owner block alone be bad, is this store's.
            Err(malformed) => self.damage(not_ours(malformed)),
            Ok(owner) => match owner.check(superblock) {
                Ok(()) => {
                    self.owner = Some(owner);
                    Ok(())
                }
                Err(malformed) => self.damage(not_ours(malformed)),
            },
        }
    }

    /// Every batch up to this one was durable once.
    pub(super) fn proved(&self) -> u64 {
        self.root.durable.max(self.slot.raising.saturating_sub(1))
    }

    /// Whether slots and log are of the same opening.
    pub(super) fn judge_mark(&mut self) -> Result<()> {
        let CheckpointSlot { mark, raising, .. } = self.slot;
        if let Some(LogOwner { mark: logs, .. }) = self.owner {
            let why = if logs < mark {
                Some(("the log", "data"))
            } else if logs > mark + u64::from(raising > 0) {
                Some(("the data", "log"))
            } else {
                None
            };
            if let Some((older, newer)) = why {
                let (low, high) = (logs.min(mark), logs.max(mark));
                let what = format!(
                    "{older} is older than the {newer} (opening {low}, the {newer} knows {high}): it \
                     was put back from a copy; put back what belongs to the {newer}"
                );
                self.damage(Error::new(ErrorKind::Io, what))?;
            }
        }
        let mark = self.reached();
        if let Some((once, name)) = self.mark_once.as_ref().filter(|(once, _)| mark < *once) {
            let what = format!(
                "the data in {name} is older than when it was used last (opening {mark}, the \
                 registry knows {once}): it was put back from a copy; put the newer one back ('sheep \
                 store export' reads what this one holds)"
            );
            self.damage(Error::new(ErrorKind::Io, what))?;
        }
        Ok(())
    }

    /// The highest mark that was begun to be written.
    fn reached(&self) -> u64 {
        let CheckpointSlot { mark, raising, .. } = self.slot;
        match self.owner {
            Some(owner) => mark.max(owner.mark),
            None => mark + u64::from(raising > 0),
        }
    }

    /// Prepares the writes that count this opening; see the module.
    pub(super) fn raise_mark(&mut self) -> Result<()> {
        let superblock = self.superblock()?.clone();
        if !superblock.log_has_owner() {
            return Ok(());
        }
        let mark = self.reached();
        let raising = CheckpointSlot { mark, raising: self.scan.seq, ..self.slot };
        let raised = CheckpointSlot { mark: mark + 1, raising: 0, ..self.slot };
        let slots = |slot: CheckpointSlot| {
            let encoded = slot.encode(superblock.log_id);
            SLOT_OFFSETS.map(|at| write_block(Area::Data, at, &encoded))
        };
        if raising != self.slot {
            self.marking.extend(slots(raising));
        }
        let owner = superblock.log_owner(mark + 1).encode();
        self.marking.push_back(write_block(Area::Log, superblock.log_bytes, &owner));
        self.marking.extend(slots(raised));
        self.slot = raised;
        Ok(())
    }
}
