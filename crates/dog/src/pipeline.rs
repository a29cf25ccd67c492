//! A bounded number of requests in flight, finished in any order or taken in order.

use std::collections::VecDeque;
use std::future::Future;
use tokio::task::{JoinError, JoinHandle, JoinSet};

/// Requests in flight.
pub const IN_FLIGHT: usize = 16;
/// Bytes of one request.
pub const PIECE: u32 = 1 << 20;

/// Jobs whose order of ending does not matter.
pub struct Unordered<E> {
    jobs: JoinSet<std::result::Result<(), E>>,
}

impl<E: Send + 'static> Default for Unordered<E> {
    fn default() -> Self {
        Self { jobs: JoinSet::new() }
    }
}

impl<E: Send + 'static> Unordered<E> {
    /// Starts a job, after waiting for another if the limit is reached.
    ///
    /// # Errors
    /// That of an earlier job.
    pub async fn start(
        &mut self,
        job: impl Future<Output = std::result::Result<(), E>> + Send + 'static,
    ) -> std::result::Result<(), E> {
        while self.jobs.len() >= IN_FLIGHT {
            self.one().await?;
        }
        self.jobs.spawn(job);
        Ok(())
    }

    /// Waits for all.
    ///
    /// # Errors
    /// The first.
    pub async fn finish(&mut self) -> std::result::Result<(), E> {
        while !self.jobs.is_empty() {
            self.one().await?;
        }
        Ok(())
    }

    /// Waits for all and forgets how they ended: after a failure, so that nothing is in flight any
    /// more.
    pub async fn settle(&mut self) {
        while let Some(ended) = self.jobs.join_next().await {
            let _ = unwind(ended);
        }
    }

    async fn one(&mut self) -> std::result::Result<(), E> {
        match self.jobs.join_next().await {
            Some(ended) => unwind(ended),
            None => Ok(()),
        }
    }
}

/// Jobs whose results are taken in the order they were started.
pub struct Ordered<T> {
    jobs: VecDeque<JoinHandle<T>>,
}

impl<T: Send + 'static> Default for Ordered<T> {
    fn default() -> Self {
        Self { jobs: VecDeque::new() }
    }
}

impl<T: Send + 'static> Ordered<T> {
    /// Whether another job may be started.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.jobs.len() < IN_FLIGHT
    }

    /// Starts a job.
    pub fn start(&mut self, job: impl Future<Output = T> + Send + 'static) {
        self.jobs.push_back(tokio::spawn(job));
    }

    /// The result of the oldest job; `None` when there is none.
    pub async fn next(&mut self) -> Option<T> {
        let job = self.jobs.pop_front()?;
        Some(unwind(job.await))
    }
}

impl<T> Drop for Ordered<T> {
    fn drop(&mut self) {
        self.jobs.iter().for_each(JoinHandle::abort);
    }
}

/// A job's result. Jobs are aborted only with their owner, so what is left is a panic, which goes
/// on here.
fn unwind<T>(ended: std::result::Result<T, JoinError>) -> T {
    match ended {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Cuts a range into pieces that end at multiples of [`PIECE`].
pub fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let next = (at / u64::from(PIECE) + 1) * u64::from(PIECE);
            let piece = (at, (next.min(end) - at) as u32);
            at = next.min(end);
            piece
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_and_are_aligned_inside() {
        const P: u64 = PIECE as u64;
        let cut = |offset, len| pieces(offset, len).collect::<Vec<_>>();
        assert_eq!(cut(5, 0), []);
        assert_eq!(cut(5, 7), [(5, 7)]);
        assert_eq!(cut(P - 1, P + 2), [(P - 1, 1), (P, PIECE), (2 * P, 1)]);
        assert_eq!(cut(2 * P, P), [(2 * P, PIECE)]);
    }

    #[tokio::test]
    async fn no_more_jobs_than_allowed_and_results_in_order() {
        let mut jobs = Ordered::default();
        for i in 0..IN_FLIGHT {
            assert!(jobs.has_room());
            jobs.start(async move { i });
        }
        assert!(!jobs.has_room());
        for i in 0..IN_FLIGHT {
            assert_eq!(jobs.next().await, Some(i));
        }
        assert_eq!(jobs.next().await, None);

        let mut jobs = Unordered::default();
        for i in 0..100 {
            let job = async move { if i == 50 { Err(i) } else { Ok(()) } };
            if let Err(failed) = jobs.start(job).await {
                assert_eq!(failed, 50);
                return;
            }
            assert!(jobs.jobs.len() <= IN_FLIGHT);
        }
        assert_eq!(jobs.finish().await, Err(50));
    }
}
