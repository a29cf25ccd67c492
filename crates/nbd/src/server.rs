//! The server: accepts connections and sees each through its life.

use crate::connection::Connection;
use crate::exports::Exports;
use crate::handshake::{Ended, Handshake};
use crate::inbox::{INBOX_BYTES, Inbox};
use crate::limits::Limits;
use crate::listen::Listener;
use crate::receive::receive;
use crate::socket::{Socket, watch};
use crate::table::{Member, Table};
use crate::throttle::Throttle;
use sheepdog_types::{Error, ErrorKind, Result};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, spawn_local};

/// How long accepting rests when the process has no descriptors left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// An NBD server. All of it, the volumes included, runs on the thread it is made on.
pub struct Server<E> {
    exports: Rc<E>,
    table: Rc<Table>,
    acceptors: RefCell<Vec<JoinHandle<()>>>,
}

impl<E: Exports> Server<E> {
    /// A server without a listener.
    #[must_use]
    pub fn new(exports: Rc<E>, limits: Limits) -> Self {
        Self { exports, table: Rc::new(Table::new(limits)), acceptors: RefCell::default() }
    }

    /// Accepts connections there until [`Server::shutdown`]. To be called on a tokio `LocalSet`.
    ///
    /// # Errors
    /// If the operating system refuses to watch the socket.
    pub fn listen(&self, listener: impl Into<Listener>) -> Result<()> {
        let Listener(socket) = listener.into();
        let failed = |error| Error::with_source(ErrorKind::Io, "watch a listening socket", error);
        socket.set_nonblocking(true).map_err(failed)?;
        let listener = watch(socket, Interest::READABLE).map_err(failed)?;
        let (exports, table) = (Rc::clone(&self.exports), Rc::clone(&self.table));
        let acceptor = spawn_local(accept(listener, exports, table));
        self.acceptors.borrow_mut().push(acceptor);
        Ok(())
    }

    /// Connections there are, those still negotiating or closing included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Connections to the VDI `key` whose clients are there.
    #[must_use]
    pub fn live(&self, key: u32) -> usize {
        self.table.live(key)
    }

    /// For another door, before it serves the VDI `key` to a new client: when it returns, each
    /// request of NBD clients that are gone has taken effect or never will.
    pub async fn settle(&self, key: u32) {
        self.table.settle(key, None).await;
    }

    /// Ends all connections to the VDI `key`, as before its deletion. What was admitted is
    /// finished and answered; when it returns nothing of theirs runs. Connections that come later
    /// are for [`Exports::open`] to refuse.
    pub async fn close(&self, key: u32) {
        self.table.close(key).await;
    }

    /// Accepts nothing more, finishes and answers what was admitted, closes all connections.
    pub async fn shutdown(&self) {
        for acceptor in self.acceptors.take() {
            acceptor.abort();
            // Cancelled: what it says is known. When it is gone its socket is closed.
            let _ = acceptor.await;
        }
        self.table.shut_down().await;
    }
}

async fn accept<E: Exports>(listener: AsyncFd<socket2::Socket>, exports: Rc<E>, table: Rc<Table>) {
    // Said once, not for each connection of a flood.
    let mut said_full = false;
    let throttle = Throttle::default();
    loop {
        match accept_one(&listener).await {
            Ok(socket) if !table.make_room().await => {
                drop(socket);
                if !std::mem::replace(&mut said_full, true) {
                    let most = table.limits.connections;
                    tracing::warn!(most, "there are too many NBD connections, more are refused");
                }
            }
            Ok(socket) => match Socket::new(socket) {
                Ok(socket) => {
                    said_full = false;
                    let connection = Connection::new(socket, Rc::clone(&table));
                    let connection = Rc::new(connection);
                    let member = table.enter(Rc::clone(&connection));
                    let (exports, table) = (Rc::clone(&exports), Rc::clone(&table));
                    spawn_local(serve(connection, member, exports, table));
                }
                Err(error) => {
                    throttle.warn(|| format!("an NBD connection cannot be watched: {error}"));
                }
            },
            Err(error) => {
                throttle.warn(|| format!("no NBD connection can be accepted now: {error}"));
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn accept_one(listener: &AsyncFd<socket2::Socket>) -> io::Result<socket2::Socket> {
    loop {
        let mut guard = listener.readable().await?;
        match guard.try_io(|fd| fd.get_ref().accept()) {
            Ok(Ok((socket, _))) => return Ok(socket),
            // The client changed its mind before it was accepted.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// A connection's life.
async fn serve<E: Exports>(
    connection: Rc<Connection>,
    member: Member,
    exports: Rc<E>,
    table: Rc<Table>,
) {
    let mut inbox = Inbox::new();
    let limits = &table.limits;
    let handshake = Handshake::new(&connection, &*exports, &member, limits, &mut inbox);
    match handshake.run().await {
        Ok(session) => {
            let writer = Rc::clone(&connection);
            spawn_local(async move { writer.write_behind().await });
            receive(&connection, &session, &mut inbox, limits).await;
        }
        Err(Ended::Left) => {}
        Err(Ended::Cut(why)) => tracing::info!("closing an NBD connection: {why}"),
    }
    connection.stop();
    connection.idle().await;
    member.set_key(None);
    drop(inbox);
    connection.close(&mut vec![0; INBOX_BYTES]).await;
}
