//! What clients asked and were told, block by block: the input of the checker.
//!
//! The order of events counts, not their times. One call here is one event. An operation takes
//! effect, if at all, between the event that began it and the one that ended it; one that its client
//! never got an answer to may take effect later, until an event that rules it out.

use sheepdog_types::Vid;
use std::collections::BTreeMap;
use std::fmt;

/// What a block holds: the number of the write that filled it, or [`ZEROS`].
pub type Value = u64;

/// The bytes of a block that was never written, or was discarded.
pub const ZEROS: Value = 0;

/// A block that is no whole write's: nobody wrote that.
pub const DAMAGED: Value = u64::MAX;

/// A 4 KiB block of a VDI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockId {
    /// Of which VDI.
    pub vid: Vid,
    /// Which, from its beginning.
    pub number: u64,
}

/// What an operation does with one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Fills it with a value that no other write has.
    Write(Value),
    /// Makes it zeros, as any other of these does.
    Zero,
    /// Saw this.
    Read(Value),
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Answered with success, at this event.
    Done(u64),
    /// Answered with an error that says that it was not executed.
    Never,
    /// Not answered, or with an error that says nothing. It may take effect before this event, if
    /// one is known, or never.
    Open(Option<u64>),
}

/// One operation on one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// Which connection of a client.
    pub client: u64,
    /// Through which gateway.
    pub gateway: u64,
    /// What.
    pub kind: Kind,
    /// The event that began it.
    pub invoked: u64,
    /// How it ended.
    pub end: End,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = if let End::Done(event) = self.end { event.to_string() } else { String::new() };
        write!(f, "{:>6}..{until:<6} client {} at {} ", self.invoked, self.client, self.gateway)?;
        match self.kind {
            Kind::Write(value) => write!(f, "writes {value}")?,
            Kind::Zero => f.write_str("zeroes")?,
            Kind::Read(DAMAGED) => f.write_str("reads a damaged block")?,
            Kind::Read(value) => write!(f, "reads {value}")?,
        }
        match self.end {
            End::Done(_) => Ok(()),
            End::Never => f.write_str(", refused"),
            End::Open(None) => f.write_str(", unanswered"),
            End::Open(Some(event)) => write!(f, ", unanswered, not after {event}"),
        }
    }
}

/// Names a request of a client: one operation on each of its blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Request(u64);

/// A request that was not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Which connection of a client.
    pub client: u64,
    /// Through which gateway.
    pub gateway: u64,
    /// To which VDI.
    pub vid: Vid,
    /// Its client's connection is gone, or it was answered with an error that says nothing.
    pub abandoned: bool,
    invoked: u64,
    first: u64,
    blocks: u64,
}

/// See the [module](self).
#[derive(Clone, Default, Debug)]
pub struct History {
    events: u64,
    requests: u64,
    blocks: BTreeMap<BlockId, Vec<Op>>,
    open: BTreeMap<Request, Asked>,
}

impl History {
    /// Nothing happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Events so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Every block that was touched, with its operations in the order in which they began.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockId, &[Op])> + '_ {
        self.blocks.iter().map(|(block, ops)| (*block, ops.as_slice()))
    }

    /// A client asks for something of the blocks from `first`, one for each of `kinds`. The value of a
    /// read is not looked at before [`History::read`] fills it in.
    pub fn invoke(
        &mut self,
        (client, gateway): (u64, u64),
        vid: Vid,
        first: u64,
        kinds: &[Kind],
    ) -> Request {
        self.events += 1;
        self.requests += 1;
        for (number, kind) in (first..).zip(kinds) {
            let op =
                Op { client, gateway, kind: *kind, invoked: self.events, end: End::Open(None) };
            self.blocks.entry(BlockId { vid, number }).or_default().push(op);
        }
        let blocks = kinds.len() as u64;
        let invoked = self.events;
        let asked = Asked { client, gateway, vid, abandoned: false, invoked, first, blocks };
        self.open.insert(Request(self.requests), asked);
        Request(self.requests)
    }

    /// It was answered with success.
    pub fn done(&mut self, request: Request) {
        self.finish(request, |_, op, event| {
            // An answer that comes after a fence tells of what happened before the fence.
            let before = if let End::Open(Some(ruled_out)) = op.end { ruled_out } else { event };
            op.end = End::Done(before);
        });
    }

    /// A read was answered with these values, one for each block.
    pub fn read(&mut self, request: Request, values: &[Value]) {
        self.finish(request, |place, op, event| {
            op.kind = Kind::Read(values.get(place).copied().unwrap_or(DAMAGED));
            op.end = End::Done(event);
        });
    }

    /// It was answered with an error that says that it was not executed.
    pub fn refused(&mut self, request: Request) {
        self.finish(request, |_, op, _| op.end = End::Never);
    }

    fn finish(&mut self, request: Request, mut with: impl FnMut(usize, &mut Op, u64)) {
        self.events += 1;
        let event = self.events;
        if let Some(asked) = self.open.remove(&request) {
            self.each_op(&asked, |place, op| with(place, op, event));
        }
    }

    fn each_op(&mut self, asked: &Asked, mut with: impl FnMut(usize, &mut Op)) {
        for (place, number) in (asked.first..asked.first + asked.blocks).enumerate() {
            let ops = self.blocks.get_mut(&BlockId { vid: asked.vid, number });
            // The open ones of a connection are few and near the end.
            let found = ops
                .into_iter()
                .flatten()
                .rev()
                .find(|op| op.client == asked.client && op.invoked == asked.invoked);
            if let Some(op) = found {
                with(place, op);
            }
        }
    }

    /// It was answered with an error that does not say whether it was executed.
    pub fn unknown(&mut self, request: Request) {
        self.events += 1;
        if let Some(asked) = self.open.get_mut(&request) {
            asked.abandoned = true;
        }
    }

    /// The connection of a client is gone, with whatever it had open.
    pub fn disconnect(&mut self, client: u64) {
        self.events += 1;
        for asked in self.open.values_mut().filter(|asked| asked.client == client) {
            asked.abandoned = true;
        }
    }

    /// A gateway serves a new connection to that VDI: what earlier connections left behind there took
    /// effect, or never does.
    pub fn served(&mut self, gateway: u64, vid: Vid) {
        self.rule_out(|asked| asked.abandoned && asked.gateway == gateway && asked.vid == vid);
    }

    /// A gateway, or one incarnation of it, is fenced for everybody: nothing of it takes effect from
    /// now on.
    pub fn fenced(&mut self, gateway: u64) {
        self.rule_out(|asked| asked.gateway == gateway);
    }

    /// Unanswered requests of that kind take effect before now, or never. Those of them whose client
    /// still waits may be answered later, but for what happened before.
    pub fn rule_out(&mut self, which: impl Fn(&Asked) -> bool) {
        self.events += 1;
        let event = self.events;
        let ruled: Vec<(Request, Asked)> =
            self.open.iter().filter(|(_, asked)| which(asked)).map(|(r, a)| (*r, *a)).collect();
        for (request, asked) in ruled {
            self.each_op(&asked, |_, op| {
                // Reads change nothing, and a fence does not make them older.
                if op.end == End::Open(None) && !matches!(op.kind, Kind::Read(_)) {
                    op.end = End::Open(Some(event));
                }
            });
            if asked.abandoned {
                self.open.remove(&request);
            }
        }
    }
}

#[cfg(test)]
mod tests;
