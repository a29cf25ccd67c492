//! One connection of `dog`: requests come in, each is answered by a task of its own, and whatever
//! is open closes with it.

use super::door;
use super::lobby::Lobby;
use crate::data::View;
use crate::node::gates::{Gate, Peer};
use crate::node::{ImportMark, Node, lock};
use bytes::Bytes;
use sheepdog_nbd::Throttle;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_wire::{
    Call, Close, ClusterFormat, ClusterInfo, ClusterShutdown, Done, Flush, Hello, ImportBegin,
    ImportFinish, Incoming, Map, NodeInfo, NodeList, Op, Read, Replies, Request, Requests,
    ServerLimits, Ticket, VdiCreate, VdiDelete, VdiInfo, VdiList, VdiLookup, VdiOpen, VdiRename,
    VdiResize, Write, WriteZeroes, accept,
};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What a connection may occupy.
pub const LIMITS: ServerLimits = ServerLimits { in_flight: 64, bytes: 16 << 20 };
/// How long a client may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long a client that has nothing open may say nothing.
const IDLE: Duration = Duration::from_secs(120);
/// VDIs open on one connection.
const HANDLES_MAX: usize = 64;

/// What a connection passes on its way in.
pub struct Entrance<'a> {
    /// Where it is until it has said who it is.
    pub lobby: &'a Lobby,
    /// Places of those that are served.
    pub places: &'a Semaphore,
    /// For lines about strangers.
    pub throttle: &'a Throttle,
}

/// Serves one connection to its end.
pub async fn run<S>(
    node: Arc<Node>,
    stream: S,
    peer: &str,
    watched: Arc<dyn Peer>,
    entrance: Entrance<'_>,
) where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let throttle = entrance.throttle;
    let seat = entrance.lobby.enter();
    let opened = async {
        let stream = match door::open(stream).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(stranger)) => return Err(stranger),
            Err(error) => return Err(error.to_string()),
        };
        let hello = Hello::ours(format!("sheep {}", env!("CARGO_PKG_VERSION")));
        let accepted = accept(stream, hello, LIMITS).await;
        accepted.map_err(|error| error.full())
    };
    let opened = tokio::select! {
        () = node.left() => return,
        () = seat.shown_out() => {
            throttle.warn(|| {
                format!("closed a connection from {peer}: others want in, and it said nothing")
            });
            return;
        }
        opened = tokio::time::timeout(HELLO, opened) => opened,
    };
    let (requests, replies, hello) = match opened {
        Ok(Ok(opened)) => opened,
        // Whoever only looks whether the port is open is not worth a line.
        Ok(Err(line)) if line.is_empty() => return,
        Ok(Err(line)) => {
            throttle.warn(|| format!("closed a connection from {peer}: {line}"));
            return;
        }
        Err(_) => {
            throttle.warn(|| {
                format!("closed a connection from {peer}: no HELLO within {} s", HELLO.as_secs())
            });
            return;
        }
    };
    let _place = tokio::select! {
        () = node.left() => return,
        () = seat.shown_out() => return,
        // The semaphore is never closed.
        place = entrance.places.acquire() => place.ok(),
    };
    drop(seat);
    tracing::debug!("{} connected from {peer}", hello.program.escape_debug());
    let session = Arc::new(Session { node, peer: watched, handles: Mutex::default() });
    if let Err(error) = session.serve(requests, &replies).await {
        throttle.warn(|| format!("closed a connection from {peer}: {}", error.full()));
    }
    let _ = replies.shutdown().await;
}

/// What one connection has open.
pub struct Session {
    /// The node it is connected to.
    pub node: Arc<Node>,
    /// Whether the client is still there.
    pub peer: Arc<dyn Peer>,
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    last: u64,
    open: BTreeMap<u64, Arc<Open>>,
}

/// An open VDI.
pub struct Open {
    /// How to reach its blocks.
    pub view: Arc<View>,
    /// What stops its requests when it is deleted.
    pub gate: Arc<Gate>,
    /// It is an import that did not finish.
    pub import: Mutex<Option<ImportMark>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        for open in lock(&self.handles).open.values() {
            open.gate.orphan();
        }
    }
}

impl Session {
    async fn serve<S>(
        self: &Arc<Self>,
        mut requests: Requests<S>,
        replies: &Replies<S>,
    ) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Sync + 'static,
    {
        let mut tasks = JoinSet::new();
        let ended = loop {
            while tasks.try_join_next().is_some() {}
            let incoming = {
                let mut next = pin!(requests.next());
                loop {
                    tokio::select! {
                        () = self.node.left() => break Ok(None),
                        incoming = &mut next => break incoming,
                        () = tokio::time::sleep(IDLE) => {
                            while tasks.try_join_next().is_some() {}
                            if tasks.is_empty() && lock(&self.handles).open.is_empty() {
                                break Ok(None);
                            }
                        }
                    }
                }
            };
            match incoming {
                Ok(Some(incoming)) => {
                    let (session, replies) = (Arc::clone(self), replies.clone());
                    tasks.spawn(async move { session.answer(incoming, &replies).await });
                }
                Ok(None) => break Ok(()),
                // A client that vanished is nobody's fault.
                Err(error) if error.kind() == ErrorKind::Unreachable => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // The client is gone: requests under way take effect before anyone who opens their VDIs
        // anew is served, others never. When the node leaves, what was taken is finished.
        if !self.node.is_leaving() {
            for open in lock(&self.handles).open.values() {
                open.gate.orphan();
            }
        }
        while tasks.join_next().await.is_some() {}
        ended
    }

    async fn answer<S>(&self, incoming: Incoming, replies: &Replies<S>)
    where
        S: AsyncRead + AsyncWrite + Send + Sync + 'static,
    {
        let Incoming { request, bulk, ticket } = incoming;
        let to = To { replies, ticket };
        // A client that does not take its answer is noticed by the reading side.
        let _ = match request {
            Request::ClusterInfo(m) => to.say::<ClusterInfo, _>(self.cluster_info(m).await).await,
            Request::ClusterFormat(m) => {
                to.say::<ClusterFormat, _>(self.cluster_format(m).await).await
            }
            Request::ClusterShutdown(_) => {
                let said = to.say::<ClusterShutdown, _>(Ok(Done {})).await;
                tracing::info!("shutdown asked for by a client");
                self.node.leave();
                said
            }
            Request::NodeList(m) => to.say::<NodeList, _>(self.node_list(m).await).await,
            Request::NodeInfo(m) => to.say::<NodeInfo, _>(self.node_info(m).await).await,
            Request::VdiList(m) => to.say::<VdiList, _>(self.vdi_list(m).await).await,
            Request::VdiLookup(m) => to.say::<VdiLookup, _>(self.vdi_lookup(m).await).await,
            Request::VdiInfo(m) => to.say::<VdiInfo, _>(self.vdi_info(m).await).await,
            Request::VdiCreate(m) => to.say::<VdiCreate, _>(self.vdi_create(m).await).await,
            Request::VdiDelete(m) => to.say::<VdiDelete, _>(self.vdi_delete(m).await).await,
            Request::VdiResize(m) => to.say::<VdiResize, _>(self.vdi_resize(m).await).await,
            Request::VdiRename(m) => to.say::<VdiRename, _>(self.vdi_rename(m).await).await,
            Request::VdiOpen(m) => to.say::<VdiOpen, _>(self.vdi_open(m).await).await,
            Request::Read(m) => to.send::<Read>(self.read(m).await).await,
            Request::Write(m) => to.say::<Write, _>(self.write(m, bulk).await).await,
            Request::WriteZeroes(m) => to.say::<WriteZeroes, _>(self.write_zeroes(m).await).await,
            Request::Map(m) => to.say::<Map, _>(self.map(m).await).await,
            Request::Flush(m) => to.say::<Flush, _>(self.flush(m).await).await,
            Request::Close(m) => to.say::<Close, _>(self.close(m).await).await,
            Request::ImportBegin(m) => to.say::<ImportBegin, _>(self.import_begin(m).await).await,
            Request::ImportFinish(m) => {
                to.say::<ImportFinish, _>(self.import_finish(m).await).await
            }
        };
    }

    /// Keeps an open VDI and names it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with too many.
    pub fn keep(&self, open: Open) -> Result<u64> {
        let mut handles = lock(&self.handles);
        if handles.open.len() >= HANDLES_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("more than {HANDLES_MAX} VDIs open on one connection"),
            ));
        }
        handles.last += 1;
        let handle = handles.last;
        handles.open.insert(handle, Arc::new(open));
        Ok(handle)
    }

    /// The open VDI of a handle.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when there is none.
    pub fn handle(&self, handle: u64) -> Result<Arc<Open>> {
        let open = lock(&self.handles).open.get(&handle).cloned();
        open.ok_or_else(|| no_handle(handle))
    }

    async fn close(&self, close: Close) -> Result<Done> {
        let open = lock(&self.handles).open.remove(&close.handle);
        let open = open.ok_or_else(|| no_handle(close.handle))?;
        open.gate.drained().await;
        Ok(Done {})
    }
}

fn no_handle(handle: u64) -> Error {
    Error::new(ErrorKind::Invalid, format!("no VDI is open as {handle}"))
}

/// Where an answer goes.
struct To<'a, S> {
    replies: &'a Replies<S>,
    ticket: Ticket,
}

impl<S: AsyncRead + AsyncWrite> To<'_, S> {
    /// An answer without bulk data.
    async fn say<C: Call<Reply = R>, R>(self, result: Result<R>) -> Result<()> {
        self.send::<C>(result.map(|reply| (reply, Vec::new()))).await
    }

    /// An answer with bulk data.
    async fn send<C: Call>(self, result: Result<(C::Reply, Vec<Bytes>)>) -> Result<()> {
        // What a disk cannot do for a request for its bytes the disk has said, once for many.
        let of_bytes = matches!(C::OP, Op::Read | Op::Write | Op::WriteZeroes | Op::Map);
        match &result {
            Err(error) if error.kind() == ErrorKind::Io && of_bytes => {
                tracing::debug!("{:?}: {}", C::OP, error.full());
            }
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Internal) => {
                tracing::error!("{:?}: {}", C::OP, error.full());
            }
            _ => {}
        }
        self.replies.send::<C>(self.ticket, result).await
    }
}
