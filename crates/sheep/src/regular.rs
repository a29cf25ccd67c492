//! Files of a store, opened without waiting: a pipe would keep a start waiting for its other end,
//! and a device may have no end.

use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens what must be a file.
///
/// # Errors
/// Those of `open`, and that it is none.
pub fn open(path: &Path, options: &mut OpenOptions) -> Result<File> {
    let not_a_file = || Error::new(ErrorKind::InvalidInput, "it is not a file: remove it");
    // Nobody reads a pipe that is to be written.
    let no_reader = |e: Error| {
        let errno = rustix::io::Errno::from_io_error(&e);
        if errno == Some(rustix::io::Errno::NXIO) { not_a_file() } else { e }
    };
    let options = options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(path).map_err(no_reader)?;
    // A directory says what it is when it is read or written.
    let found = file.metadata()?;
    if found.is_file() || found.is_dir() { Ok(file) } else { Err(not_a_file()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_no_file() {
        let dir = tempfile::tempdir().expect("dir");
        let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).expect("a pipe");
        for path in [&pipe, Path::new("/dev/zero")] {
            for options in [File::options().read(true), File::options().append(true)] {
                let refused = open(path, options).expect_err("no file");
                assert_eq!(refused.to_string(), "it is not a file: remove it");
            }
        }
        let missing = open(&file, File::options().read(true)).expect_err("nothing");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let made = open(&file, File::options().append(true).create(true)).expect("a file");
        assert!(made.metadata().expect("metadata").is_file());
    }
}
