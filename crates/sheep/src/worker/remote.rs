//! The worker as other threads see it: jobs travel through a bounded queue and run there.

use super::Worker;
use super::gateway::Vdi;
use crate::data::{BoxFuture, DataPlane, DiskState, FragmentUsage, Progress, View};
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, LineageId, Result, Vid};
use sheepdog_volume::io::{MapExtent, Segment, Volume, ZeroMode};
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// What the worker is asked to do.
pub enum Job {
    /// Runs on the worker thread; long work goes on in a task of its own.
    Run(Box<dyn FnOnce(Rc<Worker>) + Send>),
    /// Finish and close.
    Shutdown(super::Answer<Result<()>>),
}

/// See the module.
pub struct Remote {
    jobs: mpsc::Sender<Job>,
    /// Bounds what is under way, not only what waits.
    permits: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Remote {
    /// At most `queue` requests under way.
    pub fn new(jobs: mpsc::Sender<Job>, queue: usize, thread: JoinHandle<()>) -> Self {
        Self { jobs, permits: Arc::new(Semaphore::new(queue)), thread: Mutex::new(Some(thread)) }
    }

    /// Runs `work` on the worker thread and gives its result.
    async fn ask<T, F>(&self, work: impl FnOnce(Rc<Worker>) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let permit: OwnedSemaphorePermit =
            Arc::clone(&self.permits).acquire_owned().await.map_err(|_| leaving())?;
        let (answer, result) = oneshot::channel();
        let job = Job::Run(Box::new(move |worker| {
            tokio::task::spawn_local(async move {
                // Whoever asked may be gone; the work is done all the same.
                let _ = answer.send(work(worker).await);
                drop(permit);
            });
        }));
        self.jobs.send(job).await.map_err(|_| leaving())?;
        result.await.map_err(|_| leaving())
    }
}

fn leaving() -> Error {
    ErrorKind::ShuttingDown.into()
}

fn vdi(worker: &Worker, view: Arc<View>) -> Vdi {
    Vdi::new(Rc::clone(&worker.gateway), view)
}

impl DataPlane for Remote {
    fn read(&self, view: Arc<View>, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Segment>>> {
        let work = move |w: Rc<Worker>| async move { vdi(&w, view).read(offset, len).await };
        Box::pin(async move { self.ask(work).await? })
    }

    fn write(&self, view: Arc<View>, offset: u64, data: Bytes) -> BoxFuture<'_, Result<()>> {
        let work = move |w: Rc<Worker>| async move { vdi(&w, view).write(offset, data).await };
        Box::pin(async move { self.ask(work).await? })
    }

    fn write_zeroes(
        &self,
        view: Arc<View>,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> BoxFuture<'_, Result<()>> {
        let work =
            move |w: Rc<Worker>| async move { vdi(&w, view).write_zeroes(offset, len, mode).await };
        Box::pin(async move { self.ask(work).await? })
    }

    fn map(&self, view: Arc<View>, offset: u64, len: u64) -> BoxFuture<'_, Result<Vec<MapExtent>>> {
        let work = move |w: Rc<Worker>| async move { vdi(&w, view).map(offset, len).await };
        Box::pin(async move { self.ask(work).await? })
    }

    fn sweep(&self, lineage: LineageId, vid: Vid, progress: Progress) -> BoxFuture<'_, Result<()>> {
        let work =
            move |w: Rc<Worker>| async move { w.gateway.sweep(lineage, vid, progress).await };
        Box::pin(async move { self.ask(work).await? })
    }

    fn usage(&self, lineage: LineageId, vid: Vid) -> BoxFuture<'_, Result<Vec<FragmentUsage>>> {
        let work = move |w: Rc<Worker>| async move {
            let mut all = Vec::new();
            for (_, disk) in w.gateway.disks().open() {
                let found = disk.owner_summaries(lineage, vid).await?;
                all.extend(found.into_iter().map(|(id, blocks, occupancy)| FragmentUsage {
                    number: id.number,
                    occupied: u64::from(occupancy),
                    stored: u64::from(blocks) * BLOCK_SIZE as u64,
                }));
            }
            all.sort_unstable_by_key(|usage| usage.number);
            Ok(all)
        };
        Box::pin(async move { self.ask(work).await? })
    }

    fn disks(&self) -> BoxFuture<'_, Result<Vec<DiskState>>> {
        let work = |w: Rc<Worker>| async move { w.states() };
        Box::pin(async move { self.ask(work).await })
    }

    fn has_disk(&self) -> BoxFuture<'_, Result<bool>> {
        let work = |w: Rc<Worker>| async move {
            // Asked every second: the time to look at all that changes by itself.
            w.gateway.disks().look_for_space();
            w.gateway.disks().is_any_left()
        };
        Box::pin(async move { self.ask(work).await })
    }

    fn disconnect(&self, vid: Vid) -> BoxFuture<'_, ()> {
        let work = move |w: Rc<Worker>| async move { w.nbd.close(vid.get()).await };
        Box::pin(async move {
            // A worker that is leaving closes all connections anyway.
            let _ = self.ask(work).await;
        })
    }

    fn settle(&self, vid: Vid) -> BoxFuture<'_, ()> {
        let work = move |w: Rc<Worker>| async move { w.nbd.settle(vid.get()).await };
        Box::pin(async move {
            // A worker that is leaving serves nobody any more.
            let _ = self.ask(work).await;
        })
    }

    fn connections(&self, vid: Vid) -> BoxFuture<'_, Result<usize>> {
        let work = move |w: Rc<Worker>| async move { w.nbd.live(vid.get()) };
        Box::pin(async move { self.ask(work).await })
    }

    fn ended(&self) -> BoxFuture<'_, ()> {
        // The worker drops its end of the queue when it ends.
        Box::pin(self.jobs.closed())
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (done, result) = oneshot::channel();
            if self.jobs.send(Job::Shutdown(done)).await.is_err() {
                return Ok(());
            }
            let result = result.await.map_err(|_| leaving())?;
            let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            result
        })
    }
}
