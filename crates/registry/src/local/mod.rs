//! The `local` engine: one SQLite file shared by the sheep processes of one machine.
//!
//! Each handle has a thread of its own that owns a connection (`worker`); async callers talk to
//! it through a bounded queue and never wait for a disk. Commits are SQLite's (WAL,
//! `synchronous=FULL`), so an answered one is on stable storage, and it becomes visible to other
//! processes only after that. A session is a lock on a file of its own, which the operating system
//! drops when the process dies, in whatever way (`locks`); the others hear the file being closed
//! and delete the session's keys (`bell`). Which registry file belongs to which stores is
//! decided when it is opened (`open`).
//!
//! SQLite's locks do not survive `fork`: a daemon opens the registry after it has forked.
//!
//! Beside FILE lie `FILE-wal` and `FILE-shm` (SQLite's), `FILE.run/` with the locks, of which
//! nothing is missed when no process runs, and `FILE.<cluster>`: registries of older clusters.

mod bell;
mod db;
mod locks;
mod members;
mod open;
mod paths;
mod record;
mod reserve;
mod schema;
mod sessions;
#[cfg(test)]
mod tests;
mod worker;

pub use members::{RecordedStore, directory_is_empty};

use crate::check;
use crate::contract::{BoxFuture, Listing, Registry, Session, SessionState, Watch, WatchEvent};
use crate::driver::named;
use db::{Batch, Tuning};
use sheepdog_types::kv::{Entry, Outcome, Revision, Txn};
use sheepdog_types::{DiskId, Error, Result};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;
use worker::{Begun, Client, Follower, Request};

/// What to open, and for whom.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The registry file; see [`crate::Driver::local_file`]. It is made if it is not there; the
    /// directory around it, too, but none above that.
    pub file: PathBuf,
    /// The store this process serves. `None` for a look from outside: takes the registry that is
    /// there (or makes one), joins nothing, moves nothing.
    pub member: Option<Member>,
}

/// A store that joins.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its path.
    pub store: PathBuf,
    /// Its id, if it has one already: a store that moved is recognised by it.
    pub disk: Option<DiskId>,
    /// Whether it never belonged to a formatted cluster (a prepared store without data of a
    /// cluster is empty). Only then may it join any cluster, or begin a new one.
    pub empty: bool,
    /// The cluster it remembers (what [`LocalRegistry::cluster`] said when it joined); counts only
    /// if it is not empty.
    pub cluster: Option<Uuid>,
    /// The same question as `empty` about the directory of another store, which is there:
    /// [`directory_is_empty`] or one that knows more. An error counts as not empty.
    pub store_is_empty: fn(&Path) -> std::io::Result<bool>,
}

/// How a registry was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Joined {
    /// There was none; it is new.
    Created,
    /// The one there was of a cluster whose every store is gone: moved to `old`, this one is new.
    CreatedAnew {
        /// Where it is now.
        old: PathBuf,
    },
    /// It was there, and this store was recorded in it (or none was given).
    Member,
    /// It was there, and this store is new in it. [`LocalRegistry::members`] says which others
    /// the cluster waits for.
    NewMember,
    /// It had been moved aside and is now back in its place, for this store is of its cluster.
    BroughtBack,
}

/// What the worker gets.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    file: PathBuf,
    member: Option<Member>,
    tuning: Tuning,
}

/// A client of a registry file. Clones share the connection; it closes when the last of them and
/// of their sessions and watches is dropped.
#[derive(Clone, Debug)]
pub struct LocalRegistry {
    client: Arc<Client>,
    cluster: Uuid,
    joined: Joined,
}

impl LocalRegistry {
    /// Opens, makes, brings back or moves aside, as the `member` demands:
    ///
    /// | store | registry at `file` | what happens |
    /// |---|---|---|
    /// | empty | none | a new one |
    /// | empty | unformatted | joins |
    /// | empty | formatted, in use or some recorded store is not gone | joins |
    /// | empty | formatted, not in use, every recorded store is gone | that one is moved aside, a new one is made |
    /// | of cluster A | A's | joins again |
    /// | of cluster A | none or unformatted, A's is aside | A's is brought back; who had the other open fails with `Unreachable` and may open again |
    /// | of cluster A | none or unformatted, A's is nowhere | refused |
    /// | of cluster A | of B, formatted | refused |
    ///
    /// A recorded store is gone if it is there and empty, or missing from a directory on the
    /// registry's own file system (elsewhere, its disk may only be unmounted).
    ///
    /// # Errors
    /// `Invalid`: refused as above, a file that is no registry, a path that can be none.
    /// `VersionMismatch`: made by a newer version. `Locked`: in use in a way that forbids the
    /// move. `NoSpace`, `ReadOnly`, `Io` (also a damaged file): the line says which file.
    /// In all cases the registry stays as it was.
    pub async fn open(options: LocalOptions) -> Result<Self> {
        Self::open_with(options, Tuning::STANDARD).await
    }

    pub(crate) async fn open_with(options: LocalOptions, tuning: Tuning) -> Result<Self> {
        let mut member = options.member;
        if let Some(member) = &mut member {
            member.store = canonical(&member.store)?;
        }
        let file = named(&options.file)?;
        let settings = Settings {
            // Locks are beside the file itself, not beside links to it.
            file: file.canonicalize().unwrap_or(file),
            member,
            tuning,
        };
        let answer = worker::start(settings)?;
        let started = answer.await.map_err(|_| worker::thread_ended())??;
        Ok(Self {
            client: Arc::new(started.client),
            cluster: started.cluster,
            joined: started.joined,
        })
    }

    /// The identity of the cluster this registry is for, given when it was made. A store that
    /// joins remembers it.
    #[must_use]
    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// How it was found.
    #[must_use]
    pub fn joined(&self) -> &Joined {
        &self.joined
    }

    /// Every recorded store; those not running are waited for.
    ///
    /// # Errors
    /// As [`Registry::get`].
    pub async fn members(&self) -> Result<Vec<RecordedStore>> {
        self.client.ask(Request::Members).await
    }

    /// Waits for a store no more. Says whether it was recorded.
    ///
    /// # Errors
    /// As [`Registry::commit`].
    pub async fn forget(&self, store: &Path) -> Result<bool> {
        let store = canonical(store)?;
        self.client.ask(|reply| Request::Forget(store, reply)).await
    }

    /// Forgets the history up to now: watches that lag behind must list again. (It is bounded
    /// without this.)
    ///
    /// # Errors
    /// As [`Registry::commit`].
    pub async fn compact(&self) -> Result<()> {
        self.client.ask(Request::Compact).await
    }

    /// Ends this connection and all its sessions, clones included; their keys are gone and the
    /// file is released when it returns. (Dropping everything does the same, but later.)
    ///
    /// # Errors
    /// As [`Session::end`]; the file is released all the same.
    pub async fn close(self) -> Result<()> {
        self.client.ask(Request::Close).await
    }
}

/// The same for every spelling; a link at the end is not followed, and the last component need
/// not exist.
fn canonical(store: &Path) -> Result<PathBuf> {
    let store = named(store)?;
    let (Some(around), Some(name)) = (store.parent(), store.file_name()) else {
        return Ok(store);
    };
    let around = around.canonicalize().map_err(|e| {
        Error::with_source(
            sheepdog_types::ErrorKind::Invalid,
            format!("store {}", store.display()),
            e,
        )
    })?;
    Ok(around.join(name))
}

impl Registry for LocalRegistry {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>> {
        Box::pin(async move {
            check::key(key)?;
            self.client.ask(|reply| Request::Get(key.to_owned(), reply)).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing>> {
        Box::pin(async move {
            check::prefix(prefix)?;
            self.client.ask(|reply| Request::List(prefix.to_owned(), reply)).await
        })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            check::txn(&txn)?;
            self.client.ask(|reply| Request::Commit(txn, None, reply)).await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            check::prefix(prefix)?;
            self.client.ask(|reply| Request::Check(from, reply)).await?;
            Ok(Box::new(LocalWatch {
                client: self.client.clone(),
                prefix: prefix.to_owned(),
                cursor: from,
                ready: VecDeque::new(),
                pending: None,
            }) as Box<dyn Watch>)
        })
    }

    /// `ttl` does not matter: the operating system knows when a process is dead.
    fn session(&self, _ttl: Duration) -> BoxFuture<'_, Result<Box<dyn Session>>> {
        Box::pin(async move {
            let Begun { id, state, handle } = self.client.ask(Request::Begin).await?;
            Ok(Box::new(LocalSession {
                client: self.client.clone(),
                id,
                state,
                handle: Some(handle),
            }) as Box<dyn Session>)
        })
    }
}

struct LocalWatch {
    client: Arc<Client>,
    prefix: String,
    /// Everything up to here is in `ready` or was given out.
    cursor: Revision,
    ready: VecDeque<WatchEvent>,
    /// The thread knows that we wait.
    pending: Option<oneshot::Receiver<Result<Batch>>>,
}

impl LocalWatch {
    async fn next_event(&mut self) -> Result<WatchEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            // Wherever the caller drops us, `pending` keeps what is on its way.
            let pending = match &mut self.pending {
                Some(pending) => pending,
                none => {
                    let (reply, answer) = oneshot::channel();
                    let follower =
                        Follower { prefix: self.prefix.clone(), cursor: self.cursor, reply };
                    self.client.send(Request::Follow(follower)).await?;
                    none.insert(answer)
                }
            };
            let answer = pending.await;
            self.pending = None;
            let batch = answer.map_err(|_| worker::thread_ended())??;
            self.cursor = batch.covered;
            self.ready = batch.events.into();
        }
    }
}

impl Watch for LocalWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<WatchEvent>> {
        Box::pin(self.next_event())
    }
}

struct LocalSession {
    client: Arc<Client>,
    id: i64,
    state: watch::Receiver<SessionState>,
    handle: Option<oneshot::Sender<()>>,
}

impl Session for LocalSession {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            check::txn(&txn)?;
            self.client.ask(|reply| Request::Commit(txn, Some(self.id), reply)).await
        })
    }

    fn state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    fn end(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move { self.client.ask(|reply| Request::End(self.id, reply)).await })
    }
}

impl Drop for LocalSession {
    fn drop(&mut self) {
        drop(self.handle.take());
        self.client.wake();
    }
}
