//! Listening sockets: made ready before the server starts, so that a failed start can say why.

use rustix::fs::{Gid, Mode, chmod, chown};
use sheepdog_types::{Error, ErrorKind, Result};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// A socket that accepts connections.
pub struct Listener(pub(crate) Socket);

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self(listener.into())
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self(listener.into())
    }
}

/// Listens on a unix socket with mode 0660, owned by `group` if one is given. The file of a server
/// that is gone is replaced.
///
/// # Errors
/// [`ErrorKind::Locked`] if a server answers there, [`ErrorKind::Exists`] if another kind of file
/// is in the way, [`ErrorKind::Invalid`] for a path too long for a socket, and the operating
/// system's refusals.
pub fn listen_unix(path: &Path, group: Option<u32>) -> Result<UnixListener> {
    let shown = path.display();
    let failed = |what: &str, error: io::Error| {
        Error::with_source(ErrorKind::Io, format!("{what} {shown}"), error)
    };
    let address = SockAddr::unix(path).map_err(|error| {
        Error::with_source(
            ErrorKind::Invalid,
            format!("{shown} cannot be the path of a unix socket"),
            error,
        )
    })?;
    make_way(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)
        .map_err(|error| failed("make a socket for", error))?;
    socket.bind(&address).map_err(|error| failed("bind", error))?;
    // Before `listen`, so that nobody connects while the rights are still those of the umask.
    chmod(path, Mode::from_raw_mode(0o660)).map_err(|e| failed("set the mode of", e.into()))?;
    if let Some(group) = group {
        chown(path, None, Some(Gid::from_raw(group)))
            .map_err(|e| failed("set the group of", e.into()))?;
    }
    socket.listen(BACKLOG).map_err(|error| failed("listen on", error))?;
    Ok(socket.into())
}

/// Removes the socket file of a server that is gone.
fn make_way(path: &Path, address: &SockAddr) -> Result<()> {
    let shown = path.display();
    let failed =
        |error: io::Error| Error::with_source(ErrorKind::Io, format!("look at {shown}"), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(data) if !data.file_type().is_socket() => {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("{shown} is in the way: it is not a socket"),
            ));
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // A server whose backlog is full must not hold up this one.
    probe.set_nonblocking(true).map_err(failed)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| {
                Error::with_source(ErrorKind::Io, format!("remove the old {shown}"), error)
            }),
        Ok(()) => Err(taken(path)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(taken(path)),
        Err(error) => Err(failed(error)),
    }
}

fn taken(path: &Path) -> Error {
    Error::new(ErrorKind::Locked, format!("another server listens on {}", path.display()))
}

/// Listens on a TCP address.
///
/// # Errors
/// [`ErrorKind::Locked`] if it is in use, and the operating system's refusals.
pub fn listen_tcp(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => ErrorKind::Locked,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, format!("listen on {address}"), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let group = fs::metadata(dir.path()).expect("metadata").gid();
        let first = listen_unix(&path, Some(group)).expect("a fresh path");
        let data = fs::metadata(&path).expect("metadata");
        assert_eq!(data.permissions().mode() & 0o7777, 0o660);
        assert_eq!(data.gid(), group);
        let error = listen_unix(&path, None).expect_err("a live one");
        assert_eq!(error.kind(), ErrorKind::Locked);
        drop(first);
        let _second = listen_unix(&path, None).expect("a dead one");
        UnixStream::connect(&path).expect("it accepts");
    }

    #[test]
    fn other_files_long_paths_and_missing_directories_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "mine").expect("a file");
        let error = listen_unix(&file, None).expect_err("a file");
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert_eq!(fs::read(&file).expect("it is still there"), b"mine");
        let long = dir.path().join("x".repeat(200));
        let error = listen_unix(&long, None).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = listen_unix(&dir.path().join("no/such"), None).expect_err("no directory");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.context().starts_with("bind "), "{error}");
    }

    #[test]
    fn a_port_in_use_is_refused() {
        let first = listen_tcp(([127, 0, 0, 1], 0).into()).expect("any port");
        let error = listen_tcp(first.local_addr().expect("bound")).expect_err("in use");
        assert_eq!(error.kind(), ErrorKind::Locked);
    }
}
