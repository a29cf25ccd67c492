//! Where control and data worker meet: what the rest of the process asks of the worker that owns
//! the disk ([`DataPlane`]), what the worker asks back ([`VdiDirectory`]), and all it is given to
//! start ([`WorkerConfig`]).

use crate::cluster::{OnDisks, ShardPack};
use bytes::Bytes;
use sheepdog_store::{EngineChoice, StoreFiles};
use sheepdog_types::{DiskId, LineageId, Result, Vid};
use sheepdog_volume::io::{MapExtent, Segment, ZeroMode};
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

/// The future of an object-safe async method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a request needs to know of a VDI to reach its blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The owner of what is written.
    pub vid: Vid,
    /// Whose fragments hold the blocks.
    pub lineage: LineageId,
    /// Bytes of the disk when it was opened.
    pub size: u64,
    /// Object size as a power of two.
    pub object_shift: u8,
    /// Writes are refused.
    pub read_only: bool,
    /// Whose blocks are seen: the newest owner first, the root last.
    pub path: Arc<[Vid]>,
}

/// What a vid owns in one fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentUsage {
    /// Of the fragment, in its lineage.
    pub number: u64,
    /// A bit for each 2^20 bytes of the fragment in which it owns anything, the first lowest.
    pub occupied: u64,
    /// Bytes of space it holds: data, and what is reserved without data.
    pub stored: u64,
}

/// Space of the store, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capacity {
    /// All it may ever use: `used` and `free`.
    pub total: u64,
    /// What it really occupies.
    pub used: u64,
    /// What it may still take.
    pub free: u64,
}

/// How far the scrub of the disk is, and what it found since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrubState {
    /// Bytes a second it may read; 0 is never.
    pub rate: u64,
    /// Fragments read in this pass.
    pub done: u64,
    /// Fragments there were when it began.
    pub total: u64,
    /// Passes that ended.
    pub passes: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bad places.
    pub bad: u64,
    /// The first of them.
    pub findings: Vec<Finding>,
}

/// A place that cannot be read, or not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Whose address space.
    pub lineage: LineageId,
    /// Whose block; `None` if it can no longer be told.
    pub vid: Option<Vid>,
    /// Bytes from the disk's start.
    pub offset: u64,
    /// One line.
    pub why: String,
}

/// What is known of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskState {
    /// Which.
    pub id: DiskId,
    /// As PATH has it.
    pub path: PathBuf,
    /// Why it cannot be used, if it cannot.
    pub lost: Option<String>,
    /// Its space; nothing if it is lost.
    pub capacity: Capacity,
    /// Blocks and pages whose checksum was wrong when they were read, since the start.
    pub checksum_errors: u64,
    /// Writes are acknowledged before they are durable.
    pub nosync: bool,
    /// See there.
    pub scrub: ScrubState,
}

/// How far a long job is: done and total, in fragments.
pub type Progress = Box<dyn Fn(u64, u64) + Send>;

/// The data worker as other threads see it. Requests are queued with a bound, then run in the
/// worker; one whose future is dropped still takes effect as a whole or not at all. Ranges lie
/// inside the view's size; callers check.
pub trait DataPlane: Send + Sync {
    /// The bytes of a range, in order, without gaps.
    fn read(&self, view: Arc<View>, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Segment>>>;

    /// Durable when it returns.
    fn write(&self, view: Arc<View>, offset: u64, data: Bytes) -> BoxFuture<'_, Result<()>>;

    /// The range reads as zeros, durably, when it returns.
    fn write_zeroes(
        &self,
        view: Arc<View>,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> BoxFuture<'_, Result<()>>;

    /// What is stored where, merged and in order from the offset on. To bound memory it may cover
    /// only the beginning of the range, but something of it.
    fn map(&self, view: Arc<View>, offset: u64, len: u64) -> BoxFuture<'_, Result<Vec<MapExtent>>>;

    /// Deletes every block that `vid` owns. Idempotent; when it returns nothing is left.
    fn sweep(&self, lineage: LineageId, vid: Vid, progress: Progress) -> BoxFuture<'_, Result<()>>;

    /// The fragments of the lineage in which the vid owns anything, ascending.
    fn usage(&self, lineage: LineageId, vid: Vid) -> BoxFuture<'_, Result<Vec<FragmentUsage>>>;

    /// The disks, lost ones too.
    fn disks(&self) -> BoxFuture<'_, Result<Vec<DiskState>>>;

    /// Whether there is a disk that is not lost.
    fn has_disk(&self) -> BoxFuture<'_, Result<bool>>;

    /// Closes all NBD connections of this VDI and refuses new ones until the directory says
    /// otherwise. When it returns, none of their requests is under way any more.
    fn disconnect(&self, vid: Vid) -> BoxFuture<'_, ()>;

    /// For another door, before it serves the VDI to a new client: when it returns, each request of
    /// NBD clients that are gone has taken effect or never will.
    fn settle(&self, vid: Vid) -> BoxFuture<'_, ()>;

    /// NBD connections to the VDI whose clients are there.
    fn connections(&self, vid: Vid) -> BoxFuture<'_, Result<usize>>;

    /// Returns when the worker has ended without having been told to: the process then stops with
    /// an error. Everything acknowledged is on the disk.
    fn ended(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Finishes requests, makes a checkpoint and closes everything. Later requests fail with
    /// `ShuttingDown`.
    fn shutdown(&self) -> BoxFuture<'_, Result<()>>;
}

/// What the worker asks about VDIs on behalf of its doors.
pub trait VdiDirectory: Send + Sync {
    /// The VDI an export names: the whole name first, then what is before the last `@` with the
    /// tag or snapshot id behind it. Waits until requests of a former control connection to that
    /// VDI have ended.
    fn open<'a>(&'a self, export: &'a str) -> BoxFuture<'a, Result<Arc<View>>>;

    /// Whether the VDI is still one that [`VdiDirectory::open`] may give.
    fn is_there(&self, vid: Vid) -> BoxFuture<'_, bool>;

    /// The names of all exports.
    fn list(&self) -> BoxFuture<'_, Vec<String>>;
}

/// A disk the data worker is given.
#[derive(Debug)]
pub struct WorkerDisk {
    /// Its directory, for messages and for its free space.
    pub path: PathBuf,
    /// Its uuid, as in the superblock unless [`WorkerConfig::fresh`].
    pub id: DiskId,
    /// Its opened files, or why it is lost: `NotFound` if it is not there.
    pub files: Result<StoreFiles>,
    /// The mark that the registry knows of it; 0 if none.
    pub stamp: u64,
}

/// Brings the registry up to what the disks know, before anything is served; see
/// [`crate::cluster::catch_up`].
pub type CatchUp =
    Box<dyn FnOnce(ShardPack, OnDisks) -> BoxFuture<'static, Result<ShardPack>> + Send>;

/// Everything the data worker is given.
pub struct WorkerConfig {
    /// Its disks.
    pub disks: Vec<WorkerDisk>,
    /// The cluster they belong to, for the superblock.
    pub cluster: [u8; 16],
    /// The node never belonged to a formatted cluster: its disks hold nothing, and a superblock,
    /// log and index must be written anew whatever is in the files.
    pub fresh: bool,
    /// How to reach the disks.
    pub engine: EngineChoice,
    /// Acknowledge writes before they are durable.
    pub nosync: bool,
    /// Bytes a second that the scrub may read; 0 is never.
    pub scrub: u64,
    /// The interval of this run, in which all versions are newer than any before, and where the
    /// shards are.
    pub shards: ShardPack,
    /// Tells the registry what was found on the disks.
    pub catch_up: CatchUp,
    /// `DIR/nbd.sock`, listening, not blocking.
    pub nbd_unix: UnixListener,
    /// NBD over TCP, listening, not blocking.
    pub nbd_tcp: Option<TcpListener>,
    /// Requests of other threads that may wait for the worker.
    pub queue: usize,
}

impl WorkerConfig {
    /// A bound for [`WorkerConfig::queue`] that control connections rarely meet.
    pub const QUEUE: usize = 256;
}
