//! Which requests there are, their numbers, and which reply belongs to each.

use crate::frame::decode;
use crate::message::*;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, Result};

/// The number of HELLO, which is answered by the codec itself.
pub(crate) const OP_HELLO: u16 = 0x0001;

/// A request message: its number and the type of its reply.
pub trait Call: prost::Message + Default {
    /// Its number.
    const OP: Op;
    /// The message of a reply that succeeded.
    type Reply: prost::Message + Default;

    /// Where in a page its bulk data should be placed by the receiver.
    fn bulk_align(&self) -> u16 {
        0
    }
}

/// Implements everything that is one line per request.
macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $number:literal -> $reply:ty $({ align $align:expr })?),* $(,)?) => {
        /// Numbers of requests. Never reused.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Op {
            $($(#[$doc])* $name = $number),*
        }

        impl Op {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }

        /// A request as a server sees it.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Request {
            $($(#[$doc])* $name($name)),*
        }

        impl Request {
            /// Its number.
            #[must_use]
            pub const fn op(&self) -> Op {
                match self {
                    $(Self::$name(_) => Op::$name),*
                }
            }

            /// Decodes the control message of a request.
            ///
            /// # Errors
            /// [`ErrorKind::Unsupported`] for an unknown number, [`ErrorKind::VersionMismatch`]
            /// for what does not decode.
            pub fn decode(op: u16, control: Bytes) -> Result<Self> {
                match op {
                    $($number => decode::<$name>(control).map(Self::$name),)*
                    _ => Err(Error::new(
                        ErrorKind::Unsupported,
                        format!("request {op:#06x} is not known to this version"),
                    )),
                }
            }
        }

        $(
            impl Call for $name {
                const OP: Op = Op::$name;
                type Reply = $reply;
                $(
                    fn bulk_align(&self) -> u16 {
                        $align(self)
                    }
                )?
            }

            impl From<$name> for Request {
                fn from(message: $name) -> Self {
                    Self::$name(message)
                }
            }
        )*
    };
}

requests! {
    /// State and history of the cluster.
    ClusterInfo = 0x0010 -> ClusterInfoReply,
    /// Make the cluster anew.
    ClusterFormat = 0x0011 -> ClusterFormatReply,
    /// All sheep leave.
    ClusterShutdown = 0x0012 -> Done,
    /// The nodes.
    NodeList = 0x0020 -> NodeListReply,
    /// Space of the nodes.
    NodeInfo = 0x0021 -> NodeInfoReply,
    /// VDIs page by page.
    VdiList = 0x0030 -> VdiListReply,
    /// One VDI, quickly.
    VdiLookup = 0x0031 -> VdiInfoReply,
    /// One VDI with its counters.
    VdiInfo = 0x0032 -> VdiInfoReply,
    /// Make a VDI.
    VdiCreate = 0x0033 -> VdiChanged,
    /// Delete a VDI.
    VdiDelete = 0x0034 -> Done,
    /// Grow a VDI.
    VdiResize = 0x0035 -> VdiChanged,
    /// Rename a VDI.
    VdiRename = 0x0036 -> VdiChanged,
    /// Open a VDI.
    VdiOpen = 0x0040 -> VdiOpened,
    /// Read.
    Read = 0x0041 -> ReadReply,
    /// Write.
    Write = 0x0042 -> Done { align |w: &Write| (w.offset % BLOCK_SIZE as u64) as u16 },
    /// Make a range zero.
    WriteZeroes = 0x0043 -> Done,
    /// What is stored.
    Map = 0x0044 -> MapReply,
    /// Make durable.
    Flush = 0x0045 -> Done,
    /// Close.
    Close = 0x0046 -> Done,
    /// Begin an import.
    ImportBegin = 0x0050 -> VdiOpened,
    /// End an import.
    ImportFinish = 0x0051 -> VdiChanged,
}

impl Request {
    /// Bytes its reply may need in the server's memory, so that they count against its limit.
    #[must_use]
    pub fn reply_bytes(&self) -> u64 {
        match self {
            Self::Read(read) => u64::from(read.len),
            _ => 0,
        }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
