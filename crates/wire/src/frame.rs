//! Whole frames on a stream: reading with bounded memory, writing without joining the parts.

use crate::header::{FLAG_REPLY, HEADER_BYTES, Header, crc32c};
use crate::{BULK_MAX, CONTROL_MAX, REQUEST_CONTROL_MAX};
use bytes::Bytes;
use prost::Message;
use sheepdog_types::{Error, ErrorKind, PageBuf, Result};
use std::io::{ErrorKind as IoKind, IoSlice};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A frame that was read: its header, verified, and what followed.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is.
    pub header: Header,
    /// The control message, still encoded.
    pub control: Bytes,
    /// Bulk data, placed in memory as the header asked.
    pub bulk: Bytes,
}

/// A frame ready to be written; bulk data is shared, not copied.
#[derive(Clone, Debug)]
pub(crate) struct OutFrame {
    /// Header and control message.
    head: Vec<u8>,
    bulk: Vec<Bytes>,
}

/// What the header of an outgoing frame is made of, besides lengths and checksums.
#[derive(Clone, Copy)]
pub(crate) struct Envelope {
    pub version: u16,
    pub op: u16,
    pub reply: bool,
    pub status: u8,
    pub request_id: u64,
    pub bulk_align: u16,
}

impl OutFrame {
    /// Encodes `message` and computes all checksums.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when control message or bulk data are beyond their limits.
    pub(crate) fn new(
        envelope: Envelope,
        message: &impl Message,
        bulk: Vec<Bytes>,
    ) -> Result<Self> {
        let control_len = message.encoded_len();
        let control_max = if envelope.reply { CONTROL_MAX } else { REQUEST_CONTROL_MAX };
        let bulk_len = bulk.iter().map(Bytes::len).sum::<usize>();
        if control_len > control_max || bulk_len > BULK_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "message of {control_len} + {bulk_len} bytes is beyond the protocol's limit"
                ),
            ));
        }
        let mut head = Vec::with_capacity(HEADER_BYTES + control_len);
        head.resize(HEADER_BYTES, 0);
        message
            .encode(&mut head)
            .map_err(|e| Error::with_source(ErrorKind::Internal, "encode a message", e))?;
        let payload_crc =
            crc32c(std::iter::once(&head[HEADER_BYTES..]).chain(bulk.iter().map(Bytes::as_ref)));
        let header = Header {
            version: envelope.version,
            op: envelope.op,
            flags: if envelope.reply { FLAG_REPLY } else { 0 },
            status: envelope.status,
            control_len: control_len as u32,
            bulk_len: bulk_len as u32,
            bulk_align: envelope.bulk_align,
            request_id: envelope.request_id,
            payload_crc,
        };
        head[..HEADER_BYTES].copy_from_slice(&header.encode());
        Ok(Self { head, bulk })
    }

    /// Writes it completely.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the stream fails; the stream is of no more use then.
    pub(crate) async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = std::iter::once(self.head.as_slice())
            .chain(self.bulk.iter().map(Bytes::as_ref))
            .filter(|part| !part.is_empty())
            .map(IoSlice::new)
            .collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            // The kernel takes 1024 at most at once.
            let batch = rest.len().min(1024);
            match stream.write_vectored(&rest[..batch]).await {
                Ok(0) => return Err(lost(IoKind::WriteZero.into())),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == IoKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        stream.flush().await.map_err(lost)
    }
}

/// A broken stream as an error.
#[expect(clippy::needless_pass_by_value, reason = "it is a map_err")]
pub(crate) fn lost(error: std::io::Error) -> Error {
    if error.kind() == IoKind::UnexpectedEof {
        Error::new(ErrorKind::Unreachable, "connection closed by the peer")
    } else {
        // The number behind the system's words helps nobody.
        let words = error.to_string();
        let words = words.split(" (os error").next().unwrap_or_default();
        Error::new(ErrorKind::Unreachable, format!("connection lost: {words}"))
    }
}

/// Reads the next header; `None` when the stream ended between frames.
///
/// # Errors
/// As [`Header::decode`]; [`ErrorKind::Unreachable`] when the stream fails or ends inside.
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match stream.read(&mut bytes[have..]).await {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(lost(IoKind::UnexpectedEof.into())),
            Ok(more) => have += more,
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => return Err(lost(error)),
        }
    }
    Header::decode(&bytes).map(Some)
}

/// Reads what follows a header. Memory is bounded by what [`Header::decode`] let pass.
///
/// # Errors
/// [`ErrorKind::Unreachable`] when the stream fails or ends, [`ErrorKind::Io`] for a bad checksum.
pub async fn read_payload(stream: &mut (impl AsyncRead + Unpin), header: Header) -> Result<Frame> {
    let mut control = vec![0; header.control_len as usize];
    stream.read_exact(&mut control).await.map_err(lost)?;
    let bulk = if header.bulk_len == 0 {
        Bytes::new()
    } else {
        let start = header.bulk_align as usize;
        let end = start + header.bulk_len as usize;
        let mut pages = PageBuf::reused(end);
        stream.read_exact(&mut pages.as_mut()[start..end]).await.map_err(lost)?;
        pages.freeze().slice(start..end)
    };
    if crc32c([control.as_slice(), &bulk]) != header.payload_crc {
        return Err(Error::new(ErrorKind::Io, "damaged frame"));
    }
    Ok(Frame { header, control: control.into(), bulk })
}

/// Decodes a control message of any frame.
pub(crate) fn decode<M: Message + Default>(control: Bytes) -> Result<M> {
    M::decode(control)
        .map_err(|e| Error::with_source(ErrorKind::VersionMismatch, "a message does not decode", e))
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
