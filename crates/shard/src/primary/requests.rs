//! The table of requests: of each slot of each gateway the newest request, so that it is executed at
//! most once however often it is sent (as NFSv4.1 sessions do, RFC 8881, 2.10.6).

use sheepdog_storelog::RequestEntry;
use sheepdog_types::{NodeId, Process, RequestId, Version};
use std::collections::BTreeMap;

/// What is known of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// Nothing: it may be executed.
    New,
    /// It is on its way as the write with that sequence number.
    InFlight(u64),
    /// It was executed.
    Executed,
    /// It was refused, for ever: whoever sent it knows.
    Refused,
    /// A later one of its slot was.
    Late,
}

#[derive(Clone, Copy)]
struct Entry {
    seq: u64,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Void,
    InFlight(u64),
    Executed,
    Refused,
}

/// See the module.
#[derive(Default)]
pub struct Table {
    slots: BTreeMap<(Process, u8), Entry>,
    /// The newest incarnation of each gateway whose requests were taken.
    newest: BTreeMap<NodeId, u64>,
}

impl Table {
    /// What the takeover found.
    pub fn adopt(&mut self, requests: &[(RequestId, RequestEntry)]) {
        for (id, entry) in requests {
            let state = if entry.version == Version::ZERO { State::Void } else { State::Executed };
            self.slots.insert((id.gateway, id.slot), Entry { seq: entry.seq, state });
            self.seen(id.gateway);
        }
    }

    /// What is known of it.
    #[must_use]
    pub fn look(&self, id: RequestId) -> Known {
        match self.slots.get(&(id.gateway, id.slot)) {
            Some(entry) if entry.seq > id.seq => Known::Late,
            Some(Entry { seq, state }) if *seq == id.seq => match state {
                State::Void => Known::New,
                State::InFlight(write) => Known::InFlight(*write),
                State::Executed => Known::Executed,
                State::Refused => Known::Refused,
            },
            _ => Known::New,
        }
    }

    /// It is on its way.
    pub fn begin(&mut self, id: RequestId, write: u64) {
        let entry = Entry { seq: id.seq, state: State::InFlight(write) };
        self.slots.insert((id.gateway, id.slot), entry);
    }

    /// It was refused in this interval; its copies name no other.
    pub fn refuse(&mut self, id: RequestId) {
        let entry = Entry { seq: id.seq, state: State::Refused };
        self.slots.insert((id.gateway, id.slot), entry);
    }

    /// It is durable everywhere.
    pub fn end(&mut self, id: RequestId) {
        if let Some(entry) = self.slots.get_mut(&(id.gateway, id.slot))
            && entry.seq == id.seq
        {
            entry.state = State::Executed;
        }
    }

    /// The newest incarnation of a gateway that was seen.
    #[must_use]
    pub fn newest(&self, gateway: Process) -> u64 {
        self.newest.get(&gateway.node).copied().unwrap_or_default()
    }

    /// Requests of this incarnation are taken, of older ones no more.
    pub fn seen(&mut self, gateway: Process) {
        let newest = self.newest.entry(gateway.node).or_default();
        if gateway.incarnation > *newest {
            *newest = gateway.incarnation;
            let newest = *newest;
            self.slots.retain(|(process, _), _| {
                process.node != gateway.node || process.incarnation >= newest
            });
        }
    }
}
