//! A store that is looked at and never written: stopped, on a copy, on a read-only mount, on a
//! damaged disk. The same state machine as everywhere; what it asks to write is not written.

use crate::areas::LogInside;
use crate::device;
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, Limits, OpenReport, Opening, Store,
};
use sheepdog_types::{Error, ErrorKind, PageBuf, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// See the module.
pub struct OfflineStore {
    store: Box<Store>,
    files: Files,
    /// Keeps a sheep from starting meanwhile, where the directory can hold a lock.
    _lock: Option<File>,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// As for a running store.
    pub report: OpenReport,
    /// Parts of the index and the log that were left out because they are damaged, a line each.
    pub damage: Vec<String>,
}

struct Files {
    data: File,
    log: File,
    inside: Option<LogInside>,
}

impl OfflineStore {
    /// Opens the store in a directory, on a device, or in a copy of a device.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while a sheep uses it, [`ErrorKind::Invalid`] when there is none,
    /// [`ErrorKind::Io`] when not even its superblock can be read,
    /// [`ErrorKind::VersionMismatch`].
    pub fn open(dir: &Path) -> Result<(Self, Found)> {
        let lock = lock(dir)?;
        let open = |path: &Path| {
            File::open(path).map_err(|e| {
                let kind = match e.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::Invalid,
                    _ => ErrorKind::Io,
                };
                Error::with_source(kind, format!("cannot open {}", path.display()), e)
            })
        };
        let (data, log) = (dir.join("data"), dir.join("log"));
        let device = if dir.is_dir() { data.as_path() } else { dir };
        let files = if device == dir || device::is_device(&log) {
            let superblock = device::own_superblock(device)?;
            let inside = LogInside {
                unit_bytes: superblock.geometry.chunk_bytes(),
                log_bytes: superblock.log_bytes,
            };
            Files { data: open(device)?, log: open(device)?, inside: Some(inside) }
        } else {
            Files { data: open(&data)?, log: open(&log)?, inside: None }
        };
        let limits = Limits { logged_bytes: 0, ..Limits::STANDARD };
        let mut effects = Vec::new();
        let mut opening = Opening::salvage(limits, &mut effects);
        loop {
            let Some((id, op)) = next_op(&mut effects) else {
                return Err(Error::new(ErrorKind::Internal, "opening the store came to a stop"));
            };
            if let Some(opened) = opening.completed(files.perform(id, &op), &mut effects) {
                let (store, report) = opened?;
                let found = Found { report, damage: opening.take_damage() };
                return Ok((Self { store, files, _lock: lock }, found));
            }
        }
    }

    /// The store's own view of itself.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Answers a read or a map.
    ///
    /// # Errors
    /// Those of the store; [`ErrorKind::ReadOnly`] for anything that writes.
    pub fn ask(&mut self, command: Command) -> Result<Answer> {
        if !matches!(command, Command::Read { .. } | Command::Map { .. }) {
            return Err(Error::new(ErrorKind::ReadOnly, "the store is only looked at"));
        }
        let mut effects = Vec::new();
        self.store.handle(Input::Command(CommandId(0), command), &mut effects);
        loop {
            if let Some(at) = effects.iter().position(|e| matches!(e, Effect::Reply(..)))
                && let Effect::Reply(_, answer) = effects.swap_remove(at)
            {
                return answer;
            }
            let Some((id, op)) = next_op(&mut effects) else {
                return Err(Error::new(ErrorKind::Internal, "reading the store came to a stop"));
            };
            let done = self.files.perform(id, &op);
            self.store.handle(Input::Completed(done), &mut effects);
        }
    }
}

/// A sheep has its store's lock for itself. A directory without a lock, or whose file system
/// knows none, is nobody's.
fn lock(dir: &Path) -> Result<Option<File>> {
    let Ok(lock) = File::open(dir.join("lock")) else {
        return Ok(None);
    };
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            ErrorKind::Locked,
            format!("a sheep is using {}: stop it first, or look at a copy", dir.display()),
        )),
        Err(_) => Ok(None),
    }
}

fn next_op(effects: &mut Vec<Effect>) -> Option<(OpId, DiskOp)> {
    effects.pop().and_then(|effect| match effect {
        Effect::Disk(id, op) => Some((id, op)),
        Effect::Reply(..) => None,
    })
}

impl Files {
    fn perform(&self, op: OpId, what: &DiskOp) -> Completion {
        let placed = self.inside.map(|inside| inside.placed(what.clone()));
        let result = match placed.as_ref().unwrap_or(what) {
            DiskOp::Read { area, offset, len } => {
                let file = match area {
                    Area::Data => &self.data,
                    Area::Log => &self.log,
                };
                let mut pages = PageBuf::zeroed(*len);
                match read_at(file, *offset, &mut pages.as_mut()[..*len]) {
                    Ok(()) => Ok(pages.freeze().slice(..*len)),
                    Err(error) => Err(DiskError {
                        kind: DiskErrorKind::Io,
                        text: format!("read {area:?} at {offset}: {error}"),
                    }),
                }
            }
            // What opening would put right stays as it is.
            _ => Ok(bytes::Bytes::new()),
        };
        Completion { op, result }
    }
}

/// What lies behind the end of a file reads as zeros.
fn read_at(file: &File, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    let mut at = offset;
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                at += n as u64;
                buffer = &mut buffer[n..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
