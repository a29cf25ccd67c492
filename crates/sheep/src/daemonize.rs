//! Becoming a daemon without forking a process that has threads: the program starts itself anew as
//! the child that serves, and leaves when that child says how its start went.
//!
//! The child's standard output is a pipe to its parent. A zero byte means that it serves; anything
//! else is the reason why it does not.

use crate::options::DAEMONIZED;
use crate::process::say;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Longest reason that a parent shows.
const REASON_BYTES_MAX: u64 = 16 << 10;
/// What the child says when it serves.
const READY: u8 = 0;

/// Starts the child with the same arguments and waits until it serves.
///
/// # Errors
/// The line that says why it does not.
pub fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    // By its name, so that process lists show the child under it; the link only if that name is
    // gone.
    let program = std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut child = Command::new(program)
        .arg0(std::env::args_os().next().unwrap_or_else(|| "sheep".into()))
        .arg(format!("--{DAEMONIZED}"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start the daemon: {e}"))?;
    let mut answer = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        let _ = pipe.take(REASON_BYTES_MAX).read_to_end(&mut answer);
    }
    if answer.last() == Some(&READY) {
        return Ok(());
    }
    let status = child.wait();
    let reason = String::from_utf8_lossy(&answer).trim().to_owned();
    if reason.is_empty() {
        return Err(format!(
            "the daemon ended while it started ({}); its log may tell more",
            status.map_or_else(|e| e.to_string(), |s| s.to_string())
        ));
    }
    Err(reason)
}

/// How whoever started this process is told how it goes.
pub enum Starter {
    /// A parent that waits at the other end of a pipe.
    Parent(File),
    /// A terminal or a service manager.
    Foreground,
}

impl Starter {
    /// For a process in the foreground.
    #[must_use]
    pub const fn foreground() -> Self {
        Self::Foreground
    }

    /// For the child of [`run`]: leaves the session of the terminal, takes the pipe from standard
    /// output and sends everything that is still printed there to nowhere.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn child() -> std::io::Result<Self> {
        // It fails only for a process group leader: then someone ran the inner option by hand.
        let _ = rustix::process::setsid();
        let pipe: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        let null = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(Self::Parent(File::from(pipe)))
    }

    /// Says that everything works.
    ///
    /// # Errors
    /// The parent is gone: whoever started the daemon has given up.
    pub fn ready(&mut self) -> std::io::Result<()> {
        if let Self::Parent(pipe) = self {
            // All of a daemon's habits come first: whoever started it may look at once.
            std::env::set_current_dir("/")?;
            let null = File::options().read(true).write(true).open("/dev/null")?;
            pipe.write_all(&[READY])?;
            rustix::stdio::dup2_stderr(&null)?;
            // The last writer of the pipe goes: the parent sees its end and leaves.
            *self = Self::Foreground;
        }
        notify(&[sd_notify::NotifyState::Ready]);
        Ok(())
    }

    /// Says why it does not work.
    pub fn failed(self, line: &str) {
        match self {
            Self::Parent(mut pipe) => {
                // Lines of a failed start are for people: the byte that means success is not in
                // them.
                let line = line.replace('\0', "");
                if pipe.write_all(line.as_bytes()).is_err() {
                    say(&(line + "\n"));
                }
            }
            Self::Foreground => say(&format!("{line}\n")),
        }
    }
}

/// Tells a service manager, if there is one.
pub fn notify(states: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
