//! The engine for places where io_uring is refused (containers, old kernels): a few threads that
//! make the plain system calls one after the other.

use crate::areas::{Areas, area_name, disk_error};
use crate::data_end::DataEnd;
use crate::engine::{DurableMethod, Engine};
use bytes::Bytes;
use rustix::event::EventfdFlags;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_types::PageBuf;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Operations carried out at once.
const THREADS: usize = 4;
/// Buffers one `pwritev2` takes (`UIO_MAXIOV`).
const SEGMENTS_MAX: usize = 1024;
/// Zeros written at once where holes cannot be punched.
const ZEROS_BYTES: usize = 1 << 20;

/// One operation on its way to a thread.
struct Job {
    op: OpId,
    what: DiskOp,
    /// How to make it durable, if it is to be.
    method: DurableMethod,
}

/// What the threads take from.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// See [`Engine::begun`].
    begun: Option<OpId>,
    stop: bool,
}

/// What the threads and the engine share.
struct Shared {
    areas: Arc<Areas>,
    queue: Mutex<Queue>,
    wake: Condvar,
    done: Mutex<Vec<Completion>>,
    /// Readable while there may be something in `done`.
    event: OwnedFd,
}

/// See the module.
pub struct Blocking {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    queued: Vec<Job>,
    in_flight: usize,
    data_end: DataEnd,
    method: DurableMethod,
}

impl Blocking {
    /// Starts the threads.
    ///
    /// # Errors
    /// When there is no thread or descriptor to be had.
    pub fn open(areas: Arc<Areas>, method: DurableMethod) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            areas,
            queue: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            event: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let mut engine = Self {
            shared,
            threads: Vec::with_capacity(THREADS),
            queued: Vec::new(),
            in_flight: 0,
            data_end: DataEnd::default(),
            method,
        };
        for i in 0..THREADS {
            let shared = Arc::clone(&engine.shared);
            // If one cannot be started, dropping `engine` stops those that run.
            engine.threads.push(
                std::thread::Builder::new()
                    .name(format!("disk-{i}"))
                    .spawn(move || shared.serve())?,
            );
        }
        Ok(engine)
    }
}

impl Engine for Blocking {
    fn submit(&mut self, op: OpId, what: DiskOp) {
        let what = self.shared.areas.placed(what);
        self.data_end.note(&what);
        self.in_flight += 1;
        if let DiskOp::Extend { len } = what {
            let result = match self.data_end.extend(&self.shared.areas, len) {
                Ok(()) => Ok(Bytes::new()),
                Err(e) => Err(disk_error("extend data", &e)),
            };
            self.shared.finish(Completion { op, result });
        } else {
            self.queued.push(Job { op, what, method: self.method });
        }
    }

    fn kick(&mut self) -> io::Result<()> {
        let jobs = self.queued.len();
        if jobs > 0 {
            lock(&self.shared.queue).jobs.extend(self.queued.drain(..));
            for _ in 0..jobs.min(THREADS) {
                self.shared.wake.notify_one();
            }
        }
        Ok(())
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        // First the event, then what it announces: what comes in between announces itself again.
        // An error means that there was no event.
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
        let mut done = lock(&self.shared.done);
        self.in_flight -= done.len();
        out.append(&mut done);
    }

    fn begun(&self) -> Option<OpId> {
        lock(&self.shared.queue).begun
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    fn set_durable_method(&mut self, method: DurableMethod) {
        self.method = method;
    }

    fn name(&self) -> &'static str {
        "blocking threads"
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        {
            let mut queue = lock(&self.shared.queue);
            queue.stop = true;
            queue.jobs.clear();
        }
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was printed by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The life of one thread.
    fn serve(&self) {
        loop {
            let job = {
                let mut queue = lock(&self.queue);
                loop {
                    if queue.stop {
                        return;
                    }
                    match queue.jobs.pop_front() {
                        Some(job) => {
                            queue.begun = Some(job.op);
                            break job;
                        }
                        None => {
                            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                        }
                    }
                }
            };
            let result = perform(&self.areas, job.what, job.method);
            self.finish(Completion { op: job.op, result });
        }
    }

    fn finish(&self, completion: Completion) {
        lock(&self.done).push(completion);
        // Fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// No code panics while it holds one of these locks, so what they guard is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries out one operation.
fn perform(areas: &Areas, what: DiskOp, method: DurableMethod) -> Result<Bytes, DiskError> {
    match what {
        DiskOp::Read { area, offset, len } => {
            read(areas, area, offset, len).map_err(|e| failed("read", area, offset, &e))
        }
        DiskOp::Write { area, offset, data, durable } => {
            let flush = durable && method == DurableMethod::Flush;
            let flags =
                if durable && !flush { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
            write(areas, area, offset, &data, flags)
                .and_then(|()| if flush { sync(areas, area) } else { Ok(()) })
                .map(|()| Bytes::new())
                .map_err(|e| failed("write", area, offset, &e))
        }
        DiskOp::Sync { area } => sync(areas, area)
            .map(|()| Bytes::new())
            .map_err(|e| disk_error(&format!("sync {}", area_name(area)), &e)),
        DiskOp::Punch { offset, len } => punch(areas, offset, len)
            .map(|()| Bytes::new())
            .map_err(|e| failed("punch", Area::Data, offset, &e)),
        DiskOp::Allocate { offset, len } => allocate(areas, offset, len)
            .map(|()| Bytes::new())
            .map_err(|e| failed("reserve", Area::Data, offset, &e)),
        // `submit` does it, never a thread.
        DiskOp::Extend { .. } => Err(DiskError {
            kind: DiskErrorKind::Io,
            text: "an extension reached a disk thread".to_owned(),
        }),
    }
}

fn failed(verb: &str, area: Area, offset: u64, error: &io::Error) -> DiskError {
    disk_error(&format!("{verb} {} at {offset}", area_name(area)), error)
}

fn read(areas: &Areas, area: Area, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut pages = PageBuf::reused(len);
    let buf = &mut pages.as_mut()[..len];
    let mut done = 0;
    while done < len {
        match areas.file(area).read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) if done + n == len => done = len,
            Ok(n) => {
                if areas.ends_before(area, offset + (done + n) as u64)? {
                    done += n;
                    break;
                }
                let next = areas.resume_at(done + n);
                if next <= done {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                done = next;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    // The kernel may have used the buffer behind what it counted.
    buf[done..].fill(0);
    Ok(pages.freeze().slice(..len))
}

fn write(
    areas: &Areas,
    area: Area,
    offset: u64,
    data: &[Bytes],
    flags: ReadWriteFlags,
) -> io::Result<()> {
    let mut slices: Vec<_> = data.iter().map(|b| IoSlice::new(b)).collect();
    let mut rest = &mut slices[..];
    let mut at = offset;
    // Empty ones in front would look like a write of nothing.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(SEGMENTS_MAX)];
        match rustix::io::pwritev2(areas.file(area), some, at, flags) {
            Ok(n) => {
                let n = if n == some.iter().map(|s| s.len()).sum::<usize>() {
                    n
                } else {
                    areas.resume_at(n)
                };
                if n == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                IoSlice::advance_slices(&mut rest, n);
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn sync(areas: &Areas, area: Area) -> io::Result<()> {
    Ok(rustix::fs::fdatasync(areas.file(area))?)
}

/// [`rustix::fs::fallocate`] of the data area, continued when a signal ends it early.
fn fallocate(areas: &Areas, flags: FallocateFlags, offset: u64, len: u64) -> Result<(), Errno> {
    loop {
        match rustix::fs::fallocate(areas.file(Area::Data), flags, offset, len) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn punch(areas: &Areas, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(areas, flags, offset, len) {
        Err(Errno::OPNOTSUPP) => {
            let end = areas.zeros_end(offset, len)?;
            let zeros = PageBuf::zeroed(ZEROS_BYTES).freeze();
            let mut at = offset;
            while at < end {
                let n = (end - at).min(ZEROS_BYTES as u64);
                let some = [zeros.slice(..n as usize)];
                write(areas, Area::Data, at, &some, ReadWriteFlags::empty())?;
                at += n;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

fn allocate(areas: &Areas, offset: u64, len: u64) -> io::Result<()> {
    if areas.data_is_device() {
        return Ok(());
    }
    match fallocate(areas, FallocateFlags::KEEP_SIZE, offset, len) {
        Err(Errno::OPNOTSUPP) => {
            areas.say_no_reserving();
            Ok(())
        }
        other => Ok(other?),
    }
}
