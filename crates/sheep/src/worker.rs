//! The data worker: one thread that owns the disks, the data path of all VDIs and all NBD
//! connections, so that a request never changes threads between the client's socket and the disk.

mod disks;
mod exports;
mod gateway;
mod locks;
mod primary;
mod remote;
mod scrub;

use crate::cluster::OnDisks;
use crate::cluster::disks::same_disk;
use crate::data::{DataPlane, DiskState, VdiDirectory, WorkerConfig, WorkerDisk};
use crate::process::{say, told};
use disks::{Disks, Slot};
use exports::DirectoryExports;
use gateway::Gateway;
use primary::Primary;
use remote::{Job, Remote};
use scrub::Scrub;
use sheepdog_nbd::Server;
use sheepdog_store::{Disk, DiskConfig, device};
use sheepdog_storelog::{Command, Limits, OpenReport};
use sheepdog_types::{Error, ErrorKind, Result};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// What the worker thread has at hand for a job.
pub(crate) struct Worker {
    gateway: Rc<Gateway>,
    nbd: Server<DirectoryExports>,
    /// One for each open disk, in their order.
    scrubs: Vec<Rc<Scrub>>,
    nosync: bool,
}

impl Worker {
    /// What is known of each disk.
    fn states(&self) -> Vec<DiskState> {
        let mut scrubs = self.scrubs.iter();
        let state = |slot: &Slot| {
            let mut state = slot.state(self.nosync);
            if slot.disk.is_ok()
                && let Some(scrub) = scrubs.next()
            {
                state.scrub = scrub.state();
            }
            state
        };
        self.gateway.disks().slots().iter().map(state).collect()
    }
}

/// Starts the worker on a thread of its own; returns when it can serve.
///
/// # Errors
/// When the store cannot be opened or the thread not be started.
pub fn spawn(config: WorkerConfig, directory: Arc<dyn VdiDirectory>) -> Result<Arc<dyn DataPlane>> {
    let queue = config.queue;
    let (jobs, waiting) = mpsc::channel(queue);
    let (opened, open) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("data".to_owned())
        .spawn(move || {
            if let Err(error) = work(config, directory, waiting, &opened) {
                tracing::error!("the data worker: {}", error.full());
                let _ = opened.send(Err(error));
            }
        })
        .map_err(|e| Error::with_source(ErrorKind::Internal, "start the data worker", e))?;
    open.recv().map_err(|_| Error::new(ErrorKind::Internal, "the data worker ended at once"))??;
    Ok(Arc::new(Remote::new(jobs, queue, thread)))
}

fn work(
    config: WorkerConfig,
    directory: Arc<dyn VdiDirectory>,
    mut jobs: mpsc::Receiver<Job>,
    opened: &std::sync::mpsc::Sender<Result<()>>,
) -> Result<()> {
    let failed = |what: &'static str| move |e| Error::with_source(ErrorKind::Internal, what, e);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the data worker"))?;
    let (mut slots, mut unopened) = (Vec::with_capacity(config.disks.len()), None);
    let mut found = OnDisks::default();
    for WorkerDisk { path, id, files, stamp } in config.disks {
        // Two names of one device that was blank: what was prepared under the first shows under the
        // second, before anything is written there.
        if config.fresh
            && device::is_device(&path)
            && let Some(found) = device::superblock(&path)?
            && let Some(first) = slots.iter().find(|slot: &&Slot| slot.id == found.disk)
        {
            return Err(same_disk(&first.path, &path));
        }
        let opened = files.and_then(|files| {
            open(DiskConfig {
                dir: path.clone(),
                files,
                engine: config.engine,
                disk: id,
                cluster: config.cluster,
                fresh: config.fresh,
                log_id: uuid::Uuid::new_v4().as_u128() as u64,
                limits: Limits { nosync: config.nosync, ..Limits::STANDARD },
                stamp,
            })
        });
        let disk = match opened {
            Ok((disk, report)) => {
                found.add(id, &report, disk.lineages().last().copied());
                Ok(disk)
            }
            // Nothing is lost yet, or a start without it is not for us to decide.
            Err(error)
                if config.fresh
                    || matches!(error.kind(), ErrorKind::Locked | ErrorKind::VersionMismatch) =>
            {
                return Err(error);
            }
            Err(error) => {
                let why = told(&error);
                if error.kind() != ErrorKind::NotFound {
                    unopened.get_or_insert(error);
                }
                Err(why)
            }
        };
        slots.push(Slot::new(id, path, disk));
    }
    // Where nothing else is served, somebody should look at a disk first that is there and cannot be
    // opened.
    if let Some(error) = unopened
        && slots.iter().all(|slot| slot.disk.is_err())
    {
        return Err(error);
    }
    for Slot { path, disk, .. } in &slots {
        if let Err(why) = disk {
            let line = format!("the disk {} is lost: {why}", path.display());
            tracing::error!("{line}");
            // Whoever starts it should not have to look for what does not serve.
            say(&(line + "\n"));
        }
    }
    let shards = runtime.block_on((config.catch_up)(config.shards, found))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let interval = shards.interval;
        let disks = Disks::new(slots, shards)?;
        for (_, disk) in disks.open() {
            tokio::task::spawn_local(disk.clone().run());
        }
        let gateway = Rc::new(Gateway::new(disks, Primary::new(interval)));
        let exports = Rc::new(DirectoryExports::new(directory, Rc::clone(&gateway)));
        let nbd = Server::new(exports, sheepdog_nbd::Limits::default());
        nbd.listen(config.nbd_unix)?;
        if let Some(listener) = config.nbd_tcp {
            nbd.listen(listener)?;
        }
        let scrub = |(_, disk): (_, &Disk)| Scrub::new(disk.clone(), config.scrub);
        let scrubs: Vec<_> = gateway.disks().open().map(scrub).collect();
        for scrub in &scrubs {
            tokio::task::spawn_local(Rc::clone(scrub).run());
        }
        let worker = Rc::new(Worker { gateway, nbd, scrubs, nosync: config.nosync });
        let _ = opened.send(Ok(()));
        loop {
            match jobs.recv().await {
                Some(Job::Run(job)) => job(Rc::clone(&worker)),
                Some(Job::Shutdown(done)) => {
                    jobs.close();
                    let result = shut_down(&worker, &mut jobs).await;
                    let _ = done.send(result);
                    return Ok(());
                }
                None => return shut_down(&worker, &mut jobs).await,
            }
        }
    })
}

/// Opens one disk and says so.
fn open(config: DiskConfig) -> Result<(Disk, OpenReport)> {
    let path = config.dir.clone();
    let (disk, report) = Disk::open(config)?;
    tracing::info!(
        "store {} opened by {}: {} fragments, {} batches with {} writes replayed{}",
        path.display(),
        disk.engine(),
        report.fragments,
        report.batches,
        report.records,
        if report.torn_tail { ", an unfinished batch dropped" } else { "" }
    );
    Ok((disk, report))
}

/// Doors first, then what other threads asked for, then everything home.
async fn shut_down(worker: &Rc<Worker>, jobs: &mut mpsc::Receiver<Job>) -> Result<()> {
    worker.nbd.shutdown().await;
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Run(job) => job(Rc::clone(worker)),
            Job::Shutdown(done) => {
                let _ = done.send(Ok(()));
            }
        }
    }
    let mut ended = Ok(());
    for (path, disk) in worker.gateway.disks().open() {
        match disk.command(Command::Checkpoint).await {
            Ok(_) => {}
            // Everything acknowledged is in the log; the next start goes on from there.
            Err(error) if error.kind() == ErrorKind::NoSpace => tracing::warn!(
                "no space in {} to bring the log home: the next start will",
                path.display()
            ),
            Err(error) => {
                // The others are closed in order all the same.
                let what = format!("the disk {}", path.display());
                ended = Err(Error::with_source(error.kind(), what, error));
            }
        }
    }
    ended
}

/// Where a job puts its result.
type Answer<T> = oneshot::Sender<T>;
