//! The memory for payload all connections share, and the part of it large requests cannot use up.

use crate::limits::Limits;
use std::pin::pin;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Duration, timeout};

/// Unit in which payload bytes are counted.
pub const UNIT: usize = 4096;

/// Payload bytes somebody holds, multiples of [`UNIT`], by the part they were taken from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Held {
    /// From the part any request may use.
    pub open: usize,
    /// From the part only small requests may use.
    pub kept: usize,
}

impl Held {
    /// From both parts together.
    pub fn bytes(self) -> usize {
        self.open + self.kept
    }

    /// Adds what was held by another.
    pub fn add(&mut self, other: Self) {
        self.open += other.open;
        self.kept += other.kept;
    }
}

/// The memory nobody holds.
///
/// A write is charged when its header arrives, a read until its answer has left, so a few dozen
/// clients that send or take large payloads slowly, or never, can hold all that large requests may
/// have until they are closed as stalled. That must not stop everybody else, so a part is kept for
/// small requests, which is what guests mostly send. Each part serves its own line first come,
/// first served: a small request waits in both lines and never behind large ones alone, and as
/// small ones go to the kept part only when the open part has a line, large requests get their
/// turn as well. What is held goes back to the part it came from, or the parts would drift.
pub struct Budget {
    open: Semaphore,
    kept: Semaphore,
    /// Bytes up to which a request is small; 0 when nothing is kept.
    small: usize,
}

impl Budget {
    /// All of it. What is kept is cut so that the open part holds the largest request, which would
    /// wait for ever otherwise; nothing is kept if that leaves less than one small request.
    pub fn new(limits: &Limits) -> Self {
        let largest = (limits.request_bytes as usize).max(1 << 20).next_multiple_of(UNIT);
        let total = limits.payload_bytes_total.next_multiple_of(UNIT).max(largest);
        let small = limits.small_bytes.next_multiple_of(UNIT);
        let kept = limits.payload_bytes_small.min(total - largest) / UNIT * UNIT;
        let (kept, small) = if kept < small { (0, 0) } else { (kept, small) };
        Self {
            open: Semaphore::new((total - kept) / UNIT),
            kept: Semaphore::new(kept / UNIT),
            small,
        }
    }

    /// Takes payload bytes, a multiple of [`UNIT`], if they are there.
    pub fn try_take(&self, bytes: usize) -> Option<Held> {
        if let Ok(permit) = self.open.try_acquire_many(units(bytes)) {
            permit.forget();
            return Some(Held { open: bytes, kept: 0 });
        }
        if bytes > self.small {
            return None;
        }
        self.kept.try_acquire_many(units(bytes)).ok()?.forget();
        Some(Held { open: 0, kept: bytes })
    }

    /// Waits for payload bytes, first come, first served in each part. Calls `stalled` each time
    /// it has waited for so long.
    pub async fn take(&self, bytes: usize, stall: Duration, stalled: impl Fn()) -> Held {
        // Never an error: nobody closes the semaphores.
        let forget = |permit: Result<SemaphorePermit<'_>, _>| permit.map_or((), |p| p.forget());
        let mut waiting = pin!(async {
            let kept = async {
                if bytes > self.small {
                    std::future::pending::<()>().await;
                }
                self.kept.acquire_many(units(bytes)).await
            };
            tokio::select! {
                biased;
                permit = self.open.acquire_many(units(bytes)) => {
                    forget(permit);
                    Held { open: bytes, kept: 0 }
                }
                permit = kept => {
                    forget(permit);
                    Held { open: 0, kept: bytes }
                }
            }
        });
        loop {
            match timeout(stall, waiting.as_mut()).await {
                Ok(held) => return held,
                Err(_elapsed) => stalled(),
            }
        }
    }

    /// Gives payload bytes back.
    pub fn give_back(&self, held: Held) {
        for (part, bytes) in [(&self.open, held.open), (&self.kept, held.kept)] {
            if bytes > 0 {
                part.add_permits(bytes / UNIT);
            }
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    const MIB: usize = 1 << 20;
    const SMALL: usize = 256 << 10;

    fn budget(total: usize, kept: usize) -> Budget {
        Budget::new(&Limits {
            request_bytes: MIB as u32,
            payload_bytes_total: total,
            payload_bytes_small: kept,
            small_bytes: SMALL,
            ..Limits::default()
        })
    }

    fn open(bytes: usize) -> Held {
        Held { open: bytes, kept: 0 }
    }

    fn kept(bytes: usize) -> Held {
        Held { open: 0, kept: bytes }
    }

    #[test]
    fn large_requests_leave_the_kept_part_to_small_ones() {
        let budget = budget(4 * MIB, MIB);
        for _ in 0..3 {
            assert_eq!(budget.try_take(MIB), Some(open(MIB)));
        }
        assert_eq!(budget.try_take(SMALL + UNIT), None, "not small");
        for _ in 0..4 {
            assert_eq!(budget.try_take(SMALL), Some(kept(SMALL)));
        }
        assert_eq!(budget.try_take(UNIT), None, "the total holds");
        budget.give_back(kept(4 * SMALL));
        assert_eq!(budget.try_take(MIB), None, "it goes back to where it came from");
        budget.give_back(open(MIB));
        assert_eq!(budget.try_take(UNIT), Some(open(UNIT)), "the open part goes first");
    }

    #[test]
    fn the_largest_request_always_fits_the_open_part() {
        let budget_of_one = budget(0, MIB);
        assert_eq!(budget_of_one.try_take(MIB), Some(open(MIB)));
        assert_eq!(budget_of_one.try_take(UNIT), None, "nothing is kept");
        let cut = budget(2 * MIB, 64 * MIB);
        assert_eq!(cut.try_take(MIB), Some(open(MIB)));
        assert_eq!(cut.try_take(SMALL), Some(kept(SMALL)));
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_free_first_in_the_part_it_may_use() {
        let budget = budget(2 * MIB, MIB);
        let stall = Duration::from_secs(3600);
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(budget.try_take(MIB), Some(open(MIB)));
        for _ in 0..4 {
            assert_eq!(budget.try_take(SMALL), Some(kept(SMALL)));
        }
        let mut large = pin!(budget.take(MIB, stall, || {}));
        let mut small = pin!(budget.take(SMALL, stall, || {}));
        let mut second = pin!(budget.take(SMALL, stall, || {}));
        assert!(large.as_mut().poll(&mut context).is_pending());
        assert!(small.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        budget.give_back(kept(SMALL));
        assert!(large.as_mut().poll(&mut context).is_pending());
        assert_eq!(small.as_mut().poll(&mut context), Poll::Ready(kept(SMALL)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        budget.give_back(open(MIB));
        assert_eq!(budget.try_take(UNIT), None, "it is for the one that waits");
        assert_eq!(large.as_mut().poll(&mut context), Poll::Ready(open(MIB)));
        budget.give_back(open(MIB));
        assert_eq!(second.as_mut().poll(&mut context), Poll::Ready(open(SMALL)));
        // Nothing was lost on the way: three quarters of the open part are left.
        assert_eq!(budget.try_take(MIB - SMALL), Some(open(MIB - SMALL)));
        assert_eq!(budget.try_take(UNIT), None);
    }
}
