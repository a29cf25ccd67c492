//! The control server against a data worker in memory and the real registry of one machine.

#[allow(dead_code)]
#[path = "common/memory.rs"]
mod memory;

use bytes::Bytes;
use memory::MemoryPlane;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sheepdog_registry::{LocalOptions, LocalRegistry, Registry};
use sheepdog_sheep::cluster::{Identities, Identity, begin_interval, claim, note_epoch};
use sheepdog_sheep::control::{self, Listeners};
use sheepdog_sheep::data::VdiDirectory;
use sheepdog_sheep::node::{Me, Node, sweep};
use sheepdog_testkit::shown::assert_same;
use sheepdog_types::{DiskId, ErrorKind, Interval, LineageId, Result, Vid};
use sheepdog_wire::{
    Call, Close, ClusterFormat, ClusterInfo, ClusterInfoReply, ClusterShutdown, ClusterState,
    Connection, Flush, Hello, ImportBegin, ImportFinish, Map, NodeInfo, NodeList, Read,
    ReadSegment, RedundancyInfo, SegmentKind, VdiCreate, VdiDelete, VdiInfo, VdiList, VdiLookup,
    VdiOpen, VdiOpened, VdiRename, VdiResize, VdiSelector, Write, WriteZeroes, ZeroKind,
};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

const MIB: u64 = 1 << 20;

struct Sheep {
    dir: TempDir,
    node: Arc<Node>,
    plane: Arc<MemoryPlane>,
    address: SocketAddr,
    serving: JoinHandle<std::io::Result<()>>,
    sweeping: JoinHandle<()>,
}

fn me() -> Me {
    Me::new([127, 0, 0, 1].into(), 7000, 16_777_343, "local".to_owned())
}

async fn registry(dir: &Path) -> LocalRegistry {
    let options = LocalOptions { file: dir.join("registry.db"), member: None };
    LocalRegistry::open(options).await.expect("registry")
}

impl Sheep {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("dir"), Arc::default()).await
    }

    async fn start_in(dir: TempDir, plane: Arc<MemoryPlane>) -> Self {
        let identity = match Identity::read(dir.path()).expect("identity") {
            Some(identity) => identity,
            None => Identity::create(dir.path(), None).expect("identity"),
        };
        let registry = registry(dir.path()).await;
        let identities = Identities { node: identity, disks: Vec::new() };
        let node = Arc::new(Node::new(me(), Arc::new(registry), identities));
        node.set_data(Arc::clone(&plane) as _);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let path = dir.path().join("sock");
        let _ = std::fs::remove_file(&path);
        let unix = std::os::unix::net::UnixListener::bind(path).expect("bind");
        tcp.set_nonblocking(true).expect("nonblocking");
        unix.set_nonblocking(true).expect("nonblocking");
        let address = tcp.local_addr().expect("address");
        let listeners = Listeners { tcp, unix };
        Self {
            serving: tokio::spawn(control::serve(Arc::clone(&node), listeners)),
            sweeping: tokio::spawn(sweep::run(Arc::clone(&node))),
            dir,
            node,
            plane,
            address,
        }
    }

    async fn formatted() -> Self {
        let sheep = Self::start().await;
        let mut dog = sheep.dog().await;
        dog.call(format_of("plain")).await.expect("format");
        sheep
    }

    async fn dog(&self) -> Dog {
        let stream = TcpStream::connect(self.address).await.expect("connect");
        Dog::on(stream).await
    }

    async fn stop(self) -> TempDir {
        self.node.leave();
        self.serving.await.expect("join").expect("serve");
        self.sweeping.await.expect("join");
        self.dir
    }
}

/// A client.
struct Dog {
    connection: Connection,
    driver: JoinHandle<()>,
}

impl Dog {
    async fn on<S>(stream: S) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Sync + 'static,
    {
        let opened = Connection::open(stream, Hello::ours("test")).await;
        let (connection, driver) = opened.expect("hello");
        Self { connection, driver: tokio::spawn(driver.run()) }
    }

    async fn call<C: Call>(&mut self, request: C) -> Result<C::Reply> {
        self.connection.call(&request).await
    }

    async fn refused<C: Call>(&mut self, request: C) -> (ErrorKind, String) {
        let error = self.call(request).await.map(drop).expect_err("refused");
        (error.kind(), error.context().to_owned())
    }

    async fn create(&mut self, name: &str, size: u64) -> Vid {
        let made = self.call(vdi(name, size)).await.expect("create");
        Vid::new(made.vdi.expect("vdi").vid).expect("vid")
    }

    async fn open(&mut self, name: &str) -> VdiOpened {
        self.call(open(name)).await.expect("open")
    }

    async fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        let data = vec![Bytes::copy_from_slice(data)];
        let written = self.connection.exchange(&Write { handle, offset }, data).await;
        written.map(drop)
    }

    async fn read(&mut self, handle: u64, offset: u64, len: u32) -> Result<Vec<ReadSegment>> {
        let read = Read { handle, offset, len };
        let (reply, bulk) = self.connection.exchange(&read, Vec::new()).await?;
        reply.split(bulk, len.into())
    }

    /// As a process that is killed.
    async fn vanish(self) {
        self.driver.abort();
        let _ = self.driver.await;
    }
}

fn format_of(store: &str) -> ClusterFormat {
    ClusterFormat { store: store.to_owned(), ..ClusterFormat::default() }
}

fn named(name: &str) -> Option<VdiSelector> {
    Some(VdiSelector { name: name.to_owned(), ..VdiSelector::default() })
}

fn vdi(name: &str, size: u64) -> VdiCreate {
    VdiCreate { name: name.to_owned(), size, ..VdiCreate::default() }
}

fn open(name: &str) -> VdiOpen {
    VdiOpen { vdi: named(name), read_only: false }
}

fn delete(name: &str) -> VdiDelete {
    VdiDelete { vdi: named(name) }
}

fn import(name: &str, size: u64) -> ImportBegin {
    ImportBegin { create: Some(vdi(name, size)) }
}

async fn names(dog: &mut Dog) -> Vec<String> {
    let list = dog.call(VdiList::default()).await.expect("list");
    assert!(!list.more);
    list.vdis.into_iter().map(|vdi| vdi.name).collect()
}

fn state(info: &ClusterInfoReply) -> ClusterState {
    ClusterState::try_from(info.state).expect("state")
}

#[tokio::test]
async fn everything_waits_for_a_format() {
    let sheep = Sheep::start().await;
    let mut dog = sheep.dog().await;
    let info = dog.call(ClusterInfo::default()).await.expect("info");
    assert_eq!(state(&info), ClusterState::WaitForFormat);
    assert_eq!((info.created, info.epochs.len()), (None, 0));
    assert_eq!(info.registry, "local");
    let waiting = (ErrorKind::WaitForFormat, String::new());
    assert_eq!(dog.refused(vdi("a", 1)).await, waiting);
    assert_eq!(dog.refused(VdiList::default()).await, waiting);
    assert_eq!(dog.refused(open("a")).await, waiting);
    assert_eq!(dog.refused(delete("a")).await, waiting);
    assert_eq!(dog.refused(import("a", 1)).await, waiting);
    assert_eq!(dog.refused(NodeInfo::default()).await, waiting);
    let nodes = dog.call(NodeList::default()).await.expect("nodes").nodes;
    assert_eq!((nodes.len(), nodes[0].vnodes, nodes[0].port), (1, 128, 7000));
    assert_eq!(nodes[0].zone, 16_777_343);
    assert!(VdiDirectory::list(&*sheep.node).await.is_empty());
    sheep.stop().await;
}

#[tokio::test]
async fn a_format_makes_the_cluster_and_another_one_wipes_it() {
    let sheep = Sheep::start().await;
    let mut dog = sheep.dog().await;
    assert_eq!(
        dog.refused(format_of("farm")).await,
        (ErrorKind::Invalid, "there is no store 'farm'".to_owned())
    );
    let erasure = ClusterFormat {
        redundancy: Some(RedundancyInfo { data: 4, parity: 2 }),
        ..format_of("plain")
    };
    assert_eq!(dog.refused(erasure).await.0, ErrorKind::Unsupported);
    let made = dog.call(format_of("plain")).await.expect("format");
    assert_eq!(made.redundancy, Some(RedundancyInfo { data: 3, parity: 0 }));
    assert_eq!(made.object_shift, 22);
    let info = dog.call(ClusterInfo::default()).await.expect("info");
    assert_eq!(state(&info), ClusterState::Running);
    assert_eq!(info.cluster_id, made.cluster_id);
    assert_eq!((info.store.as_str(), info.vdis), ("plain", 0));
    assert_eq!(info.epochs.len(), 1);
    assert_eq!(info.epochs[0].epoch, 1);
    assert_eq!(info.epochs[0].nodes[0].address, "127.0.0.1");

    dog.create("a", MIB).await;
    let handle = dog.open("a").await.handle;
    dog.write(handle, 0, &[7; 100]).await.expect("write");
    assert_eq!(dog.refused(format_of("plain")).await.0, ErrorKind::Exists);
    let again = ClusterFormat {
        redundancy: Some(RedundancyInfo { data: 1, parity: 0 }),
        object_shift: 24,
        force: true,
        ..format_of("tree")
    };
    let anew = dog.call(again).await.expect("format again");
    assert_ne!(anew.cluster_id, made.cluster_id);
    assert!(names(&mut dog).await.is_empty());
    assert_eq!(dog.read(handle, 0, 1).await.expect_err("gone").kind(), ErrorKind::NotFound);
    dog.create("a", MIB).await;
    let info = dog.call(VdiLookup { vdi: named("a") }).await.expect("vdi");
    let entry = info.vdi.expect("entry");
    assert_eq!(entry.redundancy, Some(RedundancyInfo { data: 1, parity: 0 }));
    assert_eq!(entry.object_shift, 24);
    sheep.stop().await;
}

#[tokio::test]
async fn vdis_are_made_grown_renamed_and_listed() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    assert_eq!(dog.create("test", 64 * MIB).await.get(), 0x7c_2b25);
    assert_eq!(dog.refused(vdi("test", 1)).await.0, ErrorKind::Exists);
    assert_eq!(dog.refused(vdi("", 1)).await.0, ErrorKind::Invalid);
    assert_eq!(dog.refused(vdi("a\nb", 1)).await.0, ErrorKind::Invalid);
    assert_eq!(dog.refused(vdi("big", (4 << 40) + 1)).await.0, ErrorKind::Invalid);
    let small = VdiCreate { object_shift: 19, ..vdi("small", 1) };
    assert_eq!(dog.refused(small).await.0, ErrorKind::Invalid);
    let grow = |name: &str, size| VdiResize { name: name.to_owned(), size };
    let grown = dog.call(grow("test", 65 * MIB)).await.expect("grow");
    assert_eq!(grown.vdi.expect("vdi").size, 65 * MIB);
    let (kind, line) = dog.refused(grow("test", MIB)).await;
    assert_eq!(kind, ErrorKind::Invalid);
    assert_eq!(line, "Shrinking VDIs is not implemented");
    assert_eq!(dog.refused(grow("none", MIB)).await.0, ErrorKind::NotFound);

    dog.create("other", 0).await;
    let rename = |name: &str, new_name: &str| VdiRename {
        name: name.to_owned(),
        new_name: new_name.to_owned(),
    };
    assert_eq!(dog.refused(rename("test", "other")).await.0, ErrorKind::Exists);
    assert_eq!(dog.refused(rename("none", "x")).await.0, ErrorKind::NotFound);
    dog.call(rename("test", "moved")).await.expect("rename");
    let list = dog.call(VdiList::default()).await.expect("list").vdis;
    let order: Vec<_> = list.iter().map(|vdi| vdi.vid).collect();
    assert!(order.is_sorted());
    let one = VdiList { name: "moved".to_owned(), ..VdiList::default() };
    assert_eq!(dog.call(one).await.expect("list").vdis.len(), 1);
    let info = dog.call(NodeInfo::default()).await.expect("info");
    assert_eq!(info.virtual_bytes, 65 * MIB);
    assert!(info.nodes[0].reachable);
    sheep.stop().await;
}

#[tokio::test]
async fn bytes_come_back_and_are_counted() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    dog.create("disk", 16 * MIB + 5).await;
    let opened = dog.open("disk").await;
    assert_eq!((opened.size, opened.read_only), (16 * MIB + 5, false));
    let handle = opened.handle;
    let data: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
    dog.write(handle, 5 * MIB - 77, &data).await.expect("write");
    dog.write(handle, 16 * MIB, b"12345").await.expect("the very end");
    let zeroes = WriteZeroes { handle, offset: 9 * MIB, len: 4096, kind: ZeroKind::Reserve.into() };
    dog.call(zeroes).await.expect("zeroes");
    let segments = dog.read(handle, 5 * MIB - 8192, 30_000).await.expect("read");
    let bytes: Vec<u8> = segments
        .iter()
        .flat_map(|segment| match segment {
            ReadSegment::Data(bytes) => bytes.to_vec(),
            zeros => vec![0; zeros.len() as usize],
        })
        .collect();
    assert_same(&bytes[8192 - 77..8192 - 77 + data.len()], data);
    assert!(bytes[..8192 - 77].iter().all(|b| *b == 0));

    let mut kinds = Vec::new();
    let mut offset = 0;
    while offset < opened.size {
        let len = opened.size - offset;
        let map = Map { handle, offset, len };
        for extent in dog.call(map).await.expect("map").extents {
            kinds.push(SegmentKind::try_from(extent.kind).expect("kind"));
            offset += extent.len;
        }
    }
    assert_eq!(offset, opened.size);
    use SegmentKind::{Data, Hole, Zero};
    assert_eq!(kinds, [Hole, Data, Hole, Zero, Hole, Data]);

    let info = dog.call(VdiInfo { vdi: named("disk") }).await.expect("info");
    let entry = info.vdi.expect("entry");
    // Objects of 4 MiB: the one with data, the one with reserved space, the last.
    assert_eq!((entry.used, entry.shared), (3 * 4 * MIB, 0));
    assert_eq!(entry.stored, entry.stored_total);
    assert_eq!(entry.stored % 4096, 0);
    assert!(entry.stored >= 10_000 + 4096 + 5);
    assert_eq!(entry.open, 1);
    sheep.stop().await;
}

#[tokio::test]
async fn what_lies_beyond_the_end_is_refused() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    dog.create("disk", MIB).await;
    let handle = dog.open("disk").await.handle;
    let beyond = |e: sheepdog_types::Error| {
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.context().contains("beyond the end"), "{e}");
    };
    for (offset, len) in [(MIB, 1), (MIB - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4)] {
        beyond(dog.read(handle, offset, len).await.expect_err("read"));
        let data = vec![1; len as usize];
        beyond(dog.write(handle, offset, &data).await.expect_err("write"));
        let zeroes =
            WriteZeroes { handle, offset, len: len.into(), kind: ZeroKind::Discard.into() };
        beyond(dog.call(zeroes).await.expect_err("zeroes"));
        let map = Map { handle, offset, len: len.into() };
        beyond(dog.call(map).await.expect_err("map"));
    }
    assert!(dog.read(handle, MIB, 0).await.expect("nothing").is_empty());
    let zeroes = WriteZeroes { handle, offset: 0, len: 1, kind: 7 };
    assert_eq!(dog.refused(zeroes).await.0, ErrorKind::Invalid);
    assert_eq!(dog.refused(Flush { handle: 99 }).await.0, ErrorKind::Invalid);
    let read_only = VdiOpen { read_only: true, ..open("disk") };
    let reader = dog.call(read_only).await.expect("open").handle;
    assert_eq!(
        dog.write(reader, 0, b"x").await.expect_err("read-only").kind(),
        ErrorKind::ReadOnly
    );
    dog.call(Flush { handle }).await.expect("flush");
    dog.call(Close { handle }).await.expect("close");
    assert_eq!(dog.refused(Close { handle }).await.0, ErrorKind::Invalid);
    for _ in 0..63 {
        dog.open("disk").await;
    }
    assert_eq!(dog.refused(open("disk")).await.0, ErrorKind::Invalid);
    sheep.stop().await;
}

#[tokio::test]
async fn a_deletion_frees_the_name_at_once_and_the_space_later() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    let mut other = sheep.dog().await;
    let vid = dog.create("disk", MIB).await;
    let handle = other.open("disk").await.handle;
    other.write(handle, 0, &[1; 4096]).await.expect("write");
    let lineage = LineageId(1);
    assert!(!sheep.plane.is_swept(lineage, vid));

    // No sweep before we say so.
    sheep.plane.sweeps.forget_permits(1 << 20);
    dog.call(delete("disk")).await.expect("delete");
    assert_eq!(dog.refused(delete("disk")).await.0, ErrorKind::NotFound);
    assert!(names(&mut dog).await.is_empty());
    let gone = other.write(handle, 0, b"x").await.expect_err("gone");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(other.read(handle, 0, 1).await.expect_err("gone").kind(), ErrorKind::NotFound);
    assert!(sheep.plane.disconnected.lock().expect("lock").contains(&vid));
    let second = dog.create("disk", MIB).await;
    assert_ne!(vid, second);
    assert!(!sheep.plane.is_swept(lineage, vid));

    // The sheep goes in the middle; the next one finishes.
    let plane = Arc::clone(&sheep.plane);
    let dir = sheep.stop().await;
    let registry = registry(dir.path()).await;
    let key = sheepdog_volume::table::id_key(vid);
    let record = registry.get(&key).await.expect("get").expect("hidden");
    let mut watch = registry.watch(&key, record.modified).await.expect("watch");
    plane.sweeps.add_permits(1);
    let sheep = Sheep::start_in(dir, Arc::clone(&plane)).await;
    watch.next().await.expect("the record goes");
    assert!(plane.is_swept(lineage, vid));
    assert_eq!(registry.get(&key).await.expect("get"), None);
    let mut dog = sheep.dog().await;
    assert_eq!(names(&mut dog).await, ["disk"]);
    sheep.stop().await;
}

#[tokio::test]
async fn requests_of_a_vanished_client_end_before_the_next_open() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    dog.create("disk", MIB).await;
    let mut doomed = sheep.dog().await;
    let handle = doomed.open("disk").await.handle;
    sheep.plane.writes.forget_permits(1 << 20);
    let connection = doomed.connection.clone();
    let writing = tokio::spawn(async move {
        let data = vec![Bytes::from(vec![9; 4096])];
        let write = Write { handle, offset: 0 };
        connection.exchange(&write, data).await.map(drop)
    });
    while sheep.plane.begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    writing.abort();
    assert!(writing.await.expect_err("given up").is_cancelled());
    doomed.vanish().await;
    let vid = Vid::new(vid_of(&mut dog, "disk").await).expect("vid");
    while sheep.node.gates.count(vid) != 0 {
        tokio::task::yield_now().await;
    }
    let opening = tokio::spawn(async move {
        let handle = dog.open("disk").await.handle;
        dog.read(handle, 0, 4096).await.expect("read")
    });
    let directory = Arc::clone(&sheep.node);
    let by_nbd = tokio::spawn(async move { VdiDirectory::open(&*directory, "disk").await });
    // Both have all the time they need to go wrong.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!opening.is_finished() && !by_nbd.is_finished());
    sheep.plane.writes.add_permits(10);
    let read = opening.await.expect("join");
    assert_eq!(read, [ReadSegment::Data(Bytes::from(vec![9; 4096]))]);
    by_nbd.await.expect("join").expect("open");
    sheep.stop().await;
}

async fn vid_of(dog: &mut Dog, name: &str) -> u32 {
    let info = dog.call(VdiLookup { vdi: named(name) }).await;
    info.expect("lookup").vdi.expect("vdi").vid
}

#[tokio::test]
async fn an_import_is_refused_until_it_is_finished() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    let opened = dog.call(import("image", MIB)).await.expect("begin");
    dog.write(opened.handle, 0, b"half").await.expect("write");
    let mut other = sheep.dog().await;
    assert_eq!(other.refused(open("image")).await.0, ErrorKind::Incomplete);
    assert_eq!(other.refused(import("image", MIB)).await.0, ErrorKind::Locked);
    assert_eq!(other.refused(vdi("image", MIB)).await.0, ErrorKind::Exists);
    let by_nbd = VdiDirectory::open(&*sheep.node, "image").await;
    assert_eq!(by_nbd.expect_err("nbd").kind(), ErrorKind::Incomplete);
    assert!(VdiDirectory::list(&*sheep.node).await.is_empty());

    // Interrupted: the next import begins with an empty VDI.
    let first = opened.vdi.expect("vdi").vid;
    // What it has under way at that moment delays the next, and is no reason to refuse it.
    sheep.plane.writes.forget_permits(1 << 20);
    let (connection, handle) = (dog.connection.clone(), opened.handle);
    let begun = sheep.plane.begun.load(Ordering::SeqCst);
    let writing = tokio::spawn(async move {
        let data = vec![Bytes::from(vec![9; 4096])];
        connection.exchange(&Write { handle, offset: 0 }, data).await
    });
    while sheep.plane.begun.load(Ordering::SeqCst) == begun {
        tokio::task::yield_now().await;
    }
    dog.vanish().await;
    let opened = {
        let mut again = pin!(other.call(import("image", MIB)));
        for _ in 0..1000 {
            tokio::select! {
                biased;
                _ = &mut again => panic!("the first one's write is not over"),
                () = tokio::task::yield_now() => {}
            }
        }
        sheep.plane.writes.add_permits(1 << 20);
        again.await.expect("again")
    };
    writing.abort();
    assert_ne!(opened.vdi.as_ref().expect("vdi").vid, first);
    let read = other.read(opened.handle, 0, 4).await.expect("read");
    assert_eq!(read, [ReadSegment::Hole(4)]);
    let finish = ImportFinish { handle: opened.handle };
    let done = other.call(finish).await.expect("finish");
    assert!(!done.vdi.expect("vdi").incomplete);
    assert_eq!(other.refused(finish).await.0, ErrorKind::Invalid);
    other.write(opened.handle, 0, b"more").await.expect("still open");
    assert_eq!(other.refused(import("image", MIB)).await.0, ErrorKind::Exists);
    VdiDirectory::open(&*sheep.node, "image").await.expect("nbd");
    sheep.stop().await;
}

/// The end of a killed client's connection comes behind all that it had sent, and the sheep cannot
/// read that while its disk is slow.
#[tokio::test]
async fn a_killed_import_that_had_much_under_way_can_be_repeated_at_once() {
    let sheep = Sheep::formatted().await;
    let stream = TcpStream::connect(sheep.address).await.expect("connect").into_std().expect("std");
    let watched = stream.try_clone().expect("a second descriptor");
    let dog = Dog::on(TcpStream::from_std(stream).expect("tokio")).await;
    let handle = dog.connection.call(&import("image", 64 * MIB)).await.expect("begin").handle;
    sheep.plane.writes.forget_permits(1 << 20);
    let mut writing = JoinSet::new();
    for piece in 0..64 {
        let connection = dog.connection.clone();
        writing.spawn(async move {
            let data = vec![Bytes::from(vec![9; MIB as usize])];
            connection.exchange(&Write { handle, offset: piece * MIB }, data).await.map(drop)
        });
    }
    // Until the sheep reads no more (15 requests of this size are what it takes on a connection)
    // and the socket takes no more.
    let is_full = || {
        let mut fds = [PollFd::new(&watched, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).expect("poll") == 0
    };
    while sheep.plane.begun.load(Ordering::SeqCst) < 15 || !is_full() {
        tokio::task::yield_now().await;
    }
    writing.shutdown().await;
    dog.vanish().await;
    drop(watched);

    let mut other = sheep.dog().await;
    let opened = {
        let mut again = pin!(other.call(import("image", MIB)));
        for _ in 0..1000 {
            tokio::select! {
                biased;
                ended = &mut again => panic!("nobody knows yet: {:?}", ended.map(drop)),
                () = tokio::task::yield_now() => {}
            }
        }
        sheep.plane.writes.add_permits(1 << 20);
        again.await.expect("again")
    };
    let read = other.read(opened.handle, 0, 4).await.expect("read");
    assert_eq!(read, [ReadSegment::Hole(4)]);
    sheep.stop().await;
}

#[tokio::test]
async fn a_strict_cluster_takes_no_vdi_that_it_could_not_write() {
    let sheep = Sheep::start().await;
    let mut dog = sheep.dog().await;
    let strict = ClusterFormat { strict: true, ..format_of("plain") };
    dog.call(strict).await.expect("format");
    let copies = |data| Some(RedundancyInfo { data, parity: 0 });
    let asked = |name: &str, redundancy| VdiCreate { redundancy, ..vdi(name, MIB) };
    // Three copies are the cluster's default.
    for redundancy in [None, copies(2)] {
        let refused = dog.refused(asked("disk", redundancy)).await;
        assert_eq!(refused.0, ErrorKind::TooFewZones);
        let begin = ImportBegin { create: Some(asked("disk", redundancy)) };
        assert_eq!(dog.refused(begin).await.0, ErrorKind::TooFewZones);
    }
    dog.call(asked("disk", copies(1))).await.expect("one copy");
    // As of old, that the name is taken is said first.
    assert_eq!(dog.refused(asked("disk", None)).await.0, ErrorKind::Exists);
    // Without strict there are fewer copies, and that is all.
    let anew = ClusterFormat { force: true, ..format_of("plain") };
    dog.call(anew).await.expect("format");
    dog.call(asked("more", copies(3))).await.expect("fewer copies");
    sheep.stop().await;
}

#[tokio::test]
async fn exports_are_found_whole_first() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    for name in ["a", "a@b"] {
        dog.create(name, MIB).await;
    }
    let open = async |name: &str| VdiDirectory::open(&*sheep.node, name).await;
    let (a, ab) = (open("a").await.expect("a"), open("a@b").await.expect("a@b"));
    assert_ne!(a.vid, ab.vid);
    assert_eq!(&*a.path, [a.vid]);
    for (name, kind) in [
        ("", ErrorKind::NotFound),
        ("b", ErrorKind::NotFound),
        ("a@c", ErrorKind::NoTag),
        ("a@1", ErrorKind::NoTag),
        ("x@1", ErrorKind::NotFound),
        ("a@", ErrorKind::Invalid),
        ("a@0", ErrorKind::Invalid),
    ] {
        assert_eq!(open(name).await.expect_err(name).kind(), kind, "{name}");
    }
    let mut list = VdiDirectory::list(&*sheep.node).await;
    list.sort();
    assert_eq!(list, ["a", "a@b"]);
    sheep.stop().await;
}

#[tokio::test]
async fn strangers_are_closed_and_the_rest_goes_on() {
    let sheep = Sheep::formatted().await;
    for first in [
        &b"\x02\x00\x00\x00"[..],
        b"\x0a",
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff",
        // Ours, but not what comes behind.
        &[0xD0; 64],
    ] {
        let mut stream = TcpStream::connect(sheep.address).await.expect("connect");
        stream.write_all(first).await.expect("write");
        let mut rest = Vec::new();
        // A reset is a close too.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{first:?}");
    }
    let stream = UnixStream::connect(sheep.dir.path().join("sock")).await;
    let mut dog = Dog::on(stream.expect("connect")).await;
    dog.call(ClusterInfo::default()).await.expect("info");
    sheep.stop().await;
}

#[tokio::test]
async fn a_shutdown_is_answered_and_then_done() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    dog.call(ClusterShutdown {}).await.expect("answered");
    sheep.node.left().await;
    let address = sheep.address;
    sheep.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn many_create_at_once_and_each_gets_its_own() {
    let sheep = Sheep::formatted().await;
    let mut tasks = Vec::new();
    for n in 0..8 {
        let mut dog = sheep.dog().await;
        tasks.push(tokio::spawn(async move {
            let mut made = 0;
            for i in 0..5 {
                dog.create(&format!("vdi-{n}-{i}"), MIB).await;
                made += u32::from(dog.call(vdi(&format!("shared-{i}"), MIB)).await.is_ok());
            }
            made
        }));
    }
    let mut shared = 0;
    for task in tasks {
        shared += task.await.expect("join");
    }
    assert_eq!(shared, 5);
    let mut dog = sheep.dog().await;
    assert_eq!(names(&mut dog).await.len(), 45);
    sheep.stop().await;
}

#[tokio::test]
async fn each_start_is_a_new_interval_and_the_disk_stays() {
    let dir = tempfile::tempdir().expect("dir");
    let registry = registry(dir.path()).await;
    let disk = DiskId([1; 16]);
    let interval = async |disk| {
        begin_interval(&registry, &[disk], |_| Ok(1)).await.map(|shards| shards.interval)
    };
    assert_eq!(interval(disk).await.expect("first"), Interval(1));
    // Nothing is formatted: another disk may take over.
    assert_eq!(interval(DiskId([2; 16])).await.expect("other"), Interval(2));
    assert_eq!(interval(disk).await.expect("back"), Interval(3));
    note_epoch(&registry, &me()).await.expect("no epochs yet");

    let held = claim(&registry, "one").await.expect("free");
    held.end().await.expect("end");
    let second = claim(&registry, "two").await.expect("free again");
    drop(second);
}

#[tokio::test]
async fn a_formatted_cluster_keeps_to_its_disk_and_counts_epochs() {
    let sheep = Sheep::formatted().await;
    let registry = Arc::clone(sheep.node.tables.registry());
    let disk = DiskId([1; 16]);
    let weight = |_| Ok(1);
    begin_interval(&*registry, &[disk], weight).await.expect("first start after the format");
    for other in [&[DiskId([2; 16])][..], &[disk, DiskId([2; 16])]] {
        let refused = begin_interval(&*registry, other, weight).await;
        assert_eq!(refused.expect_err("other disks").kind(), ErrorKind::Invalid);
    }
    note_epoch(&*registry, &me()).await.expect("same address");
    let mut moved = me();
    moved.port = 7001;
    note_epoch(&*registry, &moved).await.expect("another port");
    let mut dog = sheep.dog().await;
    let info = dog.call(ClusterInfo::default()).await.expect("info");
    let epochs: Vec<_> = info.epochs.iter().map(|e| (e.epoch, e.nodes[0].port)).collect();
    assert_eq!(epochs, [(2, 7001), (1, 7000)]);
    let identity = Identity::read(sheep.dir.path()).expect("read").expect("there");
    // This test's node joined no registry by a driver string.
    assert!(identity.is_empty());
    sheep.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let sheep = Sheep::formatted().await;
    let mut dogs = Vec::new();
    for _ in 0..128 {
        dogs.push(sheep.dog().await);
    }
    let stream = TcpStream::connect(sheep.address).await.expect("backlog");
    let waiting = tokio::spawn(async {
        let mut dog = Dog::on(stream).await;
        dog.call(ClusterInfo::default()).await
    });
    // Those inside are served, and so is the unix socket.
    for dog in &mut dogs {
        dog.call(ClusterInfo::default()).await.expect("info");
    }
    let stream = UnixStream::connect(sheep.dir.path().join("sock")).await;
    Dog::on(stream.expect("connect")).await;
    assert!(!waiting.is_finished());
    dogs.pop().expect("one").vanish().await;
    waiting.await.expect("join").expect("info");
    sheep.stop().await;
}

#[tokio::test]
async fn those_who_say_nothing_keep_nobody_out() {
    let sheep = Sheep::formatted().await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(sheep.address).await.expect("connect"));
    }
    // Well before their time for a HELLO is over.
    let begin = std::time::Instant::now();
    let mut dog = sheep.dog().await;
    dog.call(ClusterInfo::default()).await.expect("info");
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    // The oldest were closed.
    let mut byte = [0];
    assert_eq!(silent[0].read(&mut byte).await.unwrap_or(0), 0);
    sheep.stop().await;
}

#[tokio::test]
async fn a_leaving_sheep_finishes_what_it_has_taken() {
    let sheep = Sheep::formatted().await;
    let mut dog = sheep.dog().await;
    dog.create("disk", MIB).await;
    let handle = dog.open("disk").await.handle;
    sheep.plane.writes.forget_permits(1 << 20);
    let connection = dog.connection.clone();
    let writing = tokio::spawn(async move {
        let data = vec![Bytes::from(vec![9; 4096])];
        connection.exchange(&Write { handle, offset: 0 }, data).await
    });
    while sheep.plane.begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    sheep.node.leave();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!writing.is_finished() && !sheep.serving.is_finished());
    sheep.plane.writes.add_permits(1);
    writing.await.expect("join").expect("acknowledged");
    sheep.stop().await;
}
