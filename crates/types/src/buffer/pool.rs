//! Memory that is kept for reuse. It is no state of anything: what is in it never shows.
#![expect(clippy::disallowed_types, reason = "memory passes between threads, as in any allocator")]

use super::Page;
use crate::BLOCK_SIZE;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

/// Pages of the largest buffer that is kept for reuse: 4 MiB.
pub(super) const POOLED_PAGES_MAX: usize = 1024;
/// Bytes that one thread keeps for reuse, and all of them together.
pub(super) const POOLED_BYTES_MAX: usize = 64 << 20;
/// Pages of the smallest buffer that all threads share: 256 KiB. Large ones are filled by one
/// thread and let go by another (the data of dog's writes), where they would be kept in vain; and
/// so few of them pass in a second that the lock costs nothing.
pub(super) const SHARED_PAGES_MIN: usize = 64;

/// Freed buffers by size, a power of two of pages. Aligned allocations are slow in the system's
/// allocator and large ones cost a page fault per page, so they are kept.
pub(super) struct Pool {
    classes: [Vec<Vec<Page>>; POOLED_PAGES_MAX.ilog2() as usize + 1],
    bytes: usize,
}

static SHARED: Mutex<Pool> = Mutex::new(Pool::new());

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool::new()) };
}

impl Pool {
    const fn new() -> Self {
        Self { classes: [const { Vec::new() }; POOLED_PAGES_MAX.ilog2() as usize + 1], bytes: 0 }
    }

    /// Does something with the pool of buffers of so many pages. A thread that is ending has no
    /// pool of its own any more.
    pub(super) fn of<T>(pages: usize, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if pages >= SHARED_PAGES_MIN {
            // Nothing panics half-way through a change.
            return Some(work(&mut SHARED.lock().unwrap_or_else(PoisonError::into_inner)));
        }
        POOL.try_with(|pool| Some(work(&mut *pool.try_borrow_mut().ok()?))).ok()?
    }

    pub(super) fn take(&mut self, pages: usize) -> Option<Vec<Page>> {
        let taken = self.classes[pages.ilog2() as usize].pop()?;
        self.bytes -= pages * BLOCK_SIZE;
        Some(taken)
    }

    /// Keeps the memory if there is room, gives it back otherwise: it is freed outside of the lock.
    pub(super) fn keep(&mut self, memory: Vec<Page>) -> Option<Vec<Page>> {
        let bytes = memory.len() * BLOCK_SIZE;
        if self.bytes + bytes > POOLED_BYTES_MAX {
            return Some(memory);
        }
        self.bytes += bytes;
        self.classes[memory.len().ilog2() as usize].push(memory);
        None
    }
}

/// Bytes kept of the pool of buffers of so many pages.
#[cfg(test)]
pub(super) fn kept(pages: usize) -> usize {
    Pool::of(pages, |pool| pool.bytes).unwrap_or(0)
}
