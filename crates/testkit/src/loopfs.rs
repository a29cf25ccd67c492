//! Small file systems on loop devices, for full, read-only and vanishing disks. Root only.

use crate::process::{run, wait_until};
use crate::tools::{command, is_root};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system of its own; unmounted and gone when dropped.
#[derive(Debug)]
pub struct SmallFs {
    point: PathBuf,
    image: PathBuf,
    _home: tempfile::TempDir,
}

impl SmallFs {
    /// Makes and mounts an ext4 of `bytes`; `None`, with a line, for who may not mount.
    ///
    /// # Panics
    /// When making or mounting it fails for root.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        Self::of_kind("ext4", bytes)
    }

    /// The same with an `ext4` or `xfs`.
    ///
    /// # Panics
    /// As [`SmallFs::new`].
    #[must_use]
    pub fn of_kind(kind: &str, bytes: u64) -> Option<Self> {
        if !is_root() {
            eprintln!("not root: no small file system, this part is skipped");
            return None;
        }
        let home =
            tempfile::Builder::new().prefix("small-fs-").tempdir().expect("a temporary directory");
        let image = home.path().join("image");
        let file = File::create(&image).expect("create the image");
        file.set_len(bytes).expect("size the image");
        let mut make = if kind == "xfs" {
            let mut make = command("mkfs.xfs");
            make.args(["-q", "-f"]);
            make
        } else {
            // No reserved blocks: full is full, for root too.
            let mut make = command("mke2fs");
            make.args(["-q", "-F", "-t", kind, "-m", "0"]);
            make
        };
        let _ = run(make.arg(&image), b"").ok();
        let point = home.path().join("mounted");
        fs::create_dir(&point).expect("make the mount point");
        let small = Self { point, image, _home: home };
        small.mount();
        Some(small)
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&self.image).arg(&self.point);
        let _ = run(&mut mount, b"").ok();
    }

    /// Ends it under whoever uses it, as the loss of its device does: nothing more is written, and
    /// every operation fails.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn shut_down(&self) {
        use rustix::ioctl::{Setter, ioctl, opcode};
        /// `EXT4_IOC_SHUTDOWN`, and the same number as `XFS_IOC_GOINGDOWN`.
        const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
        /// Not even what the file system's own journal holds in memory.
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.point).expect("open the mount point");
        // SAFETY: both file systems read one 32-bit number for this call and write nothing.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }.expect("shut it down");
    }

    /// Unmounts it, as soon as nobody has files of it open, and mounts it again.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn mount_again(&mut self) {
        let mut unmount = Command::new("umount");
        unmount.arg(&self.point);
        wait_until("unmount it", || run(&mut unmount, b"").code == 0);
        self.mount();
    }

    /// Nothing is written to the device but what its files need: a new ext4 goes on making its
    /// tables for a while.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn be_quiet(&self) {
        let mut mount = Command::new("mount");
        let _ = run(mount.args(["-o", "remount,noinit_itable"]).arg(&self.point), b"").ok();
    }

    /// The device that it is on.
    ///
    /// # Panics
    /// When the system does not know of it.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        let point = self.point.to_str().expect("UTF-8");
        let of = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            words.next().filter(|_| words.next().as_deref() == Some(point))
        };
        mounts.lines().find_map(of).expect("it is mounted").into()
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Makes it read-only or writable again, once nobody writes to it: the kernel takes the files
    /// of a process with a ring back only some time after its end.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn set_read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        let mut mount = Command::new("mount");
        mount.args(["-o", option]).arg(&self.point);
        wait_until("mount it anew", || run(&mut mount, b"").code == 0);
    }

    /// Somebody else takes every last block.
    ///
    /// # Panics
    /// When writing fails for another reason than that there is no space.
    pub fn fill_to_the_brim(&self) {
        use std::io::Write as _;
        let open = File::options().create(true).append(true).to_owned();
        let mut filler = open.open(self.point.join("brim")).expect("create");
        for bytes in [1 << 20, 4096] {
            let data = vec![7; bytes];
            let error = loop {
                if let Err(error) = filler.write_all(&data).and_then(|()| filler.sync_data()) {
                    break error;
                }
            };
            assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "fill: {error}");
        }
    }

    /// Somebody else takes all space but so many bytes.
    ///
    /// # Panics
    /// When the system refuses for another reason than that there is no more.
    pub fn fill(&self, leave: u64) {
        use rustix::fs::{FallocateFlags, fallocate};
        let open = File::options().create(true).append(true).to_owned();
        let filler = open.open(self.point.join("filler")).expect("create");
        // The file system needs some of what it calls free to note what is not.
        let mut step = self.free();
        while self.free() > leave && step >= 4096 {
            let at = filler.metadata().expect("metadata").len();
            let len = step.min(self.free() - leave) & !4095;
            match fallocate(&filler, FallocateFlags::empty(), at, len.max(4096)) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(e) => panic!("fill: {e}"),
            }
        }
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.point).expect("statvfs");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        // Lazily: should a process still be in it, it goes with that process.
        let _ = run(Command::new("umount").arg("-l").arg(&self.point), b"");
    }
}

/// A block device of its own over a file; gone when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    device: PathBuf,
    image: PathBuf,
    /// The image's directory, unless the image is the caller's.
    _home: Option<tempfile::TempDir>,
}

impl LoopDevice {
    /// Makes one of `bytes`; `None`, with a line, for who may not.
    ///
    /// # Panics
    /// When making it fails for root.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let home = tempfile::Builder::new().prefix("loop-").tempdir().expect("a directory");
        let image = home.path().join("image");
        let file = File::create(&image).expect("create the image");
        file.set_len(bytes).expect("size the image");
        Self::over(image, Some(home))
    }

    /// One over a file of the caller's; `None`, with a line, for who may not.
    ///
    /// # Panics
    /// When making it fails for root.
    #[must_use]
    pub fn at(image: &Path) -> Option<Self> {
        Self::over(image.to_owned(), None)
    }

    fn over(image: PathBuf, home: Option<tempfile::TempDir>) -> Option<Self> {
        if !is_root() {
            eprintln!("not root: no loop device, this part is skipped");
            return None;
        }
        Some(Self { device: attach(&image, 0), image, _home: home })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.device
    }

    /// The file below.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.image.clone()
    }

    /// It is found under another name from now on.
    pub fn rename(&mut self) {
        self.show(0);
    }

    /// As [`LoopDevice::rename`], and it ends behind so many bytes, though the file below does not;
    /// 0 for all of it.
    pub fn show(&mut self, bytes: u64) {
        let other = attach(&self.image(), bytes);
        detach(&std::mem::replace(&mut self.device, other));
    }
}

fn attach(image: &Path, bytes: u64) -> PathBuf {
    let mut losetup = command("losetup");
    let limit = format!("--sizelimit={bytes}");
    losetup.args(["--find", "--show", "--direct-io=on", &limit]).arg(image);
    PathBuf::from(run(&mut losetup, b"").ok().text().trim())
}

/// Waits for whoever still has it open.
fn detach(device: &Path) {
    let _ = run(command("losetup").arg("-d").arg(device), b"");
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        detach(&self.device);
    }
}
