//! What the tests share: a server on a thread of its own, exports whose requests a test can hold,
//! and a client that sends and reads raw bytes.
#![allow(dead_code, unreachable_pub)]

pub mod client;
pub mod memory;

use bytes::Bytes;
use memory::Memory;
use sheepdog_nbd::{Exports, Limits, Opened, Server, listen_tcp, listen_unix, look_up};
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::io::{MapExtent, Segment, Volume, ZeroMode};
use std::future::Future;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// Nothing here takes so long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the disk `disk` (and of `disk@snap`, the same, read-only).
pub const DISK: u64 = 8 << 20;
/// Its key.
pub const KEY: u32 = 7;

/// What the volume tells the test and the test tells the volume.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    opened: Notify,
}

#[derive(Default, Clone, Debug)]
pub struct State {
    /// Writes wait for permits.
    hold: bool,
    permits: usize,
    /// The next write panics.
    pub panic: bool,
    /// The next write fails so.
    pub fail: Option<ErrorKind>,
    /// Writes that came to the volume, and writes that took effect.
    pub started: usize,
    pub done: usize,
    /// The VDI was deleted after it was opened.
    pub deleted: bool,
    /// Times an export was opened.
    pub opens: usize,
    /// Bytes of answers to reads that are alive, and the most there ever were.
    pub alive: usize,
    pub most_alive: usize,
    /// Whether every write's memory was congruent to its offset.
    pub misaligned: usize,
}

impl Gate {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.notify_all();
        result
    }

    /// From now on writes wait.
    pub fn hold(&self) {
        self.change(|state| state.hold = true);
    }

    /// Lets so many writes go on.
    pub fn release(&self, count: usize) {
        self.change(|state| state.permits += count);
        self.opened.notify_waiters();
    }

    /// Waits until the state is so.
    pub fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) -> State {
        let state = self.state();
        let (state, result) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !is_so(state))
            .expect("no test panics with it");
        assert!(!result.timed_out(), "{what}: {state:?}");
        state.clone()
    }

    async fn pass(&self) -> Result<()> {
        let (panic, fail) = self.change(|state| {
            state.started += 1;
            (std::mem::take(&mut state.panic), state.fail.take())
        });
        assert!(!panic, "the test asked for it");
        loop {
            let opened = self.opened.notified();
            let passed = self.change(|state| {
                if !state.hold {
                    return true;
                }
                let passed = state.permits > 0;
                state.permits -= usize::from(passed);
                passed
            });
            if passed {
                return fail.map_or(Ok(()), |kind| Err(Error::new(kind, "as the test asked")));
            }
            opened.await;
        }
    }
}

/// Bytes of an answer, counted while they are alive.
struct Counted(Bytes, Arc<Gate>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let len = self.0.len();
        self.1.change(|state| state.alive -= len);
    }
}

/// A disk in memory whose writes pass the gate.
pub struct Gated {
    disk: Memory,
    gate: Arc<Gate>,
}

impl Volume for Gated {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>> {
        let mut segments = self.disk.read(offset, len).await?;
        for segment in &mut segments {
            if let Segment::Data(bytes) = segment {
                let gate = Arc::clone(&self.gate);
                gate.change(|state| {
                    state.alive += bytes.len();
                    state.most_alive = state.most_alive.max(state.alive);
                });
                *bytes = Bytes::from_owner(Counted(std::mem::take(bytes), gate));
            }
        }
        Ok(segments)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        if data.as_ptr() as u64 % 4096 != offset % 4096 {
            self.gate.change(|state| state.misaligned += 1);
        }
        self.gate.pass().await?;
        self.disk.write(offset, data).await?;
        self.gate.change(|state| state.done += 1);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<()> {
        self.disk.write_zeroes(offset, len, mode).await
    }

    async fn map(&self, offset: u64, len: u64) -> Result<Vec<MapExtent>> {
        self.disk.map(offset, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.disk.flush().await
    }
}

/// `disk`, its snapshot `disk@snap`, and `huge`, 16 PiB of nothing.
pub struct Disks {
    disk: Rc<Gated>,
    huge: Rc<Gated>,
    gate: Arc<Gate>,
}

impl Exports for Disks {
    type Volume = Gated;

    async fn open(&self, name: &str) -> Result<Opened<Gated>> {
        let found = look_up(name, async |vdi, tag| match (vdi, tag) {
            ("disk", None) => Ok((&self.disk, KEY, false)),
            ("disk", Some("snap")) => Ok((&self.disk, KEY + 1, true)),
            ("disk", Some(_)) => Err(ErrorKind::NoTag.into()),
            ("huge", None) => Ok((&self.huge, KEY + 2, false)),
            ("half", None) => Err(Error::new(ErrorKind::Incomplete, "import it\nagain")),
            _ => Err(ErrorKind::NotFound.into()),
        });
        let (volume, key, read_only) = found.await?;
        self.gate.change(|state| state.opens += 1);
        Ok(Opened {
            volume: Rc::clone(volume),
            key,
            name: name.to_owned(),
            description: if read_only { "a snapshot" } else { "" }.to_owned(),
            read_only,
        })
    }

    async fn is_there(&self, _key: u32) -> bool {
        !self.gate.state().deleted
    }

    async fn list(&self) -> Vec<String> {
        vec!["disk".to_owned(), "disk@snap".to_owned(), "huge".to_owned()]
    }
}

type Job = Box<dyn FnOnce(Rc<Server<Disks>>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A server on its own thread; it ends when this is dropped.
pub struct TestServer {
    pub gate: Arc<Gate>,
    path: PathBuf,
    address: SocketAddr,
    /// Connect by TCP.
    pub tcp: bool,
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl TestServer {
    pub fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let listener = listen_unix(&path, None).expect("a socket");
        let tcp = listen_tcp(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = tcp.local_addr().expect("it is bound");
        let gate = Arc::new(Gate::default());
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let shared = Arc::clone(&gate);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let disk =
                    |size| Rc::new(Gated { disk: Memory::new(size), gate: Arc::clone(&shared) });
                let exports =
                    Disks { disk: disk(DISK), huge: disk(16 << 50), gate: Arc::clone(&shared) };
                let server = Rc::new(Server::new(Rc::new(exports), limits));
                server.listen(listener).expect("it listens");
                server.listen(tcp).expect("it listens");
                while let Some(job) = queue.recv().await {
                    tokio::task::spawn_local(job(Rc::clone(&server)));
                }
            });
        });
        Self { gate, path, address, tcp: false, jobs: Some(jobs), thread: Some(thread), _dir: dir }
    }

    /// A connected stream of either kind, in the shape of a unix one.
    pub fn connect(&self) -> UnixStream {
        let stream = if self.tcp {
            let stream = TcpStream::connect(self.address).expect("the server listens");
            stream.set_nodelay(true).expect("an option");
            UnixStream::from(OwnedFd::from(stream))
        } else {
            UnixStream::connect(&self.path).expect("the server listens")
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Whether nobody listens any more.
    pub fn is_gone(&self) -> bool {
        UnixStream::connect(&self.path).is_err() && TcpStream::connect(self.address).is_err()
    }

    /// Runs something on the server's thread; the receiver gets its result.
    pub fn begin<T, F>(
        &self,
        job: impl FnOnce(Rc<Server<Disks>>) -> F + Send + 'static,
    ) -> std::sync::mpsc::Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::channel();
        let job: Job = Box::new(move |server| {
            let job = job(server);
            Box::pin(async move {
                // A test that does not want to know has dropped the receiver.
                let _ = sender.send(job.await);
            })
        });
        let jobs = self.jobs.as_ref().expect("until it is dropped");
        assert!(jobs.send(job).is_ok(), "the server's thread is there");
        receiver
    }

    /// Runs something on the server's thread and waits for it.
    pub fn run<T, F>(&self, job: impl FnOnce(Rc<Server<Disks>>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.begin(job).recv_timeout(PATIENCE).expect("it ends")
    }

    /// Waits until so many connections are left.
    pub fn wait_connections(&self, count: usize) {
        self.run(move |server| async move {
            while server.connections() != count {
                tokio::task::yield_now().await;
            }
        });
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.jobs = None;
        let thread = self.thread.take().expect("dropped once");
        let result = thread.join();
        if !std::thread::panicking() {
            result.expect("the server's thread is sound");
        }
    }
}
