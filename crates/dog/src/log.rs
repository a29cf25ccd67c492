//! The log of invocations: with `SHEEPDOG_DOG_LOG` set, every command line goes to syslog or, with
//! `SHEEPDOG_DOG_LOG_PATH`, to that file.

use jiff::Zoned;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::net::UnixDatagram;

/// Facility "user", level "info".
const PRIORITY: u32 = (1 << 3) | 6;

/// Logs a command line if asked to. A log that cannot be written must not stop a command.
pub fn invocation(words: &[OsString]) {
    if std::env::var_os("SHEEPDOG_DOG_LOG").is_none() {
        return;
    }
    let line: String = words
        .iter()
        .map(|word| format!(" {}", word.to_string_lossy().replace('\n', " ")))
        .collect();
    match std::env::var_os("SHEEPDOG_DOG_LOG_PATH") {
        Some(path) => {
            let line = format!("{} :{line}\n", Zoned::now().strftime("%Y %b %d %H:%M:%S"));
            if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
                let _ = file.write_all(line.as_bytes());
            }
        }
        None => {
            let message = format!("<{PRIORITY}>sheepdog admin operation:{line}");
            if let Ok(socket) = UnixDatagram::unbound() {
                let _ = socket.set_nonblocking(true);
                let _ = socket.send_to(message.as_bytes(), "/dev/log");
            }
        }
    }
}
