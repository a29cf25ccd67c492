//! Which stores a registry belongs to. The paths are recorded so that a registry is given up only
//! when all of them are known to hold nothing any more.

use super::db::Db;
use rusqlite::params;
use sheepdog_types::{DiskId, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A store of the cluster, and whether a process that opened the registry for it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordedStore {
    /// Absolute.
    pub store: PathBuf,
    /// `false`: the cluster waits for it (or `forget` it).
    pub running: bool,
}

/// A row of the table.
pub(super) struct Recorded {
    pub store: PathBuf,
    mountpoint: bool,
    pub running: bool,
}

impl Db {
    /// Every recorded store, by path.
    pub(super) fn recorded(&mut self) -> Result<Vec<Recorded>> {
        self.read(|tx, _| {
            Ok(tx
                .prepare_cached(
                    "SELECT store, mountpoint, session.id IS NOT NULL FROM member
                     LEFT JOIN session ON session.id = member.session ORDER BY store",
                )?
                .query_map([], |row| {
                    let store: Vec<u8> = row.get(0)?;
                    Ok(Recorded {
                        store: PathBuf::from(OsStr::from_bytes(&store)),
                        mountpoint: row.get(1)?,
                        running: row.get(2)?,
                    })
                })?
                .collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Records a store. One with the same disk id under another path is the same store, moved.
    pub(super) fn record(&mut self, store: &Path, disk: Option<DiskId>) -> Result<()> {
        let mountpoint = is_mountpoint(store);
        self.write(|tx, _| {
            let path = store.as_os_str().as_bytes();
            if let Some(disk) = disk {
                tx.execute(
                    "DELETE FROM member WHERE disk = ?1 AND store <> ?2",
                    params![disk.0, path],
                )?;
            }
            tx.execute(
                "INSERT INTO member (store, disk, mountpoint) VALUES (?1, ?2, ?3)
                 ON CONFLICT (store) DO UPDATE SET disk = excluded.disk,
                 mountpoint = excluded.mountpoint",
                params![path, disk.map(|d| d.0), mountpoint],
            )?;
            Ok(())
        })
    }

    /// The session whose life is the store's process.
    pub(super) fn set_running(&mut self, store: &Path, session: i64) -> Result<()> {
        self.write(|tx, _| {
            tx.execute(
                "UPDATE member SET session = ?2 WHERE store = ?1",
                params![store.as_os_str().as_bytes(), session],
            )?;
            Ok(())
        })
    }

    /// Says whether it was recorded.
    pub(super) fn forget_store(&mut self, store: &Path) -> Result<bool> {
        self.write(|tx, _| {
            let path = store.as_os_str().as_bytes();
            Ok(tx.execute("DELETE FROM member WHERE store = ?1", [path])? > 0)
        })
    }
}

/// Whether a recorded store surely holds nothing: it is there and `is_empty` says so, or it is
/// missing from a directory on `device`, the registry's own file system. Anything that may be a
/// disk not mounted now, or cannot be looked at, is not gone.
pub(super) fn is_gone(
    recorded: &Recorded,
    device: u64,
    is_empty: fn(&Path) -> std::io::Result<bool>,
) -> bool {
    let store = &recorded.store;
    match store.symlink_metadata() {
        Ok(_) => (!recorded.mountpoint || is_mountpoint(store)) && is_empty(store).unwrap_or(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => store
            .parent()
            .and_then(|parent| parent.metadata().ok())
            .is_some_and(|parent| parent.dev() == device),
        Err(_) => false,
    }
}

fn is_mountpoint(path: &Path) -> bool {
    let device = |p: &Path| p.metadata().ok().map(|m| m.dev());
    let around = path.parent().and_then(device);
    around.is_some() && device(path) != around
}

/// A directory without entries: the least that "empty" can mean. Sheep knows its own stores
/// better.
///
/// # Errors
/// Those of reading the directory.
pub fn directory_is_empty(path: &Path) -> std::io::Result<bool> {
    match std::fs::read_dir(path)?.next() {
        None => Ok(true),
        Some(entry) => entry.map(|_| false),
    }
}
