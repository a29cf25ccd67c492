//! The files of a registry by name, and how they are made and renamed so that it lasts.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use sheepdog_types::{Error, ErrorKind, Result};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The files of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The database; everything of value is in it.
    pub file: PathBuf,
    /// The directory of all files below, which are worth something only to running processes.
    pub run: PathBuf,
    /// Shared while open, exclusive to move the file.
    pub presence: PathBuf,
    /// Exclusive while opening.
    pub gate: PathBuf,
    /// For the queue of writers.
    pub turn: PathBuf,
    pub writer: PathBuf,
    /// Written after each commit, for those who watch it.
    pub bell: PathBuf,
    /// A directory with a file per session, locked while it lives.
    pub sessions: PathBuf,
}

impl Paths {
    pub fn of(file: &Path) -> Self {
        let run = suffixed(file, ".run");
        Self {
            file: file.to_owned(),
            presence: run.join("presence"),
            gate: run.join("gate"),
            turn: run.join("turn"),
            writer: run.join("writer"),
            bell: run.join("bell"),
            sessions: run.join("sessions"),
            run,
        }
    }

    /// SQLite's write-ahead log: empty when nobody has the file open, unless somebody crashed.
    pub fn log(&self) -> PathBuf {
        suffixed(&self.file, "-wal")
    }

    /// Its index, made anew by the first who opens the file.
    pub fn log_index(&self) -> PathBuf {
        suffixed(&self.file, "-shm")
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

/// Makes the directories of a registry, but none above the one it is in.
pub(super) fn make_directories(paths: &Paths) -> Result<()> {
    for directory in [around(&paths.file), &paths.run, &paths.sessions] {
        match std::fs::create_dir(directory) {
            Ok(()) => sync(around(directory))?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(io_error("make directory", directory, e)),
        }
    }
    Ok(())
}

/// Durable when it returns. Never replaces anything.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    use rustix::io::Errno;
    let renamed = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag; callers hold the gate.
        Err(Errno::INVAL | Errno::NOSYS) => match to.try_exists() {
            Ok(false) => std::fs::rename(from, to),
            Ok(true) => Err(Errno::EXIST.into()),
            Err(e) => Err(e),
        },
        other => other.map_err(Into::into),
    };
    renamed.map_err(|e| {
        io_error("rename", from, std::io::Error::new(e.kind(), format!("to {}: {e}", to.display())))
    })?;
    sync(around(to))
}

fn around(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn sync(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|open| open.sync_all())
        .map_err(|e| io_error("sync", directory, e))
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
