//! The file system itself: what a store needs of one, handed on to a directory.

use super::Mode;
use super::faults::{Faults, Op, Verdict};
use super::inodes::{Inodes, attributes, name_of};
use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{CWD, FallocateFlags, Mode as Permissions, fallocate, mknodat, statvfs};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Nobody else changes anything, so what the kernel knows stays true.
const TTL: Duration = Duration::from_secs(3600);
const NO_GENERATION: Generation = Generation(0);
/// A sector: what a short write always gets done.
const SECTOR: usize = 512;

/// See [`super::BrokenFs`].
#[derive(Debug)]
pub(super) struct Passthrough {
    mode: Mode,
    faults: Arc<Faults>,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    inodes: Inodes,
    open: HashMap<u64, Arc<File>>,
    next: u64,
}

impl Tables {
    fn opened(&mut self, file: File) -> FileHandle {
        let handle = self.next;
        self.next += 1;
        self.open.insert(handle, Arc::new(file));
        FileHandle(handle)
    }
}

impl Passthrough {
    pub(super) fn new(root: &Path, mode: Mode, faults: Arc<Faults>) -> Self {
        let tables = Tables { inodes: Inodes::new(root), open: HashMap::new(), next: 1 };
        Self { mode, faults, tables: Mutex::new(tables) }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, inode: INodeNo) -> io::Result<PathBuf> {
        self.tables().inodes.path(inode).map(Path::to_owned)
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<File>> {
        let found = self.tables().open.get(&handle.0).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Asks the faults about an operation on a whole file.
    fn allow(&self, path: &Path, op: Op) -> io::Result<()> {
        match self.faults.check(&name_of(path), op, 0..u64::MAX) {
            Verdict::Fail(number) => Err(io::Error::from_raw_os_error(number)),
            _ => Ok(()),
        }
    }

    fn child(&self, parent: INodeNo, name: &OsStr, op: Op) -> io::Result<PathBuf> {
        let path = self.path(parent)?.join(name);
        self.allow(&path, op)?;
        Ok(path)
    }

    fn entry(&self, path: PathBuf, reply: ReplyEntry) {
        match path.symlink_metadata() {
            Ok(found) => {
                let inode = self.tables().inodes.number(path);
                reply.entry(&TTL, &attributes(inode, &found), NO_GENERATION);
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn made(
        &self,
        path: io::Result<PathBuf>,
        make: impl Fn(&Path) -> io::Result<()>,
        reply: ReplyEntry,
    ) {
        match path.and_then(|path| make(&path).map(|()| path)) {
            Ok(path) => self.entry(path, reply),
            Err(e) => reply.error(e.into()),
        }
    }

    fn removed(
        &self,
        path: io::Result<PathBuf>,
        remove: impl Fn(&Path) -> io::Result<()>,
        reply: ReplyEmpty,
    ) {
        let done = path.and_then(|path| {
            remove(&path)?;
            self.tables().inodes.removed(&path);
            Ok(())
        });
        empty(done, reply);
    }

    fn open_flags(&self) -> FopenFlags {
        match self.mode {
            Mode::Bypass => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            Mode::AsAsked | Mode::Cached => FopenFlags::empty(),
        }
    }

    /// Does something with an open file as the faults will have it. What they stall waits in a
    /// thread of its own, so that the others go on.
    fn with(
        &self,
        inode: INodeNo,
        handle: FileHandle,
        op: Op,
        range: Range<u64>,
        act: impl FnOnce(io::Result<Act>) + Send + 'static,
    ) {
        let found = self.path(inode).and_then(|path| Ok((self.file(handle)?, name_of(&path))));
        let (file, name) = match found {
            Ok(found) => found,
            Err(e) => return act(Err(e)),
        };
        let faults = Arc::clone(&self.faults);
        let going = Act { file, name, faults: Arc::clone(&faults), short: false };
        match faults.check(&going.name, op, range) {
            Verdict::Go => act(Ok(going)),
            Verdict::Short => act(Ok(Act { short: true, ..going })),
            Verdict::Fail(number) => act(Err(io::Error::from_raw_os_error(number))),
            Verdict::Stall(fault) => {
                std::thread::spawn(move || {
                    faults.wait_for_end(fault);
                    act(Ok(going));
                });
            }
        }
    }
}

/// An operation that may go.
struct Act {
    file: Arc<File>,
    name: String,
    faults: Arc<Faults>,
    short: bool,
}

impl Act {
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<u32> {
        let mut len = data.len();
        if self.short && len > SECTOR {
            // Often not a whole number of sectors.
            len = SECTOR.max(len / 2 - len / 7);
        }
        self.file.write_all_at(&data[..len], offset)?;
        if durable {
            match self.faults.check(&self.name, Op::Sync, 0..u64::MAX) {
                Verdict::Fail(number) => return Err(io::Error::from_raw_os_error(number)),
                Verdict::Stall(fault) => self.faults.wait_for_end(fault),
                Verdict::Go | Verdict::Short => {}
            }
        }
        Ok(len as u32)
    }

    fn read(&self, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; size as usize];
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }
}

fn empty(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e.into()),
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without the first, a ring's write waits for its answer in the thread that submits it.
        let mut wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS;
        if self.mode == Mode::Cached {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        // What an old kernel does not have it does not need.
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Nor may it wait for others that are stalled.
        let _ = config.set_max_background(1024);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name, Op::Look) {
            Ok(path) => self.entry(path, reply),
            Err(e) => reply.error(e.into()),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.path(inode).and_then(|path| {
            self.allow(&path, Op::Look)?;
            match handle {
                Some(handle) => self.file(handle)?.metadata(),
                None => path.symlink_metadata(),
            }
        });
        match found {
            Ok(found) => reply.attr(&TTL, &attributes(inode, &found)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = self.path(inode).and_then(|path| {
            self.allow(&path, if size.is_some() { Op::Resize } else { Op::Look })?;
            if let Some(size) = size {
                match handle {
                    Some(handle) => self.file(handle)?.set_len(size)?,
                    None => OpenOptions::new().write(true).open(&path)?.set_len(size)?,
                }
            }
            if let Some(mode) = mode {
                let permissions = std::fs::Permissions::from_mode(mode & 0o7777);
                std::fs::set_permissions(&path, permissions)?;
            }
            path.symlink_metadata()
        });
        match done {
            Ok(found) => reply.attr(&TTL, &attributes(inode, &found)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        use std::os::unix::ffi::OsStrExt as _;
        let found = self.path(inode).and_then(|path| {
            self.allow(&path, Op::Look)?;
            std::fs::read_link(path)
        });
        match found {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let make = |path: &Path| {
            let kind = rustix::fs::FileType::from_raw_mode(mode);
            Ok(mknodat(CWD, path, kind, Permissions::from_raw_mode(mode), 0)?)
        };
        self.made(self.child(parent, name, Op::Create), make, reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let make = |path: &Path| std::fs::DirBuilder::new().mode(mode).create(path);
        self.made(self.child(parent, name, Op::Create), make, reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, to: &Path, reply: ReplyEntry) {
        let make = |path: &Path| std::os::unix::fs::symlink(to, path);
        self.made(self.child(parent, name, Op::Create), make, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |path: &Path| std::fs::remove_file(path);
        self.removed(self.child(parent, name, Op::Remove), remove, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |path: &Path| std::fs::remove_dir(path);
        self.removed(self.child(parent, name, Op::Remove), remove, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.child(parent, name, Op::Rename).and_then(|from| {
            let to = self.path(new_parent)?.join(new_name);
            if from.is_dir() {
                // What is below it would need new paths: no store does that.
                return Err(io::Error::from_raw_os_error(libc::ENOSYS));
            }
            std::fs::rename(&from, &to)?;
            self.tables().inodes.renamed(&from, to);
            Ok(())
        });
        empty(done, reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.path(inode).and_then(|path| {
            self.allow(&path, Op::Open)?;
            let write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
            OpenOptions::new().read(true).write(write).open(path)
        });
        match opened {
            Ok(file) => {
                let handle = self.tables().opened(file);
                reply.opened(handle, self.open_flags());
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.child(parent, name, Op::Create).and_then(|path| {
            let mut open = OpenOptions::new();
            open.read(true).write(true).create(true).mode(mode);
            open.create_new(flags & libc::O_EXCL != 0).truncate(flags & libc::O_TRUNC != 0);
            let file = open.open(&path)?;
            let found = file.metadata()?;
            Ok((path, file, found))
        });
        match created {
            Ok((path, file, found)) => {
                let mut tables = self.tables();
                let inode = tables.inodes.number(path);
                let handle = tables.opened(file);
                drop(tables);
                let found = attributes(inode, &found);
                reply.created(&TTL, &found, NO_GENERATION, handle, self.open_flags());
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tables().open.remove(&handle.0);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // At each close; nothing is held back here.
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.mode == Mode::Cached && flags.0 & libc::O_DIRECT != 0 {
            return reply.error(Errno::EINVAL);
        }
        let range = offset..offset + u64::from(size);
        self.with(inode, handle, Op::Read, range, move |act| {
            match act.and_then(|act| act.read(offset, size)) {
                Ok(bytes) => reply.data(&bytes),
                Err(e) => reply.error(e.into()),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Past the page cache the kernel leaves it to us to make a durable write durable.
        let durable = flags.0 & libc::O_DSYNC != 0;
        let range = offset..offset + data.len() as u64;
        let data = data.to_vec();
        self.with(inode, handle, Op::Write, range, move |act| {
            match act.and_then(|act| act.write(offset, &data, durable)) {
                Ok(written) => reply.written(written),
                Err(e) => reply.error(e.into()),
            }
        });
    }

    fn fsync(&self, _: &Request, inode: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.with(inode, handle, Op::Sync, 0..u64::MAX, move |act| empty(act.map(|_| ()), reply));
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        let punch = flags.contains(FallocateFlags::PUNCH_HOLE);
        let op = if punch { Op::Punch } else { Op::Allocate };
        self.with(inode, handle, op, offset..offset + len, move |act| {
            let done = act.and_then(|act| Ok(fallocate(&act.file, flags, offset, len)?));
            empty(done, reply);
        });
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.path(inode).and_then(|path| self.allow(&path, Op::Sync)), reply);
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.path(inode).and_then(|path| {
            self.allow(&path, Op::Look)?;
            let mut entries = std::fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            Ok(entries)
        });
        match listed {
            Ok(entries) => {
                for (at, entry) in entries.iter().enumerate().skip(offset as usize) {
                    let kind = entry.file_type().ok().and_then(fuser::FileType::from_std);
                    let kind = kind.unwrap_or(fuser::FileType::RegularFile);
                    // The number here means nothing to anybody: lookups give the true one.
                    if reply.add(INodeNo(u64::MAX), at as u64 + 1, kind, entry.file_name()) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let found = self.path(inode).and_then(|path| {
            self.allow(&path, Op::Space)?;
            Ok(statvfs(&path)?)
        });
        match found {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(e) => reply.error(e.into()),
        }
    }
}
