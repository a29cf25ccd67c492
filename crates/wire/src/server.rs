//! The server's end: requests come in up to a limit, replies leave in any order.

use crate::error;
use crate::frame::{Envelope, OutFrame, decode, read_header, read_payload};
use crate::header::{Header, STATUS_OK};
use crate::hello::{Agreed, Hello};
use crate::message::Failure;
use crate::request::{Call, OP_HELLO, Request};
use crate::{BULK_MAX, CONTROL_MAX};
use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, Result};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// Bytes read ahead for the small frames.
const READ_AHEAD: usize = 16 << 10;
/// Memory is counted in units of this many bytes.
const UNIT: u64 = 1024;

/// What one connection may occupy. Further requests wait in the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerLimits {
    /// Requests taken and not answered.
    pub in_flight: u32,
    /// Bytes of requests taken and not answered, and of the data they ask for. At least 16 MiB,
    /// so that any single request fits.
    pub bytes: u64,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { in_flight: 64, bytes: 64 << 20 }
    }
}

/// The reading half of a connection.
pub struct Requests<S> {
    reader: BufReader<ReadHalf<S>>,
    replies: Replies<S>,
    limits: ServerLimits,
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

/// The writing half of a connection; clones share it.
pub struct Replies<S> {
    writer: Arc<Mutex<Writer<S>>>,
    agreed: Agreed,
}

impl<S> Clone for Replies<S> {
    fn clone(&self) -> Self {
        Self { writer: Arc::clone(&self.writer), agreed: self.agreed }
    }
}

struct Writer<S> {
    stream: WriteHalf<S>,
    /// A write began and did not end: the stream is of no use.
    broken: bool,
}

/// A request that came in. While its ticket lives it counts against the limits.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// Its bulk data.
    pub bulk: Bytes,
    /// Needed to answer.
    pub ticket: Ticket,
}

/// The right and duty to answer one request.
#[derive(Debug)]
pub struct Ticket {
    op: u16,
    id: u64,
    _requests: OwnedSemaphorePermit,
    _memory: Vec<OwnedSemaphorePermit>,
}

/// Reads the client's HELLO from a fresh stream (first byte included) and answers it. The caller
/// limits the time this may take. `hello` is who we are.
///
/// # Errors
/// [`ErrorKind::VersionMismatch`] for a client we cannot talk with (it has been told), as
/// [`read_header`] otherwise. The stream is to be closed then.
pub async fn accept<S>(
    stream: S,
    mut hello: Hello,
    limits: ServerLimits,
) -> Result<(Requests<S>, Replies<S>, Hello)>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, stream) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
    let mut writer = Writer { stream, broken: false };
    let header = read_header(&mut reader)
        .await?
        .ok_or_else(|| Error::new(ErrorKind::Unreachable, "closed before HELLO"))?;
    if header.is_reply() || header.op != OP_HELLO || header.bulk_len != 0 {
        return Err(Error::new(ErrorKind::VersionMismatch, "the client did not say HELLO"));
    }
    let peer: Hello = decode(read_payload(&mut reader, header).await?.control)?;
    hello.in_flight = limits.in_flight;
    match hello.agree(&peer) {
        Ok(agreed) => {
            let answer = envelope(crate::VERSION, OP_HELLO, header.request_id, STATUS_OK);
            writer.write(&OutFrame::new(answer, &hello, Vec::new())?).await?;
            let replies = Replies { writer: Arc::new(Mutex::new(writer)), agreed };
            let units = u32::try_from(limits.bytes.max(16 << 20) / UNIT).unwrap_or(u32::MAX);
            let requests = Requests {
                reader,
                replies: replies.clone(),
                limits,
                requests: Arc::new(Semaphore::new(limits.in_flight.max(1) as usize)),
                memory: Arc::new(Semaphore::new((units as usize).min(Semaphore::MAX_PERMITS))),
            };
            Ok((requests, replies, peer))
        }
        Err(refusal) => {
            let status = refusal.kind().code();
            let answer = envelope(crate::VERSION, OP_HELLO, header.request_id, status);
            let frame = OutFrame::new(answer, &error::encode(&refusal), Vec::new())?;
            writer.write(&frame).await?;
            Err(refusal)
        }
    }
}

fn envelope(version: u16, op: u16, request_id: u64, status: u8) -> Envelope {
    Envelope { version, op, reply: true, status, request_id, bulk_align: 0 }
}

impl<S: AsyncRead + AsyncWrite> Requests<S> {
    /// The next request; `None` when the client closed between requests. Requests that this
    /// version does not know or cannot decode are answered here and never seen by the caller.
    /// Not to be called again after an error or after its future was dropped half-way.
    ///
    /// # Errors
    /// As [`read_header`] and [`read_payload`]: the connection is to be closed.
    pub async fn next(&mut self) -> Result<Option<Incoming>> {
        loop {
            let slot = self.permit(&self.requests, 1).await?;
            let Some(header) = read_header(&mut self.reader).await? else {
                return Ok(None);
            };
            if header.is_reply() || header.version != self.replies.agreed.version {
                return Err(Error::new(
                    ErrorKind::VersionMismatch,
                    "a request of the agreed version was expected",
                ));
            }
            let bytes = u64::from(header.control_len) + u64::from(header.bulk_len);
            let mut memory = vec![self.permit(&self.memory, units(bytes)).await?];
            let frame = read_payload(&mut self.reader, header).await?;
            let ticket = |memory| Ticket {
                op: header.op,
                id: header.request_id,
                _requests: slot,
                _memory: memory,
            };
            match Request::decode(header.op, frame.control).and_then(|r| check(r, &header)) {
                Ok(request) => {
                    let wanted = units(request.reply_bytes());
                    if wanted > 0 {
                        memory.push(self.permit(&self.memory, wanted).await?);
                    }
                    return Ok(Some(Incoming {
                        request,
                        bulk: frame.bulk,
                        ticket: ticket(memory),
                    }));
                }
                Err(error) => self.replies.refuse(ticket(memory), &error).await?,
            }
        }
    }

    /// The limits it keeps.
    #[must_use]
    pub const fn limits(&self) -> ServerLimits {
        self.limits
    }

    async fn permit(&self, of: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit> {
        Arc::clone(of)
            .acquire_many_owned(count)
            .await
            .map_err(|_| Error::new(ErrorKind::Internal, "limits closed"))
    }
}

/// What can be said of a request by itself, so that no server forgets it.
fn check(request: Request, header: &Header) -> Result<Request> {
    let invalid = |why: &str| Err(Error::new(ErrorKind::Invalid, why));
    match &request {
        Request::Read(read) if read.len as usize > BULK_MAX => {
            invalid("a read beyond the protocol's limit")
        }
        Request::Write(write) if header.bulk_align != write.bulk_align() => {
            invalid("a write whose data is not aligned as its offset")
        }
        Request::Write(_) => Ok(request),
        _ if header.bulk_len != 0 => invalid("bulk data with a request that takes none"),
        _ => Ok(request),
    }
}

/// Units of memory for so many bytes.
fn units(bytes: u64) -> u32 {
    const { assert!(CONTROL_MAX + BULK_MAX < 8 << 20) };
    bytes.div_ceil(UNIT) as u32
}

impl<S: AsyncRead + AsyncWrite> Replies<S> {
    /// Version and features in use.
    #[must_use]
    pub const fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Answers a request of type `C`: with its reply and bulk data (one or more pieces), or with
    /// an error.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the client is gone: the connection is to be closed.
    /// [`ErrorKind::Internal`] when the ticket belongs to another kind of request.
    pub async fn send<C: Call>(
        &self,
        ticket: Ticket,
        result: Result<(C::Reply, Vec<Bytes>)>,
    ) -> Result<()> {
        if ticket.op != C::OP as u16 {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("a reply of type {:?} to request {:#06x}", C::OP, ticket.op),
            ));
        }
        match result {
            Ok((reply, bulk)) => {
                let head = envelope(self.agreed.version, ticket.op, ticket.id, STATUS_OK);
                match OutFrame::new(head, &reply, bulk) {
                    Ok(frame) => self.write(&frame).await,
                    Err(error) => self.refuse(ticket, &error).await,
                }
            }
            Err(error) => self.refuse(ticket, &error).await,
        }
    }

    /// Answers a request of any type with an error.
    ///
    /// # Errors
    /// As [`Replies::send`].
    // The ticket is used up: who answers twice does not compile.
    pub async fn refuse(&self, ticket: Ticket, error: &Error) -> Result<()> {
        let status = error.kind().code();
        let head = envelope(self.agreed.version, ticket.op, ticket.id, status);
        let failure: Failure = error::encode(error);
        self.write(&OutFrame::new(head, &failure, Vec::new())?).await
    }

    /// Closes the writing direction after the replies that are on their way.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the client is gone.
    pub async fn shutdown(&self) -> Result<()> {
        let mut writer = self.writer.lock().await;
        writer.stream.shutdown().await.map_err(crate::frame::lost)
    }

    async fn write(&self, frame: &OutFrame) -> Result<()> {
        self.writer.lock().await.write(frame).await
    }
}

impl<S: AsyncRead + AsyncWrite> Writer<S> {
    async fn write(&mut self, frame: &OutFrame) -> Result<()> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(Error::new(ErrorKind::Unreachable, "a reply was given up half-way"));
        }
        frame.write(&mut self.stream).await?;
        self.broken = false;
        Ok(())
    }
}
