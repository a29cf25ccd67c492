//! The clients of a run: what they ask, of which blocks, through which gateway; when they vanish with
//! requests open, and what they ask again then.
//!
//! There are few blocks and they are asked for often, because what breaks breaks where requests meet.
//! It decides; the caller sends, says what came of it, and writes the history.

use crate::Rng;
use crate::history::{Kind, Value, ZEROS};
use sheepdog_types::Vid;
use std::collections::BTreeMap;

/// What clients do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How many there are.
    pub clients: usize,
    /// The VDIs that they share.
    pub vids: Vec<Vid>,
    /// Blocks of each VDI that are used.
    pub blocks: u64,
    /// Blocks that one request touches at most.
    pub most_blocks: u64,
    /// Requests that one client has open at most.
    pub depth: usize,
    /// In thousandths of what is done: connections closed with whatever is open.
    pub disconnects: u64,
    /// In hundredths of the requests: writes, and writes of zeros. The others read.
    pub writes: u64,
    /// See `writes`.
    pub zeros: u64,
}

impl Settings {
    /// Something small of any shape.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        let vids = 1 + rng.below(3) as u32;
        Self {
            clients: 1 + rng.index(6),
            vids: (1..=vids).filter_map(Vid::new).collect(),
            blocks: rng.between(4, 64),
            most_blocks: *rng.pick(&[1, 4, 20]),
            depth: *rng.pick(&[1, 2, 8]),
            disconnects: *rng.pick(&[0, 20, 100]),
            writes: rng.between(20, 60),
            zeros: *rng.pick(&[0, 5, 20]),
        }
    }
}

/// A request: one operation on each of the blocks from `first`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Names it.
    pub number: u64,
    /// On which connection.
    pub connection: u64,
    /// Through which gateway.
    pub gateway: u64,
    /// Of which VDI.
    pub vid: Vid,
    /// The first block.
    pub first: u64,
    /// What to do with each block: all the same, and one value for all of a write.
    pub kinds: Vec<Kind>,
    /// It repeats what an earlier connection was not answered, with a new value.
    pub again: bool,
}

/// What a client does next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Connects to a VDI through a gateway.
    Connect {
        /// The new connection; never reused.
        connection: u64,
        /// Through which.
        gateway: u64,
        /// To which.
        vid: Vid,
    },
    /// Closes the connection, without waiting for what is open.
    Disconnect {
        /// Which.
        connection: u64,
    },
    /// Asks.
    Ask(Ask),
}

#[derive(Default)]
struct Client {
    /// Connection, gateway, VDI.
    link: Option<(u64, u64, Vid)>,
    open: BTreeMap<u64, Ask>,
    /// What was not answered when the last connection ended.
    unanswered: Vec<Ask>,
    last_gateway: Option<u64>,
}

/// See the [module](self).
pub struct Workload {
    settings: Settings,
    rng: Rng,
    clients: Vec<Client>,
    connections: u64,
    numbers: u64,
    values: Value,
}

impl Workload {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(settings: Settings, rng: Rng) -> Self {
        let clients = (0..settings.clients).map(|_| Client::default()).collect();
        Self { settings, rng, clients, connections: 0, numbers: 0, values: ZEROS }
    }

    /// What some client does now, through one of these gateways if it connects. `None` if the client
    /// that was looked at waits.
    pub fn next(&mut self, gateways: &[u64]) -> Option<Action> {
        let client = self.rng.index(self.clients.len());
        let Some((connection, gateway, vid)) = self.clients[client].link else {
            return self.connect(client, gateways);
        };
        if self.rng.rare(self.settings.disconnects) {
            self.lost(connection);
            return Some(Action::Disconnect { connection });
        }
        if self.clients[client].open.len() >= self.settings.depth {
            return None;
        }
        // Reads are not repeated: nobody waits for their answers any more.
        let repeated = self.clients[client].unanswered.pop();
        let repeated = repeated.filter(|old| old.vid == vid && old.is_write());
        let again = repeated.is_some();
        let (first, count, kind) = match repeated {
            Some(old) => (old.first, old.kinds.len() as u64, old.kinds[0]),
            None => self.anything(),
        };
        let kind = match kind {
            Kind::Write(_) => {
                self.values += 1;
                Kind::Write(self.values)
            }
            other => other,
        };
        self.numbers += 1;
        let (number, kinds) = (self.numbers, vec![kind; count as usize]);
        let ask = Ask { number, connection, gateway, vid, first, kinds, again };
        self.clients[client].open.insert(number, ask.clone());
        Some(Action::Ask(ask))
    }

    fn connect(&mut self, client: usize, gateways: &[u64]) -> Option<Action> {
        if gateways.is_empty() {
            return None;
        }
        // One that has something to repeat rather goes elsewhere: that is where mistakes are.
        let mut gateway = *self.rng.pick(gateways);
        let (last, waits) =
            (self.clients[client].last_gateway, !self.clients[client].unanswered.is_empty());
        if waits && Some(gateway) == last {
            gateway = *self.rng.pick(gateways);
        }
        let mut vid = *self.rng.pick(&self.settings.vids);
        if let Some(old) = self.clients[client].unanswered.last() {
            vid = old.vid;
        }
        self.connections += 1;
        self.clients[client].link = Some((self.connections, gateway, vid));
        self.clients[client].last_gateway = Some(gateway);
        Some(Action::Connect { connection: self.connections, gateway, vid })
    }

    fn anything(&mut self) -> (u64, u64, Kind) {
        let Settings { blocks, most_blocks, writes, zeros, .. } = self.settings;
        // Half of all begins in a few places.
        let among = if self.rng.chance(50) { blocks } else { blocks.min(4) };
        let first = self.rng.below(among);
        let count = self.rng.between(1, most_blocks.min(blocks - first).max(1));
        let kind = match self.rng.below(100) {
            n if n < writes => Kind::Write(ZEROS),
            n if n < writes + zeros => Kind::Zero,
            _ => Kind::Read(ZEROS),
        };
        (first, count, kind)
    }

    /// A request was answered, however.
    pub fn answered(&mut self, number: u64) {
        for client in &mut self.clients {
            client.open.remove(&number);
        }
    }

    /// A connection is gone, whoever closed it.
    pub fn lost(&mut self, connection: u64) {
        let of_it = |client: &&mut Client| client.link.is_some_and(|link| link.0 == connection);
        if let Some(client) = self.clients.iter_mut().find(of_it) {
            client.link = None;
            client.unanswered = std::mem::take(&mut client.open).into_values().collect();
        }
    }

    /// Connections through a gateway that died; each must be told lost.
    #[must_use]
    pub fn through(&self, gateway: u64) -> Vec<u64> {
        let links = self.clients.iter().filter_map(|client| client.link);
        links.filter(|link| link.1 == gateway).map(|link| link.0).collect()
    }

    /// Requests that were not answered on connections that still are.
    #[must_use]
    pub fn open(&self) -> usize {
        self.clients.iter().map(|client| client.open.len()).sum()
    }
}

impl Ask {
    /// It changes something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self.kinds.first(), Some(Kind::Read(_)) | None)
    }
}

#[cfg(test)]
mod tests;
