//! The order of a start: listeners, the store's identity, the registry, that it is not an older
//! one put back, the claim, the interval, the store's files, the data worker. Each step fails with
//! one line and leaves nothing that the next start would stumble over.

use super::listen::{self, Sockets};
use super::{SpawnWorker, is_held, patiently, say, told};
use crate::cluster::{self, Identities, Identity, disks};
use crate::control::Listeners;
use crate::data::{WorkerConfig, WorkerDisk};
use crate::node::{Me, Node, disk_watch, table_copy};
use crate::options::Options;
use sheepdog_registry::{
    Driver, Joined, LocalOptions, LocalRegistry, Member, Registry, Session, directory_is_empty,
};
use sheepdog_store::{StoreFiles, StoreLock, device, offline, space};
use sheepdog_types::{BLOCK_SIZE, DiskId, Error, ErrorKind, Geometry, Result};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a new store's log unless told.
const LOG_BYTES: u64 = 256 << 20;
/// The same where a log of [`LOG_BYTES`] would take more than an eighth of the space.
const LOG_BYTES_SMALL: u64 = 64 << 20;

/// Everything that runs when the start is over.
pub struct Started {
    /// Shared by all that serve.
    pub node: Arc<Node>,
    /// Where dog is served.
    pub control: Listeners,
    /// Removed when we leave.
    pub sockets: Sockets,
    /// The claim to be the one sheep.
    pub claim: Box<dyn Session>,
    /// Closed when we leave.
    pub registry: LocalRegistry,
    /// Nobody else uses the disks while we do.
    pub disks: Vec<StoreLock>,
}

/// Starts everything.
///
/// # Errors
/// The line for whoever started us.
pub async fn start(
    options: &Options,
    store: &StoreLock,
    spawn_worker: SpawnWorker,
) -> Result<Started> {
    let bound = listen::bind(options).map_err(|line| Error::new(ErrorKind::Unreachable, line))?;
    let mut identity = identity(store)?;
    let take = |path: &Path| patiently(|| StoreLock::take(path), is_held);
    let disks = disks::find(store, &mut identity, &options.disks, take)?;
    let driver = driver(options, &identity)?;
    let Driver::Local { file } = &driver;
    let registry_file = Driver::local_file(file.as_deref(), store.dir())?;
    let registry = join(&registry_file, store.dir(), &identity).await?;
    let me = Me::new(options.address, options.port, options.zone, driver.to_string());
    let who = format!(
        "{} with {}",
        std::net::SocketAddr::new(me.address, me.port),
        store.dir().display()
    );
    let ids: Vec<DiskId> = disks.iter().map(|disk| disk.id).collect();
    let weight = |id| {
        let path = disks.iter().find(|disk| disk.id == id).map_or(store.dir(), |disk| &disk.path);
        free_space(path)
    };
    // Where the node's copies of the VDI table may be.
    let copies = disks
        .iter()
        .flat_map(|disk| [disk.path.clone(), disks::dir_of_device(store.dir(), disk.id)]);
    let copies: Vec<PathBuf> = copies.chain([store.dir().to_owned()]).collect();
    let taken_in = async {
        table_copy::refuse_older(&registry, registry.cluster(), &registry_file, copies).await?;
        identity.join(registry.cluster(), OsString::from(&driver).to_str().map(str::to_owned));
        if !identity.is_empty() {
            // The registry may have another path now.
            identity.remember_cluster()?;
        }
        let claim = cluster::claim(&registry, &who).await?;
        let shards = cluster::begin_interval(&registry, &ids, weight).await?;
        Ok::<_, Error>((claim, shards))
    };
    let (claim, shards) = match taken_in.await {
        Ok(taken_in) => taken_in,
        Err(refused) => {
            if *registry.joined() == Joined::NewMember {
                // The cluster is not to wait for a store that never was part of it.
                let _ = registry.forget(store.dir()).await;
            }
            return Err(with_cure(refused, &registry_file, &identity));
        }
    };
    let fresh = identity.is_empty();
    let stamps = cluster::stamps(&registry).await?;
    let mut identities = Identities { node: identity, disks: Vec::new() };
    let (mut locks, mut worker_disks) = (Vec::new(), Vec::new());
    let mut notices = Vec::new();
    for disk in disks {
        let files = disk.found.and_then(|found| {
            let lock = found.lock.as_ref().unwrap_or(store);
            let files = files(options, lock, &disk.path, disk.id, &mut notices)?;
            locks.extend(found.lock);
            identities.disks.extend(found.identity);
            Ok(files)
        });
        // What is prepared anew begins again.
        let stamp = stamps.get(&disk.id).copied().filter(|_| !fresh).unwrap_or_default();
        worker_disks.push(WorkerDisk { path: disk.path, id: disk.id, files, stamp });
    }
    let node = Arc::new(Node::new(me, Arc::new(registry.clone()) as Arc<dyn Registry>, identities));
    // A registry of a newer version is refused now and not at the first request.
    node.tables.current().await?;
    let config = WorkerConfig {
        disks: worker_disks,
        cluster: registry.cluster().into_bytes(),
        fresh,
        engine: options.io,
        nosync: options.nosync,
        scrub: options.scrub,
        shards,
        catch_up: {
            let registry = registry.clone();
            Box::new(move |shards, found| {
                Box::pin(async move {
                    cluster::catch_up(&registry, &registry_file, shards, found).await
                })
            })
        },
        nbd_unix: bound.nbd_unix,
        nbd_tcp: bound.nbd_tcp,
        queue: WorkerConfig::QUEUE,
    };
    // The one place where the data worker comes in.
    let data = spawn_worker(config, Arc::clone(&node) as _)?;
    node.set_data(data);
    disk_watch::look(&node).await?;
    // A start that fails says why and nothing else.
    for line in notices {
        tracing::warn!("{line}");
        say(&(line + "\n"));
    }
    // The address may be news too.
    cluster::note_epoch(&registry, &node.me).await?;
    Ok(Started {
        node,
        control: Listeners { tcp: bound.control_tcp, unix: bound.control_unix },
        sockets: bound.sockets,
        claim,
        registry,
        disks: locks,
    })
}

/// Who the disk is; made up for a directory without a store.
fn identity(store: &StoreLock) -> Result<Identity> {
    match Identity::read(store.dir())? {
        Some(identity) if identity.node.is_some() => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{} is a disk of another store: it must come behind that one",
                store.dir().display()
            ),
        )),
        Some(identity) => {
            let has_data = !identity.is_empty() && identity.disks.is_empty();
            if has_data && !store.is_prepared()? {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "the store {} belongs to a cluster, but its data is not there",
                        store.dir().display()
                    ),
                ));
            }
            Ok(identity)
        }
        None if store.is_prepared()? => Err(Error::new(
            ErrorKind::Io,
            format!(
                "the store {} has data, but its file 'identity' is missing: {}",
                store.dir().display(),
                disks::BRING_IT_BACK
            ),
        )),
        None => Identity::create(store.dir(), None),
    }
}

/// What `-c` says, or what the store remembers.
fn driver(options: &Options, identity: &Identity) -> Result<Driver> {
    match (&options.cluster, &identity.registry) {
        (Some(driver), _) => Ok(driver.clone()),
        (None, Some(remembered)) => Driver::parse(OsStr::new(remembered)),
        (None, None) => Ok(Driver::Local { file: None }),
    }
}

/// A store that holds nothing found its neighbour's cluster: which that is, and how to have one of
/// its own.
fn with_cure(refused: Error, registry: &Path, identity: &Identity) -> Error {
    let is_taken = matches!(refused.kind(), ErrorKind::Locked | ErrorKind::Invalid);
    if !is_taken || !identity.is_empty() {
        return refused;
    }
    let line = format!(
        "{}; that cluster's registry is {}: for another cluster start with -c local:FILE, or put \
         the store into another directory",
        told(&refused),
        registry.display()
    );
    Error::new(refused.kind(), line)
}

async fn join(registry: &Path, store: &Path, identity: &Identity) -> Result<LocalRegistry> {
    let options = LocalOptions {
        file: registry.to_owned(),
        member: Some(Member {
            store: store.to_owned(),
            disk: Some(identity.disk),
            empty: identity.is_empty(),
            cluster: identity.cluster,
            store_is_empty,
        }),
    };
    let registry = LocalRegistry::open(options).await?;
    match registry.joined() {
        Joined::CreatedAnew { old } => tracing::warn!(
            "every store of the registry's cluster is gone: moved it to {}",
            old.display()
        ),
        Joined::BroughtBack => tracing::warn!("brought the registry of this store back"),
        Joined::Created | Joined::Member | Joined::NewMember => {}
    }
    Ok(registry)
}

/// Whether the store in another directory never belonged to a formatted cluster.
fn store_is_empty(dir: &Path) -> std::io::Result<bool> {
    let other = |error: Error| std::io::Error::other(told(&error));
    match Identity::read(dir) {
        Ok(Some(identity)) if !identity.is_empty() => Ok(false),
        Ok(Some(identity)) => {
            // One of before the format, put back by mistake, is not believed.
            let disks = identity.disks.iter().map(|known| known.path.as_path());
            for dir in [dir].into_iter().chain(disks.filter(|path| path.is_dir())) {
                if !offline::is_unused(dir, None).map_err(other)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Ok(None) => directory_is_empty(dir),
        Err(error) => Err(other(error)),
    }
}

/// Bytes that a disk has for a store: all of a device, or what the file system has left.
fn free_space(path: &Path) -> Result<u64> {
    if device::is_device(path) { device::capacity(path) } else { Ok(space(path)?.free) }
}

/// The store's files, prepared if there are none.
fn files(
    options: &Options,
    store: &StoreLock,
    path: &Path,
    disk: DiskId,
    notices: &mut Vec<String>,
) -> Result<StoreFiles> {
    if store.is_prepared()? {
        let files = store.open()?;
        if let Some(dir) = options.journal.as_ref().and_then(|journal| journal.dir.as_deref()) {
            store.check_log_is_in(dir)?;
        }
        let bytes = options.journal.as_ref().and_then(|journal| journal.bytes);
        // The log on a device is whole units, any other whole blocks.
        let is_it = |bytes: u64| {
            [BLOCK_SIZE as u64, Geometry::STANDARD.chunk_bytes()]
                .iter()
                .any(|whole| bytes.checked_next_multiple_of(*whole) == Some(files.log_bytes))
        };
        if bytes.is_some_and(|bytes| !is_it(bytes)) {
            let line = format!(
                "-j size has no effect: {} has a log of {} bytes already",
                path.display(),
                files.log_bytes
            );
            notices.push(line);
        }
        return Ok(files);
    }
    let bytes = match options.journal.as_ref().and_then(|journal| journal.bytes) {
        Some(bytes) => bytes.next_multiple_of(BLOCK_SIZE as u64),
        None if free_space(path)? / 8 < LOG_BYTES => LOG_BYTES_SMALL,
        None => LOG_BYTES,
    };
    let log_dir = options.journal.as_ref().and_then(|journal| journal.dir.clone());
    let place = log_dir.as_deref().unwrap_or(path);
    tracing::info!(
        "preparing {} with a log of {bytes} bytes on {}",
        path.display(),
        place.display()
    );
    let log = log_dir.map(|dir| dir.join(format!("sheep-log-{disk}")));
    match log {
        log if device::is_device(path) => store.prepare_on_device(path, bytes, log.as_deref()),
        Some(log) => store.prepare_with_log_at(bytes, &log),
        None => store.prepare(bytes),
    }
}
