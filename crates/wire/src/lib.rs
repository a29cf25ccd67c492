//! The framed protocol between dog and sheep, and later between sheep: on the main TCP port and on
//! `DIR/sock`.
//!
//! A frame is a [`Header`] of 64 bytes, a control message (protobuf) and bulk data. Each
//! connection opens with HELLO both ways, then carries requests in any number up to the limit the
//! server names; replies come back in any order and are matched by request id.
//! The messages in [`message`] are the reference.
//!
//! The client side is [`Connection`], the server side [`accept`] with [`Requests`] and
//! [`Replies`]. Both work over anything that reads and writes.

pub mod client;
mod error;
pub mod frame;
pub mod header;
pub mod hello;
pub mod message;
pub mod request;
pub mod segment;
pub mod server;

pub use client::{Connection, Driver};
pub use frame::Frame;
pub use header::Header;
pub use hello::Hello;
pub use message::*;
pub use request::{Call, Op, Request};
pub use segment::ReadSegment;
pub use server::{Incoming, Replies, Requests, ServerLimits, Ticket, accept};

/// Version of the protocol this program speaks.
pub const VERSION: u16 = 1;
/// Oldest version this program still speaks.
pub const OLDEST_VERSION: u16 = 1;
/// The first byte of every connection of this protocol. The original protocol begins with 0x00,
/// 0x01, 0x02 or 0x0a, TLS with 0x16 and HTTP with a letter.
pub const FIRST_BYTE: u8 = 0xD0;
/// What every frame begins with.
pub const MAGIC: [u8; 4] = [FIRST_BYTE, 0x9D, 0x06, 0xF5];

/// Bytes of a control message of a reply.
pub const CONTROL_MAX: usize = 1 << 20;
/// Bytes of a control message of a request: no request needs more, and a hostile one must not make
/// a server keep more.
pub const REQUEST_CONTROL_MAX: usize = 64 << 10;
/// Bytes of bulk data of a frame, and so of one read or write.
pub const BULK_MAX: usize = 4 << 20;
/// VDIs in one reply to [`VdiList`].
pub const VDI_PAGE_MAX: usize = 1000;
/// Nodes in one reply to [`NodeList`] or [`NodeInfo`].
pub const NODE_PAGE_MAX: usize = 1000;
/// Extents in one reply to [`Map`].
pub const MAP_EXTENTS_MAX: usize = 32 << 10;
