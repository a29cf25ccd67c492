//! The file with the process id: locked while the process runs, removed when it ends.

use crate::process::patiently;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// More than a process id and the end of its line have.
const PID_BYTES_MAX: usize = 24;

/// Held while the process runs; dropping it removes the file.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Creates or takes over the file and writes the id of this process.
    ///
    /// # Errors
    /// The line that says why not: another process holds it, or it cannot be written.
    pub fn create(path: &Path) -> Result<Self, String> {
        let refuse =
            |e: &dyn std::fmt::Display| format!("cannot write pid file {}: {e}", path.display());
        // A pipe would keep us waiting for whoever reads it.
        let wait_for_nobody = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(wait_for_nobody)
            .open(path)
            .map_err(|e| refuse(&e))?;
        // Before the lock too: somebody else's file may be locked for reasons of theirs.
        refuse_unless_pid(&file).map_err(|e| refuse(&e))?;
        let take = || flock(&file, FlockOperation::NonBlockingLockExclusive);
        patiently(take, |e| *e == rustix::io::Errno::WOULDBLOCK)
            .map_err(|_| format!("another process holds pid file {}", path.display()))?;
        refuse_unless_pid(&file).map_err(|e| refuse(&e))?;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| refuse(&e))?;
        Ok(Self { path: path.to_owned(), file })
    }
}

/// A file of something else, named by mistake, keeps its content.
fn refuse_unless_pid(file: &File) -> std::io::Result<()> {
    let mut text = [0; PID_BYTES_MAX];
    let found = file.metadata()?;
    // One more than there may be, so that what is longer shows.
    let len = if found.is_file() { file.read_at(&mut text, 0)? } else { PID_BYTES_MAX };
    let is_pid = len < PID_BYTES_MAX
        && str::from_utf8(&text[..len])
            .is_ok_and(|text| text.trim().bytes().all(|byte| byte.is_ascii_digit()));
    if is_pid {
        return Ok(());
    }
    Err(std::io::Error::other("it is there and holds something else: remove it or name another"))
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Someone may have removed ours and put theirs in its place.
        let inode = |m: std::fs::Metadata| (m.dev(), m.ino());
        let ours = self.file.metadata().map(inode).ok();
        if ours.is_some() && std::fs::metadata(&self.path).map(inode).ok() == ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_no_pid_file_keeps_its_content() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("file");
        for text in ["12 34\n", "x", "1234567890123456789012345\n", "-1\n", "\0", "\u{e9}"] {
            std::fs::write(&path, text).expect("write");
            let refused = PidFile::create(&path).expect_err(text);
            assert!(refused.contains("holds something else"), "{refused}");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
        }
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).expect("a pipe");
        for path in [&pipe, Path::new("/dev/zero")] {
            let refused = PidFile::create(path).expect_err("no file");
            assert!(refused.starts_with("cannot write pid file"), "{refused}");
        }
    }

    #[test]
    fn one_process_at_a_time_and_gone_afterwards() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("sheep.pid");
        std::fs::write(&path, "99999999 \n\n").expect("stale");
        let held = PidFile::create(&path).expect("take over");
        assert_eq!(
            std::fs::read_to_string(&path).expect("read"),
            format!("{}\n", std::process::id())
        );
        let refused = PidFile::create(&path).expect_err("held");
        assert!(refused.starts_with("another process holds"), "{refused}");
        drop(held);
        assert!(!path.exists());
        let fresh = PidFile::create(&path).expect("fresh");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, "other").expect("other");
        drop(fresh);
        assert!(path.exists(), "not ours to remove");
        let refused = PidFile::create(&dir.path().join("no/dir")).expect_err("no directory");
        assert!(refused.starts_with("cannot write pid file"), "{refused}");
    }
}
