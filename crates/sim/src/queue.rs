//! The order of everything: one queue of events by (true time, sequence), and the clocks of the
//! hosts, which run at rates of their own.
//!
//! An event may belong to a host: then it waits while the host is paused, and vanishes when its
//! process dies. A deadline on a host's clock moves when the rate of that clock changes.

use crate::Host;
use std::collections::BTreeMap;

/// Names an event in the queue; never reused within a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Token(u64);

/// The rate of a clock that runs as true time does, in billionths.
pub const TRUE_RATE: u64 = 1_000_000_000;

/// What a healthy clock may be off, in billionths: 200 ppm.
pub const NORMAL_ERROR: u64 = 200_000;

/// A host's clock. It runs through pauses, as one that counts suspended time does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Clock {
    /// At this true time it showed that.
    at: u64,
    shown: u64,
    /// Local nanoseconds in 10^9 true ones.
    rate: u64,
}

impl Clock {
    fn local(self, now: u64) -> u64 {
        let gone = u128::from(now.saturating_sub(self.at)) * u128::from(self.rate);
        self.shown + (gone / u128::from(TRUE_RATE)) as u64
    }

    /// The first true time at which it shows at least `local`.
    fn reaches(self, local: u64) -> u64 {
        let left = u128::from(local.saturating_sub(self.shown)) * u128::from(TRUE_RATE);
        let gone = left.div_ceil(u128::from(self.rate));
        self.at.saturating_add(u64::try_from(gone).unwrap_or(u64::MAX))
    }
}

struct Item<E> {
    owner: Option<Host>,
    /// Due when the owner's clock shows this, rather than at a true time.
    local: Option<u64>,
    event: E,
}

struct Machine {
    clock: Clock,
    paused: bool,
}

/// An event that happens now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due<E> {
    /// Whose, if a host's.
    pub owner: Option<Host>,
    /// What.
    pub event: E,
}

/// See the [module](self).
pub struct Queue<E> {
    now: u64,
    sequence: u64,
    delivered: u64,
    order: BTreeMap<(u64, u64), Item<E>>,
    /// What became due while its host was paused.
    held: BTreeMap<(u64, u64), Item<E>>,
    /// Where each event stands, by the number of its token.
    places: BTreeMap<u64, u64>,
    machines: BTreeMap<Host, Machine>,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            now: 0,
            sequence: 0,
            delivered: 0,
            order: BTreeMap::new(),
            held: BTreeMap::new(),
            places: BTreeMap::new(),
            machines: BTreeMap::new(),
        }
    }
}

impl<E> Queue<E> {
    /// Empty, at time 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True time.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// Events that happened so far.
    #[must_use]
    pub const fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Events that are still to come, those of paused hosts included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Nothing is to come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A host whose clock shows `shown` now and runs at `rate` billionths of true time (at least 1).
    pub fn add_host(&mut self, host: Host, shown: u64, rate: u64) {
        let clock = Clock { at: self.now, shown, rate: rate.max(1) };
        self.machines.insert(host, Machine { clock, paused: false });
    }

    /// What the host's clock shows; true time for a host that was not added.
    #[must_use]
    pub fn local(&self, host: Host) -> u64 {
        self.machines.get(&host).map_or(self.now, |machine| machine.clock.local(self.now))
    }

    /// The clock goes on at another rate. Deadlines on it move.
    pub fn set_rate(&mut self, host: Host, rate: u64) {
        let now = self.now;
        let Some(machine) = self.machines.get_mut(&host) else {
            return;
        };
        machine.clock = Clock { at: now, shown: machine.clock.local(now), rate: rate.max(1) };
        let clock = machine.clock;
        // What is overdue stays so, and what is held is overdue.
        let moving: Vec<((u64, u64), u64)> = self
            .order
            .iter()
            .filter(|((time, _), item)| item.owner == Some(host) && *time > now)
            .filter_map(|(key, item)| item.local.map(|local| (*key, local)))
            .collect();
        for ((time, number), local) in moving {
            let item = self.order.remove(&(time, number)).expect("it was just seen");
            let time = clock.reaches(local).max(now);
            self.order.insert((time, number), item);
            self.places.insert(number, time);
        }
    }

    /// An event that is nobody's, at a true time (now, if that is past).
    pub fn at(&mut self, time: u64, event: impl Into<E>) -> Token {
        self.put(time, None, None, event.into())
    }

    /// As [`Queue::at`], so long from now.
    pub fn after(&mut self, delay: u64, event: impl Into<E>) -> Token {
        self.at(self.now.saturating_add(delay), event)
    }

    /// An event of a host, at a true time.
    pub fn at_host(&mut self, time: u64, host: Host, event: impl Into<E>) -> Token {
        self.put(time, Some(host), None, event.into())
    }

    /// An event of a host, when its clock shows that.
    pub fn at_local(&mut self, host: Host, local: u64, event: impl Into<E>) -> Token {
        let time = self.machines.get(&host).map_or(local, |machine| machine.clock.reaches(local));
        self.put(time, Some(host), Some(local), event.into())
    }

    fn put(&mut self, time: u64, owner: Option<Host>, local: Option<u64>, event: E) -> Token {
        let time = time.max(self.now);
        self.sequence += 1;
        self.order.insert((time, self.sequence), Item { owner, local, event });
        self.places.insert(self.sequence, time);
        Token(self.sequence)
    }

    /// Takes an event back; `None` if it happened already.
    pub fn cancel(&mut self, token: Token) -> Option<E> {
        let time = self.places.remove(&token.0)?;
        let key = (time, token.0);
        let item = self.order.remove(&key).or_else(|| self.held.remove(&key))?;
        Some(item.event)
    }

    /// The process stops: its events wait.
    pub fn pause(&mut self, host: Host) {
        if let Some(machine) = self.machines.get_mut(&host) {
            machine.paused = true;
        }
    }

    /// It goes on: what waited happens now, in its order.
    pub fn resume(&mut self, host: Host) {
        let Some(machine) = self.machines.get_mut(&host).filter(|machine| machine.paused) else {
            return;
        };
        machine.paused = false;
        let freed = self.held.extract_if(.., |_, item| item.owner == Some(host));
        self.order.extend(freed);
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self, host: Host) -> bool {
        self.machines.get(&host).is_some_and(|machine| machine.paused)
    }

    /// The process died: its events never happen. A pause ends with it.
    pub fn forget(&mut self, host: Host) {
        self.resume(host);
        let dropped = self.order.extract_if(.., |_, item| item.owner == Some(host));
        for ((_, number), _) in dropped {
            self.places.remove(&number);
        }
    }

    /// The time of the next event that is not held up.
    pub fn next_time(&mut self) -> Option<u64> {
        self.hold();
        self.order.first_key_value().map(|((time, _), _)| self.now.max(*time))
    }

    /// Sets aside what is first in the queue and belongs to a paused host.
    fn hold(&mut self) {
        while let Some(first) = self.order.first_entry() {
            let paused = |host| self.machines.get(&host).is_some_and(|machine| machine.paused);
            if !first.get().owner.is_some_and(paused) {
                return;
            }
            let (key, item) = first.remove_entry();
            self.held.insert(key, item);
        }
    }

    /// Goes on to the next event. `None` when nothing is left but what paused hosts wait with.
    #[expect(clippy::should_implement_trait, reason = "events are put in while it runs")]
    pub fn next(&mut self) -> Option<Due<E>> {
        self.hold();
        let ((time, number), item) = self.order.pop_first()?;
        self.places.remove(&number);
        self.now = self.now.max(time);
        self.delivered += 1;
        Some(Due { owner: item.owner, event: item.event })
    }
}

#[cfg(test)]
mod tests;
