//! Child processes that never outlive their owner: killed by pid when dropped, and by the kernel
//! should the owner die first.

use crate::shown;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal, prlimit,
    set_parent_process_death_signal,
};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest that anything here waits for a process to say or do what it must. Generous: it only
/// ends runs that hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running child. Spawn it from the thread that keeps it: the kernel kills it when that thread
/// ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with no input and with its output appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        Self::spawn_with_input(name, command, Stdio::null(), log)
    }

    /// The same with an input.
    ///
    /// # Panics
    /// As [`Process::spawn`].
    #[must_use]
    pub fn spawn_with_input(name: &str, command: &mut Command, input: Stdio, log: &Path) -> Self {
        let out = open_log(log);
        command.stdin(input).stdout(out.try_clone().expect("dup")).stderr(out);
        Self::start(name, command, log)
    }

    /// Starts `command` with no input, with its standard output for the caller to read and only
    /// the rest appended to `log`.
    ///
    /// # Panics
    /// As [`Process::spawn`].
    #[must_use]
    pub fn spawn_heard(name: &str, command: &mut Command, log: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(open_log(log));
        Self::start(name, command, log)
    }

    // Private, so that no child gets our own streams: one that outlives its test would keep them
    // open and could fill the memory of whoever reads them.
    fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        die_with_parent(command);
        let child = command.spawn().unwrap_or_else(|e| panic!("start {name}: {e}"));
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
        Self { name: name.to_owned(), child, pidfd, log: log.to_owned(), ended: None }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Readable once the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends a signal; to a process that has ended, nothing happens.
    pub fn signal(&self, signal: Signal) {
        // ESRCH: it has ended, which whoever waits for it will learn.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// The kernel kills it when it makes a file larger than this, its log included. For programs
    /// that have no business with large files and may go mad.
    ///
    /// # Panics
    /// When the limit is refused.
    pub fn limit_files(&self, bytes: u64) {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        let pid = Pid::from_child(&self.child);
        prlimit(Some(pid), Resource::Fsize, limit).expect("limit the size of files");
    }

    /// kill -9, and reap.
    pub fn kill(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().expect("wait");
        self.ended = Some(status);
        status
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not within `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        assert!(
            wait_readable(&[self.pidfd()], patience).is_some(),
            "{} did not end within {patience:?}; it said:\n{}",
            self.name,
            self.log()
        );
        let status = self.child.wait().expect("wait");
        self.ended = Some(status);
        status
    }

    /// SIGTERM, and waits for the end. Returns how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(PATIENCE)
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait");
        }
        self.ended.is_none()
    }

    /// What its log holds so far, shortened if that is much.
    #[must_use]
    pub fn log(&self) -> String {
        shown::file(&self.log, 0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}\n---", self.name, self.log());
        }
    }
}

/// A process that is not our child (a daemon known by its pid file): killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    pidfd: OwnedFd,
    pid: u32,
}

impl Daemon {
    /// Takes charge of `pid`; `None` if there is no such process.
    #[must_use]
    pub fn adopt(pid: u32) -> Option<Self> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        Some(Self { pidfd, pid })
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; to a process that has ended, nothing happens.
    pub fn signal(&self, signal: Signal) {
        // ESRCH: it has ended, which is what the callers wait for next.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until it has ended; false if it has not within `patience`.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> bool {
        wait_readable(&[self.pidfd.as_fd()], patience).is_some()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.wait(PATIENCE);
    }
}

/// Waits until one of `fds` is readable and says which, `None` after `patience`.
///
/// # Panics
/// When poll fails.
#[must_use]
pub fn wait_readable(fds: &[BorrowedFd<'_>], patience: Duration) -> Option<usize> {
    let end = Instant::now() + patience;
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("patience fits");
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return None,
            Ok(_) => return polled.iter().position(|p| !p.revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
    }
}

/// Looks again and again until something that happens in the background has happened.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command that ran to its end said and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// The command, for messages.
    pub command: String,
    /// Exit code; 128 + number for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself, if the code is 0.
    ///
    /// # Panics
    /// Otherwise.
    #[must_use]
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(
            self.code,
            0,
            "{} failed\n--- stdout:\n{}\n--- stderr:\n{}",
            self.command,
            shown::bytes(&self.stdout),
            shown::bytes(self.stderr.as_bytes())
        );
        self
    }
}

/// Runs a command to its end, feeding it `input`.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn run(command: &mut Command, input: &[u8]) -> Ended {
    die_with_parent(command);
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("start {shown}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read all of its input closes the pipe: its right.
            let _ = std::io::Write::write_all(&mut stdin, input);
        });
        child.wait_with_output().expect("wait")
    });
    Ended {
        command: shown,
        code: code_of(output.status),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The exit code as a shell shows it.
#[must_use]
pub fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

fn open_log(log: &Path) -> File {
    let out = File::options().create(true).append(true).open(log);
    out.unwrap_or_else(|e| panic!("{}: {e}", log.display()))
}

fn die_with_parent(command: &mut Command) {
    let die = || set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into);
    // SAFETY: the closure makes one system call and touches no memory shared with other threads,
    // as is required between fork and exec.
    unsafe { command.pre_exec(die) };
}
