//! A store that is looked at and never written: stopped, on a copy, on a read-only mount, on a
//! damaged disk. The same state machine as everywhere; what it asks to write is not written.

use crate::areas::LogInside;
use crate::device;
use crate::files::{DATA, LOG, log_is_elsewhere, log_is_gone, refuse_log_of_another};
use sheepdog_storelog::format::superblock::{CheckpointSlot, SLOT_OFFSETS};
use sheepdog_storelog::io::{Area, Completion, DiskError, DiskErrorKind, DiskOp, OpId};
use sheepdog_storelog::{
    Answer, Command, CommandId, Effect, Input, Limits, OpenReport, Opening, Store,
};
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, PageBuf, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// See the module.
pub struct OfflineStore {
    store: Box<Store>,
    files: Files,
    /// Keeps a sheep from starting meanwhile, where the directory can hold a lock.
    lock: Option<File>,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// As for a running store.
    pub report: OpenReport,
    /// Parts of the index and the log that were left out because they are damaged, a line each.
    pub damage: Vec<String>,
    /// What a crash may leave and the next start mends, a line each.
    pub notes: Vec<String>,
}

struct Files {
    data: File,
    log: File,
    inside: Option<LogInside>,
    /// Units of a device or of a copy of one.
    units: Option<u32>,
}

impl OfflineStore {
    /// Opens the store in a directory, on a device, or in a copy of a device. `links` is where the
    /// device's node has its links to data and log, if that is known.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] while a sheep uses it, [`ErrorKind::Invalid`] when there is none, or
    /// its log is elsewhere and nobody knows where, [`ErrorKind::Io`] when not even its superblock
    /// can be read, [`ErrorKind::VersionMismatch`].
    pub fn open(path: &Path, links: Option<&Path>) -> Result<(Self, Found)> {
        let lock = lock(path)?;
        let (mut opened, found) = Self::open_files(Files::at(path, links)?)?;
        opened.lock = lock;
        Ok((opened, found))
    }

    fn open_files(files: Files) -> Result<(Self, Found)> {
        let whole_units = files.units.is_some();
        let limits = Limits { logged_bytes: 0, whole_units, ..Limits::STANDARD };
        let mut effects = Vec::new();
        let mut opening = Opening::salvage(limits, &mut effects);
        if let Some(units) = files.units {
            opening.expect_end(units);
        }
        loop {
            let Some((id, op)) = next_op(&mut effects) else {
                return Err(Error::new(ErrorKind::Internal, "opening the store came to a stop"));
            };
            if let Some(opened) = opening.completed(files.perform(id, &op), &mut effects) {
                let (store, report) = opened?;
                let notes = files.unreadable_slots(store.superblock().log_id);
                let found = Found { report, damage: opening.take_damage(), notes };
                return Ok((Self { store, files, lock: None }, found));
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

/// Whether the store in a directory, or on a device with its links in `links`, was prepared at most:
/// no fragment, no batch, and no damage that may hide one. Only such a one may be prepared again.
/// For who has its lock; nothing is written.
///
/// # Errors
/// Those of [`OfflineStore::open`].
pub fn is_unused(path: &Path, links: Option<&Path>) -> Result<bool> {
    let lacks = |dir: &Path, name: &str| dir.join(name).symlink_metadata().is_err();
    if path.is_dir() {
        // What is cleared, having been looked at, loses its data first.
        if lacks(path, DATA) {
            return Ok(true);
        }
    } else if device::own_superblock(path)?.log_is_elsewhere()
        && links.is_some_and(|links| lacks(links, DATA) || lacks(links, LOG))
    {
        // Cleared in the same order, and a crash came before the links were whole again: that of
        // the log is made when the log is.
        return Ok(true);
    }
    let files = Files::at(path, links)?;
    // A crash while preparing leaves data without a superblock, or a torn one; the log was zeros
    // then. The first batch of a log is at its beginning.
    let first = DiskOp::Read { area: Area::Log, offset: 0, len: BLOCK_SIZE };
    let first = files.perform(OpId(0), &first).result;
    match OfflineStore::open_files(files) {
        Ok((_, Found { report, damage, .. })) => {
            let none = report.fragments == 0 && report.batches == 0 && !report.torn_tail;
            Ok(none && damage.is_empty())
        }
        Err(error) if error.kind() == ErrorKind::Io => {
            Ok(first.is_ok_and(|block| block.iter().all(|byte| *byte == 0)))
        }
        Err(error) => Err(error),
    }
}

/// Keeps a sheep from starting in a directory. A sheep has its store's lock for itself. A directory
/// without a lock, or whose file system knows none, is nobody's.
///
/// # Errors
/// [`ErrorKind::Locked`] while a sheep uses it.
pub fn lock(dir: &Path) -> Result<Option<File>> {
    // A pipe would keep us waiting for its other end.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = File::options().read(true).custom_flags(nonblocking).open(dir.join("lock"));
    let Ok(lock) = opened else {
        return Ok(None);
    };
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(lock)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use(dir)),
        Err(_) => Ok(None),
    }
}

fn next_op(effects: &mut Vec<Effect>) -> Option<(OpId, DiskOp)> {
    effects.pop().and_then(|effect| match effect {
        Effect::Disk(id, op) => Some((id, op)),
        Effect::Reply(..) => None,
    })
}

/// Opens the log of a disk that has its `log` in `links`.
fn open_log(of: &Path, links: &Path) -> Result<File> {
    let log = links.join(LOG);
    match std::fs::read_link(&log) {
        Ok(to) if !log.exists() => Err(log_is_gone(of, &to)),
        Err(_) if !log.exists() => {
            Err(Error::new(ErrorKind::Io, format!("{} has data but no log", of.display())))
        }
        _ => {
            refuse_log_of_another(links, &log)?;
            open(&log)
        }
    }
}

/// A device is opened for this process alone, a file so that no sheep starts on it meanwhile: it may
/// be that of another directory.
fn open(path: &Path) -> Result<File> {
    if device::is_device(path) {
        return device::open(path, false);
    }
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let what = format!("{} is neither a file nor a block device", path.display());
        return Err(Error::new(ErrorKind::Io, what));
    }
    let file = File::open(path).map_err(|e| {
        let kind = match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, format!("cannot open {}", path.display()), e)
    })?;
    let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
    let until = Instant::now() + device::PATIENCE;
    while rustix::fs::flock(&file, shared) == Err(rustix::io::Errno::WOULDBLOCK) {
        if Instant::now() >= until {
            let shown = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            return Err(in_use(&shown));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

fn in_use(what: &Path) -> Error {
    let what = format!("a sheep is using {}: stop it first, or look at a copy", what.display());
    Error::new(ErrorKind::Locked, what)
}

impl Files {
    /// Those of a store in a directory, on a device, or in a copy of one.
    fn at(path: &Path, links: Option<&Path>) -> Result<Self> {
        if !path.is_dir() {
            return Self::of_device(path, links);
        }
        let data = path.join(DATA);
        if device::is_device(&data) {
            return Self::of_device(&data, Some(path));
        }
        let (data, log) = (open(&data)?, open_log(path, path)?);
        Ok(Self { data, log, inside: None, units: None })
    }

    /// Those of a device or of a copy of one.
    fn of_device(path: &Path, links: Option<&Path>) -> Result<Self> {
        let data = open(path)?;
        let superblock = device::own_superblock(path)?;
        let failed = |e| {
            let what = format!("cannot open {}", path.display());
            Error::with_source(ErrorKind::Io, what, e)
        };
        let bytes = device::bytes(&data).map_err(failed)?;
        let elsewhere = links.map(|links| (log_is_elsewhere(&superblock, links), links));
        match elsewhere {
            Some((true, links)) => Ok(Self {
                data,
                log: open_log(path, links)?,
                inside: None,
                units: Some(device::units(bytes)),
            }),
            None if superblock.log_is_elsewhere() => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the log of {0} is not on it: name its store too (STORE,{0}), or a directory \
                     with links 'data' to it and 'log' to the log",
                    path.display()
                ),
            )),
            Some((false, _)) | None => {
                let inside = LogInside {
                    unit_bytes: superblock.geometry.chunk_bytes(),
                    log_bytes: superblock.log_area_bytes(),
                };
                let log = data.try_clone().map_err(failed)?;
                let units = device::units(bytes.saturating_sub(superblock.log_area_bytes()));
                Ok(Self { data, log, inside: Some(inside), units: Some(units) })
            }
        }
    }

    /// One of the two slots is enough, and a power cut may tear the one that is just written. Slots
    /// that differ are no news: between the writes of the two they do.
    fn unreadable_slots(&self, log_id: u64) -> Vec<String> {
        let reads = SLOT_OFFSETS.map(|at| {
            let mut block = PageBuf::zeroed(BLOCK_SIZE);
            read_at(&self.data, at, block.as_mut()).map_err(|e| e.to_string())?;
            CheckpointSlot::decode(log_id, block.as_ref()).map_err(|e| e.to_string())
        });
        let why = |(number, read): (usize, Result<_, String>)| {
            let why = read.err()?;
            Some(format!(
                "slot {number} of the two checkpoint slots cannot be read ({why}): the other one \
                 is enough, and the next start mends it"
            ))
        };
        (1..).zip(reads).filter_map(why).collect()
    }

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
