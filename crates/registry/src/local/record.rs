//! Writing a commit: its changes go into the entries and into the one history, whose oldest part is
//! forgotten when it grows too large.

use super::db::{Meta, Stop, revision};
use rusqlite::{Transaction, params};
use sheepdog_types::kv::Revision;

/// Rows and indexes of one change in the history, about.
const CHANGE_OVERHEAD: usize = 64;
/// The changes of one commit on their way into entries and history.
pub(super) struct Recorded<'a> {
    tx: &'a Transaction<'a>,
    meta: &'a Meta,
    bytes: i64,
}

impl<'a> Recorded<'a> {
    pub fn new(tx: &'a Transaction<'a>, meta: &'a Meta) -> Self {
        Self { tx, meta, bytes: 0 }
    }

    fn revision(&self) -> i64 {
        self.meta.revision + 1
    }

    pub fn put(&mut self, key: &str, value: &[u8], session: Option<i64>) -> rusqlite::Result<()> {
        self.tx
            .prepare_cached(
                "INSERT INTO entry (key, value, modified, session) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value,
                 modified = excluded.modified, session = excluded.session",
            )?
            .execute(params![key, value, self.revision(), session])?;
        self.record(key, Some(value))
    }

    pub fn delete(&mut self, key: &str) -> rusqlite::Result<()> {
        let gone = self.tx.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])?;
        if gone == 0 {
            return Ok(());
        }
        self.record(key, None)
    }

    fn record(&mut self, key: &str, value: Option<&[u8]>) -> rusqlite::Result<()> {
        let bytes = key.len() + value.map_or(0, <[u8]>::len) + CHANGE_OVERHEAD;
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.tx
            .prepare_cached(
                "INSERT INTO history (revision, key, value, bytes) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![self.revision(), key, value, bytes])?;
        self.bytes += bytes;
        Ok(())
    }

    /// The revision the commit has, the old one if it changed nothing.
    pub fn finish(self, history_max: i64) -> rusqlite::Result<Revision> {
        if self.bytes == 0 {
            return Ok(revision(self.meta.revision));
        }
        let mut bytes = self.meta.history_bytes + self.bytes;
        let mut compacted = self.meta.compacted;
        if bytes > history_max {
            // A quarter at once, so that most commits need not look. The newest commit stays.
            let mut oldest = self.tx.prepare_cached(
                "SELECT revision, SUM(bytes) FROM history WHERE revision < ?1
                 GROUP BY revision ORDER BY revision",
            )?;
            let mut oldest = oldest.query([self.revision()])?;
            while bytes > history_max / 4 * 3
                && let Some(row) = oldest.next()?
            {
                compacted = row.get(0)?;
                bytes -= row.get::<_, i64>(1)?;
            }
            self.tx.execute("DELETE FROM history WHERE revision <= ?1", [compacted])?;
        }
        self.tx
            .prepare_cached("UPDATE meta SET revision = ?1, compacted = ?2, history_bytes = ?3")?
            .execute([self.revision(), compacted, bytes])?;
        Ok(revision(self.revision()))
    }
}

/// Forgets all history up to now.
pub(super) fn forget(tx: &Transaction<'_>, meta: &Meta) -> Result<(), Stop> {
    tx.execute("DELETE FROM history", [])?;
    tx.execute("UPDATE meta SET compacted = ?1, history_bytes = 0", [meta.revision])?;
    Ok(())
}
