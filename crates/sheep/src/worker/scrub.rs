//! The scrub of a disk: every block of every vid is read and compared with its checksum, over and
//! over, at a rate that leaves the disk to clients. What it finds is counted, named in the log and
//! kept for `node info`. With one copy there is nothing to repair it from: reading it is an error.

use crate::data::{Finding, ScrubState};
use sheepdog_store::Disk;
use sheepdog_storelog::{Answer, BlockKind, Command};
use sheepdog_types::{BLOCK_SIZE, FragmentId, Vid};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Blocks read at once: what a client waits for at most; and while there is none, as the processor's
/// work is by the piece.
const PIECE: u32 = 32;
const QUIET_PIECE: u32 = 128;
/// Before each piece while clients are at work.
const BUSY: Duration = Duration::from_millis(100);
/// After a whole pass, so that a small disk is not read for ever.
const REST: Duration = Duration::from_secs(3600);
/// Bad places that are remembered with their place.
const FINDINGS_MAX: usize = 64;

/// See the module.
pub struct Scrub {
    disk: Disk,
    state: RefCell<ScrubState>,
    /// Places found bad that are in the state already.
    known: RefCell<BTreeSet<(FragmentId, Option<Vid>, u32)>>,
    /// Commands of its own.
    own: Cell<u64>,
    /// No client asked for anything while it last paused.
    quiet: Cell<bool>,
}

impl Scrub {
    /// One that reads at most `rate` bytes a second; 0 is never.
    pub fn new(disk: Disk, rate: u64) -> Rc<Self> {
        let state = RefCell::new(ScrubState { rate, ..ScrubState::default() });
        Rc::new(Self {
            disk,
            state,
            known: RefCell::default(),
            own: Cell::new(0),
            quiet: Cell::new(false),
        })
    }

    /// How far it is and what it found.
    pub fn state(&self) -> ScrubState {
        self.state.borrow().clone()
    }

    /// Scrubs for ever.
    pub async fn run(self: Rc<Self>) {
        if self.state.borrow().rate == 0 {
            return std::future::pending().await;
        }
        loop {
            let lineages = self.disk.lineages();
            let total: usize =
                lineages.iter().map(|lineage| self.disk.fragments(*lineage).len()).sum();
            {
                let mut state = self.state.borrow_mut();
                (state.done, state.total) = (0, total as u64);
            }
            for lineage in lineages {
                for fragment in self.disk.fragments(lineage) {
                    if self.fragment(fragment).await.is_none() {
                        // The disk was given up.
                        return std::future::pending().await;
                    }
                    self.state.borrow_mut().done += 1;
                }
            }
            self.state.borrow_mut().passes += 1;
            tokio::time::sleep(REST).await;
        }
    }

    /// Reads all of a fragment; `None` when the disk can no longer be used.
    async fn fragment(&self, fragment: FragmentId) -> Option<()> {
        let map = Command::Map { fragment, path: Arc::from([]), start: 0, count: 1 };
        if let Err(error) = self.ask(map).await {
            self.found(fragment, None, 0, error.full())?;
            return Some(());
        }
        for vid in self.disk.vids(fragment) {
            let path: Arc<[Vid]> = [vid].into();
            let count = self.disk.geometry().blocks_per_fragment();
            let map = Command::Map { fragment, path: path.clone(), start: 0, count };
            // Something of it may be gone by now; the next pass sees what is there then.
            let Ok(Answer::Map(runs)) = self.ask(map).await else { continue };
            let mut start = 0;
            for (kind, len) in runs {
                let end = start + len;
                while kind == BlockKind::Data && start < end {
                    let piece = if self.quiet.get() { QUIET_PIECE } else { PIECE };
                    let count = piece.min(end - start);
                    self.piece(fragment, vid, &path, start, count).await?;
                    start += count;
                }
                start = end;
            }
        }
        Some(())
    }

    async fn piece(
        &self,
        fragment: FragmentId,
        vid: Vid,
        path: &Arc<[Vid]>,
        start: u32,
        count: u32,
    ) -> Option<()> {
        let began = Instant::now();
        let read = |start, count| Command::Read { fragment, path: path.clone(), start, count };
        if self.ask(read(start, count)).await.is_err() {
            for block in start..start + count {
                if let Err(error) = self.ask(read(block, 1)).await {
                    self.found(fragment, Some(vid), block, error.full())?;
                }
            }
        }
        let bytes = u64::from(count) * BLOCK_SIZE as u64;
        let rate = {
            let mut state = self.state.borrow_mut();
            state.bytes += bytes;
            state.rate
        };
        let pause = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        let before = self.commands_of_clients();
        tokio::time::sleep_until(began + pause).await;
        self.quiet.set(self.commands_of_clients() == before);
        if !self.quiet.get() {
            tokio::time::sleep(BUSY).await;
        }
        Some(())
    }

    fn commands_of_clients(&self) -> u64 {
        self.disk.stats().commands - self.own.get()
    }

    async fn ask(&self, command: Command) -> sheepdog_types::Result<Answer> {
        self.own.set(self.own.get() + 1);
        self.disk.command(command).await
    }

    /// Notes a bad place once; `None` if it is the whole disk that is gone.
    fn found(&self, fragment: FragmentId, vid: Option<Vid>, block: u32, why: String) -> Option<()> {
        if self.disk.failure().is_some() {
            return None;
        }
        let place = (fragment, vid, block);
        if !self.known.borrow_mut().insert(place) {
            return Some(());
        }
        tracing::error!("scrub: {why}");
        let mut state = self.state.borrow_mut();
        state.bad += 1;
        if state.findings.len() < FINDINGS_MAX {
            let offset = fragment.number * self.disk.geometry().fragment_bytes()
                + u64::from(block) * BLOCK_SIZE as u64;
            state.findings.push(Finding { lineage: fragment.lineage, vid, offset, why });
        }
        Some(())
    }
}
