//! The engine for production: an io_uring ring in the thread that owns the disk. The kernel works
//! directly on the buffers of the operations.
//!
//! The rule that keeps this sound: whatever the kernel may still touch (buffers, arrays of
//! segments) belongs to a `Slot`, and a slot leaves the slab only when the completion of its one
//! call to the kernel has been seen. Dropping the ring waits for all of them.

mod slot;

use crate::areas::Areas;
use crate::data_end::DataEnd;
use crate::engine::{DurableMethod, Engine};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::fs::FallocateFlags;
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use slab::Slab;
use slot::{Call, Next, Slot};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Operations the kernel works on at once; more wait their turn in the engine.
const ENTRIES: u32 = 256;
/// Calls in a row that hand nothing over: the kernel is short of memory, or something interrupts it.
const ENTER_ATTEMPTS: u32 = 1000;

/// See the module. Not `Send`: the kernel accepts submissions only from the thread that made it.
pub struct Ring {
    ring: IoUring,
    areas: Arc<Areas>,
    method: DurableMethod,
    data_end: DataEnd,
    slots: Slab<Slot>,
    /// Keys of slots with a call to make.
    waiting: VecDeque<usize>,
    /// See [`Engine::begun`].
    begun: Option<OpId>,
    /// Slots whose call was handed over and has not completed.
    in_kernel: usize,
    entries: usize,
    /// Why nothing works any more.
    dead: Option<String>,
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// Makes a ring for the calling thread.
    ///
    /// # Errors
    /// When the kernel, its settings or a sandbox refuse it, or it is too old.
    pub fn open(areas: Arc<Areas>, method: DurableMethod) -> io::Result<Self> {
        let ring = build(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        for code in [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::Nop::CODE,
        ] {
            if !probe.is_supported(code) {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("the kernel's io_uring lacks operation {code}"),
                ));
            }
        }
        // In the order of `fd` below.
        let files = [Area::Data, Area::Log].map(|a| areas.file(a).as_raw_fd());
        ring.submitter().register_files(&files)?;
        let entries = ring.params().sq_entries() as usize;
        Ok(Self {
            ring,
            areas,
            method,
            data_end: DataEnd::default(),
            slots: Slab::with_capacity(entries),
            waiting: VecDeque::new(),
            begun: None,
            in_kernel: 0,
            entries,
            dead: None,
            not_send: PhantomData,
        })
    }

    /// Makes the calls of waiting slots, as many as fit.
    fn hand_over(&mut self) -> io::Result<()> {
        if let Some(text) = &self.dead {
            return Err(io::Error::other(text.clone()));
        }
        let mut queue = self.ring.submission();
        while self.in_kernel < self.entries
            && let Some(key) = self.waiting.pop_front()
        {
            let slot = &mut self.slots[key];
            let (op, call) = (slot.op, slot.call());
            let entry = entry(call).user_data(key as u64);
            // SAFETY: all the entry points to belongs to the slot, which stays in the slab,
            // unchanged, until the completion of this entry was seen (`reap`, `drop`).
            if unsafe { queue.push(&entry) }.is_err() {
                self.waiting.push_front(key);
                break;
            }
            self.in_kernel += 1;
            if !matches!(call, Call::Nop) {
                self.begun = Some(op);
            }
        }
        drop(queue);
        let result = self.enter();
        if let Err(e) = &result {
            self.dead = Some(format!("io_uring stopped working: {e}"));
        }
        result
    }

    /// Submits until the kernel has taken all entries of the queue.
    fn enter(&mut self) -> io::Result<()> {
        let mut attempts = 0;
        while !self.ring.submission().is_empty() {
            let error = match self.ring.submit() {
                Ok(0) => io::Error::other("the kernel takes no operation"),
                Ok(_) => {
                    attempts = 0;
                    continue;
                }
                Err(e) => e,
            };
            if !passes(&error) || attempts == ENTER_ATTEMPTS {
                return Err(error);
            }
            attempts += 1;
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Takes the completions that are in the queue now.
    fn take(&mut self, out: &mut Vec<Completion>) {
        // Completions the kernel keeps back until it is entered.
        if self.ring.submission().taskrun() {
            // Whatever is wrong shows again where something is submitted.
            let _ = self.ring.submit();
        }
        for cqe in self.ring.completion() {
            let key = cqe.user_data() as usize;
            let Some(slot) = self.slots.get_mut(key) else {
                tracing::error!("io_uring completed an operation that nobody asked for");
                continue;
            };
            self.in_kernel -= 1;
            match slot.landed(cqe.result(), &self.areas) {
                // Ahead of what has not started: others may wait for it.
                Next::Again => self.waiting.push_front(key),
                Next::Done(result) => {
                    let slot = self.slots.remove(key);
                    out.push(Completion { op: slot.op, result });
                }
            }
        }
    }
}

impl Engine for Ring {
    fn submit(&mut self, op: OpId, what: DiskOp) {
        let what = self.areas.placed(what);
        self.data_end.note(&what);
        let extended = match what {
            DiskOp::Extend { len } => self.data_end.extend(&self.areas, len),
            _ => Ok(()),
        };
        let slot = Slot::new(op, what, self.method, extended, &self.areas);
        self.waiting.push_back(self.slots.insert(slot));
    }

    fn kick(&mut self) -> io::Result<()> {
        self.hand_over()
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        loop {
            self.take(out);
            // Room for those that wait, and for the rest of the short ones.
            if self.waiting.is_empty() || self.in_kernel == self.entries {
                return;
            }
            if self.dead.is_some() || self.hand_over().is_err() {
                break;
            }
            if self.ring.completion().is_empty() {
                return;
            }
        }
        // Those the kernel will never see.
        let text = self.dead.clone().unwrap_or_default();
        for key in std::mem::take(&mut self.waiting) {
            let slot = self.slots.remove(key);
            out.push(Completion {
                op: slot.op,
                result: Err(DiskError { kind: DiskErrorKind::Io, text: text.clone() }),
            });
        }
    }

    fn begun(&self) -> Option<OpId> {
        self.begun
    }

    fn in_flight(&self) -> usize {
        self.slots.len()
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and is borrowed for as long.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    fn set_durable_method(&mut self, method: DurableMethod) {
        self.method = method;
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.in_kernel > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if passes(&e) => std::thread::yield_now(),
                Err(e) => {
                    // The kernel may still use their buffers: they stay for ever.
                    tracing::error!("io_uring cannot be drained, its buffers are abandoned: {e}");
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
            self.in_kernel -= self.ring.completion().count();
        }
    }
}

/// Whether a call to the kernel that failed so may work the next time.
fn passes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// A ring with all that helps one thread which waits in epoll, or a plain one on older kernels. Not
/// `setup_defer_taskrun`: work put off that way wakes nobody who polls the ring's descriptor (tried
/// on 6.18: waiting never ends).
fn build(entries: u32) -> io::Result<IoUring> {
    let new = IoUring::builder()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match new {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
        other => other,
    }
}

/// The registered file of an area.
fn fd(area: Area) -> types::Fixed {
    match area {
        Area::Data => types::Fixed(0),
        Area::Log => types::Fixed(1),
    }
}

fn entry(call: Call) -> squeue::Entry {
    let flags = |dsync| if dsync { libc::RWF_DSYNC } else { 0 };
    match call {
        Call::Nop => opcode::Nop::new().build(),
        Call::Read { area, offset, buf, len } => {
            opcode::Read::new(fd(area), buf, len).offset(offset).build()
        }
        Call::Write { area, offset, buf, len, dsync } => {
            opcode::Write::new(fd(area), buf, len).offset(offset).rw_flags(flags(dsync)).build()
        }
        Call::Writev { area, offset, segments, count, dsync } => {
            opcode::Writev::new(fd(area), segments, count)
                .offset(offset)
                .rw_flags(flags(dsync))
                .build()
        }
        Call::Sync { area } => {
            opcode::Fsync::new(fd(area)).flags(types::FsyncFlags::DATASYNC).build()
        }
        Call::Punch { offset, len } => {
            fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
        }
        Call::Allocate { offset, len } => fallocate(FallocateFlags::KEEP_SIZE, offset, len),
    }
}

fn fallocate(mode: FallocateFlags, offset: u64, len: u64) -> squeue::Entry {
    opcode::Fallocate::new(fd(Area::Data), len).offset(offset).mode(mode.bits() as i32).build()
}
