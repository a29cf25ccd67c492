//! The first byte of a connection tells what it speaks. Only our own protocol is served; others
//! are closed with a line that names them.

use crate::node::gates::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sheepdog_wire::FIRST_BYTE;
use std::io::Result as IoResult;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Sets what every TCP connection of a client has: no delay, and notice of a dead peer.
pub fn prepare(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    // A connection without them works too.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&alive);
}

/// A second descriptor of a connection, to see whether its client is there without reading.
pub struct Watched {
    fd: OwnedFd,
    is_tcp: bool,
}

impl Watched {
    /// Of a connected TCP socket.
    pub fn tcp(stream: &impl AsFd) -> IoResult<Self> {
        Ok(Self { fd: stream.as_fd().try_clone_to_owned()?, is_tcp: true })
    }

    /// Of a connected unix socket, whose ends know each other's state.
    pub fn unix(stream: &impl AsFd) -> IoResult<Self> {
        Ok(Self { fd: stream.as_fd().try_clone_to_owned()?, is_tcp: false })
    }
}

impl Peer for Watched {
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) => fds[0]
                .revents()
                .intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
            Err(rustix::io::Errno::INTR) => self.is_gone(),
            // A socket that cannot even be asked serves nobody.
            Err(_) => true,
        }
    }

    fn may_hide_its_end(&self) -> bool {
        self.is_tcp && rustix::io::ioctl_fionread(&self.fd).is_ok_and(|unread| unread > 0)
    }
}

/// A stream whose first byte was looked at.
pub struct Opened<S> {
    first: Option<u8>,
    stream: S,
}

/// Reads the first byte. `Ok(Err(line))` is a stranger and what it seems to be; an empty line is
/// one that said nothing.
pub async fn open<S: AsyncRead + Unpin>(mut stream: S) -> IoResult<Result<Opened<S>, String>> {
    let mut first = [0];
    if stream.read(&mut first).await? == 0 {
        return Ok(Err(String::new()));
    }
    let [first] = first;
    if first == FIRST_BYTE {
        return Ok(Ok(Opened { first: Some(first), stream }));
    }
    let what = match first {
        0x00..=0x02 | 0x0a => "the original sheepdog protocol, which this version does not serve",
        0x16 => "TLS, which this version does not serve",
        b'A'..=b'Z' | b'a'..=b'z' => "HTTP or text, which this port does not serve",
        _ => "no protocol of sheepdog",
    };
    Ok(Err(format!("it speaks {what} (first byte {first:#04x})")))
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<IoResult<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[std::io::IoSlice<'_>],
    ) -> Poll<IoResult<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
