//! Whom this process does not reach. A sign of life of any kind ends a suspicion.
//!
//! * A **reset** makes a peer suspect at once, and a probe goes out. It is confirmed when the probe
//!   is reset too, or nothing was heard [`CONFIRM`] later.
//! * **Silence** of [`SILENT`] makes it suspect; whoever was not heard for [`PING`] is asked.
//!
//! Time in which this process itself did not run (it was stopped, or its machine slept) is no
//! silence of others: a gap between two looks beyond [`GAP`] is taken out.

use crate::api::{Effect, Message, Now, Suspicion};
use sheepdog_types::Process;
use std::collections::{BTreeMap, BTreeSet};

const MS: u64 = 1_000_000;
/// After this much silence a peer is asked whether it is there, and again.
pub const PING: u64 = 250 * MS;
/// Silence that makes suspect.
pub const SILENT: u64 = 1000 * MS;
/// Silence of which two reporters make a node down.
pub const DOWN: u64 = 3000 * MS;
/// Time that a peer has to answer after a reset.
pub const CONFIRM: u64 = 100 * MS;
/// A longer gap between two looks is not the peers' fault. Looks are due every [`PING`].
pub const GAP: u64 = 500 * MS;

#[derive(Clone, Copy, Debug)]
struct Peer {
    heard: Now,
    pinged: Now,
    reset: Option<Now>,
    confirmed: bool,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Detector {
    peers: BTreeMap<Process, Peer>,
    looked: Option<Now>,
}

impl Detector {
    /// Whom to look at. A new one has until [`SILENT`] from now.
    pub fn watch(&mut self, now: Now, peers: &BTreeSet<Process>) {
        self.peers.retain(|process, _| peers.contains(process));
        for process in peers {
            let new = Peer { heard: now, pinged: 0, reset: None, confirmed: false };
            self.peers.entry(*process).or_insert(new);
        }
    }

    /// A peer gave a sign of life.
    pub fn heard(&mut self, now: Now, process: Process) {
        if let Some(peer) = self.peers.get_mut(&process) {
            *peer = Peer { heard: now, reset: None, confirmed: false, ..*peer };
        }
    }

    /// A connection to a peer was reset, or could not be made.
    pub fn reset(&mut self, now: Now, process: Process, out: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&process) else {
            return;
        };
        if peer.reset.is_some() {
            peer.confirmed = true;
        } else {
            peer.reset = Some(now);
            out.push(Effect::Probe(process));
        }
    }

    /// Looks at all peers: asks those that are silent.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        let gap = now.saturating_sub(self.looked.replace(now).unwrap_or(now));
        for (process, peer) in &mut self.peers {
            if gap > GAP {
                peer.heard = peer.heard.saturating_add(gap).min(now);
                peer.reset = peer.reset.map(|at| at.saturating_add(gap).min(now));
            }
            peer.confirmed |= peer.reset.is_some_and(|at| now.saturating_sub(at) >= CONFIRM);
            if now.saturating_sub(peer.heard.max(peer.pinged)) >= PING {
                peer.pinged = now;
                out.push(Effect::Send { to: *process, message: Message::Ping });
            }
        }
    }

    /// When to look again.
    pub fn next_tick(&self) -> Option<Now> {
        let peers = self.peers.values();
        let next = |peer: &Peer| {
            let confirm = peer.reset.filter(|_| !peer.confirmed).map(|at| at + CONFIRM);
            let ping = peer.heard.max(peer.pinged) + PING;
            let silent = (peer.heard + SILENT, peer.heard + DOWN);
            let looked = self.looked.unwrap_or(0);
            let silent = [silent.0, silent.1].into_iter().filter(|at| *at > looked).min();
            [confirm, Some(ping), silent].into_iter().flatten().min()
        };
        peers.filter_map(next).min()
    }

    /// All whom this process does not reach.
    pub fn suspicions(&self, now: Now) -> Vec<Suspicion> {
        let peers = self.peers.iter();
        let suspect = peers.filter_map(|(process, peer)| {
            let silent = now.saturating_sub(peer.heard);
            let suspect = peer.confirmed || silent >= SILENT;
            let (process, reset) = (*process, peer.confirmed);
            suspect.then_some(Suspicion { process, silent: silent / MS, reset })
        });
        suspect.collect()
    }
}

#[cfg(test)]
mod tests;
