//! Locks that the operating system drops when their process dies: who has the registry open, who
//! is opening it, who writes next, and which sessions live.
//!
//! All are `flock`s on files of their own beside the registry file, never on that file itself
//! (closing a second descriptor of it would drop SQLite's locks). A lock belongs to the open
//! file, so two handles in one process exclude each other like two processes.

use super::paths::{Paths, io_error};
use sheepdog_types::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long somebody else may be busy with the registry.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long others may be opening it: many may start at once, one behind the other.
const GATE_MAX: Duration = Duration::from_secs(60);
/// How often to look whether opening, or a commit, is done. The latter takes a disk flush.
const OPEN_LOOK: Duration = Duration::from_millis(2);
pub(super) const WRITE_LOOK: Duration = Duration::from_micros(200);

/// Opens a lock file, making it if need be.
pub(super) fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| io_error("open", path, e))
}

/// Whether it is ours now.
pub(super) fn try_exclusive(lock: &File, path: &Path) -> Result<bool> {
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(io_error("lock", path, e)),
    }
}

/// Waits for an exclusive lock, `false` when its time is up. Looks again and again, as a blocking
/// lock knows no time limit.
fn wait(lock: &File, path: &Path, at_most: Duration, look: Duration) -> Result<bool> {
    let since = Instant::now();
    loop {
        if try_exclusive(lock, path)? {
            return Ok(true);
        }
        if since.elapsed() > at_most {
            return Ok(false);
        }
        std::thread::sleep(look);
    }
}

/// The gate of a registry: nobody else opens it until the result is dropped.
pub(super) fn pass_gate(paths: &Paths) -> Result<File> {
    let gate = open_lock(&paths.gate)?;
    if wait(&gate, &paths.gate, GATE_MAX, OPEN_LOOK)? {
        return Ok(gate);
    }
    Err(Error::new(
        ErrorKind::Unreachable,
        format!("registry {}: another process is still opening it", paths.file.display()),
    ))
}

/// Waits until nobody else has the registry open; `false` when its time is up.
pub(super) fn wait_alone(presence: &File, paths: &Paths) -> Result<bool> {
    wait(presence, &paths.presence, WAIT_MAX, OPEN_LOOK)
}

/// The queue of those who want to write. SQLite's own lock is what keeps them apart; but it would
/// let a process that writes all the time starve the others. Here whoever holds the turn is next
/// and keeps it until the writer before has finished, so the latter cannot overtake.
pub(super) struct Queue {
    turn: (File, PathBuf),
    writer: (File, PathBuf),
    file: PathBuf,
}

impl Queue {
    pub fn open(paths: &Paths) -> Result<Self> {
        Ok(Self {
            turn: (open_lock(&paths.turn)?, paths.turn.clone()),
            writer: (open_lock(&paths.writer)?, paths.writer.clone()),
            file: paths.file.clone(),
        })
    }

    /// Waits for the turn to write, and writes until the result is dropped.
    ///
    /// # Errors
    /// `Unreachable` if another process does not finish.
    pub fn enter(&self) -> Result<Locked<'_>> {
        let _turn = self.lock(&self.turn)?;
        self.lock(&self.writer)
    }

    fn lock<'a>(&'a self, (lock, path): &'a (File, PathBuf)) -> Result<Locked<'a>> {
        if wait(lock, path, WAIT_MAX, WRITE_LOOK)? {
            return Ok(Locked(lock));
        }
        Err(Error::new(
            ErrorKind::Unreachable,
            format!(
                "registry {}: another process has held it for {} s",
                self.file.display(),
                WAIT_MAX.as_secs()
            ),
        ))
    }
}

/// A lock that is given back when dropped.
pub(super) struct Locked<'a>(&'a File);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // It cannot fail for a file that is open; and closing it unlocks, too.
        let _ = self.0.unlock();
    }
}

/// A session of ours: its file, locked.
pub(super) struct SessionLock {
    pub name: Uuid,
    path: PathBuf,
    _file: File,
}

impl SessionLock {
    /// Makes a file that nobody else has and locks it.
    pub fn new(paths: &Paths) -> Result<Self> {
        loop {
            let name = Uuid::new_v4();
            let path = paths.session(name);
            let fail = |e| io_error("make session", &path, e);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(fail)?;
            file.lock().map_err(fail)?;
            // Somebody may have taken it for a leftover before it was locked.
            let ours = file.metadata().map_err(fail)?.ino();
            if std::fs::metadata(&path).is_ok_and(|m| m.ino() == ours) {
                return Ok(Self { name, path, _file: file });
            }
        }
    }

    /// Takes the file away; the lock goes with the value.
    pub fn remove(&self) {
        // A leftover is removed by whoever opens the registry next.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether nobody holds the session with this file any more. A file that cannot be looked at
/// counts as held.
pub(super) fn session_is_dead(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Removes files of sessions that ended or never began. `known` are left alone.
pub(super) fn remove_leftovers(paths: &Paths, known: &[Uuid]) {
    let Ok(files) = std::fs::read_dir(&paths.sessions) else {
        return;
    };
    for file in files.flatten() {
        let name = file.file_name();
        let Some(name) = name.to_str().and_then(|n| Uuid::try_parse(n).ok()) else {
            continue;
        };
        if known.contains(&name) {
            continue;
        }
        // Locked by us while it goes: one that is just being made is locked by its maker or will
        // find itself gone.
        if let Ok(open) = File::open(file.path())
            && open.try_lock().is_ok()
        {
            let _ = std::fs::remove_file(file.path());
        }
    }
}
