//! Which disk operations are still in flight, so that space they may be using is not given to
//! another use under them.

use std::collections::BTreeSet;

/// Numbers handed out to operations on space that can be freed.
#[derive(Default)]
pub struct Tickets {
    next: u64,
    open: BTreeSet<u64>,
}

impl Tickets {
    /// An operation begins.
    pub fn begin(&mut self) -> u64 {
        let ticket = self.next;
        self.next += 1;
        self.open.insert(ticket);
        ticket
    }

    /// It ended.
    pub fn end(&mut self, ticket: u64) {
        self.open.remove(&ticket);
    }

    /// Operations begun before now have smaller numbers.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// All operations with smaller numbers have ended.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}
