//! The 64 bytes every frame begins with, in little-endian order. The place of each field is fixed
//! for all versions, so that a HELLO of any version can be read by any other.

use crate::{BULK_MAX, CONTROL_MAX, MAGIC, REQUEST_CONTROL_MAX};
use crc_fast::{CrcAlgorithm, Digest, checksum};
use sheepdog_types::{Error, ErrorKind, Result};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Flag: this frame is a reply.
pub const FLAG_REPLY: u16 = 1;
/// All flags this version knows; others must be zero.
const FLAGS_KNOWN: u16 = FLAG_REPLY;
/// Status of a reply that succeeded; every other value is the code of an [`ErrorKind`].
pub const STATUS_OK: u8 = 0;

/// The header as it travels.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    op: U16,
    flags: U16,
    status: u8,
    reserved_byte: u8,
    control_len: U32,
    bulk_len: U32,
    bulk_align: U16,
    reserved_word: U16,
    request_id: U64,
    reserved: [u8; 24],
    payload_crc: U32,
    header_crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// What the header of a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The version both sides agreed on; in HELLO frames the highest the sender speaks.
    pub version: u16,
    /// Which request this is, or is the reply to.
    pub op: u16,
    /// See [`FLAG_REPLY`].
    pub flags: u16,
    /// [`STATUS_OK`] or the code of an error kind; 0 in requests.
    pub status: u8,
    /// Bytes of the control message.
    pub control_len: u32,
    /// Bytes of bulk data behind it.
    pub bulk_len: u32,
    /// Where in a page of 4096 bytes the receiver should place the first byte of bulk data, so
    /// that a write reaches the disk without a copy.
    pub bulk_align: u16,
    /// Chosen by the client, unique among its requests in flight; the reply repeats it.
    pub request_id: u64,
    /// CRC-32C of control message and bulk data, one behind the other.
    pub payload_crc: u32,
}

/// CRC-32C of byte runs one behind the other.
pub(crate) fn crc32c<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    digest.finalize() as u32
}

impl Header {
    /// Whether it is a reply.
    #[must_use]
    pub const fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = RawHeader {
            magic: MAGIC,
            version: self.version.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            status: self.status,
            reserved_byte: 0,
            control_len: self.control_len.into(),
            bulk_len: self.bulk_len.into(),
            bulk_align: self.bulk_align.into(),
            reserved_word: 0.into(),
            request_id: self.request_id.into(),
            reserved: [0; 24],
            payload_crc: self.payload_crc.into(),
            header_crc: 0.into(),
        };
        raw.header_crc = own_crc(raw.as_bytes()).into();
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads a header and checks everything that does not depend on the state of the connection:
    /// magic, checksum, reserved fields, limits.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] for what is not our protocol or sets unknown bits,
    /// [`ErrorKind::Io`] for a bad checksum, [`ErrorKind::Invalid`] for lengths beyond the limits.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes)
            .map_err(|_| Error::new(ErrorKind::Internal, "header size"))?;
        if raw.magic != MAGIC {
            return Err(Error::new(
                ErrorKind::VersionMismatch,
                "the peer does not speak the protocol of dog and sheep",
            ));
        }
        if raw.header_crc.get() != own_crc(bytes) {
            return Err(Error::new(ErrorKind::Io, "damaged frame header"));
        }
        if raw.flags.get() & !FLAGS_KNOWN != 0
            || raw.reserved_byte != 0
            || raw.reserved_word.get() != 0
            || raw.reserved != [0; 24]
        {
            return Err(Error::new(
                ErrorKind::VersionMismatch,
                "the frame uses fields of a newer version",
            ));
        }
        let header = Self {
            version: raw.version.get(),
            op: raw.op.get(),
            flags: raw.flags.get(),
            status: raw.status,
            control_len: raw.control_len.get(),
            bulk_len: raw.bulk_len.get(),
            bulk_align: raw.bulk_align.get(),
            request_id: raw.request_id.get(),
            payload_crc: raw.payload_crc.get(),
        };
        let control_max = if header.is_reply() { CONTROL_MAX } else { REQUEST_CONTROL_MAX };
        let too_large = |what: &str, len: u32, max: usize| {
            Error::new(
                ErrorKind::Invalid,
                format!("{what} of {len} bytes, at most {max} are allowed"),
            )
        };
        if header.control_len as usize > control_max {
            return Err(too_large("control message", header.control_len, control_max));
        }
        if header.bulk_len as usize > BULK_MAX {
            return Err(too_large("bulk data", header.bulk_len, BULK_MAX));
        }
        if header.bulk_align as usize >= sheepdog_types::BLOCK_SIZE {
            return Err(Error::new(ErrorKind::Invalid, "bulk alignment beyond a page"));
        }
        if !header.is_reply() && header.status != 0 {
            return Err(Error::new(ErrorKind::Invalid, "a request with a status"));
        }
        Ok(header)
    }
}

/// The checksum in the last four bytes covers everything before it.
fn own_crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..HEADER_BYTES - 4]) as u32
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
