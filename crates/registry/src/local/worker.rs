//! The thread that owns a registry's SQLite connection: answers requests one by one, feeds
//! watches, keeps our sessions' locks and ends the sessions of dead processes.

use super::bell::{Bell, Heard, Waker};
use super::db::{Batch, Db, session_over};
use super::locks::{Paths, SessionLock, remove_leftovers, session_is_dead};
use super::members::RecordedStore;
use super::open::{self, Opened};
use super::{Joined, Settings};
use crate::contract::{Listing, SessionState};
use sheepdog_types::kv::{Entry, Outcome, Revision, Txn};
use sheepdog_types::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// Requests on their way to the thread; callers wait beyond that.
const QUEUE: usize = 256;
/// After its file was closed, a dead process's lock is gone within microseconds; so soon is the
/// first look, doubling until [`SUSPECT_LOOKS`].
const SUSPECT_FIRST: Duration = Duration::from_micros(200);
const SUSPECT_LOOKS: u32 = 12;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// What handles ask of the thread.
pub(super) enum Request {
    Get(String, Reply<Option<Entry>>),
    List(String, Reply<Listing>),
    Commit(Txn, Option<i64>, Reply<Outcome>),
    /// Whether a watch may begin there.
    Check(Revision, Reply<()>),
    /// What happened since, as soon as something did.
    Follow(Follower),
    Begin(Reply<Begun>),
    End(i64, Reply<()>),
    Members(Reply<Vec<RecordedStore>>),
    Forget(PathBuf, Reply<bool>),
    Compact(Reply<()>),
    Close(Reply<()>),
}

/// A watch that waits.
pub(super) struct Follower {
    pub prefix: String,
    pub cursor: Revision,
    pub reply: Reply<Batch>,
}

/// A session as its handle needs it.
pub(super) struct Begun {
    pub id: i64,
    pub state: watch::Receiver<SessionState>,
    /// Dropping it ends the session.
    pub handle: oneshot::Sender<()>,
}

/// The way to the thread. It ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Client {
    // Dropped in this order: the waker wakes the thread to see that the queue is closed.
    queue: mpsc::Sender<Request>,
    waker: Waker,
}

impl Client {
    /// Sends a request and waits for its answer.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        answer.await.map_err(|_| thread_ended())?
    }

    pub async fn send(&self, request: Request) -> Result<()> {
        self.queue.send(request).await.map_err(|_| thread_ended())?;
        self.waker.wake();
        Ok(())
    }

    pub fn wake(&self) {
        self.waker.wake();
    }
}

pub(super) fn thread_ended() -> Error {
    Error::new(ErrorKind::Unreachable, "the registry's thread has ended")
}

/// What opening gives.
pub(super) struct Started {
    pub client: Client,
    pub cluster: Uuid,
    pub joined: Joined,
}

/// Starts the thread, which opens the registry and answers.
pub(super) fn start(settings: Settings) -> Result<oneshot::Receiver<Result<Started>>> {
    let (reply, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("registry".to_owned())
        .spawn(move || match Worker::open(&settings) {
            Err(error) => drop(reply.send(Err(error))),
            Ok((mut worker, started)) => {
                // Nobody waits any more: the queue is closed, and the loop ends at once.
                drop(reply.send(Ok(started)));
                worker.run();
            }
        })
        .map_err(|e| Error::with_source(ErrorKind::Io, "start the registry's thread", e))?;
    Ok(answer)
}

/// A session of ours.
struct Own {
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

/// A session whose file was closed; its lock may take a moment to go.
struct Suspect {
    file: Uuid,
    looks: u32,
    next: Instant,
}

/// The open file, or why it is not.
struct Store {
    db: Db,
    _presence: File,
}

struct Worker {
    paths: Paths,
    queue: mpsc::Receiver<Request>,
    bell: Bell,
    // The database is closed before the presence lock goes.
    store: Option<Store>,
    lost: Option<(ErrorKind, String)>,
    sessions: BTreeMap<i64, Own>,
    followers: Vec<Follower>,
    /// Up to here all followers were served.
    served: i64,
    suspects: VecDeque<Suspect>,
}

impl Worker {
    fn open(settings: &Settings) -> Result<(Self, Started)> {
        let paths = Paths::of(&settings.file);
        let opened = open::open(&paths, settings.member.as_ref(), settings.limits)?;
        let Opened {
            db,
            cluster,
            joined,
            presence,
        } = opened;
        let bell = Bell::new(&paths)?;
        let (sender, queue) = mpsc::channel(QUEUE);
        let client = Client {
            queue: sender,
            waker: bell.waker(),
        };
        let mut worker = Self {
            paths,
            queue,
            bell,
            store: Some(Store {
                db,
                _presence: presence,
            }),
            lost: None,
            sessions: BTreeMap::new(),
            followers: Vec::new(),
            served: 0,
            suspects: VecDeque::new(),
        };
        worker.bury_all()?;
        if let Some(member) = &settings.member {
            let (id, _) = worker.begin(None)?;
            worker.db()?.set_running(&member.store, id)?;
        }
        let started = Started {
            client,
            cluster,
            joined,
        };
        Ok((worker, started))
    }

    fn run(&mut self) {
        while self.answer_requests() {
            self.end_dropped();
            self.serve_followers();
            let heard = self.bell.wait(self.next_look());
            self.look(&heard);
        }
        // Should it fail, the locks vanish all the same and others see to it.
        let _ = self.end_all();
    }

    /// Says whether there may be more to come.
    fn answer_requests(&mut self) -> bool {
        // As many as fit the queue, so that looking around is not put off for ever.
        for _ in 0..QUEUE {
            match self.queue.try_recv() {
                Ok(request) => self.answer(request),
                Err(mpsc::error::TryRecvError::Empty) => return true,
                Err(mpsc::error::TryRecvError::Disconnected) => return false,
            }
        }
        self.bell.waker().wake();
        true
    }

    /// Nobody may wait for an answer any more; that is their affair, and what was asked happens.
    fn answer(&mut self, request: Request) {
        match request {
            Request::Get(key, reply) => drop(reply.send(self.with_db(|db| db.get(&key)))),
            Request::List(prefix, reply) => drop(reply.send(self.with_db(|db| db.list(&prefix)))),
            Request::Commit(txn, session, reply) => {
                drop(reply.send(self.commit(&txn, session)));
            }
            Request::Check(from, reply) => drop(reply.send(self.check(from))),
            Request::Follow(follower) => self.serve(follower),
            Request::Begin(reply) => {
                let (handle, dropped) = oneshot::channel();
                let begun =
                    self.begin(Some(dropped))
                        .map(|(id, state)| Begun { id, state, handle });
                drop(reply.send(begun));
            }
            Request::End(id, reply) => {
                let ended = match self.sessions.remove(&id) {
                    Some(own) => self.end(id, &own),
                    None => Ok(()),
                };
                drop(reply.send(ended));
            }
            Request::Members(reply) => {
                let members = self.with_db(|db| {
                    let recorded = db.recorded()?.into_iter();
                    Ok(recorded
                        .map(|r| RecordedStore {
                            store: r.store,
                            running: r.running,
                        })
                        .collect())
                });
                drop(reply.send(members));
            }
            Request::Forget(store, reply) => {
                drop(reply.send(self.with_db(|db| db.forget_store(&store))));
            }
            Request::Compact(reply) => drop(reply.send(self.with_db(Db::compact))),
            Request::Close(reply) => {
                let ended = self.end_all();
                self.leave(&Error::new(
                    ErrorKind::Unreachable,
                    "the registry is closed",
                ));
                drop(reply.send(ended));
            }
        }
    }

    fn db(&mut self) -> Result<&mut Db> {
        match (&mut self.store, &self.lost) {
            (Some(store), _) => Ok(&mut store.db),
            (None, Some((kind, line))) => Err(Error::new(*kind, line.clone())),
            (None, None) => Err(thread_ended()),
        }
    }

    /// Runs an operation; when the registry turns out to be gone, gives everything up.
    fn with_db<T>(&mut self, work: impl FnOnce(&mut Db) -> Result<T>) -> Result<T> {
        let result = self.db().and_then(work);
        if let Err(error) = &result
            && self.store.as_ref().is_some_and(|s| s.db.is_gone())
        {
            self.leave(error);
        }
        result
    }

    /// Closes the file and answers everything with `error` from now on.
    fn leave(&mut self, error: &Error) {
        if self.store.take().is_none() {
            return;
        }
        self.lost = Some((error.kind(), error.context().to_owned()));
        for own in std::mem::take(&mut self.sessions).into_values() {
            own.state.send_replace(SessionState::Expired);
            own.lock.remove();
        }
        for follower in std::mem::take(&mut self.followers) {
            drop(
                follower
                    .reply
                    .send(Err(Error::new(error.kind(), error.context()))),
            );
        }
    }

    fn end_all(&mut self) -> Result<()> {
        let mut ended = Ok(());
        for (id, own) in std::mem::take(&mut self.sessions) {
            ended = ended.and(self.end(id, &own));
        }
        ended
    }

    fn commit(&mut self, txn: &Txn, session: Option<i64>) -> Result<Outcome> {
        if session.is_some_and(|id| !self.sessions.contains_key(&id)) && self.store.is_some() {
            return Err(session_over());
        }
        let outcome = self.with_db(|db| db.commit(txn, session))?;
        if matches!(outcome, Outcome::Committed(_)) {
            self.bell.ring();
        }
        Ok(outcome)
    }

    fn check(&mut self, from: Revision) -> Result<()> {
        let head = self.with_db(Db::meta)?.revision.cast_unsigned();
        if from.0 <= head {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "revision {} is beyond the registry's {head}: it was restored from a backup or \
                 belongs to another cluster",
                from.0
            ),
        ))
    }

    fn begin(
        &mut self,
        handle: Option<oneshot::Receiver<()>>,
    ) -> Result<(i64, watch::Receiver<SessionState>)> {
        self.db()?;
        let lock = SessionLock::new(&self.paths)?;
        let begun = self.with_db(|db| db.begin_session(lock.name));
        if begun.is_err() {
            lock.remove();
        }
        let id = begun?;
        let (state, receiver) = watch::channel(SessionState::Alive);
        self.sessions.insert(
            id,
            Own {
                lock,
                state,
                handle,
            },
        );
        Ok((id, receiver))
    }

    fn end(&mut self, id: i64, own: &Own) -> Result<()> {
        let ended = self.with_db(|db| db.end_session(id));
        own.state.send_replace(SessionState::Expired);
        own.lock.remove();
        self.bell.ring();
        ended
    }

    fn end_dropped(&mut self) {
        let dropped: Vec<i64> = self
            .sessions
            .iter_mut()
            .filter_map(|(id, own)| own.is_dropped().then_some(*id))
            .collect();
        for id in dropped {
            if let Some(own) = self.sessions.remove(&id) {
                // Should it fail, the lock vanishes with `own` and the next look sees to it.
                let _ = self.end(id, &own);
            }
        }
    }

    /// Answers a watch or lets it wait.
    fn serve(&mut self, mut follower: Follower) {
        if follower.reply.is_closed() {
            return;
        }
        match self.with_db(|db| db.history(&follower.prefix, follower.cursor)) {
            Ok(batch) if batch.events.is_empty() => {
                // Nothing for it up to there: the history before may be forgotten.
                follower.cursor = batch.covered;
                self.followers.push(follower);
            }
            other => drop(follower.reply.send(other)),
        }
    }

    fn serve_followers(&mut self) {
        if self.followers.is_empty() {
            return;
        }
        let Ok(head) = self.with_db(Db::meta).map(|m| m.revision) else {
            return;
        };
        if head == self.served {
            return;
        }
        for follower in std::mem::take(&mut self.followers) {
            self.serve(follower);
        }
        self.served = head;
    }

    fn next_look(&self) -> Option<Duration> {
        let now = Instant::now();
        self.suspects
            .iter()
            .map(|s| s.next.saturating_duration_since(now))
            .min()
    }

    /// Whose process died, and whether our own sessions and the registry are still there.
    fn look(&mut self, heard: &Heard) {
        let now = Instant::now();
        for file in &heard.closed {
            if self.suspects.iter().all(|s| s.file != *file) {
                self.suspects.push_back(Suspect {
                    file: *file,
                    looks: 0,
                    next: now,
                });
            }
        }
        if self.store.is_none() || (!heard.news && self.suspects.is_empty()) {
            return;
        }
        self.followers.retain(|f| !f.reply.is_closed());
        let Ok(sessions) = self.with_db(Db::sessions) else {
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
        self.sessions.retain(|id, own| {
            let there = sessions.iter().any(|(s, _)| s == id);
            if !there {
                own.state.send_replace(SessionState::Expired);
            }
            there
        });
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
    fn bury_all(&mut self) -> Result<()> {
        for (id, file) in self.db()?.sessions()? {
            self.bury(id, file);
        }
        let known: Vec<Uuid> = self.db()?.sessions()?.into_iter().map(|(_, f)| f).collect();
        remove_leftovers(&self.paths, &known);
        Ok(())
    }
}
