//! Clients: each has one connection to a gateway, several operations open on it, and comes back
//! through another one when it is gone.

use super::{BLOCK, Ev, World};
use crate::history::{DAMAGED, Kind, Request, Value, ZEROS};
use crate::node::host_of;
use crate::stamp;
use crate::{Host, MS, Rng};
use bytes::Bytes;
use sheepdog_gateway::{Connection, Effect, Event, Failure, Op, OpId};
use sheepdog_storelog::{Piece, ZeroKind};
use sheepdog_types::Vid;
use std::collections::{BTreeMap, BTreeSet};

/// What a client does next.
#[derive(Clone, Copy, Debug)]
pub enum ClientEvent {
    /// It connects to some gateway.
    Connect,
    /// It begins an operation on its connection, if that is still this one.
    Operate(u64),
    /// It goes away with all that it has open.
    Leave(u64),
}

/// See the module.
pub struct Client {
    rng: Rng,
    /// Its connection, the gateway's host and name, the VDI, and whether it is served.
    at: Option<At>,
    open: BTreeMap<OpId, Asked>,
}

struct At {
    connection: Connection,
    host: Host,
    gateway: u64,
    vid: Vid,
    lock: u64,
    served: bool,
}

struct Asked {
    request: Request,
    /// Block numbers and the count of a read.
    reads: Option<(u64, u32)>,
}

impl Client {
    pub fn new(rng: Rng) -> Self {
        Self { rng, at: None, open: BTreeMap::new() }
    }
}

impl World {
    pub(super) fn client_event(&mut self, number: usize, event: ClientEvent) {
        match event {
            ClientEvent::Connect => self.connect(number),
            ClientEvent::Operate(connection) => self.operate(number, connection),
            ClientEvent::Leave(connection) => {
                let at = self.clients[number].at.as_ref();
                if at.is_some_and(|at| at.connection.0 == connection) {
                    self.counts.one("clients that left with operations open");
                    self.leave(number);
                    let pause = self.clients[number].rng.below(200 * MS);
                    self.queue.after(pause, Ev::Client(number, ClientEvent::Connect));
                }
            }
        }
    }

    fn connect(&mut self, number: usize) {
        if self.clients[number].at.is_some() {
            return;
        }
        let ready: Vec<Host> = self
            .machines
            .iter()
            .filter(|(_, machine)| machine.node.as_ref().is_some_and(|node| node.is_ready()))
            .map(|(host, _)| *host)
            .collect();
        if ready.is_empty() {
            self.queue.after(100 * MS, Ev::Client(number, ClientEvent::Connect));
            return;
        }
        let client = &mut self.clients[number];
        let host = *client.rng.pick(&ready);
        let vid = *client.rng.pick(&self.vids);
        let connection = Connection(self.next_connection);
        self.next_connection += 1;
        self.connections.insert(connection.0, number);
        let incarnation = self.machines[&host].incarnation;
        let gateway = u64::from(host.0) << 32 | incarnation;
        let lock = self.locks.get(&vid).copied().unwrap_or(0);
        client.at = Some(At { connection, host, gateway, vid, lock, served: false });
        self.on_host(host, |node, now, wishes| {
            node.gateway_event(now, Event::Open(connection, vid, lock), wishes);
        });
    }

    /// Its connection is gone: what it had open may still happen, or not.
    fn leave(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let Some(at) = client.at.take() else {
            return;
        };
        client.open.clear();
        self.history.disconnect(at.connection.0);
        self.connections.remove(&at.connection.0);
        self.on_host(at.host, |node, now, wishes| node.close(now, at.connection, wishes));
    }

    /// All clients of a process that died.
    pub(super) fn clients_of(&mut self, host: Host) {
        for number in 0..self.clients.len() {
            if self.clients[number].at.as_ref().is_some_and(|at| at.host == host) {
                self.leave(number);
                let pause = self.clients[number].rng.below(300 * MS);
                self.queue.after(pause, Ev::Client(number, ClientEvent::Connect));
            }
        }
    }

    /// The lock of a VDI is another's: what former holders have open never happens any more.
    pub(super) fn lock_moved(&mut self, vid: Vid, lock: u64) {
        self.locks.insert(vid, lock);
        let holds = |at: &At| at.vid == vid && at.lock < lock;
        let former: BTreeSet<u64> = self
            .clients
            .iter()
            .filter_map(|client| client.at.as_ref().filter(|at| holds(at)))
            .map(|at| at.connection.0)
            .collect();
        let newest = former.iter().max().copied().unwrap_or(0).max(self.next_connection - 1);
        let later: BTreeSet<u64> = self
            .clients
            .iter()
            .filter_map(|client| client.at.as_ref().filter(|at| at.vid == vid && at.lock >= lock))
            .map(|at| at.connection.0)
            .collect();
        self.history.rule_out(|asked| {
            asked.vid == vid && asked.client <= newest && !later.contains(&asked.client)
        });
        for number in 0..self.clients.len() {
            let at = self.clients[number].at.as_ref();
            if at.is_some_and(|at| former.contains(&at.connection.0)) {
                self.leave(number);
                self.queue.after(MS, Ev::Client(number, ClientEvent::Connect));
            }
        }
    }

    fn operate(&mut self, number: usize, connection: u64) {
        if self.quiet {
            return;
        }
        let depth = self.plan.depth;
        let think = self.plan.think;
        let blocks = u64::from(self.plan.blocks_per_vdi);
        let fresh = self.next_value;
        let client = &mut self.clients[number];
        let Some(at) = client.at.as_ref().filter(|at| at.connection.0 == connection) else {
            return;
        };
        let pause = client.rng.below(2 * think + 1);
        self.queue.after(pause, Ev::Client(number, ClientEvent::Operate(connection)));
        if !at.served || client.open.len() >= depth {
            return;
        }
        let (connection, host, gateway, vid) = (at.connection, at.host, at.gateway, at.vid);
        if client.rng.rare(3) {
            self.queue.after(0, Ev::Client(number, ClientEvent::Leave(connection.0)));
            return;
        }
        let count = match client.rng.below(10) {
            0..6 => 1,
            6..9 => client.rng.between(1, 4),
            _ => client.rng.between(1, blocks),
        };
        let count = count.min(blocks) as u32;
        // Some blocks are much wanted.
        let room = blocks - u64::from(count) + 1;
        let mut start = if client.rng.chance(50) {
            client.rng.below(room.min(3))
        } else {
            client.rng.below(room)
        };
        let id = OpId(self.next_op);
        self.next_op += 1;
        let (op, kinds, reads) = match client.rng.below(20) {
            0..9 => {
                let kinds = vec![Kind::Read(ZEROS); count as usize];
                (Op::Read { start, count }, kinds, Some((start, count)))
            }
            9..19 => {
                let mut data = Vec::with_capacity(count as usize * BLOCK);
                let mut kinds = Vec::new();
                for place in 0..u64::from(count) {
                    let value = fresh + place;
                    kinds.push(Kind::Write(value));
                    data.extend_from_slice(&stamp::fill(value, vid, start + place));
                }
                self.next_value += u64::from(count);
                (Op::Write { start, data: Bytes::from(data) }, kinds, None)
            }
            19 if client.rng.chance(30) => {
                // All of a fragment, as far as the VDI goes.
                let size = u64::from(self.plan.geometry.blocks_per_fragment());
                let fragment = start / size;
                start = fragment * size;
                let kinds = vec![Kind::Zero; size.min(blocks - start) as usize];
                (Op::Delete { fragment }, kinds, None)
            }
            _ => {
                let kinds = vec![Kind::Zero; count as usize];
                let kind = *client.rng.pick(&[ZeroKind::Remove, ZeroKind::Marker]);
                (Op::Zero { start, count, kind }, kinds, None)
            }
        };
        self.counts.one("client operations");
        let request = self.history.invoke((connection.0, gateway), vid, start, &kinds);
        self.clients[number].open.insert(id, Asked { request, reads });
        self.on_host(host, |node, now, wishes| {
            node.gateway_event(now, Event::Op(connection, id, op), wishes);
        });
    }

    pub(super) fn client_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Served(connection) => {
                let Some(number) = self.connections.get(&connection.0).copied() else {
                    return;
                };
                if let Some(at) = self.clients[number].at.as_mut() {
                    at.served = true;
                    self.history.served(at.gateway, at.vid);
                    self.queue.after(0, Ev::Client(number, ClientEvent::Operate(connection.0)));
                }
            }
            Effect::Refused(connection) => {
                if let Some(number) = self.connections.get(&connection.0).copied() {
                    self.leave(number);
                    self.queue.after(50 * MS, Ev::Client(number, ClientEvent::Connect));
                }
            }
            Effect::Done(op, result) => self.done(op, result),
            Effect::Send(..) => {}
        }
    }

    fn done(&mut self, op: OpId, result: Result<Vec<Piece>, Failure>) {
        let found = self.clients.iter_mut().find_map(|client| {
            let asked = client.open.remove(&op)?;
            client.at.as_ref().map(|at| (asked, at.vid))
        });
        let Some((Asked { request, reads }, vid)) = found else {
            return;
        };
        match (result, reads) {
            (Ok(pieces), Some((start, count))) => {
                self.counts.one("reads done");
                let values = values_of(&pieces, vid, start, count);
                self.history.read(request, &values);
            }
            (Ok(_), None) => {
                self.counts.one("writes done");
                self.history.done(request);
            }
            (Err(failure), reads) => {
                if failure == Failure::Unknown {
                    self.find("records", format!("{vid:?} is there and was not known"));
                }
                self.counts.one(match failure {
                    Failure::NoSpace => "refused: no space",
                    Failure::Fenced => "refused: fenced",
                    Failure::ReadOnly | Failure::Unknown => "refused: no working VDI",
                    Failure::Io(_) => "refused: I/O error",
                });
                if reads.is_some() {
                    self.history.refused(request);
                } else {
                    self.history.unknown(request);
                }
            }
        }
    }

    /// Whether nobody waits for anything.
    pub(super) fn clients_are_idle(&self) -> bool {
        self.clients.iter().all(|client| client.open.is_empty())
    }

    /// Who waits for what, for people.
    pub(super) fn waiting_clients(&self) -> Vec<String> {
        let waiting = self.clients.iter().filter(|client| !client.open.is_empty());
        let shown = waiting.map(|client| {
            let at = client.at.as_ref();
            let open = at.and_then(|at| self.node(at.host)).map(|n| n.gateway.open_requests());
            let at = at.map(|at| (at.connection, at.host, at.vid, at.lock, at.served));
            format!("{at:?} {:?}, open there: {open:?}", client.open.keys().collect::<Vec<_>>())
        });
        shown.collect()
    }

    /// The process behind a host, for people.
    pub(super) fn shown(&self, host: Host) -> String {
        let process = self.known_process(host);
        process.map_or_else(|| format!("{host:?} down"), |p| format!("{:?}", host_of(p)))
    }
}

fn values_of(pieces: &[Piece], vid: Vid, start: u64, count: u32) -> Vec<Value> {
    let mut values = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(bytes) => {
                for block in bytes.chunks(BLOCK) {
                    values.push(stamp::value_of(block, vid, start + values.len() as u64));
                }
            }
            Piece::Reserved(blocks) | Piece::Zero(blocks) | Piece::Hole(blocks) => {
                values.extend(std::iter::repeat_n(ZEROS, *blocks as usize));
            }
        }
    }
    values.resize(count as usize, DAMAGED);
    values
}
