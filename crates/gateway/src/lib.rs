//! The role of the process that a client is connected to: disk requests become requests to the
//! primaries of shards, sent again with the same id until one answers, whatever dies meanwhile. Pure:
//! events and effects.
//!
//! * A request that is on its way is never given up for silence: it waits, and is answered rightly or
//!   not at all.
//! * A client whose connection is gone has crashed. What it had on its way ends before the next
//!   connection to that VDI is served here; what has no answer then never happens.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod slots;

use bytes::Bytes;
use sheepdog_placement::shard_of;
use sheepdog_shard::message::{Change, Done, Refusal, Request, Response, Work};
use sheepdog_shard::{Lineages, Message};
use sheepdog_storelog::{Piece, ZeroKind};
use sheepdog_types::{
    BLOCK_SIZE, FragmentId, Geometry, Interval, LineageId, Process, RequestId, ShardId, Vid,
};
use slots::Slots;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Nanoseconds after which a request that was told to move is sent again although no newer interval
/// is known.
const MOVED_AGAIN: u64 = 20_000_000;

/// A connection of a client to one VDI; chosen by the door, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection(pub u64);

/// An operation of a connection; chosen by the door.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OpId(pub u64);

/// What a client wants of whole blocks.
#[derive(Clone, Debug)]
pub enum Op {
    /// Bytes.
    Read {
        /// First block of the disk.
        start: u64,
        /// How many.
        count: u32,
    },
    /// New bytes.
    Write {
        /// First block of the disk.
        start: u64,
        /// Whole blocks.
        data: Bytes,
    },
    /// Nothing of what the VDI owns in a fragment.
    Delete {
        /// Which.
        fragment: u64,
    },
    /// Zeros.
    Zero {
        /// First block of the disk.
        start: u64,
        /// How many.
        count: u32,
        /// What becomes of their space.
        kind: ZeroKind,
    },
}

/// Why an operation was not done, or not wholly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// A disk is full. What was not refused was done.
    NoSpace,
    /// This gateway, or its lock, was fenced: whether it was done nobody here knows.
    Fenced,
    /// The VDI takes no writes.
    ReadOnly,
    /// It is gone.
    Unknown,
    /// Bytes cannot be read.
    Io(String),
}

/// What a gateway is told.
#[derive(Debug)]
pub enum Event {
    /// A client connects to a VDI, with the number of the lock that it holds.
    Open(Connection, Vid, u64),
    /// Its connection is gone.
    Close(Connection),
    /// It wants something. Only of a connection that is served.
    Op(Connection, OpId, Op),
    /// A primary answers.
    Response(Response),
    /// The registry says who the primary of a shard is.
    Routed(ShardId, Interval, Process),
    /// VDIs and lineages changed.
    Lineages(Arc<Lineages>),
    /// There is a connection to a process again: what was sent may have been lost.
    Connected(Process),
    /// Time passed.
    Tick,
}

/// What a gateway wants.
#[derive(Debug)]
pub enum Effect {
    /// Say this.
    Send(Process, Message),
    /// The connection is served from now on.
    Served(Connection),
    /// There is no such VDI.
    Refused(Connection),
    /// An operation is done; pieces of a read, in order.
    Done(OpId, Result<Vec<Piece>, Failure>),
}

/// Of the cluster, for ever.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Of fragments.
    pub geometry: Geometry,
    /// There are 2^bits shards.
    pub bits: u8,
    /// In which set.
    pub set: u16,
}

impl Layout {
    /// The shard of a fragment.
    #[must_use]
    pub fn shard(&self, fragment: FragmentId) -> ShardId {
        ShardId { set: self.set, number: shard_of(fragment, self.bits) }
    }
}

struct Client {
    vid: Vid,
    fence: u64,
    served: bool,
    ops: BTreeSet<OpId>,
}

/// An operation and the parts that it was cut into.
struct Parts {
    /// Nobody waits for it if its client is gone.
    connection: Connection,
    left: usize,
    pieces: Vec<Option<Vec<Piece>>>,
    failure: Option<Failure>,
}

/// One request to a shard.
struct Part {
    op: OpId,
    place: usize,
    vid: Vid,
    fence: u64,
    fragment: FragmentId,
    work: Work,
    /// Where and in which interval it was sent; none while it waits for a route.
    sent: Option<(Process, Interval)>,
    /// It was told to move by the interval that it knows: again after a while.
    again_at: Option<u64>,
}

#[derive(Default)]
struct Shard {
    route: Option<(Interval, Process)>,
    slots: Slots,
    parts: BTreeMap<(u8, u64), Part>,
    /// No slot was free.
    waiting: VecDeque<Part>,
}

/// See the module.
pub struct Gateway {
    me: Process,
    layout: Layout,
    lineages: Arc<Lineages>,
    shards: BTreeMap<ShardId, Shard>,
    clients: BTreeMap<Connection, Client>,
    ops: BTreeMap<OpId, Parts>,
    /// Operations of connections that are gone, by VDI.
    orphans: BTreeMap<Vid, BTreeSet<OpId>>,
    /// Connections that wait for them.
    opening: VecDeque<Connection>,
    /// This incarnation was fenced: it serves nobody any more.
    fenced: bool,
}

impl Gateway {
    /// Of a process that just started, with its own incarnation.
    #[must_use]
    pub fn new(me: Process, layout: Layout) -> Self {
        Self {
            me,
            layout,
            lineages: Arc::default(),
            shards: BTreeMap::new(),
            clients: BTreeMap::new(),
            ops: BTreeMap::new(),
            orphans: BTreeMap::new(),
            opening: VecDeque::new(),
            fenced: false,
        }
    }

    /// Feeds one event.
    pub fn handle(&mut self, now: u64, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Open(connection, vid, fence) => {
                let client = Client { vid, fence, served: false, ops: BTreeSet::new() };
                self.clients.insert(connection, client);
                self.opening.push_back(connection);
                self.serve(out);
            }
            Event::Close(connection) => self.close(connection, out),
            Event::Op(connection, id, op) => self.op(connection, id, &op, out),
            Event::Response(response) => self.response(now, response, out),
            Event::Routed(shard, interval, primary) => self.routed(shard, interval, primary, out),
            Event::Lineages(lineages) => self.know(lineages, out),
            Event::Connected(process) => {
                for (id, shard) in &mut self.shards {
                    for ((slot, seq), part) in &shard.parts {
                        if let Some((to, interval)) = part.sent
                            && to == process
                        {
                            let request = request_of(
                                *id,
                                self.me,
                                (*slot, *seq),
                                part,
                                interval,
                                self.lineages.revision,
                            );
                            out.push(Effect::Send(to, Message::Request(request)));
                        }
                    }
                }
            }
            Event::Tick => {
                let due = |part: &&mut Part| part.again_at.is_some_and(|at| at <= now);
                for shard in self.shards.values_mut() {
                    for part in shard.parts.values_mut().filter(due) {
                        part.again_at = None;
                        part.sent = None;
                    }
                }
                self.send_unsent(out);
            }
        }
    }

    /// Requests on their way.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.shards.values().map(|shard| shard.parts.len() + shard.waiting.len()).sum()
    }

    // ---- connections ---------------------------------------------------------------------------

    /// Connections whose VDI is quiet: everything that former clients left behind has ended.
    fn serve(&mut self, out: &mut Vec<Effect>) {
        for connection in std::mem::take(&mut self.opening) {
            let Some(client) = self.clients.get_mut(&connection) else {
                continue;
            };
            if self.fenced || !self.lineages.vids.contains_key(&client.vid) {
                self.clients.remove(&connection);
                out.push(Effect::Refused(connection));
            } else if self.orphans.contains_key(&client.vid) {
                self.opening.push_back(connection);
            } else {
                client.served = true;
                out.push(Effect::Served(connection));
            }
        }
    }

    fn close(&mut self, connection: Connection, out: &mut Vec<Effect>) {
        let Some(client) = self.clients.remove(&connection) else {
            return;
        };
        // What was not sent yet never will be.
        for id in client.ops {
            let mut never = 0;
            for shard in self.shards.values_mut() {
                let before = shard.waiting.len();
                shard.waiting.retain(|part| part.op != id);
                never += before - shard.waiting.len();
            }
            if let Some(parts) = self.ops.get_mut(&id) {
                parts.left -= never;
                if parts.left == 0 {
                    self.ops.remove(&id);
                } else {
                    self.orphans.entry(client.vid).or_default().insert(id);
                }
            }
        }
        self.serve(out);
    }

    // ---- operations ----------------------------------------------------------------------------

    fn op(&mut self, connection: Connection, id: OpId, op: &Op, out: &mut Vec<Effect>) {
        let Some(client) = self.clients.get_mut(&connection).filter(|client| client.served) else {
            return;
        };
        let Some(record) = self.lineages.vids.get(&client.vid) else {
            out.push(Effect::Done(id, Err(Failure::Unknown)));
            return;
        };
        let works = cut(self.layout.geometry, record.lineage, client.vid, op);
        let count = works.len();
        if count == 0 {
            out.push(Effect::Done(id, Ok(Vec::new())));
            return;
        }
        client.ops.insert(id);
        let (vid, fence) = (client.vid, client.fence);
        let pieces = vec![None; count];
        self.ops.insert(id, Parts { connection, left: count, pieces, failure: None });
        for (place, (fragment, work)) in works.into_iter().enumerate() {
            let part =
                Part { op: id, place, vid, fence, fragment, work, sent: None, again_at: None };
            let shard = self.shards.entry(self.layout.shard(fragment)).or_default();
            match shard.slots.take() {
                Some(slot) => {
                    shard.parts.insert(slot, part);
                }
                None => shard.waiting.push_back(part),
            }
        }
        self.send_unsent(out);
    }

    fn send_unsent(&mut self, out: &mut Vec<Effect>) {
        for (id, shard) in &mut self.shards {
            let Some((interval, primary)) = shard.route else {
                continue;
            };
            for ((slot, seq), part) in &mut shard.parts {
                if part.sent.is_none() {
                    part.sent = Some((primary, interval));
                    let revision = self.lineages.revision;
                    let request = request_of(*id, self.me, (*slot, *seq), part, interval, revision);
                    out.push(Effect::Send(primary, Message::Request(request)));
                }
            }
        }
    }

    fn routed(&mut self, id: ShardId, interval: Interval, primary: Process, out: &mut Vec<Effect>) {
        let shard = self.shards.entry(id).or_default();
        if shard.route.is_some_and(|(known, _)| known >= interval) {
            return;
        }
        shard.route = Some((interval, primary));
        // Whoever was asked before will not answer, or that it is not the primary any more.
        for part in shard.parts.values_mut() {
            part.sent = None;
            part.again_at = None;
        }
        self.send_unsent(out);
    }

    fn response(&mut self, now: u64, response: Response, out: &mut Vec<Effect>) {
        let Response { shard: id, interval, id: request, result } = response;
        let Some(shard) = self.shards.get_mut(&id) else {
            return;
        };
        let key = (request.slot, request.seq);
        let Some(part) = shard.parts.get_mut(&key).filter(|_| request.gateway == self.me) else {
            return;
        };
        // Only what was asked last can refuse: it may be executed where it was sent since.
        if result.is_err() && part.sent.is_none_or(|(_, sent)| sent != interval) {
            return;
        }
        let result = match result {
            Ok(Done::Changed) => Ok(Vec::new()),
            Ok(Done::Read(pieces)) => Ok(pieces),
            Err(Refusal::Moved { .. }) => {
                // The route that is known may be the one that moved: then it is waited for, and
                // asked again in case the one that refused had not heard of it.
                let current = shard.route.map(|(interval, to)| (to, interval));
                if part.sent.is_some() && part.sent == current {
                    part.again_at = Some(now + MOVED_AGAIN);
                }
                return;
            }
            // A copy of what was answered long ago.
            Err(Refusal::Late) => return,
            Err(Refusal::NoSpace) => Err(Failure::NoSpace),
            Err(Refusal::Fenced) => Err(Failure::Fenced),
            Err(Refusal::ReadOnly) => Err(Failure::ReadOnly),
            Err(Refusal::Unknown) => Err(Failure::Unknown),
            Err(Refusal::Io(why)) => Err(Failure::Io(why)),
        };
        let Some(part) = shard.parts.remove(&key) else {
            return;
        };
        shard.slots.give_back(request.slot);
        if let Some(next) = shard.waiting.pop_front()
            && let Some(slot) = shard.slots.take()
        {
            shard.parts.insert(slot, next);
        }
        self.part_done(&part, result, out);
        self.send_unsent(out);
    }

    fn part_done(
        &mut self,
        part: &Part,
        result: Result<Vec<Piece>, Failure>,
        out: &mut Vec<Effect>,
    ) {
        let Some(parts) = self.ops.get_mut(&part.op) else {
            return;
        };
        parts.left -= 1;
        match result {
            Ok(pieces) => parts.pieces[part.place] = Some(pieces),
            Err(failure) => parts.failure = Some(failure),
        }
        if parts.left > 0 {
            return;
        }
        let Some(parts) = self.ops.remove(&part.op) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(&parts.connection) {
            client.ops.remove(&part.op);
            let pieces = parts.pieces.into_iter().flatten().flatten().collect();
            out.push(Effect::Done(part.op, parts.failure.map_or(Ok(pieces), Err)));
        } else if let Some(orphans) = self.orphans.get_mut(&part.vid) {
            orphans.remove(&part.op);
            if orphans.is_empty() {
                self.orphans.remove(&part.vid);
                self.serve(out);
            }
        }
    }

    fn know(&mut self, lineages: Arc<Lineages>, out: &mut Vec<Effect>) {
        if lineages.revision < self.lineages.revision {
            return;
        }
        self.lineages = lineages;
        let below = self.lineages.gateways.get(&self.me.node);
        self.fenced = below.is_some_and(|below| self.me.incarnation < *below);
        self.serve(out);
    }
}

fn request_of(
    shard: ShardId,
    gateway: Process,
    (slot, seq): (u8, u64),
    part: &Part,
    interval: Interval,
    revision: u64,
) -> Request {
    Request {
        shard,
        interval,
        id: RequestId { gateway, slot, seq },
        revision,
        fence: part.fence,
        vid: part.vid,
        fragment: part.fragment,
        work: part.work.clone(),
    }
}

/// The parts of an operation, by fragment.
fn cut(geometry: Geometry, lineage: LineageId, vid: Vid, op: &Op) -> Vec<(FragmentId, Work)> {
    let blocks = u64::from(geometry.blocks_per_fragment());
    let (start, count) = match op {
        Op::Delete { fragment } => {
            let id = FragmentId { lineage, number: *fragment };
            return vec![(id, Work::Change(Change::Delete { vid }))];
        }
        Op::Read { start, count } | Op::Zero { start, count, .. } => (*start, u64::from(*count)),
        Op::Write { start, data } => (*start, (data.len() / BLOCK_SIZE) as u64),
    };
    let mut parts = Vec::new();
    let mut at = start;
    while at < start + count {
        let number = at / blocks;
        let first = (at % blocks) as u32;
        let len = (blocks - at % blocks).min(start + count - at);
        let work = match op {
            Op::Delete { .. } => Work::Change(Change::Delete { vid }),
            Op::Read { .. } => Work::Read { start: first, count: len as u32 },
            Op::Write { data, .. } => {
                let from = (at - start) as usize * BLOCK_SIZE;
                let part = data.slice(from..from + len as usize * BLOCK_SIZE);
                Work::Change(Change::Write { vid, start: first, data: vec![part] })
            }
            Op::Zero { kind, .. } => {
                Work::Change(Change::Zero { vid, start: first, count: len as u32, kind: *kind })
            }
        };
        parts.push((FragmentId { lineage, number }, work));
        at += len;
    }
    parts
}
