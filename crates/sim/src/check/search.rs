//! The slow checker: tries every order (Wing and Gong) and remembers where it was. Takes operations
//! as they are and knows no theory.

use crate::history::{End, Kind, Op, Value, ZEROS};
use std::collections::BTreeSet;

/// Operations it takes at most.
pub const MOST: usize = 32;

/// Whether some order of the operations explains every read.
///
/// # Panics
/// With more than [`MOST`] operations.
#[must_use]
pub fn is_linearizable(ops: &[Op]) -> bool {
    assert!(ops.len() <= MOST, "too many operations to try every order");
    go(ops, 0, ZEROS, 0, &mut BTreeSet::new())
}

/// `done` took effect, the last beginning among them was at `latest`.
fn go(ops: &[Op], done: u32, value: Value, latest: u64, been: &mut BTreeSet<(u32, Value)>) -> bool {
    let left = |place: usize| done & (1 << place) == 0;
    let must = |op: &Op| matches!(op.end, End::Done(_));
    if ops.iter().enumerate().all(|(place, op)| !must(op) || !left(place)) {
        return true;
    }
    if !been.insert((done, value)) {
        return false;
    }
    ops.iter().enumerate().any(|(place, op)| {
        let in_time = match op.end {
            End::Done(until) | End::Open(Some(until)) => latest.max(op.invoked) < until,
            End::Open(None) => true,
            End::Never => false,
        };
        let new = match op.kind {
            Kind::Write(new) => Some(new),
            Kind::Zero => Some(ZEROS),
            Kind::Read(seen) => (must(op) && seen == value).then_some(value),
        };
        match new {
            Some(new) if left(place) && in_time => {
                go(ops, done | 1 << place, new, latest.max(op.invoked), been)
            }
            _ => false,
        }
    })
}
