//! Every bound of the door in one place.

use std::time::Duration;

/// What clients may make the server hold. [`Limits::default`] is the product's.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time, those still negotiating included. One more is closed at once.
    pub connections: usize,
    /// How long a client may take to choose an export; what the server itself takes for it is not
    /// counted.
    pub handshake: Duration,
    /// Options a client may send before it has chosen.
    pub options: usize,
    /// Bytes of one option; a longer one is refused and, up to 16 times this, skipped.
    pub option_bytes: usize,
    /// Requests of one connection whose answers have not left yet.
    pub requests: usize,
    /// Bytes of data of one connection, of writes not yet answered and of answers not yet sent.
    /// A single request is always admitted.
    pub payload_bytes: usize,
    /// The same over all connections.
    pub payload_bytes_total: usize,
    /// The part of it only small requests may use, so that they go on whatever large ones hold.
    pub payload_bytes_small: usize,
    /// Bytes up to which a request is small.
    pub small_bytes: usize,
    /// Bytes one read or write may carry.
    pub request_bytes: u32,
    /// Bytes of a refused write that are skipped; after a longer one the connection is closed.
    pub skip_bytes: u32,
    /// When [`Limits::payload_bytes_total`] is used up, connections are closed that for this long
    /// took no whole answer that waits for them, or did not send the rest of a write. Also how
    /// long a new connection to a VDI waits to learn whether the client of another one is there.
    pub stall: Duration,
    /// How long a closing connection's last answers may take to leave.
    pub drain: Duration,
    /// How long a client may take to notice that the server is done with it.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(10),
            options: 256,
            option_bytes: 16 << 10,
            requests: 256,
            payload_bytes: 64 << 20,
            payload_bytes_total: 1 << 30,
            payload_bytes_small: 256 << 20,
            small_bytes: 256 << 10,
            request_bytes: 32 << 20,
            skip_bytes: 64 << 20,
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            linger: Duration::from_secs(1),
        }
    }
}
