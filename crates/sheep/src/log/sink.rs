//! Where lines go. A line that cannot be written is lost: the log never stops the daemon.

use crate::regular;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use tracing::Level;

/// The file is moved aside when it gets larger, as of old.
const FILE_BYTES_MAX: u64 = 500 << 20;
const SYSLOG: &str = "/dev/log";
/// Facility "daemon" of syslog.
const FACILITY: u8 = 3;

/// A destination.
pub enum Sink {
    /// A file of our own.
    File(LogFile),
    /// The system's log.
    Syslog(Option<UnixDatagram>),
    /// The terminal.
    Stdout,
}

/// The log's file and how long it is.
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Sink {
    pub fn file(path: PathBuf) -> std::io::Result<Self> {
        LogFile::open(path, FILE_BYTES_MAX).map(Self::File)
    }

    pub fn syslog() -> Self {
        Self::Syslog(syslog_socket())
    }

    /// Writes one line that has its end.
    pub fn write(&mut self, level: Level, line: &str) {
        match self {
            Self::File(file) => file.write(line),
            Self::Stdout => {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(line.as_bytes());
                let _ = out.flush();
            }
            Self::Syslog(socket) => {
                let severity = match level {
                    Level::ERROR => 3,
                    Level::WARN => 4,
                    Level::INFO => 6,
                    _ => 7,
                };
                let priority = FACILITY * 8 + severity;
                let pid = std::process::id();
                let text = format!("<{priority}>sheep[{pid}]: {}", line.trim_end());
                // The system's log may have been restarted: a new socket, once.
                for _ in 0..2 {
                    match socket.as_ref().map(|s| s.send(text.as_bytes())) {
                        Some(Ok(_)) => break,
                        _ => *socket = syslog_socket(),
                    }
                }
            }
        }
    }

    pub fn reopen(&mut self) -> std::io::Result<()> {
        if let Self::File(log) = self {
            *log = LogFile::open(log.path.clone(), log.bytes_max)?;
        }
        Ok(())
    }
}

/// A socket that never makes a thread wait for the system's log.
fn syslog_socket() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(SYSLOG).ok()?;
    Some(socket)
}

impl LogFile {
    pub fn open(path: PathBuf, bytes_max: u64) -> std::io::Result<Self> {
        let file = regular::open(&path, File::options().append(true).create(true))?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes, bytes_max })
    }

    pub fn write(&mut self, line: &str) {
        let len = line.len() as u64;
        if self.bytes > 0 && self.bytes + len > self.bytes_max {
            self.rotate();
        }
        // One write per line, so that lines of different writers never mix.
        if self.file.write_all(line.as_bytes()).is_ok() {
            self.bytes += len;
        }
    }

    /// Keeps one older file. If that fails the present one goes on, and the next try comes when it
    /// has grown as much again.
    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let renamed = std::fs::rename(&self.path, old);
        match renamed.and_then(|()| Self::open(self.path.clone(), self.bytes_max)) {
            Ok(new) => *self = new,
            Err(_) => self.bytes = 0,
        }
    }
}
