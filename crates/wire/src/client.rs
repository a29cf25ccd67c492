//! The client's end: many requests in flight on one connection, replies in any order.

use crate::error;
use crate::frame::{Envelope, Frame, OutFrame, decode, read_header, read_payload};
use crate::header::STATUS_OK;
use crate::hello::{Agreed, Hello};
use crate::message::Failure;
use crate::request::{Call, OP_HELLO};
use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Requests this end keeps in flight at most, whatever the server allows.
const IN_FLIGHT_MAX: u32 = 256;
/// Bytes read ahead for the small frames.
const READ_AHEAD: usize = 16 << 10;

/// A connection to a sheep. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Connection {
    sender: mpsc::Sender<OutFrame>,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    agreed: Agreed,
    peer: Arc<Hello>,
}

/// What moves the bytes: run it beside the calls, in a task or a `join!`.
pub struct Driver<S> {
    reader: BufReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    frames: mpsc::Receiver<OutFrame>,
    shared: Arc<Shared>,
    version: u16,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// Requests in flight: their number and who waits.
    waiting: BTreeMap<u64, (u16, oneshot::Sender<Frame>)>,
    /// Why there will be no more replies.
    broken: Option<(ErrorKind, String)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &Error) {
        let mut state = self.lock();
        if state.broken.is_none() {
            state.broken = Some((error.kind(), error::encode(error).context));
        }
        // Whoever waits finds its sender gone and then the reason.
        state.waiting.clear();
    }

    fn reason(&self) -> Error {
        match &self.lock().broken {
            Some((kind, context)) => Error::new(*kind, context.clone()),
            None => Error::new(ErrorKind::Unreachable, "connection closed"),
        }
    }
}

impl Connection {
    /// Says HELLO on a fresh stream. `hello` is who we are.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when the stream fails, [`ErrorKind::VersionMismatch`] when the
    /// peer cannot talk with us, or whatever the peer refuses us with.
    pub async fn open<S>(stream: S, hello: Hello) -> Result<(Self, Driver<S>)>
    where
        S: AsyncRead + AsyncWrite,
    {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
        let envelope = Envelope {
            version: crate::VERSION,
            op: OP_HELLO,
            reply: false,
            status: STATUS_OK,
            request_id: 0,
            bulk_align: 0,
        };
        OutFrame::new(envelope, &hello, Vec::new())?.write(&mut writer).await?;
        let header = read_header(&mut reader).await?.ok_or_else(closed)?;
        if !header.is_reply() || header.op != OP_HELLO {
            return Err(unexpected("HELLO was answered by something else"));
        }
        let frame = read_payload(&mut reader, header).await?;
        if header.status != STATUS_OK {
            return Err(error::decode(header.status, &decode::<Failure>(frame.control)?));
        }
        let peer: Hello = decode(frame.control)?;
        let agreed = hello.agree(&peer)?;
        let permits = peer.in_flight.clamp(1, IN_FLIGHT_MAX) as usize;
        // A request has its permit before it is queued, so the queue never fills.
        let (sender, frames) = mpsc::channel(permits);
        let shared = Arc::new(Shared::default());
        let connection = Self {
            sender,
            shared: Arc::clone(&shared),
            permits: Arc::new(Semaphore::new(permits)),
            agreed,
            peer: Arc::new(peer),
        };
        let driver = Driver { reader, writer, frames, shared, version: agreed.version };
        Ok((connection, driver))
    }

    /// What the peer said of itself.
    #[must_use]
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Version and features in use.
    #[must_use]
    pub const fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Sends a request without bulk data and waits for its reply.
    ///
    /// # Errors
    /// What the server answered, or [`ErrorKind::Unreachable`] when the connection is gone (the
    /// request may or may not have been executed then).
    pub async fn call<C: Call>(&self, request: &C) -> Result<C::Reply> {
        Ok(self.exchange(request, Vec::new()).await?.0)
    }

    /// As [`Connection::call`], with bulk data both ways.
    ///
    /// # Errors
    /// As [`Connection::call`]; [`ErrorKind::Invalid`] for too much data.
    pub async fn exchange<C: Call>(
        &self,
        request: &C,
        bulk: Vec<Bytes>,
    ) -> Result<(C::Reply, Bytes)> {
        let permit = self.permits.acquire().await.map_err(|_| closed())?;
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut state = self.shared.lock();
            if state.broken.is_some() {
                drop(state);
                return Err(self.shared.reason());
            }
            let id = state.next_id;
            state.next_id += 1;
            state.waiting.insert(id, (C::OP as u16, sender));
            id
        };
        let envelope = Envelope {
            version: self.agreed.version,
            op: C::OP as u16,
            reply: false,
            status: STATUS_OK,
            request_id: id,
            bulk_align: request.bulk_align(),
        };
        let frame = match OutFrame::new(envelope, request, bulk) {
            Ok(frame) => frame,
            Err(error) => {
                self.shared.lock().waiting.remove(&id);
                return Err(error);
            }
        };
        if self.sender.send(frame).await.is_err() {
            return Err(self.shared.reason());
        }
        let frame = receiver.await.map_err(|_| self.shared.reason())?;
        drop(permit);
        if frame.header.status == STATUS_OK {
            Ok((decode(frame.control)?, frame.bulk))
        } else {
            Err(error::decode(frame.header.status, &decode::<Failure>(frame.control)?))
        }
    }
}

impl<S: AsyncRead + AsyncWrite> Driver<S> {
    /// Runs until all clones of the [`Connection`] are dropped, the peer closes or something
    /// breaks; calls in flight then fail with the reason.
    pub async fn run(self) {
        let Self { mut reader, mut writer, mut frames, shared, version } = self;
        let sending = async {
            while let Some(frame) = frames.recv().await {
                frame.write(&mut writer).await?;
            }
            // The last clone is gone: nobody waits for anything.
            Err(Error::new(ErrorKind::Unreachable, "connection closed"))
        };
        let receiving = async {
            loop {
                let header = read_header(&mut reader).await?.ok_or_else(closed)?;
                if !header.is_reply() || header.version != version {
                    return Err(unexpected("a reply was expected"));
                }
                let frame = read_payload(&mut reader, header).await?;
                let waiting = shared.lock().waiting.remove(&header.request_id);
                match waiting {
                    // A call that was given up does not listen any more.
                    Some((op, waiter)) if op == header.op => drop(waiter.send(frame)),
                    _ => return Err(unexpected("a reply to no request")),
                }
            }
        };
        let ended: Result<()> = tokio::select! {
            result = sending => result,
            result = receiving => result,
        };
        if let Err(error) = ended {
            shared.fail(&error);
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unreachable, "connection closed by the peer")
}

fn unexpected(what: &str) -> Error {
    Error::new(ErrorKind::VersionMismatch, what)
}
