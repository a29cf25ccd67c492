//! A file system whose disk can be broken on purpose: a FUSE mount that passes everything on to a
//! directory, except what a [`Fault`] says. What a fault did is counted, and it ends when its handle
//! is dropped.
//!
//! Nothing is lost at a power failure here: what reached it is in the directory behind it, also
//! without a flush. Flushes are only counted and answered.

mod faults;
mod inodes;
mod passthrough;

pub use faults::{Fault, Injected, Op};

use crate::tools::is_root;
use faults::Faults;
use fuser::{BackgroundSession, MountOption, SessionACL};
use passthrough::Passthrough;
use rustix::mount::{UnmountFlags, unmount};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the bytes of its files travel between a program and the file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// As the program asks: with `O_DIRECT` past the page cache.
    AsAsked,
    /// Past the page cache whatever is asked.
    Bypass,
    /// `O_DIRECT` is refused: by way of the page cache, which writes back when it likes and tells
    /// at the next flush what did not work, once.
    Cached,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::AsAsked, Self::Bypass, Self::Cached];
}

/// A mounted one. Gone when dropped, with everything in it; end who uses it first.
#[derive(Debug)]
pub struct BrokenFs {
    mode: Mode,
    faults: Arc<Faults>,
    point: PathBuf,
    backing: PathBuf,
    _session: BackgroundSession,
    _home: tempfile::TempDir,
}

impl BrokenFs {
    /// Mounts an empty one that works; `None`, with a line, where that cannot be.
    ///
    /// # Panics
    /// When mounting fails although it could work.
    #[must_use]
    pub fn new(mode: Mode) -> Option<Self> {
        if !is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!(
                "not root, or no /dev/fuse: no file system that breaks, THIS TEST IS SKIPPED"
            );
            return None;
        }
        let home =
            tempfile::Builder::new().prefix("broken-fs-").tempdir().expect("a temporary directory");
        let (point, backing) = (home.path().join("mounted"), home.path().join("backing"));
        std::fs::create_dir(&point).expect("make the mount point");
        std::fs::create_dir(&backing).expect("make the directory behind it");
        let faults = Arc::new(Faults::default());
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            MountOption::FSName("broken".to_owned()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::All;
        config.n_threads = Some(2);
        let passthrough = Passthrough::new(&backing, mode, Arc::clone(&faults));
        let session = fuser::spawn_mount(passthrough, &point, &config).expect("mount with FUSE");
        Some(Self { mode, faults, point, backing, _session: session, _home: home })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// The directory behind it, where nothing is broken.
    #[must_use]
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// The options of a sheep on it. Flushes of a ring by way of the page cache are sometimes
    /// interrupted by the kernel's own signals to the ring's threads (FUSE alone knows that), and an
    /// interrupted flush is a failed one.
    #[must_use]
    pub const fn options(&self) -> [&'static str; 2] {
        match self.mode {
            Mode::AsAsked | Mode::Bypass => ["--io", "ring"],
            Mode::Cached => ["--io", "blocking"],
        }
    }

    /// Drops what the page cache holds of a file, so that reading it comes here again.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn forget(&self, file: &str) {
        use rustix::fs::{Advice, fadvise};
        let open = std::fs::File::open(self.point.join(file)).expect("open");
        open.sync_all().expect("write back");
        fadvise(&open, 0, None, Advice::DontNeed).expect("fadvise");
    }

    /// From now until the handle is dropped, this goes wrong.
    pub fn inject(&self, fault: Fault) -> Injected {
        self.faults.inject(fault)
    }

    /// How many operations of that kind came for files of that name so far.
    #[must_use]
    pub fn count(&self, file: &str, op: Op) -> u64 {
        self.faults.count(file, op)
    }
}

impl Drop for BrokenFs {
    fn drop(&mut self) {
        // Nobody may wait for us for ever: first the stalled go on, then, should a process still
        // be in it, its requests are ended for it.
        self.faults.heal_all();
        let _ = unmount(&self.point, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}
