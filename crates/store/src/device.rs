//! A raw block device as a disk: what is on it before it is taken, how large it is. Unit 0 holds the
//! superblock, the log lies behind it unless it is elsewhere, then come the other units; so a device
//! that grows gets more of them.

use rustix::fs::OFlags;
use sheepdog_storelog::Superblock;
use sheepdog_types::{BLOCK_SIZE, Error, ErrorKind, Geometry, PageBuf, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where file systems, partition tables and arrays leave their marks: so much of both ends.
const MARKS_BYTES: u64 = 1 << 20;

/// Whether a path is that of a block device.
#[must_use]
pub fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// Bytes of an open device; its metadata says 0.
pub(crate) fn bytes(mut file: &File) -> io::Result<u64> {
    use std::io::Seek as _;
    file.seek(io::SeekFrom::End(0))
}

/// Bytes of a device.
///
/// # Errors
/// Those of opening it.
pub fn capacity(path: &Path) -> Result<u64> {
    File::open(path).and_then(|file| bytes(&file)).map_err(|e| {
        Error::with_source(ErrorKind::Io, format!("cannot look at {}", path.display()), e)
    })
}

/// How long a device may stay busy behind the end of a process that had it: the kernel closes the
/// files of a ring some time later.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Opens a device for this process alone: not while it is mounted, part of an array, or a sheep's.
///
/// # Errors
/// [`ErrorKind::Locked`] while somebody uses it, [`ErrorKind::Io`].
pub(crate) fn open(path: &Path, for_writing: bool) -> Result<File> {
    let flags = OFlags::EXCL.bits() as i32;
    let until = Instant::now() + PATIENCE;
    let mut options = File::options();
    options.read(true).write(for_writing).custom_flags(flags);
    loop {
        let busy = match options.open(path) {
            Ok(file) => return Ok(file),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => e,
            Err(e) => {
                let what = format!("cannot open {}", path.display());
                return Err(Error::with_source(ErrorKind::Io, what, e));
            }
        };
        if Instant::now() >= until {
            let what = format!(
                "{} is in use: by a sheep, mounted, or part of something else",
                path.display()
            );
            return Err(Error::with_source(ErrorKind::Locked, what, busy));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The superblock at the start of a device or of a copy of one; `None` if there is none. Of a device
/// it is what is on it now, also if it was written under another name of the same device.
///
/// # Errors
/// [`ErrorKind::VersionMismatch`] for a newer one, [`ErrorKind::Io`] when it cannot be read.
pub fn superblock(path: &Path) -> Result<Option<Superblock>> {
    let read = || -> io::Result<PageBuf> {
        let mut block = PageBuf::zeroed(BLOCK_SIZE);
        // Each name of a device has a page cache of its own.
        let direct = if is_device(path) { OFlags::DIRECT } else { OFlags::empty() };
        let mut options = File::options();
        let file = options.read(true).custom_flags(direct.bits() as i32).open(path)?;
        file.read_exact_at(block.as_mut(), 0)?;
        Ok(block)
    };
    let block = read().map_err(|e| {
        if e.kind() == io::ErrorKind::UnexpectedEof
            && let Ok(bytes) = File::open(path).and_then(|file| bytes(&file))
        {
            // As a loop device without a file, or an array that is not assembled.
            let why = if bytes == 0 { "is it attached?" } else { "too few for a disk" };
            let what = format!("{} has {bytes} bytes: {why}", path.display());
            return Error::new(ErrorKind::Io, what);
        }
        Error::with_source(ErrorKind::Io, format!("cannot read {}", path.display()), e)
    })?;
    match Superblock::decode(block.as_ref()) {
        Ok(found) => Ok(Some(found)),
        Err(bad) if bad.newer => {
            let what = format!("the store on {} was written by a newer version", path.display());
            Err(Error::new(ErrorKind::VersionMismatch, what))
        }
        Err(_) => Ok(None),
    }
}

/// As [`superblock`] where there must be one.
///
/// # Errors
/// Those of [`superblock`], and [`ErrorKind::Io`] when there is none.
pub(crate) fn own_superblock(path: &Path) -> Result<Superblock> {
    superblock(path)?.ok_or_else(|| {
        let what = format!("{} has no superblock, or a damaged one", path.display());
        Error::new(ErrorKind::Io, what)
    })
}

/// Makes sure that nothing is on a device, and that nobody uses it.
///
/// # Errors
/// [`ErrorKind::Invalid`] with how to make it empty, [`ErrorKind::Locked`], [`ErrorKind::Io`].
pub fn refuse_unless_blank(path: &Path) -> Result<()> {
    let failed = |e: io::Error| {
        Error::with_source(ErrorKind::Io, format!("cannot use {}", path.display()), e)
    };
    let file = open(path, true)?;
    let len = bytes(&file).map_err(failed)?;
    let mut marks = PageBuf::zeroed(MARKS_BYTES as usize);
    for at in [0, len.saturating_sub(MARKS_BYTES)] {
        let some = MARKS_BYTES.min(len - at) as usize;
        file.read_exact_at(&mut marks.as_mut()[..some], at).map_err(failed)?;
        if marks.as_ref()[..some].iter().any(|byte| *byte != 0) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{} is not empty: if nobody needs what is on it, clear its first and last MiB (wipefs -a, dd if=/dev/zero)",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

/// Units there are on a device of so many bytes, unit 0 included.
pub(crate) fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / Geometry::STANDARD.chunk_bytes()).unwrap_or(u32::MAX - 1)
}
