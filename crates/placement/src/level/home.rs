//! Taking back moves that turned out to be needless. Levelling takes one cheapest step after the
//! other; where few zones stand in the way the steps together can be dearer than the cheapest way.
//! A replica that was moved goes home, and whatever that puts out of balance is put right by
//! replicas that move anyway: one copy saved.

use super::{Kind, Leveller, NONE};

/// Searches in vain after which it is enough.
const VAIN_MAX: u32 = 4096;

impl Leveller<'_> {
    /// Saves copies as long as there are more than `budget` and some can be saved.
    pub(super) fn send_home(&mut self, budget: u64) {
        let mut vain = 0;
        loop {
            let before = self.copies;
            for shard in 0..(self.sets.len() / self.stride.max(1)) as u32 {
                let at = shard as usize * self.stride;
                for slot in at..at + self.stride {
                    if self.copies <= budget || vain == VAIN_MAX {
                        return;
                    }
                    vain += u32::from(self.try_home(shard, self.sets[slot]) == Some(false));
                }
            }
            if self.copies == before {
                return;
            }
        }
    }

    /// `None` if the replica is at home or cannot go there; else whether a copy was saved.
    fn try_home(&mut self, shard: u32, from: u32) -> Option<bool> {
        if from == NONE || self.kind(shard, from) == Kind::Settled {
            return None;
        }
        let origin = self.part(self.origin, shard).iter().copied();
        let home = origin.filter(|o| *o != NONE && !self.set(shard).contains(o));
        let home = home.filter(|o| self.allowed(shard, from, *o)).min_by_key(|o| self.fill(*o))?;
        self.journal = Some(Vec::new());
        self.put(shard, from, home);
        let level = (!self.is_over(home) || self.chain(home, true, Kind::Displaced))
            && (!self.is_under(from) || self.chain(from, false, Kind::Displaced));
        let made = self.journal.take().unwrap_or_default();
        if !level {
            for (shard, from, to) in made.into_iter().rev() {
                self.put(shard, to, from);
            }
        }
        Some(level)
    }
}
