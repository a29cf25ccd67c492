//! The registry file as SQLite sees it: tables, version, how a connection is set up, and what
//! SQLite's errors mean to the user of a registry.

use super::locks::{WAIT_MAX, WRITE_LOOK};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use sheepdog_types::{Error, ErrorKind, Result};
use std::path::Path;
use std::time::Instant;
use uuid::Uuid;

/// Version of the tables below; a newer one is refused.
pub(super) const VERSION: i64 = 1;
/// Marks the file as ours ("Shee").
const APPLICATION: i64 = 0x5368_6565;
/// One row of `meta`. `compacted`: history up to and with this revision is forgotten.
/// `retired`: see the `open` module. History rows with a NULL value are deletes. A session's
/// liveness is the lock on the file named by its uuid; `mountpoint` says that the store was the
/// root of a file system when it was recorded.
const TABLES: &str = "
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    cluster BLOB NOT NULL,
    revision INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    history_bytes INTEGER NOT NULL,
    retired INTEGER NOT NULL
) STRICT;
CREATE TABLE entry (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    modified INTEGER NOT NULL,
    session INTEGER
) STRICT;
CREATE INDEX entry_of_session ON entry (session) WHERE session IS NOT NULL;
CREATE TABLE history (
    position INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX history_by_revision ON history (revision);
CREATE TABLE session (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    file BLOB NOT NULL UNIQUE
) STRICT;
CREATE TABLE member (
    store BLOB PRIMARY KEY,
    disk BLOB,
    mountpoint INTEGER NOT NULL,
    session INTEGER
) STRICT;
";

/// Writes a new registry to `path`, which must not exist, for a new cluster.
pub(super) fn create(path: &Path) -> Result<Uuid> {
    let cluster = Uuid::new_v4();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let make = || -> rusqlite::Result<()> {
        let mut conn = Connection::open_with_flags(path, flags)?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        let tx = conn.transaction()?;
        tx.pragma_update(None, "application_id", APPLICATION)?;
        tx.pragma_update(None, "user_version", VERSION)?;
        tx.execute_batch(TABLES)?;
        tx.execute("INSERT INTO meta VALUES (1, ?1, 0, 0, 0, 0)", [cluster.as_bytes()])?;
        tx.commit()?;
        conn.close().map_err(|(_, e)| e)
    };
    make().map_err(|e| error(path, "create", e))?;
    Ok(cluster)
}

/// Opens an existing registry. Nothing is written before its version is known to be ours.
pub(super) fn connect(path: &Path, pages_max: u32) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let fail = |e| error(path, "open", e);
    let mut conn = Connection::open_with_flags(path, flags).map_err(fail)?;
    wait_when_busy(&mut conn).map_err(fail)?;
    check_version(&conn, path)?;
    let set = || -> rusqlite::Result<String> {
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "FULL")?;
        conn.pragma_update(None, "journal_size_limit", 16 << 20)?;
        conn.pragma_update(None, "max_page_count", pages_max)?;
        // The log stays, with the space it has: see the `reserve` module.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.set_prepared_statement_cache_capacity(64);
        // What a killed process left in the log goes to the file, and the log is written from its
        // start again: on a full disk it could not grow.
        match conn.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())) {
            // The log has some space of its own still.
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DiskFull) => {}
            other => other?,
        }
        conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
    };
    let verdict = set().map_err(fail)?;
    if verdict != "ok" {
        return Err(damaged(path, &verdict));
    }
    Ok(conn)
}

fn check_version(conn: &Connection, path: &Path) -> Result<()> {
    let number = |name| {
        conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|e| error(path, "open", e))
    };
    if number("application_id")? != APPLICATION {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{} is not a registry", path.display()),
        ));
    }
    match number("user_version")? {
        VERSION => Ok(()),
        newer if newer > VERSION => Err(Error::new(
            ErrorKind::VersionMismatch,
            format!(
                "registry {} was written by a newer version (format {newer}, this one knows \
                 {VERSION}): upgrade",
                path.display()
            ),
        )),
        other => Err(damaged(path, &format!("format {other}"))),
    }
}

/// For others than us (we queue before we ask SQLite). Its own waiting would sleep up to 100 ms
/// between looks.
fn wait_when_busy(conn: &mut Connection) -> rusqlite::Result<()> {
    let mut since = Instant::now();
    conn.busy_handler(Some(move |looks| {
        if looks == 0 {
            since = Instant::now();
        }
        std::thread::sleep(WRITE_LOOK);
        since.elapsed() < WAIT_MAX
    }))
}

fn damaged(path: &Path, how: &str) -> Error {
    Error::new(
        ErrorKind::Io,
        format!(
            "registry {} is damaged ({}): put it aside and restore a copy",
            path.display(),
            how.replace('\n', " ")
        ),
    )
}

/// Whether an error says that the file does not hold what was written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(e, _) => {
            matches!(e.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        }
        // A value of the wrong type in our tables.
        _ => true,
    }
}

/// What looks like damage after I/O errors: nobody should put the file aside for that.
pub(super) fn failing(path: &Path, error: rusqlite::Error) -> Error {
    let line = format!(
        "the file system of registry {} fails: look at that first, then start again",
        path.display()
    );
    Error::with_source(ErrorKind::Io, line, error)
}

/// What an error of SQLite asks of the user, in one line.
pub(super) fn error(path: &Path, doing: &str, error: rusqlite::Error) -> Error {
    let file = path.display();
    let (code, extended) = match &error {
        rusqlite::Error::SqliteFailure(e, _) => (Some(e.code), e.extended_code),
        _ => (None, 0),
    };
    let (kind, line) = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::Unreachable,
            format!("registry {file}: another process has held it for {} s", WAIT_MAX.as_secs()),
        ),
        Some(ErrorCode::DiskFull) => {
            (ErrorKind::NoSpace, format!("registry {file}: the disk or the registry is full"))
        }
        _ if extended == ffi::SQLITE_IOERR_SHMSIZE => {
            (ErrorKind::NoSpace, format!("registry {file}: the disk is full"))
        }
        Some(ErrorCode::ReadOnly) => {
            (ErrorKind::ReadOnly, format!("registry {file} cannot be written"))
        }
        _ if is_damage(&error) => return damaged(path, &error.to_string()),
        _ => {
            let line = format!("{doing} registry {file}");
            return Error::with_source(ErrorKind::Io, line, error);
        }
    };
    // SQLite would only say the same in other words.
    Error::new(kind, line)
}
