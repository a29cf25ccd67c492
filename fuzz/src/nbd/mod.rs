//! A client of the real NBD door: server, listener, handshake and connection are the product's; the
//! disk behind them is [`disk::Disk`]. One conversation is a stream of bytes to the server and what
//! it answered.

pub mod disk;
pub mod protocol;
pub mod transmission;

use disk::{Disk, Disks};
use sheepdog_nbd::{Limits, Server};
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// Options a client may send; small, so that inputs get there.
pub const OPTIONS: usize = 12;
/// Bytes of an option.
pub const OPTION_BYTES: usize = 600;
/// Bytes of a read or write.
pub const REQUEST_BYTES: u32 = 48 << 10;
/// Bytes of a refused write that are skipped.
pub const SKIP_BYTES: u32 = 64 << 10;
/// Bytes that all connections together may hold: less would not hold the largest request.
const PAYLOAD_BYTES: usize = 1 << 20;

/// Memory one conversation may take in the server: payload, and buffers of fixed size.
pub const MEMORY: usize = PAYLOAD_BYTES + (1 << 20);

fn limits() -> Limits {
    Limits {
        options: OPTIONS,
        option_bytes: OPTION_BYTES,
        requests: 4,
        payload_bytes: 96 << 10,
        payload_bytes_total: PAYLOAD_BYTES,
        payload_bytes_small: 0,
        request_bytes: REQUEST_BYTES,
        skip_bytes: SKIP_BYTES,
        // A hung server is found by the fuzzer's own limit, which is shorter.
        handshake: Duration::from_secs(600),
        ..Limits::default()
    }
}

/// A server with its runtime, for all conversations of a thread.
struct Door {
    runtime: Runtime,
    local: LocalSet,
    server: Server<Disks>,
    disks: Rc<Disks>,
    address: SocketAddr,
}

thread_local! {
    /// Never dropped: what a runtime needs may be gone when a thread ends.
    static DOOR: &'static Door = Box::leak(Box::new(Door::open()));
}

impl Door {
    fn open() -> Self {
        let name = format!("sheepdog-fuzz-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("nobody has that name");
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        let disks = Rc::new(Disks::default());
        let server = Server::new(Rc::clone(&disks), limits());
        local.block_on(&runtime, async { server.listen(listener).expect("it listens") });
        Self { runtime, local, server, disks, address }
    }

    fn talk(&self, stream: &[u8]) -> (Vec<u8>, Disk) {
        self.disks.replace();
        let client = UnixStream::connect_addr(&self.address).expect("the server listens");
        client.set_nonblocking(true).expect("an option");
        let answers = self.local.block_on(&self.runtime, async {
            let client = tokio::net::UnixStream::from_std(client).expect("it is watched");
            let ((), answers) = tokio::join!(send(&client, stream), listen(&client));
            while self.server.connections() > 0 {
                tokio::task::yield_now().await;
            }
            answers
        });
        (answers, self.disks.take())
    }
}

/// Sends everything, or until the server listens no more, and says that this is all.
async fn send(client: &tokio::net::UnixStream, mut stream: &[u8]) {
    while !stream.is_empty() {
        if client.writable().await.is_err() {
            return;
        }
        match client.try_write(stream) {
            Ok(count) => stream = &stream[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    // Fails only when the server has left.
    let _ = rustix::net::shutdown(client, rustix::net::Shutdown::Write);
}

/// Everything the server says.
async fn listen(client: &tokio::net::UnixStream) -> Vec<u8> {
    let mut said = Vec::new();
    loop {
        if client.readable().await.is_err() {
            return said;
        }
        match client.try_read_buf(&mut said) {
            Ok(0) => return said,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return said,
        }
    }
}

/// Has a conversation: these bytes and then the end, to a server with fresh disks. What it said,
/// and the disk that may have been written.
pub fn talk(stream: &[u8]) -> (Vec<u8>, Disk) {
    DOOR.with(|door| door.talk(stream))
}
