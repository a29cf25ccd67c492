//! Which number of the kernel's is which file behind it, and what there is to know of a file.

use fuser::{FileAttr, FileType, INodeNo};
use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file has the number it was first seen with as long as it has a name; a number is not used
/// again.
#[derive(Debug)]
pub(super) struct Inodes {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    next: u64,
}

impl Inodes {
    pub(super) fn new(root: &Path) -> Self {
        let root_number = INodeNo::ROOT.0;
        Self {
            paths: HashMap::from([(root_number, root.to_owned())]),
            numbers: HashMap::from([(root.to_owned(), root_number)]),
            next: root_number + 1,
        }
    }

    pub(super) fn path(&self, inode: INodeNo) -> io::Result<&Path> {
        let path = self.paths.get(&inode.0);
        path.map(PathBuf::as_path).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    pub(super) fn number(&mut self, path: PathBuf) -> INodeNo {
        let number = *self.numbers.entry(path.clone()).or_insert_with(|| {
            self.next += 1;
            self.next - 1
        });
        self.paths.insert(number, path);
        INodeNo(number)
    }

    /// The name is gone; who has the file open keeps its number.
    pub(super) fn removed(&mut self, path: &Path) {
        self.numbers.remove(path);
    }

    pub(super) fn renamed(&mut self, from: &Path, to: PathBuf) {
        self.numbers.remove(&to);
        if let Some(number) = self.numbers.remove(from) {
            self.numbers.insert(to.clone(), number);
            self.paths.insert(number, to);
        }
    }
}

/// Last part of a path, by which faults know a file.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn attributes(inode: INodeNo, found: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        let since = Duration::new(seconds.max(0) as u64, nanos.clamp(0, 999_999_999) as u32);
        SystemTime::UNIX_EPOCH + since
    };
    FileAttr {
        ino: inode,
        size: found.size(),
        blocks: found.blocks(),
        atime: time(found.atime(), found.atime_nsec()),
        mtime: time(found.mtime(), found.mtime_nsec()),
        ctime: time(found.ctime(), found.ctime_nsec()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(found.file_type()).unwrap_or(FileType::RegularFile),
        perm: (found.mode() & 0o7777) as u16,
        nlink: found.nlink() as u32,
        uid: found.uid(),
        gid: found.gid(),
        rdev: found.rdev() as u32,
        blksize: 4096,
        flags: 0,
    }
}
