//! The worker's part about sessions: our own, with their locks and keys, and those of processes that
//! died, whose keys whoever notices first deletes.

use super::bell::Heard;
use super::db::Db;
use super::locks::{SessionLock, remove_leftovers, session_is_dead};
use super::worker::Worker;
use crate::contract::SessionState;
use sheepdog_types::Result;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

/// After its file was closed, a dead process's lock is gone within microseconds; so soon is the
/// first look, doubling until [`SUSPECT_LOOKS`].
const SUSPECT_FIRST: Duration = Duration::from_micros(200);
const SUSPECT_LOOKS: u32 = 12;
/// How long suspects are left alone when the registry cannot be read.
const SUSPECT_REST: Duration = Duration::from_millis(50);

/// A session of ours. It counts as expired when this is dropped, for whatever reason.
pub(super) struct Own {
    lock: SessionLock,
    state: watch::Sender<SessionState>,
    /// `None` for the one of the process itself.
    handle: Option<oneshot::Receiver<()>>,
}

impl Own {
    fn is_dropped(&mut self) -> bool {
        self.handle
            .as_mut()
            .is_some_and(|h| matches!(h.try_recv(), Err(oneshot::error::TryRecvError::Closed)))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.state.send_replace(SessionState::Expired);
        self.lock.remove();
    }
}

/// A session whose file was closed or removed; its lock may take a moment to go.
pub(super) struct Suspect {
    file: Uuid,
    looks: u32,
    next: Instant,
}

impl Worker {
    /// A new session of ours, which ends when the sender of `handle` is dropped.
    pub(super) fn begin(
        &mut self,
        handle: Option<oneshot::Receiver<()>>,
    ) -> Result<(i64, watch::Receiver<SessionState>)> {
        self.db()?;
        let lock = SessionLock::new(&self.paths)?;
        let id = match self.with_db(|db| db.begin_session(lock.name)) {
            Ok(id) => id,
            Err(error) => {
                lock.remove();
                return Err(error);
            }
        };
        let (state, receiver) = watch::channel(SessionState::Alive);
        self.sessions.insert(id, Own { lock, state, handle });
        Ok((id, receiver))
    }

    /// Ends one of ours, if it is not over already. Should that fail, its lock vanishes all the
    /// same and others see to its keys.
    pub(super) fn end(&mut self, id: i64) -> Result<()> {
        let Some(own) = self.sessions.remove(&id) else {
            return Ok(());
        };
        let ended = self.with_db(|db| db.end_session(id));
        drop(own);
        self.bell.ring();
        ended
    }

    /// Ends those whose handles are gone.
    pub(super) fn end_dropped(&mut self) {
        let dropped: Vec<i64> = self
            .sessions
            .iter_mut()
            .filter_map(|(id, own)| own.is_dropped().then_some(*id))
            .collect();
        for id in dropped {
            // Nobody is there to be told.
            let _ = self.end(id);
        }
    }

    /// Ends all of ours; the first failure counts.
    pub(super) fn end_all(&mut self) -> Result<()> {
        let mut ended = Ok(());
        while let Some(id) = self.sessions.keys().next().copied() {
            ended = ended.and(self.end(id));
        }
        ended
    }

    /// When to look at the next suspect.
    pub(super) fn next_look(&self) -> Option<Duration> {
        let now = Instant::now();
        self.suspects.iter().map(|s| s.next.saturating_duration_since(now)).min()
    }

    /// Looks whose process died and whether our own sessions are still there.
    pub(super) fn look(&mut self, heard: &Heard) {
        if self.store.is_none() {
            return;
        }
        let now = Instant::now();
        for file in &heard.closed {
            if self.suspects.iter().all(|s| s.file != *file) {
                self.suspects.push_back(Suspect { file: *file, looks: 0, next: now });
            }
        }
        if !heard.news && self.suspects.is_empty() {
            return;
        }
        // Also finds out whether the registry itself is gone; then there are no suspects any more.
        let Ok(sessions) = self.with_db(Db::sessions) else {
            for suspect in &mut self.suspects {
                suspect.next = suspect.next.max(now + SUSPECT_REST);
            }
            return;
        };
        self.expire_ours(&sessions);
        self.look_at_suspects(&sessions, now);
        if heard.time {
            self.look_at_predecessors(&sessions);
        }
    }

    /// A session of ours that somebody else ended (its file was removed).
    fn expire_ours(&mut self, sessions: &[(i64, Uuid)]) {
        self.sessions.retain(|id, _| sessions.iter().any(|(s, _)| s == id));
    }

    fn look_at_suspects(&mut self, sessions: &[(i64, Uuid)], now: Instant) {
        for _ in 0..self.suspects.len() {
            let Some(mut suspect) = self.suspects.pop_front() else {
                return;
            };
            if suspect.next > now {
                self.suspects.push_back(suspect);
                continue;
            }
            // Ended in the meantime, or never begun.
            let Some((id, _)) = sessions.iter().find(|(_, file)| *file == suspect.file) else {
                continue;
            };
            if self.bury(*id, suspect.file) {
                continue;
            }
            suspect.looks += 1;
            if suspect.looks < SUSPECT_LOOKS {
                suspect.next = now + SUSPECT_FIRST * (1 << suspect.looks);
                self.suspects.push_back(suspect);
            }
        }
    }

    /// Against whatever the bell misses, each process looks now and then at the sessions before
    /// its own, in a ring, down to one that lives: together they look at all.
    fn look_at_predecessors(&mut self, sessions: &[(i64, Uuid)]) {
        let ours = |worker: &Self, id: i64| worker.sessions.contains_key(&id);
        let start = sessions.iter().position(|(id, _)| ours(self, *id));
        let (before, after) = sessions.split_at(start.map_or(0, |at| at + 1));
        let mut looking = start.is_none();
        for &(id, file) in before.iter().rev().chain(after.iter().rev()) {
            if ours(self, id) {
                looking = true;
            } else if looking {
                looking = self.bury(id, file);
            }
        }
    }

    /// Ends a session if its process is dead; says whether it is over.
    fn bury(&mut self, id: i64, file: Uuid) -> bool {
        if self.sessions.contains_key(&id) {
            return false;
        }
        let path = self.paths.session(file);
        if !session_is_dead(&path) || self.with_db(|db| db.end_session(id)).is_err() {
            return false;
        }
        let _ = std::fs::remove_file(path);
        self.bell.ring();
        true
    }

    /// All who died while nobody was there to see it.
    pub(super) fn bury_all(&mut self) -> Result<()> {
        for (id, file) in self.db()?.sessions()? {
            self.bury(id, file);
        }
        let known: Vec<Uuid> = self.db()?.sessions()?.into_iter().map(|(_, f)| f).collect();
        remove_leftovers(&self.paths, &known);
        Ok(())
    }
}
