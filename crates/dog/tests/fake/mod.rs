//! A sheep in this process: our protocol's server end over a table in memory and sparse disks.

#![allow(dead_code)] // Each test file uses a part.

use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_wire::*;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::{TcpListener, TcpStream};

const BLOCK: u64 = 4096;

/// One VDI.
#[derive(Default)]
pub struct FakeVdi {
    pub entry: VdiEntry,
    /// Blocks that hold data; all other bytes are zero.
    pub blocks: BTreeMap<u64, Vec<u8>>,
    /// Bytes reserved by write zeroes.
    pub reserved: u64,
}

impl FakeVdi {
    fn read(&self, mut offset: u64, len: u64) -> Vec<ReadSegment> {
        let end = offset + len;
        let mut segments: Vec<ReadSegment> = Vec::new();
        while offset < end {
            let block = offset / BLOCK;
            let now = ((block + 1) * BLOCK).min(end) - offset;
            let from = (offset % BLOCK) as usize;
            match (self.blocks.get(&block), segments.last_mut()) {
                (Some(data), _) => segments.push(ReadSegment::Data(Bytes::copy_from_slice(
                    &data[from..from + now as usize],
                ))),
                (None, Some(ReadSegment::Hole(len))) => *len += now,
                (None, _) => segments.push(ReadSegment::Hole(now)),
            }
            offset += now;
        }
        segments
    }

    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let from = (offset % BLOCK) as usize;
            let now = data.len().min(BLOCK as usize - from);
            let block =
                self.blocks.entry(offset / BLOCK).or_insert_with(|| vec![0; BLOCK as usize]);
            block[from..from + now].copy_from_slice(&data[..now]);
            offset += now as u64;
            data = &data[now..];
        }
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        for (number, block) in &mut self.blocks {
            let (begin, stop) = (number * BLOCK, (number + 1) * BLOCK);
            let (from, to) = (begin.max(offset), stop.min(end));
            if from < to {
                block[(from - begin) as usize..(to - begin) as usize].fill(0);
            }
        }
        self.blocks.retain(|n, _| n * BLOCK < offset || (n + 1) * BLOCK > end);
    }

    fn map(&self, offset: u64, len: u64) -> Vec<SegmentInfo> {
        // Two extents per answer: clients must ask again.
        let mut extents: Vec<SegmentInfo> = Vec::new();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let next = self
                .blocks
                .range(at / BLOCK..)
                .next()
                .map_or(end, |(n, _)| (n * BLOCK).max(at).min(end));
            let (kind, to) = if next > at {
                (SegmentKind::Hole, next)
            } else {
                (SegmentKind::Data, ((at / BLOCK + 1) * BLOCK).min(end))
            };
            let len = to - at;
            let count = extents.len();
            match extents.last_mut() {
                Some(last) if last.kind() == kind => last.len += len,
                _ if count == 2 => break,
                _ => extents.push(SegmentInfo { kind: kind.into(), len }),
            }
            at = to;
        }
        extents
    }
}

/// What the sheep knows, for tests to set and look at.
#[derive(Default)]
pub struct State {
    pub cluster: ClusterInfoReply,
    pub nodes: Vec<NodeEntry>,
    pub space: Vec<NodeSpace>,
    pub vdis: BTreeMap<u32, FakeVdi>,
    /// Requests that came, in order.
    pub requests: Vec<Request>,
    /// Requests taken and not answered, now and at most.
    pub in_flight: (usize, usize),
    /// Every request is answered with this.
    pub broken: Option<(ErrorKind, &'static str)>,
    /// Writes are answered with this after so many.
    pub fail_writes: Option<(usize, ErrorKind)>,
    /// Maps are never answered.
    pub stall_maps: bool,
    /// The connection is cut instead of answering the n-th write.
    pub cut_at_write: Option<usize>,
    next_vid: u32,
    handles: BTreeMap<u64, u32>,
    writes: usize,
}

impl State {
    pub fn vdi(&self, name: &str) -> &FakeVdi {
        self.vdis
            .values()
            .find(|v| v.entry.name == name && !v.entry.snapshot)
            .unwrap_or_else(|| panic!("no VDI {name}"))
    }

    /// All bytes of a small VDI.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let vdi = self.vdi(name);
        vdi.read(0, vdi.entry.size)
            .into_iter()
            .flat_map(|s| match s {
                ReadSegment::Data(bytes) => bytes.to_vec(),
                ReadSegment::Hole(len) | ReadSegment::Zero(len) => vec![0; len as usize],
            })
            .collect()
    }

    pub fn add(&mut self, entry: VdiEntry) {
        let vid = entry.vid;
        self.vdis.insert(vid, FakeVdi { entry, ..FakeVdi::default() });
    }

    fn find(&self, selector: &Option<VdiSelector>) -> Result<u32> {
        let selector = selector.as_ref().ok_or(ErrorKind::Invalid)?;
        let mut named =
            self.vdis.values().map(|v| &v.entry).filter(|e| e.name == selector.name).peekable();
        if named.peek().is_none() {
            return Err(ErrorKind::NotFound.into());
        }
        let snapshot = !selector.tag.is_empty() || selector.snapshot_id != 0;
        named
            .find(|e| {
                if snapshot {
                    e.snapshot && (e.tag == selector.tag || e.snapshot_id == selector.snapshot_id)
                } else {
                    !e.snapshot
                }
            })
            .map(|e| e.vid)
            .ok_or_else(|| if snapshot { ErrorKind::NoTag } else { ErrorKind::NotFound }.into())
    }

    fn create(&mut self, create: &VdiCreate, incomplete: bool) -> Result<u32> {
        if self.cluster.state() != ClusterState::Running {
            return Err(ErrorKind::WaitForFormat.into());
        }
        let selector = Some(VdiSelector { name: create.name.clone(), ..VdiSelector::default() });
        if let Ok(vid) = self.find(&selector) {
            if !incomplete || !self.vdis[&vid].entry.incomplete {
                return Err(ErrorKind::Exists.into());
            }
            self.vdis.remove(&vid);
        }
        self.next_vid += 1;
        let vid = 0x10 + self.next_vid;
        self.add(VdiEntry {
            vid,
            name: create.name.clone(),
            snapshot_id: 1,
            size: create.size,
            object_shift: if create.object_shift == 0 { 22 } else { create.object_shift },
            redundancy: Some(create.redundancy.unwrap_or(RedundancyInfo { data: 3, parity: 0 })),
            created: Some(Time { seconds: 1_500_000_000, nanos: 0 }),
            hyper: create.hyper,
            preallocated: create.preallocated,
            incomplete,
            ..VdiEntry::default()
        });
        Ok(vid)
    }

    fn open(&mut self, vid: u32, read_only: bool) -> VdiOpened {
        let handle = 100 + self.handles.len() as u64;
        let handle = self.handles.keys().next_back().map_or(handle, |last| last + 1);
        self.handles.insert(handle, vid);
        let entry = self.vdis[&vid].entry.clone();
        VdiOpened {
            handle,
            size: entry.size,
            read_only: read_only || entry.snapshot,
            vdi: Some(entry),
        }
    }

    fn by_handle(&mut self, handle: u64, offset: u64, len: u64) -> Result<&mut FakeVdi> {
        let vid = *self.handles.get(&handle).ok_or(ErrorKind::Invalid)?;
        let vdi = self.vdis.get_mut(&vid).ok_or(ErrorKind::NotFound)?;
        match offset.checked_add(len) {
            Some(end) if end <= vdi.entry.size => Ok(vdi),
            _ => Err(ErrorKind::Invalid.into()),
        }
    }

    fn info(&self, vid: u32) -> VdiEntry {
        let vdi = &self.vdis[&vid];
        let object = 1u64 << vdi.entry.object_shift;
        let mut objects: Vec<u64> = vdi.blocks.keys().map(|b| b * BLOCK / object).collect();
        objects.dedup();
        let stored = vdi.blocks.len() as u64 * BLOCK;
        let mut entry = vdi.entry.clone();
        entry.used += objects.len() as u64 * object;
        entry.stored = stored;
        entry.stored_total = 3 * stored;
        entry
    }
}

/// A running sheep; it stops with the test.
pub struct FakeSheep {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl FakeSheep {
    /// One node, formatted at 2017-07-14 02:40:00 UTC.
    pub fn start() -> Self {
        let sheep = Self::unformatted();
        {
            let mut state = sheep.state();
            state.cluster = ClusterInfoReply {
                state: ClusterState::Running.into(),
                cluster_id: vec![7; 16],
                created: Some(Time { seconds: 1_500_000_000, nanos: 0 }),
                redundancy: Some(RedundancyInfo { data: 3, parity: 0 }),
                object_shift: 22,
                store: "plain".into(),
                registry: "local".into(),
                epochs: vec![EpochInfo {
                    epoch: 1,
                    time: Some(Time { seconds: 1_500_000_000, nanos: 0 }),
                    nodes: vec![EpochNode {
                        address: "127.0.0.1".into(),
                        port: 7000,
                        vnodes: 128,
                        disks: 1,
                    }],
                }],
                ..ClusterInfoReply::default()
            };
        }
        sheep
    }

    pub fn unformatted() -> Self {
        let state = Arc::new(Mutex::new(State {
            cluster: ClusterInfoReply {
                state: ClusterState::WaitForFormat.into(),
                ..ClusterInfoReply::default()
            },
            nodes: vec![NodeEntry {
                address: "127.0.0.1".into(),
                port: 7000,
                vnodes: 128,
                zone: 16_777_343,
                version: "2".into(),
                ..NodeEntry::default()
            }],
            space: vec![NodeSpace {
                address: "127.0.0.1".into(),
                port: 7000,
                reachable: true,
                used: 1 << 20,
                available: 3 << 20,
                here: true,
                ..NodeSpace::default()
            }],
            ..State::default()
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.set_nonblocking(true).expect("socket");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("listener");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, Arc::clone(&shared)));
                }
            });
        });
        Self { port, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Runs dog against this sheep.
    pub fn dog<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        self.dog_with(args, b"")
    }

    /// Runs dog with something on stdin.
    pub fn dog_with<S: AsRef<OsStr>>(&self, args: &[S], stdin: &[u8]) -> Run {
        let mut command = dog_command();
        command.args(args).env("SHEEPDOG_DOG_PORT", self.port.to_string());
        run(command, stdin)
    }
}

/// `dog` in a clean environment.
pub fn dog_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dog"));
    for name in
        ["SHEEPDOG_DOG_ADDR", "SHEEPDOG_DOG_PORT", "SHEEPDOG_DOG_LOG", "SHEEPDOG_DOG_LOG_PATH"]
    {
        command.env_remove(name);
    }
    command.env("TZ", "UTC");
    command
}

/// Runs a command to its end.
pub fn run(mut command: Command, stdin: &[u8]) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut input = child.stdin.take().expect("piped");
    let stdin = stdin.to_vec();
    // A command that needs less closes the pipe.
    let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
    let output = child.wait_with_output().expect("ended");
    writer.join().expect("writer");
    Run::from(output)
}

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub bytes: Vec<u8>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("exited"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }
}

impl Run {
    /// Exit code, stdout and stderr at once.
    #[track_caller]
    pub fn is(&self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!((self.code, self.stdout.as_str(), self.stderr.as_str()), (code, stdout, stderr));
    }

    /// It worked, in silence.
    #[track_caller]
    pub fn is_silent(&self) {
        self.is(0, "", "");
    }

    /// A usage error: the reason alone on stderr, the usage on stdout.
    #[track_caller]
    pub fn is_usage(&self, stderr: &str) {
        assert_eq!((self.code, self.stderr.as_str()), (64, stderr));
        assert!(self.stdout.starts_with("Usage: dog "), "{}", self.stdout);
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let hello = Hello::ours("fake sheep");
    let Ok((mut requests, replies, _)) = accept(stream, hello, ServerLimits::default()).await
    else {
        return;
    };
    let cut = Arc::new(tokio::sync::Notify::new());
    loop {
        let incoming = tokio::select! {
            incoming = requests.next() => incoming,
            () = cut.notified() => return,
        };
        let Ok(Some(incoming)) = incoming else {
            return;
        };
        let (delay, cut_now) = {
            let mut state = state.lock().expect("not poisoned");
            state.requests.push(incoming.request.clone());
            state.in_flight.0 += 1;
            state.in_flight.1 = state.in_flight.1.max(state.in_flight.0);
            let mut cut_now = false;
            if matches!(incoming.request, Request::Write(_)) {
                state.writes += 1;
                cut_now = state.cut_at_write.is_some_and(|n| state.writes >= n);
            }
            (state.requests.len() * 7 % 5, cut_now)
        };
        if cut_now {
            cut.notify_one();
            continue;
        }
        let (state, replies) = (Arc::clone(&state), replies.clone());
        tokio::spawn(async move {
            // Replies leave in another order than requests came.
            for _ in 0..delay {
                tokio::task::yield_now().await;
            }
            answer(incoming, &state, &replies).await;
            state.lock().expect("not poisoned").in_flight.0 -= 1;
        });
    }
}

type R<C> = Result<<C as Call>::Reply>;

async fn answer(incoming: Incoming, shared: &Mutex<State>, replies: &Replies<TcpStream>) {
    let Incoming { request, bulk, ticket } = incoming;
    let broken = shared.lock().expect("not poisoned").broken;
    if let Some((kind, context)) = broken {
        let _ = replies.refuse(ticket, &Error::new(kind, context)).await;
        return;
    }
    let stalled = shared.lock().expect("not poisoned").stall_maps;
    if stalled && matches!(request, Request::Map(_)) {
        return std::future::pending().await;
    }
    // Decides under the lock, answers without it.
    macro_rules! reply {
        ($call:ident, |$state:ident| $body:expr) => {{
            let result: R<$call> = {
                let mut guard = shared.lock().expect("not poisoned");
                let $state: &mut State = &mut guard;
                $body
            };
            let result = result.map(|reply| (reply, Vec::new()));
            replies.send::<$call>(ticket, result).await
        }};
    }
    let named = |name: &str| Some(VdiSelector { name: name.into(), ..VdiSelector::default() });
    let sent = match request {
        Request::ClusterInfo(ask) => reply!(ClusterInfo, |state| {
            let mut info = state.cluster.clone();
            info.vdis = state.vdis.len() as u64;
            // One epoch a page.
            info.epochs.retain(|e| ask.epochs_below == 0 || e.epoch < ask.epochs_below);
            info.more = info.epochs.len() > 1;
            info.epochs.truncate(1);
            Ok(info)
        }),
        Request::ClusterFormat(format) => reply!(ClusterFormat, |state| {
            state.vdis.clear();
            let default = RedundancyInfo { data: 3, parity: 0 };
            state.cluster.state = ClusterState::Running.into();
            state.cluster.redundancy = Some(format.redundancy.unwrap_or(default));
            Ok(ClusterFormatReply {
                cluster_id: vec![7; 16],
                redundancy: state.cluster.redundancy,
                object_shift: 22,
            })
        }),
        Request::ClusterShutdown(_) => reply!(ClusterShutdown, |_state| Ok(Done {})),
        Request::NodeList(ask) => reply!(NodeList, |state| {
            // Two a page.
            let mut nodes = state.nodes.clone();
            nodes.drain(..(ask.skip as usize).min(nodes.len()));
            let more = nodes.len() > 2;
            nodes.truncate(2);
            Ok(NodeListReply { nodes, more })
        }),
        Request::NodeInfo(_) => reply!(NodeInfo, |state| Ok(NodeInfoReply {
            nodes: state.space.clone(),
            more: false,
            virtual_bytes: state.vdis.values().map(|v| v.entry.size).sum(),
        })),
        Request::VdiList(list) => reply!(VdiList, |state| {
            if state.cluster.state() == ClusterState::Running {
                let mut vdis: Vec<VdiEntry> = state
                    .vdis
                    .range(list.above + 1..)
                    .map(|(vid, _)| state.info(*vid))
                    .filter(|e| list.name.is_empty() || e.name == list.name)
                    .collect();
                // Two a page.
                let more = vdis.len() > 2;
                vdis.truncate(2);
                Ok(VdiListReply { vdis, more })
            } else {
                Err(ErrorKind::WaitForFormat.into())
            }
        }),
        Request::VdiLookup(ask) => reply!(VdiLookup, |state| {
            state
                .find(&ask.vdi)
                .map(|vid| VdiInfoReply { vdi: Some(state.vdis[&vid].entry.clone()) })
        }),
        Request::VdiInfo(ask) => reply!(VdiInfo, |state| {
            state.find(&ask.vdi).map(|vid| VdiInfoReply { vdi: Some(state.info(vid)) })
        }),
        Request::VdiCreate(create) => reply!(VdiCreate, |state| {
            state
                .create(&create, false)
                .map(|vid| VdiChanged { vdi: Some(state.vdis[&vid].entry.clone()) })
        }),
        Request::VdiDelete(ask) => reply!(VdiDelete, |state| {
            state.find(&ask.vdi).map(|vid| {
                state.vdis.remove(&vid);
                Done {}
            })
        }),
        Request::VdiResize(ask) => reply!(VdiResize, |state| {
            state.find(&named(&ask.name)).map(|vid| {
                let vdi = state.vdis.get_mut(&vid).expect("found");
                vdi.entry.size = ask.size;
                VdiChanged { vdi: Some(vdi.entry.clone()) }
            })
        }),
        Request::VdiRename(ask) => reply!(VdiRename, |state| {
            match (state.find(&named(&ask.name)), state.find(&named(&ask.new_name))) {
                (Err(error), _) => Err(error),
                (_, Ok(_)) => Err(ErrorKind::Exists.into()),
                (Ok(vid), Err(_)) => {
                    let vdi = state.vdis.get_mut(&vid).expect("found");
                    vdi.entry.name = ask.new_name;
                    Ok(VdiChanged { vdi: Some(vdi.entry.clone()) })
                }
            }
        }),
        Request::VdiOpen(ask) => reply!(VdiOpen, |state| match state.find(&ask.vdi) {
            Ok(vid) if state.vdis[&vid].entry.incomplete => Err(ErrorKind::Incomplete.into()),
            Ok(vid) => Ok(state.open(vid, ask.read_only)),
            Err(error) => Err(error),
        }),
        Request::Read(read) => {
            let result = shared
                .lock()
                .expect("not poisoned")
                .by_handle(read.handle, read.offset, read.len.into())
                .map(|vdi| ReadReply::join(vdi.read(read.offset, read.len.into())));
            replies.send::<Read>(ticket, result).await
        }
        Request::Write(write) => reply!(Write, |state| {
            let writes = state.writes;
            match state.fail_writes.filter(|(after, _)| writes > *after) {
                Some((_, kind)) => Err(Error::new(kind, "as told")),
                None => state.by_handle(write.handle, write.offset, bulk.len() as u64).map(|vdi| {
                    vdi.write(write.offset, &bulk);
                    Done {}
                }),
            }
        }),
        Request::WriteZeroes(zeros) => reply!(WriteZeroes, |state| {
            state.by_handle(zeros.handle, zeros.offset, zeros.len).and_then(|vdi| {
                if vdi.entry.name == "full" {
                    return Err(ErrorKind::NoSpace.into());
                }
                if zeros.kind() == ZeroKind::Reserve {
                    vdi.reserved += zeros.len;
                }
                vdi.zero(zeros.offset, zeros.len);
                Ok(Done {})
            })
        }),
        Request::Map(map) => reply!(Map, |state| {
            state
                .by_handle(map.handle, map.offset, map.len)
                .map(|vdi| MapReply { extents: vdi.map(map.offset, map.len) })
        }),
        Request::Flush(_) => reply!(Flush, |_state| Ok(Done {})),
        Request::Close(close) => reply!(Close, |state| {
            state.handles.remove(&close.handle);
            Ok(Done {})
        }),
        Request::ImportBegin(begin) => reply!(ImportBegin, |state| {
            state.create(&begin.create.unwrap_or_default(), true).map(|vid| state.open(vid, false))
        }),
        Request::ImportFinish(finish) => reply!(ImportFinish, |state| {
            state.by_handle(finish.handle, 0, 0).map(|vdi| {
                vdi.entry.incomplete = false;
                VdiChanged { vdi: Some(vdi.entry.clone()) }
            })
        }),
    };
    // A client that went away needs no answer.
    let _ = sent;
}
