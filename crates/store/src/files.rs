//! The files of a store: `lock`, held while a sheep uses it; `log`, written once with zeros; and
//! `data`, which starts empty. Prepares them so that a crash or a full disk leaves either a whole
//! store or none, and opens them. What is in them is storelog's.

use crate::areas::{Areas, LogInside, direct_align};
use crate::device;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use sheepdog_storelog::Superblock;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, Geometry, PageBuf, Result, size};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const DATA: &str = "data";
pub(crate) const LOG: &str = "log";
const LOCK: &str = "lock";
/// Files under way to their names; whatever is found under these names is worthless.
const NEW_DATA: &str = "data.new";
const NEW_LOG: &str = "log.new";
/// Zeros written at once.
const ZEROS_BYTES: usize = 4 << 20;

/// A directory held by this process; nobody else prepares or opens the store in it.
#[derive(Debug)]
pub struct StoreLock {
    dir: PathBuf,
    /// The kernel lets go of the lock when the last copy of this is closed, however that happens.
    _lock: File,
}

/// The opened files of a store.
#[derive(Debug)]
pub struct StoreFiles {
    /// Data and log, for an engine.
    pub areas: Arc<Areas>,
    /// What writes to the log are multiples of: what the disk writes without reading, 512 to 4096.
    pub log_unit: usize,
    /// Bytes of the log area: its ring, and the owner block behind it.
    pub log_bytes: u64,
    /// Units of a raw device; a file has as many as its host has space for.
    pub device_units: Option<u32>,
}

/// Space of the file system under a directory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// What this process may still use.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// Space of the file system that holds `dir`.
///
/// # Errors
/// Those of `statvfs`.
pub fn space(dir: &Path) -> Result<Space> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| failed("look at", dir, e.into()))?;
    Ok(Space {
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// As [`Space::free`] of [`space`].
///
/// # Errors
/// Those of [`space`].
pub fn free_bytes(dir: &Path) -> Result<u64> {
    Ok(space(dir)?.free)
}

impl StoreLock {
    /// Takes the directory for this process and, if need be, makes it (one level).
    ///
    /// # Errors
    /// [`ErrorKind::Locked`] when another process has it, [`ErrorKind::Invalid`] when it is no
    /// directory or not ours to use, [`ErrorKind::NoSpace`] and [`ErrorKind::Io`].
    pub fn take(dir: &Path) -> Result<Self> {
        match DirBuilder::new().mode(0o750).create(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let found = std::fs::metadata(dir).map_err(|e| failed("use", dir, e))?;
                if !found.is_dir() {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{} is not a directory", dir.display()),
                    ));
                }
            }
            Err(e) => return Err(failed("create", dir, e)),
        }
        let path = dir.join(LOCK);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .map_err(|e| failed("write to", &path, e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                ErrorKind::Locked,
                format!("another sheep daemon is using {}", dir.display()),
            )),
            Err(e) => Err(failed("lock", &path, e.into())),
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether there is a store to open.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when there is data without its log, which nobody may take for an empty
    /// directory, and when the directory cannot be looked at.
    pub fn is_prepared(&self) -> Result<bool> {
        let found = |name| match std::fs::metadata(self.dir.join(name)) {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("look at", &self.dir.join(name), e)),
        };
        match (found(DATA)?, found(LOG)?) {
            (Some(_), Some(_)) => Ok(true),
            // A log alone is what a crash while preparing leaves.
            (None, _) => Ok(false),
            (Some(data), None) => match std::fs::read_link(self.dir.join(LOG)) {
                Ok(log) => Err(log_is_gone(&self.dir, &log)),
                // A device is there before it is prepared.
                Err(_) if data.file_type().is_block_device() => Ok(false),
                Err(_) => {
                    let what = format!("{} has data but no log", self.dir.display());
                    Err(Error::new(ErrorKind::Io, what))
                }
            },
        }
    }

    /// Makes an empty store with a log of `log_bytes` (a multiple of the block size) and opens it. If
    /// `data` is a block device, or a link to one, it is kept as it is.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the log does not fit, [`ErrorKind::Invalid`] when there is a store
    /// already, [`ErrorKind::Io`]. Nothing is left behind.
    pub fn prepare(&self, log_bytes: u64) -> Result<StoreFiles> {
        self.prepare_with_log_at(log_bytes, &self.dir.join(LOG))
    }

    /// As [`StoreLock::prepare`] with the log in a file somewhere else, which the store remembers
    /// by a link.
    ///
    /// # Errors
    /// As [`StoreLock::prepare`]; [`ErrorKind::Invalid`] when the file's directory is not there.
    pub fn prepare_with_log_at(&self, log_bytes: u64, log: &Path) -> Result<StoreFiles> {
        if log_bytes == 0 || !log_bytes.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a log of {log_bytes} bytes is not made of whole blocks"),
            ));
        }
        if self.is_prepared()? {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("there is a store in {} already", self.dir.display()),
            ));
        }
        // Its name may come from an identity that somebody copied.
        refuse_log_of_another(&self.dir, log)?;
        self.remove_leftovers()?;
        let log_dir = log.parent().unwrap_or(&self.dir);
        let free = free_bytes(log_dir)?;
        if free < log_bytes {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the log needs {}, {} has {} free",
                    size::human(log_bytes),
                    log_dir.display(),
                    size::human(free)
                ),
            ));
        }
        let made = self.make(log_bytes, log);
        if made.is_err() {
            // The first error is the one to tell; what cannot be removed is removed next time.
            let _ = self.remove_leftovers();
            if !self.dir.join(DATA).exists() {
                let _ = std::fs::remove_file(self.dir.join(LOG));
                let _ = std::fs::remove_file(log);
                let _ = std::fs::remove_file(back_link(log));
            }
        }
        made?;
        self.open()
    }

    /// Makes an empty store on a whole block device, with the log on it, or in a file somewhere else.
    /// The directory remembers the device by links.
    ///
    /// # Errors
    /// As [`StoreLock::prepare`]; [`ErrorKind::NoSpace`] when the device is too small.
    pub fn prepare_on_device(
        &self,
        device: &Path,
        log_bytes: u64,
        log: Option<&Path>,
    ) -> Result<StoreFiles> {
        let (data_path, log_path) = (self.dir.join(DATA), self.dir.join(LOG));
        let link = |path: &Path| {
            std::os::unix::fs::symlink(device, path).map_err(|e| failed("create", path, e))
        };
        link(&data_path)?;
        if let Some(log) = log {
            return self.prepare_with_log_at(log_bytes, log);
        }
        let unit_bytes = Geometry::STANDARD.chunk_bytes();
        let log_bytes = log_bytes.next_multiple_of(unit_bytes);
        let file = device::open(device, true)?;
        let bytes = device::bytes(&file).map_err(|e| failed("look at", device, e))?;
        if bytes < log_bytes * 2 {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{} has {}, a log of {} needs twice as much",
                    device.display(),
                    size::human(bytes),
                    size::human(log_bytes)
                ),
            ));
        }
        link(&log_path)?;
        sync_dir(&self.dir)?;
        self.on_device(file, log_bytes)
    }

    /// The device was found under this name; the links follow. That to a log elsewhere stays as it
    /// is, also while it leads nowhere: where the log is may be a mount that is late.
    ///
    /// # Errors
    /// Those of the file system, and of reading the superblock.
    pub fn follow_device(&self, device: &Path) -> Result<()> {
        let superblock = device::own_superblock(device)?;
        let follow = |name: &str, new: &str| {
            let (path, new) = (self.dir.join(name), self.dir.join(new));
            if std::fs::read_link(&path).is_ok_and(|to| to == device) {
                return Ok(());
            }
            remove_if_there(&new)?;
            std::os::unix::fs::symlink(device, &new)
                .and_then(|()| std::fs::rename(&new, &path))
                .map_err(|e| failed("create", &path, e))
        };
        if !log_is_elsewhere(&superblock, &self.dir) {
            // Before that of the data, with which it is compared.
            follow(LOG, NEW_LOG)?;
        }
        follow(DATA, NEW_DATA)?;
        sync_dir(&self.dir)
    }

    fn on_device(&self, file: File, log_bytes: u64) -> Result<StoreFiles> {
        let path = self.dir.join(DATA);
        let failed = |e| failed("open", &path, e);
        with_direct(&file).map_err(failed)?;
        let bytes = device::bytes(&file).map_err(failed)?;
        let log_unit = log_unit(&file, file.metadata().map_err(failed)?.rdev());
        let inside = LogInside { unit_bytes: Geometry::STANDARD.chunk_bytes(), log_bytes };
        let areas = Areas::on_device(file, inside).map_err(failed)?;
        let device_units = Some(device::units(bytes.saturating_sub(log_bytes)));
        Ok(StoreFiles { areas: Arc::new(areas), log_unit, log_bytes, device_units })
    }

    /// The log gets its name first: data without a log would look like a damaged store.
    fn make(&self, log_bytes: u64, log: &Path) -> Result<()> {
        let make_new = OFlags::CREATE | OFlags::EXCL;
        let path = self.dir.join(LOG);
        // NEW_LOG, if it is in the store.
        let new = log.with_added_extension("new");
        remove_if_there(&new)?;
        let (made, _) = open_file(&new, make_new)?;
        write_zeros(&made, log_bytes).map_err(|e| failed("write", &new, e))?;
        std::fs::rename(&new, log).map_err(|e| failed("create", log, e))?;
        if log != path {
            sync_dir(log.parent().unwrap_or(&self.dir))?;
            remove_if_there(&path)?;
            std::os::unix::fs::symlink(log, &path).map_err(|e| failed("create", &path, e))?;
            self.link_back(&path);
        }
        let (path, new) = (self.dir.join(DATA), self.dir.join(NEW_DATA));
        // Only a device may be there.
        if !path.exists() {
            let (data, _) = open_file(&new, make_new)?;
            data.sync_all().map_err(|e| failed("write", &new, e))?;
            sync_dir(&self.dir)?;
            std::fs::rename(&new, &path).map_err(|e| failed("create", &path, e))?;
        }
        sync_dir(&self.dir)
    }

    /// Whether the log is in this directory, as somebody says.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with where it is.
    pub fn check_log_is_in(&self, dir: &Path) -> Result<()> {
        let path = self.dir.join(LOG);
        let log = path.canonicalize().map_err(|e| failed("look at", &path, e))?;
        let said = dir.canonicalize().map_err(|e| failed("look at", dir, e))?;
        match log.parent() {
            Some(there) if there == said => Ok(()),
            there => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the log of {} is in {}, not in {}",
                    self.dir.display(),
                    there.unwrap_or(&log).display(),
                    dir.display()
                ),
            )),
        }
    }

    /// Removes the files of a store that holds nothing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn clear(&self) -> Result<()> {
        let log = self.dir.join(LOG);
        remove_if_there(&self.dir.join(DATA))?;
        if let Ok(elsewhere) = std::fs::read_link(&log)
            && elsewhere.is_file()
            && refuse_log_of_another(&self.dir, &log).is_ok()
        {
            remove_if_there(&elsewhere)?;
            remove_if_there(&back_link(&elsewhere))?;
        }
        remove_if_there(&log)?;
        self.remove_leftovers()
    }

    /// Leaves beside a log elsewhere a link to this directory, which may have moved. Whoever makes a
    /// copy of the directory only is warned by it, and nothing else is; so it may fail.
    fn link_back(&self, log: &Path) {
        if std::fs::read_link(log).is_err() || device::is_device(log) {
            return;
        }
        let link = || -> io::Result<()> {
            let (dir, back) = (self.dir.canonicalize()?, back_link(&log.canonicalize()?));
            if std::fs::read_link(&back).is_ok_and(|to| to == dir) {
                return Ok(());
            }
            let new = back.with_added_extension("new");
            if let Err(e) = std::fs::remove_file(&new)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(e);
            }
            std::os::unix::fs::symlink(dir, &new)?;
            std::fs::rename(&new, &back)
        };
        if let Err(e) = link() {
            tracing::warn!("{}", failed("link back to the store from", log, e).full());
        }
    }

    fn remove_leftovers(&self) -> Result<()> {
        for name in [NEW_DATA, NEW_LOG] {
            remove_if_there(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// Opens the files, with direct I/O where the file system has it.
    ///
    /// # Errors
    /// When one is missing or is not what a store is made of, and those of `open`.
    pub fn open(&self) -> Result<StoreFiles> {
        let (data_path, log_path) = (self.dir.join(DATA), self.dir.join(LOG));
        refuse_log_of_another(&self.dir, &log_path)?;
        self.link_back(&log_path);
        if device::is_device(&log_path) {
            let superblock = device::own_superblock(&data_path)?;
            if superblock.log_is_elsewhere() {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "the log of {} is not on its device: make {} a link to the file it is in",
                        self.dir.display(),
                        log_path.display()
                    ),
                ));
            }
            let file = device::open(&data_path, true)?;
            return self.on_device(file, superblock.log_area_bytes());
        }
        let (mut data, data_direct) = if device::is_device(&data_path) {
            let file = device::open(&data_path, true)?;
            let direct = with_direct(&file).map_err(|e| failed("open", &data_path, e))?;
            (file, direct)
        } else {
            open_file(&data_path, OFlags::empty())?
        };
        let (mut log, log_direct) = open_file(&log_path, OFlags::empty())?;
        if data_direct != log_direct {
            // What Areas knows of alignment, it knows of both.
            for file in [&mut data, &mut log] {
                without_direct(file).map_err(|e| failed("open", &self.dir, e))?;
            }
        }
        if !(data_direct && log_direct) {
            tracing::warn!(
                "the file system of {} refuses direct I/O; the page cache is used, safe but slower",
                self.dir.display()
            );
        }
        let look =
            |file: &File, path: &Path| file.metadata().map_err(|e| failed("look at", path, e));
        let found = look(&data, &data_path)?;
        let on_device = found.file_type().is_block_device();
        if !found.is_file() && !on_device {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} is neither a file nor a disk", data_path.display()),
            ));
        }
        let found = look(&log, &log_path)?;
        let log_bytes = found.len();
        if !found.is_file() || log_bytes == 0 || !log_bytes.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "{} is not a log: {log_bytes} bytes, which are not whole blocks",
                    log_path.display()
                ),
            ));
        }
        let log_unit = log_unit(&log, found.dev());
        let device_units = if on_device {
            let bytes = device::bytes(&data).map_err(|e| failed("look at", &data_path, e))?;
            Some(device::units(bytes))
        } else {
            None
        };
        let areas = Areas::new(data, log).map_err(|e| failed("open", &self.dir, e))?;
        Ok(StoreFiles { areas: Arc::new(areas), log_unit, log_bytes, device_units })
    }
}

/// Whether the log of a device is in a file elsewhere. The superblock says so; that of a device
/// prepared before this was noted says nothing, and then the links do: to a log on the device leads
/// what leads to the data.
pub(crate) fn log_is_elsewhere(superblock: &Superblock, links: &Path) -> bool {
    if superblock.log_is_elsewhere() {
        return true;
    }
    let log = links.join(LOG);
    match std::fs::read_link(&log) {
        Ok(to) => {
            let data = std::fs::read_link(links.join(DATA));
            !device::is_device(&log) && !data.is_ok_and(|data| data == to)
        }
        Err(_) => log.is_file(),
    }
}

/// The link beside a log elsewhere that leads to the directory it belongs to.
fn back_link(log: &Path) -> PathBuf {
    log.with_added_extension("store")
}

/// A copy of a directory whose log is elsewhere still leads to the original's log, which goes on.
/// The owner is the directory that the link beside the log leads to, if that has data of its own and
/// its log is this one: what is not there was moved, and mounts may be swapped.
///
/// # Errors
/// [`ErrorKind::Invalid`] with whose the log is.
pub(crate) fn refuse_log_of_another(dir: &Path, log: &Path) -> Result<()> {
    let Ok(real) = log.canonicalize() else {
        return Ok(());
    };
    let back = back_link(&real);
    let same = |a: &Path, b: &Path| {
        let file = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        file(a).is_some_and(|a| file(b) == Some(a))
    };
    let data = back.join(DATA);
    if !same(&back.join(LOG), &real) || !data.exists() || same(&data, &dir.join(DATA)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!(
            "the log of {} is {}, which belongs to {}: copy that too and let {} lead to it",
            dir.display(),
            real.display(),
            std::fs::read_link(&back).unwrap_or(back).display(),
            dir.join(LOG).display()
        ),
    ))
}

/// The error for a log elsewhere that is not there.
pub(crate) fn log_is_gone(of: &Path, log: &Path) -> Error {
    Error::new(
        ErrorKind::Io,
        format!(
            "the log of {} is {}, which is not there: bring it back",
            of.display(),
            log.display()
        ),
    )
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("write to", dir, e))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

/// Opens for reading and writing; the flag says whether with direct I/O.
fn open_file(path: &Path, flags: OFlags) -> Result<(File, bool)> {
    let open = |more: OFlags| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(flags.contains(OFlags::CREATE))
            .create_new(flags.contains(OFlags::EXCL))
            .mode(0o640)
            .custom_flags(more.bits() as i32)
            .open(path)
    };
    // A refusal of direct I/O may come after the file was made, so it is asked for afterwards.
    let file = open(OFlags::empty()).map_err(|e| failed("open", path, e))?;
    let direct = with_direct(&file).map_err(|e| failed("open", path, e))?;
    Ok((file, direct))
}

/// Turns on direct I/O if the file has it at the alignments of our buffers and offsets.
fn with_direct(file: &File) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    match rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT) {
        Ok(()) => {}
        Err(Errno::INVAL) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    let usable = match direct_align(file) {
        Some((memory, offset)) => {
            (1..=BLOCK_SIZE).contains(&memory) && (1..=BLOCK_SIZE).contains(&offset)
        }
        // The kernel does not say: try.
        None => {
            let mut page = PageBuf::zeroed(BLOCK_SIZE);
            file.read_at(page.as_mut(), 0).is_ok()
        }
    };
    if !usable {
        without_direct(file)?;
    }
    Ok(usable)
}

fn without_direct(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT)?)
}

/// Reserves the space in one piece as far as the file system can, then really writes it, so that
/// overwriting it later changes no metadata.
fn write_zeros(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(e) => return Err(e.into()),
    }
    let zeros = PageBuf::zeroed(ZEROS_BYTES);
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(ZEROS_BYTES as u64);
        file.write_all_at(&zeros.as_ref()[..n as usize], at)?;
        at += n;
    }
    file.sync_all()
}

/// The largest of the units that direct I/O, the disk's interface and the disk itself work in.
fn log_unit(log: &File, device: u64) -> usize {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let queue = |name: &str| {
        // A partition has no queue of its own; its disk is the directory above.
        ["queue", "../queue"].into_iter().find_map(|queue| {
            let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        })
    };
    let offset = direct_align(log).map_or(0, |(_, offset)| offset);
    let physical = queue("physical_block_size").unwrap_or(BLOCK_SIZE);
    let logical = queue("logical_block_size").unwrap_or(512);
    [offset, physical, logical, 512]
        .into_iter()
        .filter(|n| n.is_power_of_two())
        .max()
        .unwrap_or(BLOCK_SIZE)
        .min(BLOCK_SIZE)
}

/// One line: what could not be done to which path and why, with what the caller can do about it.
fn failed(verb: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::InvalidFilename => ErrorKind::Invalid,
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, format!("cannot {verb} {}", path.display()), error)
}

#[cfg(test)]
mod tests;
