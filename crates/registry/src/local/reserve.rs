//! Space for what must go on when others have filled the registry's file system: starts, claims,
//! deletions. None of it can be taken away, because the files that need it hold it already:
//!
//! * SQLite's log has [`LOG_BYTES`] allocated and is written from its beginning again and again. It
//!   stays when the registry is closed, empty but allocated.
//! * The database has [`FREE_PAGES`] pages that are free, so that writes need not make it longer.
//!   What creates entries is refused on a file system that is nearly full, and so leaves them alone.

use super::paths::Paths;
use rusqlite::Connection;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::OpenOptions;

/// Some hundred pages: those of a start are about 20, a deletion's 5 to 10. Where it is used up, the
/// log is copied to the database and begun again.
const LOG_BYTES: u64 = 1 << 20;
/// The least that is worth having: a start's.
const LOG_BYTES_MIN: u64 = 128 << 10;
/// Splits of all trees of the database by a claim and a deletion, several times.
const FREE_PAGES: i64 = 32;
/// Nothing is created with less free space than this.
const SHORT: u64 = 4 << 20;

/// Allocates what the log lacks, or as much of it as there is.
pub(super) fn hold_log(paths: &Paths) {
    // There is none before the first connection.
    let Ok(log) = OpenOptions::new().write(true).open(paths.log()) else {
        return;
    };
    let mut bytes = LOG_BYTES;
    // Some file systems cannot allocate; they have no space to lose either.
    while bytes >= LOG_BYTES_MIN && fallocate(&log, FallocateFlags::KEEP_SIZE, 0, bytes).is_err() {
        bytes /= 2;
    }
}

/// Whether what is left of the file system is for those who must go on.
pub(super) fn is_short(paths: &Paths) -> bool {
    rustix::fs::statvfs(&paths.run)
        .is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < SHORT)
}

/// Makes the database longer by the free pages that it lacks: written in one transaction, so that
/// the file system has given them, and freed in another.
pub(super) fn keep_pages(conn: &Connection) -> rusqlite::Result<()> {
    let free: i64 = conn.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    if free >= FREE_PAGES {
        return Ok(());
    }
    let page: i64 = conn.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    // Twice as many, so that not every creation has to do this.
    let bytes = (2 * FREE_PAGES - free) * page;
    conn.execute_batch(&format!(
        "DROP TABLE IF EXISTS room;
         CREATE TABLE room AS SELECT zeroblob({bytes}) AS nothing;
         DROP TABLE room;"
    ))
}
