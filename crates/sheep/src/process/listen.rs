//! Everything the process listens on, bound before the store is touched: a port in use is found
//! out at once.

use super::patiently;
use crate::options::Options;
use rustix::fs::{AtFlags, Gid, Mode, OFlags};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Names of the unix sockets in the store.
const CONTROL: &str = "sock";
const NBD: &str = "nbd.sock";

/// All listeners.
pub struct Bound {
    /// The main port.
    pub control_tcp: TcpListener,
    /// `DIR/sock`.
    pub control_unix: UnixListener,
    /// NBD over TCP.
    pub nbd_tcp: Option<TcpListener>,
    /// `DIR/nbd.sock`.
    pub nbd_unix: UnixListener,
    /// Removes the unix sockets when it is dropped.
    pub sockets: Sockets,
}

/// Binds everything.
///
/// # Errors
/// The line that says which address cannot be had.
pub fn bind(options: &Options) -> std::result::Result<Bound, String> {
    let in_use = |e: &Error| e.kind() == ErrorKind::AddrInUse;
    let main_port = || match options.bind {
        Some(ip) => tcp(SocketAddr::new(ip, options.port)),
        None => everywhere(options.port),
    };
    let control_tcp = patiently(main_port, in_use)
        .map_err(|e| format!("cannot listen on port {}: {e}", options.port))?;
    let nbd_tcp = match options.nbd {
        Some(at) => Some(
            patiently(|| tcp(at), in_use)
                .map_err(|e| format!("cannot listen on {at} for NBD: {e}"))?,
        ),
        None => None,
    };
    let mut sockets = Sockets::of(&options.store)
        .map_err(|e| format!("cannot use {}: {e}", options.store.display()))?;
    let mut unix = |name: &'static str, group| {
        sockets
            .bind(name, group)
            .map_err(|e| format!("cannot listen on {}: {e}", options.store.join(name).display()))
    };
    let control_unix = unix(CONTROL, None)?;
    let nbd_unix = unix(NBD, options.nbd_group)?;
    Ok(Bound { control_tcp, control_unix, nbd_tcp, nbd_unix, sockets })
}

/// All addresses of both families, or of IPv4 where there is no IPv6.
fn everywhere(port: u16) -> Result<TcpListener> {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    match tcp(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)) {
        Err(error) if error.kind() != ErrorKind::AddrInUse => tcp(v4),
        bound => bound,
    }
}

fn tcp(at: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    // Connections of a sheep before this one may still be closing.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The unix sockets of a store.
pub struct Sockets {
    dir: OwnedFd,
    names: Vec<&'static str>,
}

impl Sockets {
    fn of(store: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(store, flags, Mode::empty())?, names: Vec::new() })
    }

    /// Listens under a name that nobody can use before mode and group are right. Whatever socket
    /// is there under that name is of a sheep that is gone: we hold the store.
    fn bind(&mut self, name: &'static str, group: Option<u32>) -> Result<UnixListener> {
        let new = format!("{name}.new");
        let remove = |name: &str| match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::from(error)),
        };
        remove(&new)?;
        // Through the open directory, because a socket's path is short and a store's may be long.
        let path = format!("/proc/self/fd/{}/{new}", self.dir.as_raw_fd());
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let mode = Mode::from_raw_mode(0o660);
        rustix::fs::chmodat(&self.dir, &new, mode, AtFlags::empty())?;
        if let Some(group) = group {
            let group = Some(Gid::from_raw(group));
            rustix::fs::chownat(&self.dir, &new, None, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        rustix::fs::renameat(&self.dir, &new, &self.dir, name)?;
        self.names.push(name);
        Ok(listener)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = rustix::fs::unlinkat(&self.dir, *name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sockets_replace_dead_ones_and_go_with_us() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(NBD);
        drop(UnixListener::bind(&path).expect("dead one"));
        let mut sockets = Sockets::of(dir.path()).expect("dir");
        let _listener = sockets.bind(NBD, None).expect("bind");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        UnixStream::connect(&path).expect("connect");
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        let dir = tempfile::tempdir().expect("dir");
        let long = dir.path().join("d".repeat(200));
        std::fs::create_dir(&long).expect("long");
        let mut sockets = Sockets::of(&long).expect("dir");
        let _listener = sockets.bind(CONTROL, None).expect("bind");
        assert!(long.join(CONTROL).exists());
    }

    #[test]
    fn a_port_is_had_once() {
        let first = everywhere(0).expect("any port");
        let port = first.local_addr().expect("address").port();
        assert_eq!(everywhere(port).expect_err("taken").kind(), ErrorKind::AddrInUse);
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        assert_eq!(tcp(local).expect_err("taken").kind(), ErrorKind::AddrInUse);
        std::net::TcpStream::connect(local).expect("both families");
    }
}
