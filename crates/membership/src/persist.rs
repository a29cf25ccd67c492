//! What all records have in common: a format number first, newer ones refused, ids of 16 bytes.

use bytes::Bytes;
use prost::Message;
use sheepdog_types::{DiskId, Error, ErrorKind, NodeId, Process, Result};

/// The newest format this program reads, and the one it writes, of every record of this crate.
pub const FORMAT: u32 = 1;

/// Only the format, which is the first field of all records.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, tag = "1")]
    format: u32,
}

pub fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("{what} is damaged"))
}

/// A newer version may have changed the type of any other field, so the format is looked at alone.
pub fn decode<T: Message + Default>(what: &str, bytes: &[u8]) -> Result<T> {
    let head = Head::decode(bytes).map_err(|_| damaged(what))?;
    if head.format > FORMAT {
        let context = format!("{what} was written by a newer version (format {})", head.format);
        return Err(Error::new(ErrorKind::VersionMismatch, context));
    }
    if head.format == 0 {
        return Err(damaged(what));
    }
    T::decode(bytes).map_err(|_| damaged(what))
}

pub fn encode(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

pub fn node(bytes: &[u8]) -> Option<NodeId> {
    <[u8; 16]>::try_from(bytes).ok().map(NodeId)
}

pub fn disk(bytes: &[u8]) -> Option<DiskId> {
    <[u8; 16]>::try_from(bytes).ok().map(DiskId)
}

/// A process as it is stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoredProcess {
    #[prost(bytes = "vec", tag = "1")]
    pub node: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

impl From<Process> for StoredProcess {
    fn from(process: Process) -> Self {
        Self { node: process.node.0.to_vec(), incarnation: process.incarnation }
    }
}

impl StoredProcess {
    pub fn process(&self) -> Option<Process> {
        Some(Process { node: node(&self.node)?, incarnation: self.incarnation })
    }
}
