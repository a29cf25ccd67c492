//! Drives one disk's store: its state machine, the engine that does its I/O, and everyone who
//! waits for an answer, all in the worker thread that owns the disk.
//!
//! Requests are fed to the state machine at once; what they made it want is handed to the kernel
//! by the driver's own task, which runs after all requests of the same turn, so that writes that
//! came together share a batch and one system call.

use crate::areas::Areas;
use crate::engine::{DurableMethod, Engine, EngineChoice, drain, measure_durable, open_engine};
use crate::files::{StoreFiles, free_bytes};
use crate::ready::Ready;
use sheepdog_storelog::io::{Area, Completion, DiskOp, OpId};
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, LOG_ELSEWHERE, LOG_HAS_OWNER, Limits, OWNER_BYTES,
    OpenReport, Opening, Stats, Store, Superblock, Usage, prepare,
};
use sheepdog_types::{
    BLOCK_SIZE, DiskId, Error, ErrorKind, FragmentId, Geometry, LineageId, Result, Vid,
};
use slab::Slab;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use uuid::Uuid;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two looks at the host's free space.
const TICKS_PER_SPACE: u32 = 4;
/// Ticks that an operation may take. They, and not the clock, so that no disk is blamed for the time
/// in which this process was stopped or waited for a processor.
const TICKS_PER_OPERATION: usize = 20;
/// The data file grows by so much at a time, so that writes rarely change its length.
const EXTEND_BYTES: u64 = 1 << 30;
/// Names the driver's own operations; the store never sees their completions.
const OWN_OP: OpId = OpId(u64::MAX);
/// Between two lines about I/O errors.
const BETWEEN_ERRORS: Duration = Duration::from_millis(200);
/// How long the writes of a killed predecessor may take to end.
const PREDECESSOR: Duration = Duration::from_secs(30);

/// Everything needed to open a disk.
#[derive(Debug)]
pub struct DiskConfig {
    /// What it is called, and where its host file system is, for its free space.
    pub dir: PathBuf,
    /// Its files.
    pub files: StoreFiles,
    /// How to reach them.
    pub engine: EngineChoice,
    /// Who it is; compared with the superblock unless `fresh`.
    pub disk: DiskId,
    /// Its cluster; compared with the superblock unless `fresh`.
    pub cluster: [u8; 16],
    /// Make a new, empty store whatever is in the files.
    pub fresh: bool,
    /// For a new superblock: tells this log from all others.
    pub log_id: u64,
    /// What it may use.
    pub limits: Limits,
    /// The mark that it reached once, as the registry knows; one with less was put back from a copy.
    pub stamp: u64,
}

struct State {
    store: Box<Store>,
    engine: Box<dyn Engine>,
    waiting: Slab<Waiting>,
    effects: Vec<Effect>,
    completions: Vec<Completion>,
    data_end: u64,
    reported_failure: bool,
    errors: ErrorLog,
    /// The store's operation that was begun last, at each of the last ticks; their numbers grow.
    last_ops: VecDeque<Option<OpId>>,
}

/// A fault is never silent, but a damaged disk read over and over must not fill the log either.
#[derive(Default)]
struct ErrorLog {
    last: Option<Instant>,
    left_out: u64,
}

impl ErrorLog {
    fn note(&mut self, error: &Error) {
        if self.last.is_some_and(|last| last.elapsed() < BETWEEN_ERRORS) {
            self.left_out += 1;
            return;
        }
        match std::mem::take(&mut self.left_out) {
            0 => tracing::error!("{}", error.full()),
            n => tracing::error!("{} ({n} more errors since the last line)", error.full()),
        }
        self.last = Some(Instant::now());
    }
}

enum Waiting {
    Asked(Option<Waker>),
    Answered(Result<Answer>),
    /// Nobody wants the answer any more.
    Gone,
}

struct Inner {
    state: RefCell<State>,
    work: Notify,
    dir: PathBuf,
    on_device: bool,
    started: Instant,
}

/// A disk as its worker thread sees it. Clones share it.
#[derive(Clone)]
pub struct Disk {
    inner: Rc<Inner>,
}

impl Disk {
    /// Opens the store in these files, or makes a new one. Blocks until that is done.
    ///
    /// # Errors
    /// When there is no engine, the store is damaged, newer, or another disk's or cluster's.
    pub fn open(config: DiskConfig) -> Result<(Self, OpenReport)> {
        let DiskConfig { dir, files, engine: choice, disk, cluster, fresh, log_id, .. } = config;
        let (mut limits, stamp) = (config.limits, config.stamp);
        if let Some(units) = files.device_units {
            (limits.units_max, limits.whole_units) = (units, true);
        }
        wait_for_predecessor(&files.areas)?;
        let mut engine = open_engine(&files.areas, choice, DurableMethod::Dsync)?;
        if fresh {
            // The last block of the log area says whose it is; the ring ends before it.
            let log_bytes = files.log_bytes.saturating_sub(OWNER_BYTES);
            let measured = measure_durable(engine.as_mut(), files.log_unit, log_bytes)?;
            let elsewhere = files.device_units.is_some() && !files.areas.has_log_inside();
            let superblock = Superblock {
                disk,
                cluster,
                log_id,
                log_bytes,
                log_unit: files.log_unit as u32,
                geometry: Geometry::STANDARD,
                log_fua: measured.method == DurableMethod::Dsync,
                features: LOG_HAS_OWNER | if elsewhere { LOG_ELSEWHERE } else { 0 },
            };
            for op in prepare(&superblock)? {
                engine.submit(OWN_OP, op);
                // Engines do what is in flight in any order; these have one.
                for completion in drained(engine.as_mut())? {
                    completion.result.map_err(|e| Error::new(ErrorKind::Io, e.text))?;
                }
            }
        }
        // Before opening, which puts right what a crash left, and looks for the log's owner where this
        // says that the log ends. What is wrong with its bytes, opening tells better.
        let named = superblock(engine.as_mut())?;
        if let Some(superblock) = &named {
            let theirs = |what: String| Err(Error::new(ErrorKind::Io, what));
            let (dir, found) = (dir.display(), superblock.disk);
            if found != disk {
                return theirs(format!("the data in {dir} is that of disk {found}, not {disk}"));
            }
            if superblock.cluster != cluster {
                return theirs(format!(
                    "the data in {dir} belongs to cluster {}, not to {}",
                    Uuid::from_bytes(superblock.cluster),
                    Uuid::from_bytes(cluster)
                ));
            }
            let (there, said) = (files.log_bytes, superblock.log_area_bytes());
            if there != said {
                return theirs(format!("the log in {dir} has {there} bytes instead of {said}"));
            }
        }
        let (store, report) = open_store(engine.as_mut(), limits, stamp, &dir)?;
        let superblock = store.superblock();
        if named.as_ref() != Some(superblock) {
            // It was compared with nothing.
            let what = format!(
                "the superblock in {} is not the same when it is read twice",
                dir.display()
            );
            return Err(Error::new(ErrorKind::Io, what));
        }
        engine.set_durable_method(if superblock.log_fua {
            DurableMethod::Dsync
        } else {
            DurableMethod::Flush
        });
        let data_end = match files.device_units {
            Some(_) => u64::MAX,
            None => files.areas.file(Area::Data).metadata().map_or(0, |m| m.len()),
        };
        let mut state = State {
            store,
            engine,
            waiting: Slab::new(),
            effects: Vec::new(),
            completions: Vec::new(),
            data_end,
            reported_failure: false,
            errors: ErrorLog::default(),
            last_ops: VecDeque::with_capacity(TICKS_PER_OPERATION),
        };
        // A device has no host that could run out of space.
        let on_device = files.device_units.is_some();
        if !on_device {
            state.feed(Input::HostFree(free_bytes(&dir)?));
        }
        let inner = Inner {
            state: RefCell::new(state),
            work: Notify::new(),
            dir,
            on_device,
            started: Instant::now(),
        };
        Ok((Self { inner: Rc::new(inner) }, report))
    }

    /// Does the disk's work; returns only when the disk can no longer be used, and every request is
    /// answered with an error from then on. Spawn it on the worker thread.
    pub async fn run(self) {
        if let Err(error) = self.work().await {
            self.inner.state.borrow_mut().feed(Input::GiveUp(error.full()));
            self.say_if_failed();
        }
    }

    async fn work(&self) -> Result<()> {
        let ready = {
            let state = self.inner.state.borrow();
            Ready::new(state.engine.as_ref())
        }
        .map_err(|e| Error::with_source(ErrorKind::Io, "wait for the disk", e))?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick: u32 = 0;
        loop {
            self.inner.state.borrow_mut().turn()?;
            self.say_if_failed();
            tokio::select! {
                biased;
                waited = ready.wait() => {
                    waited.map_err(|e| Error::with_source(ErrorKind::Io, "wait for the disk", e))?;
                    self.inner.state.borrow_mut().reap();
                }
                () = self.inner.work.notified() => {}
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    self.tick(tick.is_multiple_of(TICKS_PER_SPACE));
                }
            }
        }
    }

    fn tick(&self, look_at_space: bool) {
        let now = self.inner.started.elapsed().as_millis() as u64;
        let look_at_space = look_at_space && !self.inner.on_device && !self.is_failed();
        let free = look_at_space.then(|| free_bytes(&self.inner.dir));
        let mut state = self.inner.state.borrow_mut();
        state.feed(Input::Tick(now));
        state.look_for_silence();
        match free {
            Some(Ok(bytes)) => state.feed(Input::HostFree(bytes)),
            Some(Err(error)) => tracing::warn!("free space: {}", error.full()),
            None => {}
        }
    }

    /// Says that the disk failed, once, before anybody is told who asked for something.
    fn say_if_failed(&self) {
        let mut state = self.inner.state.borrow_mut();
        if let Some(why) = state.store.failure()
            && !state.reported_failure
        {
            tracing::error!("the disk {} failed: {why}", self.inner.dir.display());
            state.reported_failure = true;
        }
    }

    /// Gives the store a command. It takes effect even if the future is dropped.
    pub fn command(&self, command: Command) -> Reply<'_> {
        let mut state = self.inner.state.borrow_mut();
        let id = state.waiting.insert(Waiting::Asked(None));
        state.feed(Input::Command(CommandId(id as u64), command));
        // One wake-up for all commands of this turn.
        self.inner.work.notify_one();
        Reply { disk: self, id, done: false }
    }

    /// See [`Store::usage`].
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.inner.state.borrow().store.usage()
    }

    /// See [`Store::stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.state.borrow().store.stats()
    }

    /// As [`Store::lineages`].
    #[must_use]
    pub fn lineages(&self) -> Vec<LineageId> {
        self.inner.state.borrow().store.lineages()
    }

    /// As [`Store::vids`].
    #[must_use]
    pub fn vids(&self, fragment: FragmentId) -> Vec<Vid> {
        self.inner.state.borrow().store.vids(fragment)
    }

    /// As [`Store::failure`].
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.inner.state.borrow().store.failure().map(str::to_owned)
    }

    /// Whether it was given up.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.inner.state.borrow().store.failure().is_some()
    }

    /// How fragments divide.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.inner.state.borrow().store.superblock().geometry
    }

    /// The engine's name, for the log.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.inner.state.borrow().engine.name()
    }

    /// The first fragment of its lineage at or after `from` that was ever written.
    #[must_use]
    pub fn next_fragment(&self, from: FragmentId) -> Option<FragmentId> {
        self.inner.state.borrow().store.next_fragment(from)
    }

    /// Fragments of a lineage, ascending.
    #[must_use]
    pub fn fragments(&self, lineage: LineageId) -> Vec<FragmentId> {
        self.inner.state.borrow().store.fragments(lineage).collect()
    }

    /// What a vid holds, by fragment: blocks that hold space and the quarters of the fragment where
    /// it owns anything.
    ///
    /// # Errors
    /// When a page that must be read cannot be.
    pub async fn owner_summaries(
        &self,
        lineage: LineageId,
        vid: Vid,
    ) -> Result<Vec<(FragmentId, u16, u8)>> {
        loop {
            let found = self.inner.state.borrow().store.owner_summaries(lineage, vid);
            match found {
                Ok(all) => {
                    let tuple =
                        |(id, o): (FragmentId, sheepdog_storelog::fragment::OwnerSummary)| {
                            (id, o.stored_blocks, o.occupancy)
                        };
                    return Ok(all.into_iter().map(tuple).collect());
                }
                // Asking for anything of the fragment reads its page.
                Err(fragment) => {
                    let path = Arc::from([vid]);
                    self.command(Command::Map { fragment, path, start: 0, count: 1 }).await?;
                }
            }
        }
    }
}

impl State {
    fn feed(&mut self, input: Input) {
        self.store.handle(input, &mut self.effects);
        self.take_effects();
    }

    fn take_effects(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Disk(id, op) => {
                    // Space behind the end of a file cannot be given back, so reservations too lie
                    // before it.
                    let end = match &op {
                        DiskOp::Write { area: Area::Data, offset, data, .. } => {
                            offset + data.iter().map(|d| d.len() as u64).sum::<u64>()
                        }
                        DiskOp::Allocate { offset, len } => offset + len,
                        _ => 0,
                    };
                    if end > self.data_end {
                        self.data_end = end.next_multiple_of(EXTEND_BYTES);
                        self.engine.submit(OWN_OP, DiskOp::Extend { len: self.data_end });
                    }
                    self.engine.submit(id, op);
                }
                Effect::Reply(CommandId(id), answer) => {
                    let id = id as usize;
                    if let Err(error) = &answer
                        && error.kind() == ErrorKind::Io
                        && self.store.failure().is_none()
                    {
                        self.errors.note(error);
                    }
                    match self.waiting.get_mut(id) {
                        Some(Waiting::Gone) => {
                            self.waiting.remove(id);
                        }
                        Some(slot) => {
                            let was = std::mem::replace(slot, Waiting::Answered(answer));
                            if let Waiting::Asked(Some(waker)) = was {
                                waker.wake();
                            }
                        }
                        None => {}
                    }
                }
            }
        }
    }

    fn reap(&mut self) {
        self.engine.reap(&mut self.completions);
        for completion in std::mem::take(&mut self.completions) {
            if completion.op == OWN_OP {
                if let Err(error) = completion.result {
                    // Writes behind the end make the file longer by themselves.
                    tracing::warn!("extend the data file: {}", error.text);
                }
                continue;
            }
            self.feed(Input::Completed(completion));
        }
    }

    /// Once a tick: a disk that leaves an operation open for too long is given up.
    fn look_for_silence(&mut self) {
        // What has completed just now was answered.
        self.reap();
        if self.last_ops.len() == TICKS_PER_OPERATION
            && let Some(Some(overdue)) = self.last_ops.pop_front()
        {
            self.feed(Input::Overdue(overdue));
        }
        // Those that wait for others are not the disk's to answer yet.
        self.last_ops.push_back(self.engine.begun().filter(|op| *op != OWN_OP));
    }

    /// Starts what has gathered and hands it to the kernel.
    fn turn(&mut self) -> Result<()> {
        self.store.pump(&mut self.effects);
        self.take_effects();
        self.engine.kick().map_err(|e| Error::with_source(ErrorKind::Io, "use the disk", e))
    }
}

/// The answer to a command, once there is one.
pub struct Reply<'a> {
    disk: &'a Disk,
    id: usize,
    done: bool,
}

impl Future for Reply<'_> {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.disk.inner.state.borrow_mut();
        if let Some(Waiting::Asked(waker)) = state.waiting.get_mut(self.id) {
            match waker {
                Some(known) if known.will_wake(context.waker()) => {}
                other => *other = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let Some(Waiting::Answered(answer)) = state.waiting.try_remove(self.id) else {
            return Poll::Ready(Err(Error::new(ErrorKind::Internal, "an answer was taken twice")));
        };
        drop(state);
        self.done = true;
        Poll::Ready(answer)
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.disk.inner.state.borrow_mut();
        match state.waiting.get_mut(self.id) {
            Some(Waiting::Answered(_)) => {
                state.waiting.remove(self.id);
            }
            Some(slot) => *slot = Waiting::Gone,
            None => {}
        }
    }
}

/// Writes of a killed predecessor may still be on their way to the disk after its locks are gone;
/// the kernel keeps its open files until they have ended, so we wait for those.
fn wait_for_predecessor(areas: &Areas) -> Result<()> {
    let began = Instant::now();
    for area in [Area::Data, Area::Log] {
        while let Err(error) = rustix::fs::flock(
            areas.file(area),
            rustix::fs::FlockOperation::NonBlockingLockExclusive,
        ) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(Error::with_source(ErrorKind::Io, "lock the store's files", error));
            }
            if began.elapsed() > PREDECESSOR {
                return Err(Error::new(
                    ErrorKind::Locked,
                    "another process still has the store's files open",
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn drained(engine: &mut dyn Engine) -> Result<Vec<Completion>> {
    let mut completions = Vec::new();
    drain(engine, &mut completions)
        .map_err(|e| Error::with_source(ErrorKind::Io, "use the disk", e))?;
    Ok(completions)
}

/// The superblock, if there is a good one.
fn superblock(engine: &mut dyn Engine) -> Result<Option<Superblock>> {
    engine.submit(OWN_OP, DiskOp::Read { area: Area::Data, offset: 0, len: BLOCK_SIZE });
    match drained(engine)?.pop().map(|completion| completion.result) {
        Some(Ok(bytes)) => Ok(Superblock::decode(&bytes).ok()),
        Some(Err(e)) => Err(Error::new(ErrorKind::Io, format!("read the store: {}", e.text))),
        None => Err(Error::new(ErrorKind::Internal, "reading the superblock came to a stop")),
    }
}

fn open_store(
    engine: &mut dyn Engine,
    limits: Limits,
    stamp: u64,
    dir: &Path,
) -> Result<(Box<Store>, OpenReport)> {
    let mut effects = Vec::new();
    let mut opening = Opening::start(limits, &mut effects);
    if stamp > 0 {
        opening.expect_mark(stamp, dir.display().to_string());
    }
    loop {
        for effect in effects.drain(..) {
            if let Effect::Disk(id, op) = effect {
                engine.submit(id, op);
            }
        }
        let completions = drained(engine)?;
        if completions.is_empty() {
            return Err(Error::new(ErrorKind::Internal, "opening the store came to a stop"));
        }
        for completion in completions {
            if let Some(opened) = opening.completed(completion, &mut effects) {
                return opened;
            }
        }
    }
}
