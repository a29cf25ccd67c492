//! One connected stream socket, unix or TCP: non-blocking reads and vectored sends from several
//! tasks of one thread, and whether the other side has hung up.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockRef, TcpKeepalive};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What is asked of the kernel for unix sockets, so that a request of 1 MiB fits; the kernel may
/// give less.
const UNIX_BUFFER: usize = 4 << 20;

/// A connected stream socket.
pub struct Socket {
    fd: AsyncFd<socket2::Socket>,
    is_unix: bool,
}

impl Socket {
    /// Takes an accepted socket.
    pub fn new(socket: socket2::Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let is_unix = socket.domain()? == Domain::UNIX;
        tune(&SockRef::from(&socket), is_unix);
        let fd = watch(socket, Interest::READABLE)?;
        Ok(Self { fd, is_unix })
    }

    /// At least one byte, or 0 at the end of the stream.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len();
        self.read_with(room, |mut socket| socket.read(buf)).await
    }

    /// As [`Socket::read`], into `second` what does not fit into `first`.
    pub async fn read_both(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let room = first.len() + second.len();
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        self.read_with(room, |mut socket| socket.read_vectored(&mut parts)).await
    }

    async fn read_with(
        &self,
        room: usize,
        mut read: impl FnMut(&socket2::Socket) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            let mut guard = self.fd.readable().await?;
            match guard.try_io(|fd| read(fd.get_ref())) {
                Ok(Ok(count)) => {
                    // A short read emptied the socket: saves the call that would say so.
                    if count < room {
                        guard.clear_ready();
                    }
                    return Ok(count);
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Sends what the kernel takes now; `WouldBlock` if that is nothing.
    pub fn try_send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let sent = self.fd.get_ref().send_vectored_with_flags(parts, libc::MSG_NOSIGNAL);
            match sent {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Returns when a send may work or fail.
    pub async fn writable(&self) -> io::Result<()> {
        // Watched only while it matters, by a descriptor of its own: or each answer that a client
        // takes would wake this thread for nothing.
        let fd = watch(self.fd.get_ref().try_clone()?, Interest::WRITABLE)?;
        fd.writable().await.map(drop)
    }

    /// Sends everything.
    pub async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_send(&[IoSlice::new(bytes)]) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the other side has closed the connection or its sending half, even if what it sent
    /// before has not been read.
    pub fn peer_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.get_ref(), PollFlags::RDHUP)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(_) => fds[0]
                .revents()
                .intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
            Err(rustix::io::Errno::INTR) => self.peer_gone(),
            // A socket that cannot even be asked serves nobody.
            Err(_) => true,
        }
    }

    /// Whether the news that the other side has closed may be held up behind bytes that were not
    /// read here. Never so on a unix socket, whose ends know each other's state.
    pub fn hides_the_end(&self) -> bool {
        !self.is_unix && rustix::io::ioctl_fionread(self.fd.get_ref()).is_ok_and(|n| n > 0)
    }

    /// Whether this is a unix socket.
    pub fn is_unix(&self) -> bool {
        self.is_unix
    }

    /// Bytes that were sent and that the other side has not acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        let fd = self.fd.get_ref().as_raw_fd();
        // SAFETY: TIOCOUTQ writes one int to where the pointer points, and the descriptor is open.
        let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
        if result == 0 { bytes as u64 } else { 0 }
    }

    /// Tells the other side that nothing more comes.
    pub fn end(&self) {
        // Fails only where there is no connection any more.
        let _ = self.fd.get_ref().shutdown(Shutdown::Write);
    }

    /// Ends both directions; every read and send returns.
    pub fn abort(&self) {
        let _ = self.fd.get_ref().shutdown(Shutdown::Both);
    }
}

/// Has the runtime watch a socket.
pub fn watch(socket: socket2::Socket, interest: Interest) -> io::Result<AsyncFd<socket2::Socket>> {
    // SAFETY: the socket owns its descriptor, which is valid until the socket is dropped, and
    // nothing moves it out of the `AsyncFd` or exchanges its descriptor.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    watched.map_err(|error| error.into_parts().1)
}

/// Options that make it faster or notice dead peers; the connection works without them.
fn tune(socket: &SockRef<'_>, is_unix: bool) {
    let _ = if is_unix {
        socket
            .set_send_buffer_size(UNIX_BUFFER)
            .and_then(|()| socket.set_recv_buffer_size(UNIX_BUFFER))
    } else {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive))
    };
}
