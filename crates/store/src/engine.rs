//! What every engine offers, which one is taken, and how durable writes are made on this disk.

use crate::areas::Areas;
use crate::blocking::Blocking;
use crate::ring::Ring;
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use sheepdog_storelog::io::{Area, Completion, DiskOp, OpId};
use sheepdog_types::{Error, ErrorKind, PageBuf, Result};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Carries out disk operations. Belongs to one thread. How many operations wait in it is bounded
/// by its caller; each holds its buffers until its completion is reaped. Dropping an engine drops
/// what has not started and waits for the rest.
pub trait Engine {
    /// Queues an operation. Only [`DiskOp::Extend`] is carried out here and now, its completion is
    /// reaped like the others.
    fn submit(&mut self, op: OpId, what: DiskOp);

    /// Hands over what is queued, in the order of submission. Some operations (buffered reads,
    /// failing ones) may be complete when it returns.
    ///
    /// # Errors
    /// Only when no operation can work any more: the disk is lost.
    fn kick(&mut self) -> io::Result<()>;

    /// Appends all completions that are there, without waiting.
    fn reap(&mut self, out: &mut Vec<Completion>);

    /// The operation that was handed to the disk last, so were those submitted before it. Others wait
    /// because the disk has as many as it may have.
    fn begun(&self) -> Option<OpId>;

    /// Operations submitted and not reaped yet.
    fn in_flight(&self) -> usize;

    /// Readable when completions may be there, until the next [`Engine::reap`] that takes them. Made
    /// for edge-triggered waiting too: clear the readiness, then reap once. See [`crate::Ready`].
    fn ready_fd(&self) -> BorrowedFd<'_>;

    /// How durable writes are made from now on.
    fn set_durable_method(&mut self, method: DurableMethod);

    /// For the log and for people.
    fn name(&self) -> &'static str;
}

/// Which engine to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EngineChoice {
    /// The ring, or blocking threads where it is refused.
    #[default]
    Auto,
    /// The ring or nothing.
    Ring,
    /// Blocking threads.
    Blocking,
}

/// How a durable write is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DurableMethod {
    /// The write carries `RWF_DSYNC`: the kernel chooses forced unit access or a flush.
    #[default]
    Dsync,
    /// A plain write, then `fdatasync`.
    Flush,
}

/// Opens an engine in the thread that will use it.
///
/// # Errors
/// When the chosen engine is refused; with [`EngineChoice::Auto`] only when no thread can be
/// started either.
pub fn open_engine(
    areas: &Arc<Areas>,
    choice: EngineChoice,
    method: DurableMethod,
) -> Result<Box<dyn Engine>> {
    let blocking = || -> Result<Box<dyn Engine>> {
        let engine = Blocking::open(Arc::clone(areas), method).map_err(|e| {
            Error::with_source(ErrorKind::Io, "cannot start threads for disk I/O", e)
        })?;
        Ok(Box::new(engine))
    };
    if choice == EngineChoice::Blocking {
        return blocking();
    }
    match Ring::open(Arc::clone(areas), method) {
        Ok(engine) => Ok(Box::new(engine)),
        Err(e) if choice == EngineChoice::Ring => {
            Err(Error::with_source(ErrorKind::Unsupported, "io_uring is refused here", e))
        }
        Err(e) => {
            tracing::warn!("io_uring is refused here ({e}); disk I/O uses blocking threads");
            blocking()
        }
    }
}

/// Waits until everything submitted is complete. For places where nothing else can happen
/// meanwhile: preparing, measuring, tests.
///
/// # Errors
/// As [`Engine::kick`], and those of `poll`.
pub fn drain(engine: &mut dyn Engine, out: &mut Vec<Completion>) -> io::Result<()> {
    engine.kick()?;
    loop {
        engine.reap(out);
        if engine.in_flight() == 0 {
            return Ok(());
        }
        let fd = engine.ready_fd();
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What [`measure_durable`] found: medians of one log unit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measured {
    /// The better method.
    pub method: DurableMethod,
    /// Of a write with `RWF_DSYNC`.
    pub dsync: Duration,
    /// Of a write and an `fdatasync`.
    pub flush: Duration,
}

/// Durable writes of each kind that are compared.
const MEASURED_WRITES: usize = 32;

/// Compares the ways of making a durable write on the log of a new store and leaves the engine set
/// to the better one. Writes zeros, so the log, still zero, stays zero.
///
/// # Errors
/// When a write fails.
pub fn measure_durable(
    engine: &mut dyn Engine,
    log_unit: usize,
    log_bytes: u64,
) -> Result<Measured> {
    let units = (log_bytes / log_unit as u64).max(1);
    let zeros = PageBuf::zeroed(log_unit).freeze().slice(..log_unit);
    let mut times = [Vec::new(), Vec::new()];
    let mut done = Vec::new();
    let mut next = 0;
    // One more round first, unmeasured: caches and lazily made kernel threads.
    for round in 0..=MEASURED_WRITES {
        for (method, times) in
            [DurableMethod::Dsync, DurableMethod::Flush].into_iter().zip(&mut times)
        {
            engine.set_durable_method(method);
            let start = Instant::now();
            engine.submit(
                OpId(next),
                DiskOp::Write {
                    area: Area::Log,
                    offset: next % units * log_unit as u64,
                    data: vec![Bytes::clone(&zeros)],
                    durable: true,
                },
            );
            next += 1;
            drain(engine, &mut done)
                .map_err(|e| Error::with_source(ErrorKind::Io, "measure the log", e))?;
            if round > 0 {
                times.push(start.elapsed());
            }
            for completion in done.drain(..) {
                completion.result.map_err(|e| {
                    Error::new(ErrorKind::Io, format!("measure the log: {}", e.text))
                })?;
            }
        }
    }
    for times in &mut times {
        times.sort_unstable();
    }
    let [dsync, flush] = [0, 1].map(|i| times[i][times[i].len() / 2]);
    // One call and one wake-up less are worth a tie, and on a busy machine medians tell more of the
    // machine than of the disk: the good quarter must say the same.
    let better = |at: usize| times[1][at] < times[0][at].mul_f64(0.95);
    let method = if better(MEASURED_WRITES / 4) && better(MEASURED_WRITES / 2) {
        DurableMethod::Flush
    } else {
        DurableMethod::Dsync
    };
    engine.set_durable_method(method);
    Ok(Measured { method, dsync, flush })
}

#[cfg(test)]
mod tests;
