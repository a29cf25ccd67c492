//! The thread that owns a registry's SQLite connection: answers requests one by one and feeds
//! watches. What it does about sessions is in [`super::sessions`].

use super::bell::{Bell, Waker};
use super::db::{Batch, Db, session_over};
use super::members::RecordedStore;
use super::open::{self, Opened};
use super::paths::Paths;
use super::sessions::{Own, Suspect};
use super::{Joined, Settings};
use crate::contract::{Listing, SessionState};
use sheepdog_types::kv::{Entry, Outcome, Revision, Txn};
use sheepdog_types::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// Requests on their way to the thread; callers wait beyond that.
const QUEUE: usize = 256;
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

/// The open file, or why it is not.
pub(super) struct Store {
    db: Db,
    _presence: File,
}

pub(super) struct Worker {
    pub paths: Paths,
    queue: mpsc::Receiver<Request>,
    pub bell: Bell,
    // The database is closed before the presence lock goes.
    pub store: Option<Store>,
    lost: Option<(ErrorKind, String)>,
    pub sessions: BTreeMap<i64, Own>,
    followers: Vec<Follower>,
    /// Up to here all followers were served.
    served: i64,
    pub suspects: VecDeque<Suspect>,
}

impl Worker {
    pub(super) fn open(settings: &Settings) -> Result<(Self, Started)> {
        let paths = Paths::of(&settings.file);
        let opened = open::open(&paths, settings.member.as_ref(), settings.tuning)?;
        let Opened { db, cluster, joined, presence, gate } = opened;
        let bell = Bell::new(&paths, settings.tuning.inotify)?;
        let (sender, queue) = mpsc::channel(QUEUE);
        let client = Client { queue: sender, waker: bell.waker() };
        let mut worker = Self {
            paths,
            queue,
            bell,
            store: Some(Store { db, _presence: presence }),
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
        drop(gate);
        let started = Started { client, cluster, joined };
        Ok((worker, started))
    }

    fn run(&mut self) {
        while self.answer_requests() {
            self.end_dropped();
            self.followers.retain(|f| !f.reply.is_closed());
            self.serve_followers();
            let heard = self.bell.wait(self.next_look());
            self.look(&heard);
        }
        // Nobody is there to be told.
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
                    self.begin(Some(dropped)).map(|(id, state)| Begun { id, state, handle });
                drop(reply.send(begun));
            }
            Request::End(id, reply) => {
                drop(reply.send(self.end(id)));
            }
            Request::Members(reply) => {
                let members = self.with_db(|db| {
                    let recorded = db.recorded()?.into_iter();
                    Ok(recorded
                        .map(|r| RecordedStore { store: r.store, running: r.running })
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
                self.leave(&Error::new(ErrorKind::Unreachable, "the registry is closed"));
                drop(reply.send(ended));
            }
        }
    }

    pub(super) fn db(&mut self) -> Result<&mut Db> {
        match (&mut self.store, &self.lost) {
            (Some(store), _) => Ok(&mut store.db),
            (None, Some((kind, line))) => Err(Error::new(*kind, line.clone())),
            (None, None) => Err(thread_ended()),
        }
    }

    /// Runs an operation; when the registry turns out to be gone, gives everything up.
    pub(super) fn with_db<T>(&mut self, work: impl FnOnce(&mut Db) -> Result<T>) -> Result<T> {
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
        self.sessions.clear();
        // Nobody can look at them: they would be due for ever.
        self.suspects.clear();
        for follower in std::mem::take(&mut self.followers) {
            drop(follower.reply.send(Err(Error::new(error.kind(), error.context()))));
        }
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
}
