//! Numbers and layouts of the public NBD protocol, as far as this door speaks it. All integers
//! are big-endian.

use sheepdog_types::{Error, ErrorKind};

/// First word of the server's greeting.
pub const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and the first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags; client and server use the same bits.
pub mod handshake {
    /// Fixed newstyle: unknown options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No 124 zero bytes behind the answer to EXPORT_NAME.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Options.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of answers to options.
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const UNSUPPORTED: u32 = ERROR + 1;
    pub const POLICY: u32 = ERROR + 2;
    pub const INVALID: u32 = ERROR + 3;
    pub const UNKNOWN: u32 = ERROR + 6;
    pub const SHUTDOWN: u32 = ERROR + 7;
    pub const TOO_BIG: u32 = ERROR + 9;
}

/// Kinds of information about an export.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod export {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const FLUSH: u16 = 1 << 2;
    pub const FUA: u16 = 1 << 3;
    pub const TRIM: u16 = 1 << 5;
    pub const WRITE_ZEROES: u16 = 1 << 6;
    pub const DF: u16 = 1 << 7;
    pub const MULTI_CONN: u16 = 1 << 8;
    pub const CACHE: u16 = 1 << 10;
    pub const FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of chunks and their flag.
pub mod chunk {
    /// Flag: the last one of its reply.
    pub const DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const DATA: u16 = 1;
    pub const HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// States of `base:allocation`.
pub mod state {
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// Name of the one meta context there is.
pub const ALLOCATION: &str = "base:allocation";
/// The id block status answers carry for it.
pub const ALLOCATION_ID: u32 = 1;

/// Error numbers of replies.
pub mod errno {
    pub const PERM: u32 = 1;
    pub const IO: u32 = 5;
    pub const INVAL: u32 = 22;
    pub const NOSPC: u32 = 28;
    pub const SHUTDOWN: u32 = 108;
}

/// The error number a client gets for an error of a volume.
pub fn errno_of(error: &Error) -> u32 {
    match error.kind() {
        ErrorKind::NoSpace => errno::NOSPC,
        ErrorKind::ReadOnly => errno::PERM,
        ErrorKind::Invalid => errno::INVAL,
        ErrorKind::ShuttingDown => errno::SHUTDOWN,
        _ => errno::IO,
    }
}

/// The option error a client gets when an export cannot be had.
pub fn option_error_of(error: &Error) -> u32 {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NoTag => option_reply::UNKNOWN,
        ErrorKind::Invalid => option_reply::INVALID,
        ErrorKind::ShuttingDown => option_reply::SHUTDOWN,
        // "Known and well-formed, but the server does not do it." UNSUPPORTED would make clients
        // fall back to older options.
        _ => option_reply::POLICY,
    }
}

/// Longest text that travels in a message or as a name.
pub const TEXT_MAX: usize = 4096;

/// One line of bounded length that cannot steer a terminal.
pub fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.truncate(line.floor_char_boundary(TEXT_MAX));
    line
}

/// The header of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Request {
    /// Bytes of the header.
    pub const SIZE: usize = 28;

    /// `None` for another magic: the stream is out of step or not NBD.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        (be32(bytes, 0) == REQUEST_MAGIC).then(|| Self {
            flags: be16(bytes, 4),
            kind: be16(bytes, 6),
            cookie: be64(bytes, 8),
            offset: be64(bytes, 16),
            len: be32(bytes, 24),
        })
    }
}

/// Two bytes at `at`. The three readers are for places whose length is known: they panic behind
/// the end.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Four bytes at `at`.
pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Eight bytes at `at`.
pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_decode_and_another_magic_does_not() {
        let mut bytes = [0; Request::SIZE];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&flag::FUA.to_be_bytes());
        bytes[6..8].copy_from_slice(&command::WRITE.to_be_bytes());
        bytes[8..16].copy_from_slice(&0x0102_0304_0506_0708_u64.to_be_bytes());
        bytes[16..24].copy_from_slice(&(1_u64 << 50).to_be_bytes());
        bytes[24..].copy_from_slice(&512_u32.to_be_bytes());
        let want = Request {
            flags: flag::FUA,
            kind: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 1 << 50,
            len: 512,
        };
        assert_eq!(Request::decode(&bytes), Some(want));
        bytes[3] ^= 1;
        assert_eq!(Request::decode(&bytes), None);
    }

    #[test]
    fn lines_are_bounded_and_harmless() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a b [31m");
        let long = one_line(&"é".repeat(4000));
        assert!(long.len() <= TEXT_MAX && long.ends_with('é'));
    }

    #[test]
    fn each_kind_of_error_has_its_number() {
        for (kind, number) in [
            (ErrorKind::NoSpace, 28),
            (ErrorKind::ReadOnly, 1),
            (ErrorKind::Invalid, 22),
            (ErrorKind::ShuttingDown, 108),
            (ErrorKind::Io, 5),
            (ErrorKind::Internal, 5),
            (ErrorKind::NotFound, 5),
        ] {
            assert_eq!(errno_of(&kind.into()), number, "{kind}");
        }
    }
}
