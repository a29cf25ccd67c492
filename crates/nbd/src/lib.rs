//! The NBD door: VDIs as network block devices, for every client that speaks the public NBD
//! protocol (QEMU, libnbd, the Linux kernel).
//!
//! Everything runs on one thread, on a tokio `LocalSet`: the thread that owns the volumes. A
//! connection is one task that reads requests, one task per admitted request, and one that writes
//! when the client reads slowly. Which VDIs there are is the caller's, behind [`Exports`]; what a
//! VDI does is [`sheepdog_volume::io::Volume`].
//!
//! Promises: a write is answered when it is durable. A closed connection is the crash of its
//! client: each of its unanswered requests takes effect before the next connection to that VDI is
//! served, or never. Whatever bytes a client sends, memory stays within [`Limits`].

mod budget;
mod command;
mod connection;
mod exports;
mod handshake;
mod inbox;
mod limits;
mod listen;
mod option;
mod outbox;
mod proto;
mod receive;
mod reply;
mod server;
mod socket;
mod table;
mod throttle;

pub use exports::{Exports, Opened, look_up};
pub use limits::Limits;
pub use listen::{Listener, listen_tcp, listen_unix};
pub use server::Server;
pub use throttle::Throttle;
