//! Lines about what strangers do at a door: no more than a few each second, so that they cannot fill
//! the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);
const LINES: u32 = 5;

/// Counts lines.
#[derive(Default, Debug)]
pub struct Throttle {
    state: Mutex<State>,
}

#[derive(Default, Debug)]
struct State {
    began: Option<Instant>,
    lines: u32,
    dropped: u64,
}

impl Throttle {
    /// Logs the line unless there were too many.
    pub fn warn(&self, line: impl FnOnce() -> String) {
        if let Some(dropped) = self.admit(Instant::now()) {
            if dropped > 0 {
                tracing::warn!("{dropped} more lines of this kind were left out");
            }
            tracing::warn!("{}", line());
        }
    }

    /// Whether a line may go, and how many were dropped before it.
    fn admit(&self, now: Instant) -> Option<u64> {
        // Counts are right whoever panicked.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.began.is_none_or(|began| now - began >= PERIOD) {
            state.began = Some(now);
            state.lines = 0;
        }
        if state.lines == LINES {
            state.dropped += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_number() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let admitted = (0..100).filter(|_| throttle.admit(start).is_some()).count();
        assert_eq!(admitted, LINES as usize);
        assert_eq!(throttle.admit(start + PERIOD), Some(95));
        assert_eq!(throttle.admit(start + PERIOD), Some(0));
    }
}
