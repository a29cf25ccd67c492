//! One pair of hosts: what is in flight between them, and what each of the two believes.

use super::Lane;
use std::collections::VecDeque;

/// Messages on the way in one direction and lane. They arrive in the order in which they were sent.
pub(super) struct Stream<M> {
    pub(super) flying: VecDeque<Flying<M>>,
    pub(super) next_number: u64,
    /// Nothing arrives earlier than what was sent before it.
    pub(super) last_arrival: u64,
    /// The sender's line is busy until then.
    pub(super) busy_until: u64,
}

pub(super) struct Flying<M> {
    pub(super) number: u64,
    pub(super) arrival: u64,
    pub(super) state: Flight,
    pub(super) message: M,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flight {
    OnTheWay,
    /// A partition swallowed it; it is sent again when that heals.
    Swallowed,
    /// It is there and waits for those before it.
    Arrived,
}

impl<M> Stream<M> {
    fn new(from: u64) -> Self {
        Self { flying: VecDeque::new(), next_number: 0, last_arrival: from, busy_until: 0 }
    }

    pub(super) fn find(&mut self, number: u64) -> Option<&mut Flying<M>> {
        let first = self.flying.front()?.number;
        let place = usize::try_from(number.checked_sub(first)?).ok()?;
        self.flying.get_mut(place)
    }
}

/// One connection: both lanes in both directions live and die together.
pub(super) struct Link<M> {
    pub(super) number: u64,
    /// By sending side and lane.
    pub(super) streams: [[Stream<M>; 2]; 2],
    /// When each side learns that it is there.
    pub(super) up_at: [u64; 2],
    /// Nothing that is sent from now on gets through.
    pub(super) broken: bool,
}

impl<M> Link<M> {
    pub(super) fn new(number: u64, up_at: [u64; 2]) -> Self {
        let towards = |side: usize| [Stream::new(up_at[side]), Stream::new(up_at[side])];
        Self { number, streams: [towards(1), towards(0)], up_at, broken: false }
    }

    /// The last arrival at a side that is on its way.
    pub(super) fn last_arrival(&self, side: usize) -> u64 {
        let streams = self.streams[1 - side].iter();
        streams
            .filter_map(|stream| stream.flying.back())
            .map(|last| last.arrival)
            .max()
            .unwrap_or(0)
    }
}

/// Two hosts; side 0 is the one with the lower number.
pub(super) struct Pair<M> {
    pub(super) link: Option<Link<M>>,
    /// By which connection each side believes to be connected.
    pub(super) sees: [Option<u64>; 2],
    /// By sending side: bytes are swallowed.
    pub(super) cut: [bool; 2],
    /// Counts partitions, so that an old one's end of patience is not taken for a new one's.
    pub(super) cuts: u64,
    /// By sending side: everything takes this many times as long.
    pub(super) slow: [u64; 2],
    /// Somebody will try to connect.
    pub(super) dialing: bool,
    /// Copies of old messages that arrive after the next connection: receiving side, lane, bytes.
    pub(super) late: VecDeque<(usize, Lane, M)>,
}

impl<M> Default for Pair<M> {
    fn default() -> Self {
        Self {
            link: None,
            sees: [None; 2],
            cut: [false; 2],
            cuts: 0,
            slow: [1; 2],
            dialing: false,
            late: VecDeque::new(),
        }
    }
}

impl<M> Pair<M> {
    pub(super) fn is_cut(&self) -> bool {
        self.cut[0] || self.cut[1]
    }

    /// Keeps a copy of an old message for later, if there is room for it.
    pub(super) fn keep_late(&mut self, copy: (usize, Lane, M)) {
        if self.late.len() < super::LATE_KEPT {
            self.late.push_back(copy);
        }
    }

    /// The connection, if it is that one.
    pub(super) fn link(&mut self, number: u64) -> Option<&mut Link<M>> {
        self.link.as_mut().filter(|link| link.number == number)
    }
}
