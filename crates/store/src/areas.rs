//! The two open files of a disk, and what both engines must know about them.

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use sheepdog_storelog::io::{Area, DiskError, DiskErrorKind, DiskOp};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The open files of one disk, as an engine uses them.
#[derive(Debug)]
pub struct Areas {
    data: File,
    log: File,
    data_is_device: bool,
    /// Direct I/O goes on only at multiples of this; 1 without direct I/O.
    align: usize,
    /// Where on the device the log lies, if it lies on the data's own: behind unit 0, which holds the
    /// superblock that says how long it is. All other units lie behind it.
    log_inside: Option<LogInside>,
    /// Whether it was said already that space cannot be reserved here.
    said_no_reserving: AtomicBool,
}

/// A log on the data's own device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogInside {
    /// Bytes of unit 0.
    pub unit_bytes: u64,
    /// Bytes of the log area, whole units.
    pub log_bytes: u64,
}

impl LogInside {
    /// Where an operation goes on the device: the store's own offsets know nothing of a log in
    /// between.
    #[must_use]
    pub(crate) fn placed(self, mut what: DiskOp) -> DiskOp {
        let Self { unit_bytes, log_bytes } = self;
        let on_data = |offset: u64| if offset < unit_bytes { offset } else { offset + log_bytes };
        match &mut what {
            DiskOp::Read { area, offset, .. } | DiskOp::Write { area, offset, .. } => {
                *offset = match area {
                    Area::Data => on_data(*offset),
                    Area::Log => *offset + unit_bytes,
                };
            }
            DiskOp::Punch { offset, .. } | DiskOp::Allocate { offset, .. } => {
                *offset = on_data(*offset);
            }
            DiskOp::Sync { .. } | DiskOp::Extend { .. } => {}
        }
        what
    }
}

impl Areas {
    /// A device for data and log. `file` is opened for reading and writing.
    ///
    /// # Errors
    /// As [`Areas::new`].
    pub fn on_device(file: File, log_inside: LogInside) -> io::Result<Self> {
        let log = file.try_clone()?;
        Ok(Self { log_inside: Some(log_inside), ..Self::new(file, log)? })
    }

    /// Where an operation goes on the files.
    #[must_use]
    pub(crate) fn placed(&self, what: DiskOp) -> DiskOp {
        match self.log_inside {
            None => what,
            Some(inside) => inside.placed(what),
        }
    }

    /// Takes over two files opened for reading and writing, both with `O_DIRECT` or both without.
    ///
    /// # Errors
    /// Those of `fstat` and `fcntl`.
    pub fn new(data: File, log: File) -> io::Result<Self> {
        let mode = rustix::fs::fstat(&data)?.st_mode;
        let mut align = 1;
        for file in [&data, &log] {
            if rustix::fs::fcntl_getfl(file)?.contains(OFlags::DIRECT) {
                align = align.max(direct_align(file).map_or(512, |(_, offset)| offset));
            }
        }
        Ok(Self {
            data_is_device: FileType::from_raw_mode(mode) == FileType::BlockDevice,
            data,
            log,
            align,
            log_inside: None,
            said_no_reserving: AtomicBool::new(false),
        })
    }

    /// The open file of an area.
    #[must_use]
    pub fn file(&self, area: Area) -> &File {
        match area {
            Area::Data => &self.data,
            Area::Log => &self.log,
        }
    }

    /// Whether the data area is a raw device, which has a fixed size.
    #[must_use]
    pub fn data_is_device(&self) -> bool {
        self.data_is_device
    }

    /// Whether the log lies on the data's own device.
    #[must_use]
    pub fn has_log_inside(&self) -> bool {
        self.log_inside.is_some()
    }

    /// Whether the page cache is bypassed.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.align > 1
    }

    /// How many of `done` transferred bytes the next transfer may start behind.
    pub(crate) fn resume_at(&self, done: usize) -> usize {
        done - done % self.align
    }

    /// Whether the file ends at or before `offset`. A device never does: it answers 0 bytes there.
    pub(crate) fn ends_before(&self, area: Area, offset: u64) -> io::Result<bool> {
        if self.data_is_device && (area == Area::Data || self.log_inside.is_some()) {
            return Ok(false);
        }
        Ok(self.file(area).metadata()?.len() <= offset)
    }

    /// Where zeros must end that are written because `offset..offset + len` of the data area
    /// cannot be punched: what lies behind the end of the file reads as zeros without them.
    pub(crate) fn zeros_end(&self, offset: u64, len: u64) -> io::Result<u64> {
        let end = offset.saturating_add(len);
        if self.data_is_device {
            // Nothing is read there that was not written, and nobody waits for the space.
            return Ok(offset);
        }
        let size = self.data.metadata()?.len();
        Ok(end.min(size.next_multiple_of(self.align as u64)).max(offset))
    }

    /// Says once that reserving space does nothing here.
    pub(crate) fn say_no_reserving(&self) {
        if !self.said_no_reserving.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the file system of the data file cannot reserve space; preallocated VDIs may run out of it"
            );
        }
    }
}

/// The memory and offset alignments of direct I/O on a file as the kernel tells them: `None` if it
/// does not say, zeros if there is no direct I/O.
pub(crate) fn direct_align(file: &File) -> Option<(usize, usize)> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    StatxFlags::from_bits_retain(stat.stx_mask)
        .contains(StatxFlags::DIOALIGN)
        .then_some((stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize))
}

/// The store's error for one of the operating system; `what` says what was tried.
pub(crate) fn disk_error(what: &str, error: &io::Error) -> DiskError {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskErrorKind::NoSpace,
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, text: format!("{what}: {error}") }
}

/// The name of an area in messages.
pub(crate) fn area_name(area: Area) -> &'static str {
    match area {
        Area::Data => "data",
        Area::Log => "log",
    }
}
