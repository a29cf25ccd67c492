//! The net between hosts: connections that come and go, and messages on them in order, with
//! latency, partitions, resets and deaths.
//!
//! Two hosts that live and reach each other get connected by themselves, after a while. A
//! connection has two lanes each way; a lane keeps its order, and bulk does not hold up control.
//! What a partition swallows is sent again when it heals, as TCP does; a side that waited too long
//! gives the connection up, and the other one learns of it in its own time. So the two sides may
//! disagree for long, a new connection may replace one that its other end believes in, and copies
//! of old messages may arrive on a new one.

mod link;

use crate::{Counts, Delay, Host, MS, Queue, Rng, SECOND};
use link::{Flight, Flying, Link, Pair};
use std::collections::{BTreeMap, BTreeSet};

/// Which of the streams between two hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Small and urgent: promises, grants, heartbeats.
    Control,
    /// Everything with data.
    Bulk,
}

/// How the net behaves when no fault is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// From one host to another, on the control lane.
    pub control: Delay,
    /// On the bulk lane; what a message's bytes take comes on top.
    pub bulk: Delay,
    /// Nanoseconds for each byte on the bulk lane.
    pub per_byte: u64,
    /// A side that gets no answer gives the connection up after between so and so much.
    pub patience: (u64, u64),
    /// Before a host tries to connect.
    pub redial: Delay,
    /// How many messages, in thousandths, come a second time after the next connection.
    pub late: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let quick = Delay { least: 20_000, typical: 50_000, rare: 10, longest: 5 * MS };
        Self {
            control: quick,
            bulk: quick,
            per_byte: 1,
            patience: (SECOND, 3 * SECOND),
            redial: Delay { least: MS, typical: 20 * MS, rare: 20, longest: SECOND },
            late: 0,
        }
    }
}

/// Copies of old messages that one pair of hosts keeps at most.
const LATE_KEPT: usize = 8;

/// Something that happens in the net at its time: give it back to [`Net::step`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pair: (Host, Host),
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Dial,
    Up {
        link: u64,
        side: usize,
    },
    Down {
        link: u64,
        side: usize,
    },
    Arrive {
        link: u64,
        from: usize,
        lane: Lane,
        number: u64,
    },
    /// A side has waited as long as it does for a partition to end.
    Impatient {
        cuts: u64,
        side: usize,
    },
    Late {
        side: usize,
    },
}

/// What a host learns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report<M> {
    /// A connection is there.
    Connected {
        /// Who learns it.
        host: Host,
        /// With whom.
        peer: Host,
    },
    /// The connection is gone; an unknown part of what was sent last did not arrive.
    Disconnected {
        /// Who learns it.
        host: Host,
        /// With whom.
        peer: Host,
    },
    /// A message.
    Message {
        /// Who gets it.
        host: Host,
        /// Who sent it.
        peer: Host,
        /// On which lane.
        lane: Lane,
        /// It was sent on an earlier connection and may have arrived before.
        old: bool,
        /// What was sent.
        message: M,
    },
}

/// How a host's death shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// The process died, its kernel closes what it had open.
    Reset,
    /// The machine is gone and says nothing.
    Silence,
}

/// See the [module](self).
pub struct Net<M> {
    settings: Settings,
    rng: Rng,
    alive: BTreeSet<Host>,
    pairs: BTreeMap<(Host, Host), Pair<M>>,
    links: u64,
    /// Faults that happened, by kind.
    pub faults: Counts,
    /// Messages sent and received, and their bytes.
    pub seen: Counts,
}

fn pair_of(a: Host, b: Host) -> (Host, Host) {
    assert_ne!(a, b, "a host is not connected with itself");
    (a.min(b), a.max(b))
}

fn end(pair: (Host, Host), side: usize) -> Host {
    if side == 0 { pair.0 } else { pair.1 }
}

impl<M: Clone> Net<M> {
    /// Nobody lives yet.
    #[must_use]
    pub fn new(settings: Settings, rng: Rng) -> Self {
        Self {
            settings,
            rng,
            alive: BTreeSet::new(),
            pairs: BTreeMap::new(),
            links: 0,
            faults: Counts::default(),
            seen: Counts::default(),
        }
    }

    /// From now on it behaves like this; what is in flight stays as it is.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// A process starts: it gets connected with all that live.
    pub fn start<E: From<Step>>(&mut self, queue: &mut Queue<E>, host: Host) {
        for peer in self.alive.clone() {
            if peer != host {
                self.dial(queue, pair_of(host, peer));
            }
        }
        self.alive.insert(host);
    }

    /// A process ends. What it sent last is lost in part, what was on its way to it is lost. The
    /// caller lets the queue forget the host's events.
    pub fn die<E: From<Step>>(&mut self, queue: &mut Queue<E>, host: Host, death: Death) {
        self.alive.remove(&host);
        let pairs: Vec<_> =
            self.pairs.keys().copied().filter(|p| p.0 == host || p.1 == host).collect();
        for name in pairs {
            let side = usize::from(name.1 == host);
            let pair = self.pairs.get_mut(&name).expect("it was just listed");
            pair.sees[side] = None;
            let silent = death == Death::Silence || pair.cut[side];
            let Some(link) = &mut pair.link else { continue };
            // The peer of a broken one may still believe in it, and nobody else will tell it.
            let silent = silent || link.broken;
            link.broken = true;
            let number = link.number;
            self.lose_suffix(name, side);
            self.lose_all(name, 1 - side);
            let delay =
                if silent { self.patience() } else { self.settings.control.draw(&mut self.rng) };
            self.down(queue, name, number, 1 - side, delay);
        }
    }

    /// Whether that host believes to be connected with that peer.
    #[must_use]
    pub fn is_connected(&self, host: Host, peer: Host) -> bool {
        let name = pair_of(host, peer);
        self.pairs.get(&name).is_some_and(|pair| pair.sees[usize::from(name.1 == host)].is_some())
    }

    /// Sends a message of so many bytes. `false` if the sender knows that it is not connected; `true`
    /// promises nothing.
    pub fn send<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        (from, to): (Host, Host),
        lane: Lane,
        bytes: u64,
        message: M,
    ) -> bool {
        let name = pair_of(from, to);
        let side = usize::from(name.1 == from);
        let Some(pair) = self.pairs.get_mut(&name) else {
            return false;
        };
        let Some(seen) = pair.sees[side] else {
            return false;
        };
        self.seen.one("messages sent");
        self.seen.add("bytes sent", bytes);
        let slow = pair.slow[side];
        let Some(link) = pair.link(seen).filter(|link| !link.broken) else {
            self.seen.one("messages into a dead connection");
            return true;
        };
        let (delay, line) = match lane {
            Lane::Control => (self.settings.control, 0),
            Lane::Bulk => (self.settings.bulk, self.settings.per_byte.saturating_mul(bytes)),
        };
        let stream = &mut link.streams[side][lane as usize];
        stream.busy_until = queue.now().max(stream.busy_until) + line.saturating_mul(slow);
        let delay = delay.draw(&mut self.rng).saturating_mul(slow);
        let arrival = stream.last_arrival.max(stream.busy_until.saturating_add(delay));
        stream.last_arrival = arrival;
        let number = stream.next_number;
        stream.next_number += 1;
        stream.flying.push_back(Flying { number, arrival, state: Flight::OnTheWay, message });
        let what = What::Arrive { link: seen, from: side, lane, number };
        queue.at_host(arrival, to, Step { pair: name, what });
        true
    }

    /// Bytes from one to the other are swallowed from now on; the other direction is left alone.
    pub fn cut<E: From<Step>>(&mut self, queue: &mut Queue<E>, from: Host, to: Host) {
        let name = pair_of(from, to);
        let pair = self.pairs.entry(name).or_default();
        let first = !pair.is_cut();
        pair.cut[usize::from(name.1 == from)] = true;
        self.faults.one("net: cut one way");
        if first {
            pair.cuts += 1;
            let cuts = pair.cuts;
            for side in [0, 1] {
                let patience = self.patience();
                let what = What::Impatient { cuts, side };
                queue.after(patience, Step { pair: name, what });
            }
        }
    }

    /// Both ways.
    pub fn partition<E: From<Step>>(&mut self, queue: &mut Queue<E>, a: Host, b: Host) {
        self.cut(queue, a, b);
        self.cut(queue, b, a);
    }

    /// Both ways are open again; what was swallowed is sent again, if the connection still is.
    pub fn heal<E: From<Step>>(&mut self, queue: &mut Queue<E>, a: Host, b: Host) {
        let name = pair_of(a, b);
        let Some(pair) = self.pairs.get_mut(&name).filter(|pair| pair.is_cut()) else {
            return;
        };
        pair.cut = [false; 2];
        if let Some(link) = &mut pair.link {
            for (side, lanes) in link.streams.iter_mut().enumerate() {
                let receiver = end(name, 1 - side);
                for (lane, stream) in [Lane::Control, Lane::Bulk].into_iter().zip(lanes) {
                    let mut when = queue.now() + self.settings.control.draw(&mut self.rng);
                    for flying in &mut stream.flying {
                        if flying.state == Flight::Swallowed {
                            flying.state = Flight::OnTheWay;
                            let what = What::Arrive {
                                link: link.number,
                                from: side,
                                lane,
                                number: flying.number,
                            };
                            queue.at_host(when, receiver, Step { pair: name, what });
                            flying.arrival = when;
                        }
                        when = when.max(flying.arrival);
                    }
                    stream.last_arrival = stream.last_arrival.max(when);
                }
            }
        }
        self.dial(queue, name);
    }

    /// Every partition ends, every link is as quick as it should be.
    pub fn heal_all<E: From<Step>>(&mut self, queue: &mut Queue<E>) {
        let names: Vec<_> = self.pairs.keys().copied().collect();
        for name in names {
            self.heal(queue, name.0, name.1);
            if let Some(pair) = self.pairs.get_mut(&name) {
                pair.slow = [1; 2];
            }
        }
    }

    /// Whether bytes from one to the other are swallowed.
    #[must_use]
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        let name = pair_of(from, to);
        self.pairs.get(&name).is_some_and(|pair| pair.cut[usize::from(name.1 == from)])
    }

    /// What is sent from one to the other takes so many times as long from now on (1: as it should).
    pub fn slow(&mut self, from: Host, to: Host, times: u64) {
        let name = pair_of(from, to);
        self.pairs.entry(name).or_default().slow[usize::from(name.1 == from)] = times.max(1);
        if times > 1 {
            self.faults.one("net: slow one way");
        }
    }

    /// Breaks the connection: of what is in flight each way some suffix is lost, and each side learns
    /// it at its own time. Says whether there was one.
    pub fn reset<E: From<Step>>(&mut self, queue: &mut Queue<E>, a: Host, b: Host) -> bool {
        let name = pair_of(a, b);
        let Some(link) = self.pairs.get_mut(&name).and_then(|pair| pair.link.as_mut()) else {
            return false;
        };
        if link.broken {
            return false;
        }
        link.broken = true;
        let number = link.number;
        self.faults.one("net: reset");
        for side in [0, 1] {
            self.lose_suffix(name, side);
        }
        for side in [0, 1] {
            let delay = self.settings.control.draw(&mut self.rng);
            self.down(queue, name, number, side, delay);
        }
        true
    }

    /// Something happens. What hosts learn by it is put behind `out`.
    pub fn step<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        step: Step,
        out: &mut Vec<Report<M>>,
    ) {
        let name = step.pair;
        match step.what {
            What::Dial => self.connect(queue, name),
            What::Up { link, side } => {
                let Some(pair) = self.pairs.get_mut(&name) else { return };
                // A newer one is there already, and will be reported.
                if pair.link(link).is_none() {
                    return;
                }
                let (host, peer) = (end(name, side), end(name, 1 - side));
                if pair.sees[side].replace(link).is_some() {
                    self.seen.one("connections replaced unseen");
                    out.push(Report::Disconnected { host, peer });
                }
                out.push(Report::Connected { host, peer });
                let late = pair.late.iter().filter(|(to, ..)| *to == side).count();
                for _ in 0..late {
                    let when = queue.now() + self.settings.bulk.draw(&mut self.rng);
                    queue.at_host(when, host, Step { pair: name, what: What::Late { side } });
                }
            }
            What::Down { link, side } => {
                let Some(pair) = self.pairs.get_mut(&name) else { return };
                if pair.sees[side] != Some(link) {
                    return;
                }
                pair.sees[side] = None;
                if pair.link(link).is_some() {
                    self.lose_all(name, 1 - side);
                }
                out.push(Report::Disconnected { host: end(name, side), peer: end(name, 1 - side) });
                self.dial(queue, name);
            }
            What::Arrive { link, from, lane, number } => {
                self.arrive(queue, name, link, (from, lane, number), out);
            }
            What::Impatient { cuts, side } => self.give_up(queue, name, cuts, side),
            What::Late { side } => {
                let Some(pair) = self.pairs.get_mut(&name) else { return };
                let Some(place) = pair.late.iter().position(|(to, ..)| *to == side) else { return };
                // It arrives on a connection or not at all.
                if pair.sees[side].is_some()
                    && let Some((_, lane, message)) = pair.late.remove(place)
                {
                    self.faults.one("net: old message again");
                    let (host, peer) = (end(name, side), end(name, 1 - side));
                    out.push(Report::Message { host, peer, lane, old: true, message });
                }
            }
        }
    }

    fn arrive<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        name: (Host, Host),
        link: u64,
        (from, lane, number): (usize, Lane, u64),
        out: &mut Vec<Report<M>>,
    ) {
        let Some(pair) = self.pairs.get_mut(&name) else { return };
        let (cut, seen) = (pair.cut[from], pair.sees[1 - from]);
        let Some(found) = pair.link(link) else { return };
        let stream = &mut found.streams[from][lane as usize];
        let Some(flying) = stream.find(number) else { return };
        if seen != Some(link) {
            // Its kernel has it; the process learns of the connection first.
            let what = What::Arrive { link, from, lane, number };
            queue.at_host(queue.now() + MS, end(name, 1 - from), Step { pair: name, what });
            return;
        }
        if cut {
            flying.state = Flight::Swallowed;
            self.faults.one("net: message swallowed");
            return;
        }
        flying.state = Flight::Arrived;
        let (host, peer) = (end(name, 1 - from), end(name, from));
        let mut late = Vec::new();
        while stream.flying.front().is_some_and(|first| first.state == Flight::Arrived) {
            let Some(Flying { message, .. }) = stream.flying.pop_front() else { break };
            if self.rng.rare(self.settings.late) {
                late.push((1 - from, lane, message.clone()));
            }
            self.seen.one("messages received");
            out.push(Report::Message { host, peer, lane, old: false, message });
        }
        for copy in late {
            pair.keep_late(copy);
        }
    }

    /// A side has waited for the end of a partition for as long as it does.
    fn give_up<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        name: (Host, Host),
        cuts: u64,
        side: usize,
    ) {
        let Some(pair) = self.pairs.get_mut(&name) else { return };
        if pair.cuts != cuts || !pair.is_cut() {
            return;
        }
        let open = !pair.cut[side];
        let Some(link) = &mut pair.link else { return };
        link.broken = true;
        let number = link.number;
        self.faults.one("net: connection given up");
        self.down(queue, name, number, side, 0);
        if open {
            let delay = self.settings.control.draw(&mut self.rng);
            self.down(queue, name, number, 1 - side, delay);
        }
    }

    fn patience(&mut self) -> u64 {
        let (least, most) = self.settings.patience;
        self.rng.between(least, most)
    }

    /// Tells a side that its connection is gone, behind what still arrives on it.
    fn down<E: From<Step>>(
        &mut self,
        queue: &mut Queue<E>,
        name: (Host, Host),
        number: u64,
        side: usize,
        delay: u64,
    ) {
        let Some(link) = self.pairs.get_mut(&name).and_then(|pair| pair.link(number)) else {
            return;
        };
        let when = (queue.now() + delay).max(link.up_at[side]).max(link.last_arrival(side));
        let what = What::Down { link: number, side };
        queue.at_host(when, end(name, side), Step { pair: name, what });
    }

    fn dial<E: From<Step>>(&mut self, queue: &mut Queue<E>, name: (Host, Host)) {
        let pair = self.pairs.entry(name).or_default();
        if !pair.dialing {
            pair.dialing = true;
            let delay = self.settings.redial.draw(&mut self.rng);
            queue.after(delay, Step { pair: name, what: What::Dial });
        }
    }

    fn connect<E: From<Step>>(&mut self, queue: &mut Queue<E>, name: (Host, Host)) {
        let alive = self.alive.contains(&name.0) && self.alive.contains(&name.1);
        let pair = self.pairs.entry(name).or_default();
        pair.dialing = false;
        // Whoever starts, and the end of a partition, dials again.
        if !alive || pair.is_cut() || pair.link.as_ref().is_some_and(|link| !link.broken) {
            return;
        }
        for side in [0, 1] {
            self.lose_all(name, side);
        }
        self.links += 1;
        let mut up = || queue.now() + self.settings.control.draw(&mut self.rng);
        let link = Link::new(self.links, [up(), up()]);
        for side in [0, 1] {
            let what = What::Up { link: link.number, side };
            queue.at_host(link.up_at[side], end(name, side), Step { pair: name, what });
        }
        self.pairs.entry(name).or_default().link = Some(link);
    }

    /// Some last part of what that side sent is lost, in each lane.
    fn lose_suffix(&mut self, name: (Host, Host), from: usize) {
        for lane in [Lane::Control, Lane::Bulk] {
            let Some(link) = self.pairs.get_mut(&name).and_then(|pair| pair.link.as_mut()) else {
                return;
            };
            let flying = link.streams[from][lane as usize].flying.len();
            let kept = self.rng.index(flying + 1);
            self.lose(name, from, lane, kept);
        }
    }

    /// Everything that side sent is lost.
    fn lose_all(&mut self, name: (Host, Host), from: usize) {
        for lane in [Lane::Control, Lane::Bulk] {
            self.lose(name, from, lane, 0);
        }
    }

    fn lose(&mut self, name: (Host, Host), from: usize, lane: Lane, kept: usize) {
        let Some(pair) = self.pairs.get_mut(&name) else { return };
        let Some(link) = &mut pair.link else { return };
        let flying = &mut link.streams[from][lane as usize].flying;
        let lost = flying.split_off(kept.min(flying.len()));
        self.faults.add("net: message lost", lost.len() as u64);
        for flying in lost {
            if self.rng.rare(self.settings.late) {
                pair.keep_late((1 - from, lane, flying.message));
            }
        }
    }
}

#[cfg(test)]
mod tests;
