//! The registry's operations as SQLite transactions: entries, the one history, sessions and the
//! ephemeral keys that go with them. Synchronous; the worker's thread calls it.

use super::locks::Queue;
use super::paths::Paths;
use super::record::{Recorded, forget};
use super::{reserve, schema};
use crate::contract::{Listing, WatchEvent};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use sheepdog_types::kv::{Change, Compare, Entry, Outcome, Revision, Txn};
use sheepdog_types::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// How large things may get, and how processes hear of each other. Tests use others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Keys and values kept for watches that lag behind.
    pub history_bytes: i64,
    /// Pages of 4 KiB of the whole file.
    pub pages: u32,
    /// Whether to use inotify where it is to be had.
    pub inotify: bool,
}

impl Tuning {
    pub const STANDARD: Self = Self { history_bytes: 64 << 20, pages: 1 << 18, inotify: true };
}

/// A watch gets this many events at once at most, unless the first alone is larger.
const BATCH_EVENTS: usize = 256;
/// And about this many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// The one row about the registry itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub cluster: Uuid,
    pub revision: i64,
    pub compacted: i64,
    pub history_bytes: i64,
    pub retired: bool,
}

/// What a watch gets: events, and up to where they cover the history.
#[derive(Debug)]
pub(crate) struct Batch {
    pub events: Vec<WatchEvent>,
    pub covered: Revision,
}

/// Why a transaction did not go through.
pub(super) enum Stop {
    Sql(rusqlite::Error),
    Ours(Error),
    /// See [`Db::is_gone`].
    Gone(Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// An open registry file.
pub(crate) struct Db {
    conn: Connection,
    queue: Arc<Queue>,
    path: PathBuf,
    /// Device and inode: the file under our path must stay the one we opened.
    identity: (u64, u64),
    tuning: Tuning,
    gone: bool,
    /// An I/O error was seen: what looks like damage may be that only.
    failing: bool,
}

impl Db {
    pub fn open(paths: &Paths, tuning: Tuning) -> Result<Self> {
        let path = &paths.file;
        let identity = identity(path)
            .map_err(|e| Error::with_source(ErrorKind::Io, path.display().to_string(), e))?;
        let mut db = Self {
            conn: schema::connect(path, tuning.pages)?,
            queue: Arc::new(Queue::open(paths)?),
            path: path.clone(),
            identity,
            tuning,
            gone: false,
            failing: false,
        };
        reserve::hold_log(paths);
        db.keep_pages();
        Ok(db)
    }

    /// See [`reserve`]; on a disk that is nearly full what is there must do.
    fn keep_pages(&mut self) {
        let queue = self.queue.clone();
        if !reserve::is_short(&Paths::of(&self.path))
            && let Ok(_turn) = queue.enter()
        {
            // The next creation tries it again.
            let _ = reserve::keep_pages(&self.conn);
        }
    }

    /// Whether an operation found that this registry gave way, or that its file went. Nothing
    /// will succeed any more.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Closes it; afterwards the file is all there is.
    pub fn close(self) -> Result<()> {
        if self.empty_log().map_err(|e| schema::error(&self.path, "close", e))? {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Locked,
                format!("registry {} is in use by another program", self.path.display()),
            ))
        }
    }

    /// Copies the write-ahead log into the file, so that the file is all there is; whether that
    /// was possible.
    fn empty_log(&self) -> rusqlite::Result<bool> {
        self.conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
            .map(|busy| busy == 0)
    }

    /// Whether the file we have open is still the registry of its path.
    fn check_identity(&mut self) -> Result<()> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        match identity(&self.path) {
            Ok(now) if now == self.identity => return Ok(()),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), NotFound | NotADirectory) => {}
            // A file system that was shut down says nothing of the file, which may well be there.
            Err(e) => {
                self.failing = true;
                let what = format!("look at registry {}", self.path.display());
                return Err(Error::with_source(ErrorKind::Io, what, e));
            }
        }
        self.gone = true;
        Err(Error::new(
            ErrorKind::Unreachable,
            format!("registry {} was removed or replaced", self.path.display()),
        ))
    }

    /// One consistent look.
    pub(super) fn read<T>(
        &mut self,
        work: impl Fn(&Transaction<'_>, &Meta) -> Result<T, Stop>,
    ) -> Result<T> {
        self.check_identity()?;
        let result = (|| {
            let tx = self.conn.transaction()?;
            let meta = meta(&tx)?;
            refuse_retired(&self.path, &meta)?;
            work(&tx, &meta)
        })();
        result.map_err(|stop| self.stopped("read", stop))
    }

    /// All or nothing, durable when it returns. On a full disk it uses what is kept for such writes,
    /// see [`reserve`].
    pub(super) fn write<T>(
        &mut self,
        work: impl Fn(&Transaction<'_>, &Meta) -> Result<T, Stop>,
    ) -> Result<T> {
        match self.write_if_room(&work) {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                // What is in the log goes to its places, so that the log is used again from its
                // beginning. If that is not possible, neither is the write.
                let _ = self.conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
                self.write_if_room(&work)
            }
            other => other,
        }
    }

    /// The same for what may be refused when there is no space.
    fn write_if_room<T>(
        &mut self,
        work: impl Fn(&Transaction<'_>, &Meta) -> Result<T, Stop>,
    ) -> Result<T> {
        let queue = self.queue.clone();
        let _turn = queue.enter()?;
        self.check_identity()?;
        match self.try_write(&work) {
            Err(Stop::Sql(error)) if is_full(&error) => {
                // History is only a comfort: give its space back and try once more.
                self.try_write(&|tx: &Transaction<'_>, meta: &Meta| forget(tx, meta))
                    .map_err(|_| schema::error(&self.path, "write", error))?;
                self.try_write(&work)
            }
            other => other,
        }
        .map_err(|stop| self.stopped("write", stop))
    }

    fn try_write<T>(
        &mut self,
        work: &impl Fn(&Transaction<'_>, &Meta) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let meta = meta(&tx)?;
        refuse_retired(&self.path, &meta)?;
        let value = work(&tx, &meta)?;
        tx.commit()?;
        Ok(value)
    }

    fn stopped(&mut self, doing: &str, stop: Stop) -> Error {
        match stop {
            Stop::Gone(error) => {
                self.gone = true;
                error
            }
            Stop::Sql(error) => {
                self.failing |=
                    error.sqlite_error_code() == Some(rusqlite::ErrorCode::SystemIoFailure);
                if self.failing && schema::is_damage(&error) {
                    return schema::failing(&self.path, error);
                }
                schema::error(&self.path, doing, error)
            }
            Stop::Ours(error) => error,
        }
    }

    pub fn meta(&mut self) -> Result<Meta> {
        self.read(|_, meta| Ok(*meta))
    }

    /// Marks the registry as giving way unless it is formatted; see the `open` module. Says
    /// whether it did.
    pub fn retire(&mut self) -> Result<bool> {
        self.write(|tx, _| {
            if entry_modified(tx, crate::FORMATTED_KEY)?.is_some() {
                return Ok(false);
            }
            tx.execute("UPDATE meta SET retired = 1", [])?;
            Ok(true)
        })
    }

    /// Takes [`Db::retire`] back, if it was said.
    pub fn unretire(&mut self) -> Result<()> {
        let _turn = self.queue.enter()?;
        let undo = || {
            let retired: bool =
                self.conn.query_row("SELECT retired FROM meta", [], |row| row.get(0))?;
            if retired {
                self.conn.execute("UPDATE meta SET retired = 0", [])?;
            }
            Ok(())
        };
        undo().map_err(|e| schema::error(&self.path, "write", e))
    }

    pub fn get(&mut self, key: &str) -> Result<Option<Entry>> {
        self.read(|tx, _| {
            Ok(tx
                .prepare_cached("SELECT key, value, modified FROM entry WHERE key = ?1")?
                .query_row([key], entry)
                .optional()?)
        })
    }

    pub fn list(&mut self, prefix: &str) -> Result<Listing> {
        let end = end_of(prefix);
        self.read(|tx, meta| {
            let entries = tx
                .prepare_cached(
                    "SELECT key, value, modified FROM entry WHERE key >= ?1 AND key < ?2
                     ORDER BY key",
                )?
                .query_map([prefix, &end], entry)?
                .collect::<rusqlite::Result<_>>()?;
            Ok(Listing { revision: revision(meta.revision), entries })
        })
    }

    /// `session`: the keys put become its, and it must be there.
    pub fn commit(&mut self, txn: &Txn, session: Option<i64>) -> Result<Outcome> {
        let history_max = self.tuning.history_bytes;
        let work = |tx: &Transaction<'_>, meta: &Meta| {
            if let Some(id) = session
                && !session_exists(tx, id)?
            {
                return Err(Stop::Ours(session_over()));
            }
            for compare in &txn.compares {
                let holds = match compare {
                    Compare::Absent(key) => entry_modified(tx, key)?.is_none(),
                    Compare::Unchanged(key, revision) => {
                        entry_modified(tx, key)?.and_then(|m| u64::try_from(m).ok())
                            == Some(revision.0)
                    }
                };
                if !holds {
                    return Ok(Outcome::Conflict);
                }
            }
            let mut commit = Recorded::new(tx, meta);
            for change in &txn.changes {
                match change {
                    Change::Put(key, value) => commit.put(key, value, session)?,
                    Change::Delete(key) => commit.delete(key)?,
                }
            }
            Ok(Outcome::Committed(commit.finish(history_max)?))
        };
        // A claim is what lets a sheep start, so it counts among what may use the last space.
        if session.is_some() || !self.makes_keys(txn)? {
            return self.write(work);
        }
        if reserve::is_short(&Paths::of(&self.path)) {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("registry {}: the disk is nearly full", self.path.display()),
            ));
        }
        let outcome = self.write_if_room(work)?;
        self.keep_pages();
        Ok(outcome)
    }

    /// Whether a transaction puts a key that is not there.
    fn makes_keys(&mut self, txn: &Txn) -> Result<bool> {
        self.read(|tx, _| {
            for change in &txn.changes {
                if let Change::Put(key, _) = change
                    && entry_modified(tx, key)?.is_none()
                {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// What happened after `cursor` below `prefix`.
    pub fn history(&mut self, prefix: &str, cursor: Revision) -> Result<Batch> {
        let end = end_of(prefix);
        self.read(|tx, meta| {
            let head = revision(meta.revision);
            if cursor < revision(meta.compacted) {
                return Ok(Batch { events: vec![WatchEvent::TooOld], covered: cursor });
            }
            let mut rows = tx.prepare_cached(
                "SELECT revision, key, value FROM history
                 WHERE revision > ?1 AND key >= ?2 AND key < ?3 ORDER BY position",
            )?;
            let mut rows = rows.query(params![cursor.0.cast_signed(), prefix, end])?;
            let mut events: Vec<(Revision, Vec<Change>)> = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let at = revision(row.get(0)?);
                let key: String = row.get(1)?;
                let value: Option<Vec<u8>> = row.get(2)?;
                if events.last().is_none_or(|(last, _)| *last != at) {
                    if events.len() >= BATCH_EVENTS || bytes >= BATCH_BYTES {
                        break;
                    }
                    events.push((at, Vec::new()));
                }
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                let change = match value {
                    Some(value) => Change::Put(key, Bytes::from(value)),
                    None => Change::Delete(key),
                };
                if let Some((_, changes)) = events.last_mut() {
                    changes.push(change);
                }
            }
            let full = events.len() >= BATCH_EVENTS || bytes >= BATCH_BYTES;
            let covered = match events.last() {
                Some((last, _)) if full => *last,
                _ => head,
            };
            let events = events
                .into_iter()
                .map(|(revision, changes)| WatchEvent::Committed { revision, changes })
                .collect();
            Ok(Batch { events, covered })
        })
    }

    /// Forgets the history before the newest commit's end.
    pub fn compact(&mut self) -> Result<()> {
        self.write(forget)
    }

    pub fn begin_session(&mut self, file: Uuid) -> Result<i64> {
        self.write(|tx, _| {
            tx.execute("INSERT INTO session (file) VALUES (?1)", [file.as_bytes()])?;
            Ok(tx.last_insert_rowid())
        })
    }

    /// Deletes a session with its keys; nothing happens if somebody else did.
    pub fn end_session(&mut self, id: i64) -> Result<()> {
        let history_max = self.tuning.history_bytes;
        self.write(|tx, meta| {
            if !session_exists(tx, id)? {
                return Ok(());
            }
            let keys: Vec<String> = tx
                .prepare_cached("SELECT key FROM entry WHERE session = ?1 ORDER BY key")?
                .query_map([id], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut commit = Recorded::new(tx, meta);
            for key in &keys {
                commit.delete(key)?;
            }
            commit.finish(history_max)?;
            tx.execute("DELETE FROM session WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    /// Every session, oldest first.
    pub fn sessions(&mut self) -> Result<Vec<(i64, Uuid)>> {
        self.read(|tx, _| {
            Ok(tx
                .prepare_cached("SELECT id, file FROM session ORDER BY id")?
                .query_map([], |row| Ok((row.get(0)?, Uuid::from_bytes(row.get(1)?))))?
                .collect::<rusqlite::Result<_>>()?)
        })
    }
}

/// The log stays, empty but allocated: see [`reserve`].
impl Drop for Db {
    fn drop(&mut self) {
        // If that is not possible, the next who opens it does it.
        let _ = self.empty_log();
        reserve::hold_log(&Paths::of(&self.path));
    }
}

fn refuse_retired(path: &Path, meta: &Meta) -> Result<(), Stop> {
    if !meta.retired {
        return Ok(());
    }
    Err(Stop::Gone(Error::new(
        ErrorKind::Unreachable,
        format!(
            "registry {} gave way to that of an older cluster: start again to join it",
            path.display()
        ),
    )))
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

fn meta(tx: &Transaction<'_>) -> rusqlite::Result<Meta> {
    tx.prepare_cached("SELECT cluster, revision, compacted, history_bytes, retired FROM meta")?
        .query_row([], |row| {
            Ok(Meta {
                cluster: Uuid::from_bytes(row.get(0)?),
                revision: row.get(1)?,
                compacted: row.get(2)?,
                history_bytes: row.get(3)?,
                retired: row.get(4)?,
            })
        })
}

pub(super) fn entry_modified(tx: &Transaction<'_>, key: &str) -> rusqlite::Result<Option<i64>> {
    tx.prepare_cached("SELECT modified FROM entry WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

fn session_exists(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<bool> {
    tx.prepare_cached("SELECT 1 FROM session WHERE id = ?1")?.exists([id])
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        modified: revision(row.get(2)?),
    })
}

pub(super) fn session_over() -> Error {
    Error::new(ErrorKind::Conflict, "the registry session is over")
}

/// Keys end at `~`, so this is behind every key that begins with `prefix`.
fn end_of(prefix: &str) -> String {
    format!("{prefix}\x7f")
}

pub(super) fn revision(stored: i64) -> Revision {
    Revision(stored.cast_unsigned())
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|m| (m.dev(), m.ino()))
}
