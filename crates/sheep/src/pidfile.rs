//! The file with the process id: locked while the process runs, removed when it ends.

use crate::process::patiently;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| refuse(&e))?;
        let take = || flock(&file, FlockOperation::NonBlockingLockExclusive);
        patiently(take, |e| *e == rustix::io::Errno::WOULDBLOCK)
            .map_err(|_| format!("another process holds pid file {}", path.display()))?;
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| refuse(&e))?;
        Ok(Self { path: path.to_owned(), file })
    }
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
    fn one_process_at_a_time_and_gone_afterwards() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("sheep.pid");
        std::fs::write(&path, "99999999 stale and longer").expect("stale");
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
