//! What goes wrong, when, and how often it did.

use crate::process::PATIENCE;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Kinds of operations of a file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Op {
    /// Looking at names and attributes.
    Look,
    /// Opening a file.
    Open,
    /// Making a file, directory, link or socket.
    Create,
    /// Removing a name.
    Remove,
    /// Renaming.
    Rename,
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// A flush, also one that a durable write asks for.
    Sync,
    /// Reserving space.
    Allocate,
    /// Giving space back.
    Punch,
    /// Setting the length.
    Resize,
    /// Asking how much space there is.
    Space,
}

/// What happens instead of the operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    /// It fails with this error number.
    Error(i32),
    /// A write writes only a part and says so.
    Short,
    /// It is not begun until the fault is over.
    Stall,
}

/// A fault to inject: which operations, and what happens to them.
#[derive(Clone, Debug)]
pub struct Fault {
    file: Option<String>,
    ops: Vec<Op>,
    region: Option<Range<u64>>,
    after: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    const fn new(effect: Effect) -> Self {
        Self { file: None, ops: Vec::new(), region: None, after: 0, times: u64::MAX, effect }
    }

    /// Every operation fails with `EIO`.
    #[must_use]
    pub const fn eio() -> Self {
        Self::new(Effect::Error(libc::EIO))
    }

    /// Every operation that may need space finds none.
    #[must_use]
    pub fn full() -> Self {
        let needing = [Op::Create, Op::Rename, Op::Write, Op::Allocate, Op::Punch, Op::Resize];
        Self::new(Effect::Error(libc::ENOSPC)).ops(&needing)
    }

    /// Every operation fails as those of a mount whose other end is gone.
    #[must_use]
    pub const fn gone() -> Self {
        Self::new(Effect::Error(libc::ENOTCONN))
    }

    /// Every write of more than a sector writes only a part.
    #[must_use]
    pub fn short() -> Self {
        Self::new(Effect::Short).ops(&[Op::Write])
    }

    /// Every operation on bytes of files waits until the fault is over.
    #[must_use]
    pub fn stall() -> Self {
        Self::new(Effect::Stall).ops(&[Op::Read, Op::Write, Op::Sync, Op::Allocate, Op::Punch])
    }

    /// Only for files of this name.
    #[must_use]
    pub fn on(mut self, file: &str) -> Self {
        self.file = Some(file.to_owned());
        self
    }

    /// Only these kinds of operations.
    #[must_use]
    pub fn ops(mut self, ops: &[Op]) -> Self {
        self.ops = ops.to_vec();
        self
    }

    /// Only where this range of bytes is touched.
    #[must_use]
    pub fn region(mut self, region: Range<u64>) -> Self {
        self.region = Some(region);
        self
    }

    /// So many operations that it would meet are spared first.
    #[must_use]
    pub const fn after(mut self, spared: u64) -> Self {
        self.after = spared;
        self
    }

    /// So many operations, then no more.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn meets(&self, file: &str, op: Op, range: &Range<u64>) -> bool {
        let here = |region: &Range<u64>| range.start < region.end && region.start < range.end;
        self.file.as_ref().is_none_or(|name| name == file)
            && (self.ops.is_empty() || self.ops.contains(&op))
            && self.region.as_ref().is_none_or(here)
    }
}

/// A fault in force and what it did.
#[derive(Debug)]
struct Active {
    id: u64,
    fault: Fault,
    met: u64,
    hits: u64,
}

#[derive(Debug, Default)]
struct State {
    active: Vec<Active>,
    next: u64,
    counts: BTreeMap<(String, Op), u64>,
}

/// All faults of one file system.
#[derive(Debug, Default)]
pub(super) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the file system does with an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Go,
    Fail(i32),
    Short,
    /// After [`Faults::wait_for_end`] of this fault it goes.
    Stall(u64),
}

impl Faults {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counters and lists, whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn inject(self: &Arc<Self>, fault: Fault) -> Injected {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.active.push(Active { id, fault, met: 0, hits: 0 });
        drop(state);
        Injected { faults: Arc::clone(self), id }
    }

    /// Counts an operation and says what becomes of it. The first fault that wants it has it.
    pub(super) fn check(&self, file: &str, op: Op, range: Range<u64>) -> Verdict {
        let mut state = self.state();
        *state.counts.entry((file.to_owned(), op)).or_default() += 1;
        for active in &mut state.active {
            if !active.fault.meets(file, op, &range) {
                continue;
            }
            active.met += 1;
            let nth = active.met - 1;
            if nth < active.fault.after || nth - active.fault.after >= active.fault.times {
                continue;
            }
            active.hits += 1;
            self.changed.notify_all();
            return match active.fault.effect {
                Effect::Error(number) => Verdict::Fail(number),
                Effect::Short => Verdict::Short,
                Effect::Stall => Verdict::Stall(active.id),
            };
        }
        Verdict::Go
    }

    pub(super) fn count(&self, file: &str, op: Op) -> u64 {
        self.state().counts.get(&(file.to_owned(), op)).copied().unwrap_or(0)
    }

    pub(super) fn wait_for_end(&self, id: u64) {
        let mut state = self.state();
        while state.active.iter().any(|active| active.id == id) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn heal_all(&self) {
        self.state().active.clear();
        self.changed.notify_all();
    }
}

/// A fault in force, until this is dropped.
#[derive(Debug)]
#[must_use = "the fault ends when this is dropped"]
pub struct Injected {
    faults: Arc<Faults>,
    id: u64,
}

impl Injected {
    fn of<T>(&self, state: &State, what: impl Fn(&Active) -> T) -> Option<T> {
        state.active.iter().find(|active| active.id == self.id).map(what)
    }

    /// Operations it did something to.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.of(&self.faults.state(), |active| active.hits).unwrap_or(0)
    }

    /// Operations that it would meet, those spared included.
    #[must_use]
    pub fn met(&self) -> u64 {
        self.of(&self.faults.state(), |active| active.met).unwrap_or(0)
    }

    /// Waits until it did something to so many operations.
    ///
    /// # Panics
    /// When that does not happen.
    pub fn wait_for_hits(&self, hits: u64) {
        let end = Instant::now() + PATIENCE;
        let mut state = self.faults.state();
        while self.of(&state, |active| active.hits).is_some_and(|now| now < hits) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the fault meets nothing");
            let waited = self.faults.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        self.faults.state().active.retain(|active| active.id != self.id);
        self.faults.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_meets_what_it_names_and_as_often() {
        let faults = Arc::new(Faults::default());
        let check = |file, op, range| faults.check(file, op, range);
        let fault = Fault::eio().on("data").ops(&[Op::Read]).region(100..200).after(1).times(2);
        let injected = faults.inject(fault);
        assert_eq!(check("log", Op::Read, 0..300), Verdict::Go);
        assert_eq!(check("data", Op::Write, 0..300), Verdict::Go);
        assert_eq!(check("data", Op::Read, 0..100), Verdict::Go);
        assert_eq!(check("data", Op::Read, 200..300), Verdict::Go);
        assert_eq!(check("data", Op::Read, 0..101), Verdict::Go, "spared");
        assert_eq!(check("data", Op::Read, 0..101), Verdict::Fail(libc::EIO));
        assert_eq!(check("data", Op::Read, 199..300), Verdict::Fail(libc::EIO));
        assert_eq!(check("data", Op::Read, 199..300), Verdict::Go, "no more");
        assert_eq!((injected.met(), injected.hits()), (4, 2));
        assert_eq!(faults.count("data", Op::Read), 6);
        drop(injected);
        let always = faults.inject(Fault::gone());
        assert_eq!(check("log", Op::Space, 0..0), Verdict::Fail(libc::ENOTCONN));
        drop(always);
        assert_eq!(check("log", Op::Space, 0..0), Verdict::Go);
    }
}
