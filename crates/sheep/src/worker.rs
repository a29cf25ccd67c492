//! The data worker: one thread that owns the disk, the data path of all VDIs and all NBD
//! connections, so that a request never changes threads between the client's socket and the disk.

mod exports;
mod gateway;
mod locks;
mod primary;
mod remote;
mod scrub;

use crate::data::{DataPlane, VdiDirectory, WorkerConfig};
use exports::DirectoryExports;
use gateway::Gateway;
use primary::Primary;
use remote::{Job, Remote};
use scrub::Scrub;
use sheepdog_nbd::Server;
use sheepdog_store::{Disk, DiskConfig};
use sheepdog_storelog::{Command, Limits};
use sheepdog_types::{Error, ErrorKind, Result};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// What the worker thread has at hand for a job.
pub(crate) struct Worker {
    gateway: Rc<Gateway>,
    nbd: Server<DirectoryExports>,
    scrub: Rc<Scrub>,
    nosync: bool,
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
    let random = uuid::Uuid::new_v4().as_u128() as u64;
    let (disk, report) = Disk::open(DiskConfig {
        dir: config.dir.clone(),
        files: config.files,
        engine: config.engine,
        disk: config.disk,
        cluster: config.cluster,
        fresh: config.fresh,
        log_id: random,
        limits: Limits { nosync: config.nosync, ..Limits::STANDARD },
    })?;
    tracing::info!(
        "store {} opened by {}: {} fragments, {} batches with {} writes replayed{}",
        config.dir.display(),
        disk.engine(),
        report.fragments,
        report.batches,
        report.records,
        if report.torn_tail { ", an unfinished batch dropped" } else { "" }
    );
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let driver = tokio::task::spawn_local(disk.clone().run());
        let gateway = Rc::new(Gateway::new(disk, Primary::new(config.interval)));
        let exports = Rc::new(DirectoryExports::new(directory, Rc::clone(&gateway)));
        let nbd = Server::new(exports, sheepdog_nbd::Limits::default());
        nbd.listen(config.nbd_unix)?;
        if let Some(listener) = config.nbd_tcp {
            nbd.listen(listener)?;
        }
        let scrub = Scrub::new(gateway.disk().clone(), config.scrub);
        let _scrubbing = tokio::task::spawn_local(Rc::clone(&scrub).run());
        let worker = Rc::new(Worker { gateway, nbd, scrub, nosync: config.nosync });
        let _ = opened.send(Ok(()));
        let mut driver = driver;
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(Job::Run(job)) => job(Rc::clone(&worker)),
                    Some(Job::Shutdown(done)) => {
                        jobs.close();
                        let result = shut_down(&worker, &mut jobs).await;
                        let _ = done.send(result);
                        return Ok(());
                    }
                    None => return shut_down(&worker, &mut jobs).await,
                },
                ended = &mut driver => {
                    // Everything acknowledged is on the disk; nothing more can be done here.
                    return match ended {
                        Ok(result) => result,
                        Err(e) => Err(failed("the disk's driver")(std::io::Error::other(e))),
                    };
                }
            }
        }
    })
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
    match worker.gateway.disk().command(Command::Checkpoint).await {
        // Everything acknowledged is in the log; the next start goes on from there.
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            tracing::warn!("no space to bring the log home: the next start will");
        }
        result => {
            result?;
        }
    }
    Ok(())
}

/// Where a job puts its result.
type Answer<T> = oneshot::Sender<T>;
