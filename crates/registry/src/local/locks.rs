//! Locks that the operating system drops when their process dies: who has the registry open, who
//! is opening it, and which sessions live.
//!
//! All are `flock`s on files of their own beside the registry file, never on that file itself
//! (closing a second descriptor of it would drop SQLite's locks). A lock belongs to the open
//! file, so two handles in one process exclude each other like two processes.

use sheepdog_types::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long somebody else may be busy opening or closing the registry.
const WAIT_MAX: Duration = Duration::from_secs(10);
const WAIT_LOOK: Duration = Duration::from_millis(2);

/// The files of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The database; everything of value is in it.
    pub file: PathBuf,
    /// Shared while open, exclusive to move the file.
    pub presence: PathBuf,
    /// Exclusive while opening.
    pub gate: PathBuf,
    /// Written after each commit, for those who watch it.
    pub bell: PathBuf,
    /// A file per session, locked while it lives.
    pub sessions: PathBuf,
}

impl Paths {
    pub fn of(file: &Path) -> Self {
        let beside = |suffix: &str| suffixed(file, suffix);
        Self {
            file: file.to_owned(),
            presence: beside(".lock"),
            gate: beside(".gate"),
            bell: beside(".bell"),
            sessions: beside(".sessions"),
        }
    }

    /// Where the registry of a cluster waits while another one is in use.
    pub fn aside(&self, cluster: Uuid) -> PathBuf {
        suffixed(&self.file, &format!(".{cluster}"))
    }

    pub fn session(&self, file: Uuid) -> PathBuf {
        self.sessions.join(file.to_string())
    }
}

fn suffixed(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    PathBuf::from(name)
}

/// An error about one of the files, with the kind that fits what the operating system says.
pub(super) fn io_error(doing: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            ErrorKind::ReadOnly
        }
        std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory => ErrorKind::Invalid,
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, format!("{doing} {}", path.display()), error)
}

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
/// lock knows no time limit; it is taken only while a registry is opened.
pub(super) fn wait_exclusive(lock: &File, path: &Path) -> Result<bool> {
    let since = Instant::now();
    loop {
        if try_exclusive(lock, path)? {
            return Ok(true);
        }
        if since.elapsed() > WAIT_MAX {
            return Ok(false);
        }
        std::thread::sleep(WAIT_LOOK);
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
                return Ok(Self {
                    name,
                    path,
                    _file: file,
                });
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
