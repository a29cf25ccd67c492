//! The slots of a shard: which are free, and how often each was used. A slot is used again only when
//! its request was answered, so that the primary has to remember one request for each.

use sheepdog_types::GATEWAY_SLOTS;

/// See the module.
#[derive(Default)]
pub struct Slots {
    /// The last number of each slot that was ever used, and whether it is in use.
    used: Vec<(u64, bool)>,
}

impl Slots {
    /// The lowest that is free, with its next number.
    pub fn take(&mut self) -> Option<(u8, u64)> {
        let free = self.used.iter().position(|(_, busy)| !busy);
        let slot = free.unwrap_or(self.used.len());
        if slot >= GATEWAY_SLOTS {
            return None;
        }
        if slot == self.used.len() {
            self.used.push((0, false));
        }
        let (seq, busy) = &mut self.used[slot];
        (*seq, *busy) = (*seq + 1, true);
        Some((slot as u8, *seq))
    }

    /// Its request was answered.
    pub fn give_back(&mut self, slot: u8) {
        if let Some((_, busy)) = self.used.get_mut(usize::from(slot)) {
            *busy = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_slot_is_taken_with_a_number_it_never_had() {
        let mut slots = Slots::default();
        assert_eq!([slots.take(), slots.take()], [Some((0, 1)), Some((1, 1))]);
        slots.give_back(0);
        assert_eq!([slots.take(), slots.take()], [Some((0, 2)), Some((2, 1))]);
        while slots.take().is_some() {}
        assert_eq!(slots.used.len(), GATEWAY_SLOTS);
        slots.give_back(200);
        assert_eq!(slots.take(), Some((200, 2)));
    }
}
