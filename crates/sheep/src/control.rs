//! The control server: what `dog` talks to, on the main port and on `DIR/sock`.

mod cluster;
mod connection;
mod convert;
mod door;
mod io;
mod lobby;
mod nodes;
mod vdi;

use crate::node::Node;
use crate::node::gates::Peer;
use connection::Entrance;
use door::Watched;
use lobby::Lobby;
use sheepdog_nbd::Throttle;
use std::io::Result as IoResult;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Clients served over TCP at a time; more wait once they have said who they are. Each may hold
/// [`connection::LIMITS`].
const TCP_MAX: usize = 128;
/// The same for the unix socket, apart, so that whoever is on the host gets in.
const UNIX_MAX: usize = 64;
/// How long requests under way may take when the node leaves.
const DRAIN: Duration = Duration::from_secs(60);
/// A pause after the system refuses a connection (no file descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// Where the server listens; bound, listening, not blocking.
#[derive(Debug)]
pub struct Listeners {
    /// The main port.
    pub tcp: TcpListener,
    /// `DIR/sock`.
    pub unix: UnixListener,
}

/// Serves until the node leaves; then no connection is accepted, requests under way are finished,
/// and it returns.
///
/// # Errors
/// The listeners cannot be used.
pub async fn serve(node: Arc<Node>, listeners: Listeners) -> IoResult<()> {
    let tcp = tokio::net::TcpListener::from_std(listeners.tcp)?;
    let unix = tokio::net::UnixListener::from_std(listeners.unix)?;
    let throttle = Arc::new(Throttle::default());
    let over_tcp = accept_all(&node, &throttle, TCP_MAX, tcp);
    let over_unix = accept_all(&node, &throttle, UNIX_MAX, unix);
    tokio::join!(over_tcp, over_unix);
    Ok(())
}

/// A place where connections come in.
trait Door: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static;

    /// The next connection, who it is from, and whether they are still there.
    fn next(&self) -> impl Future<Output = IoResult<(Self::Stream, String, Watched)>> + Send;
}

impl Door for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> IoResult<(Self::Stream, String, Watched)> {
        let (stream, peer) = self.accept().await?;
        door::prepare(&stream);
        let watched = Watched::tcp(&stream)?;
        Ok((stream, peer.to_string(), watched))
    }
}

impl Door for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> IoResult<(Self::Stream, String, Watched)> {
        let (stream, _) = self.accept().await?;
        let watched = Watched::unix(&stream)?;
        Ok((stream, "a local process".to_owned(), watched))
    }
}

async fn accept_all(node: &Arc<Node>, throttle: &Arc<Throttle>, max: usize, door: impl Door) {
    let places = Arc::new(Semaphore::new(max));
    let lobby = Arc::new(Lobby::default());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = node.left() => break,
            accepted = door.next() => accepted,
        };
        match accepted {
            Ok((stream, peer, watched)) => {
                let (node, throttle) = (Arc::clone(node), Arc::clone(throttle));
                let (lobby, places) = (Arc::clone(&lobby), Arc::clone(&places));
                connections.spawn(async move {
                    let watched = Arc::new(watched) as Arc<dyn Peer>;
                    let entrance = Entrance { lobby: &lobby, places: &places, throttle: &throttle };
                    connection::run(node, stream, &peer, watched, entrance).await;
                });
            }
            Err(error) => {
                throttle.warn(|| format!("cannot accept a connection: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::warn!("some requests did not end within {} s", DRAIN.as_secs());
    }
}
