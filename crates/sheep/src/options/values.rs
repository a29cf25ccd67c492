//! The arguments of single options: what they mean and the exact lines that refuse them.

use super::{LogPlace, Refusal, help, shown};
use crate::log::{Destination, Format, Level, LogOptions};
use sheepdog_registry::Driver;
use sheepdog_store::EngineChoice;
use sheepdog_types::{ErrorKind, size};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Smallest log, as of old.
const LOG_BYTES_MIN: u64 = 64 << 20;
/// No disk is so long; the superblock has no longer log.
const LOG_BYTES_MAX: u64 = 1 << 60;

/// `-b`, `-y`.
pub fn address(text: &str) -> Result<IpAddr, Refusal> {
    text.parse().map_err(|_| Refusal::new(format!("Invalid address: '{text}'")))
}

/// Plain decimal digits within a range; no sign, no other characters.
fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|n| range.contains(n))
}

fn port_number(text: &str) -> Option<u16> {
    number(text, 1..=u64::from(u16::MAX)).and_then(|n| u16::try_from(n).ok())
}

/// `-p`.
pub fn port(text: &str) -> Result<u16, Refusal> {
    port_number(text).ok_or_else(|| Refusal::new(format!("Invalid port number '{text}'")))
}

/// `-z`.
pub fn zone(text: &str) -> Result<u32, Refusal> {
    number(text, 0..=u64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
        Refusal::new(format!(
            "Invalid zone id '{text}': must be an integer between 0 and {}",
            u32::MAX
        ))
    })
}

/// The zone of a node that was not told one: the last four bytes of its address, as of old.
pub fn zone_of(address: IpAddr) -> u32 {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
    };
    u32::from_le_bytes(bytes)
}

/// `-c`. The file of `local` is made absolute: a daemon leaves its directory.
pub fn cluster(text: &OsStr) -> Result<Driver, Refusal> {
    match Driver::parse(text) {
        Ok(Driver::Local { file: Some(file) }) => {
            Ok(Driver::Local { file: Some(path("cluster", file.as_os_str())?) })
        }
        Ok(driver) => Ok(driver),
        Err(error) => {
            // The user's own text, in one line.
            let line = error.context().escape_debug().to_string().replace("\\'", "'");
            let help = (error.kind() == ErrorKind::Invalid).then_some(help::DRIVERS);
            Err(Refusal { line, help })
        }
    }
}

/// A file or directory that need not be there, made absolute: a daemon leaves its directory.
pub fn path(option: &str, text: &OsStr) -> Result<PathBuf, Refusal> {
    if text.is_empty() {
        return Err(Refusal::new(format!("option '--{option}' needs a path")));
    }
    std::path::absolute(text)
        .map_err(|e| Refusal::new(format!("cannot use path '{}': {e}", shown(text))))
}

/// PATH: the store's directory, and its disks if they are elsewhere. Trailing slashes are removed.
pub fn store(text: &OsStr) -> Result<(PathBuf, Vec<PathBuf>), Refusal> {
    let mut paths = Vec::new();
    for bytes in text.as_bytes().split(|b| *b == b',') {
        if bytes.is_empty() {
            return Err(Refusal::new(if text.is_empty() {
                "the path of the store is empty".to_owned()
            } else {
                format!("PATH '{}' has an empty part", shown(text))
            }));
        }
        let end = bytes.iter().rposition(|b| *b != b'/').map_or(1, |at| at + 1);
        let path = path("path", OsStr::from_bytes(&bytes[..end]))?;
        if paths.contains(&path) {
            return Err(Refusal::new(format!("PATH names '{}' twice", shown(path.as_os_str()))));
        }
        paths.push(path);
    }
    let store = paths.remove(0);
    Ok((store, paths))
}

/// `--nbd=[ADDR:]PORT`.
pub fn nbd(text: &str) -> Result<SocketAddr, Refusal> {
    let (host, port_text) = match text.rsplit_once(':') {
        Some((host, port)) => (Some(host), port),
        None => (None, text),
    };
    let port = port_number(port_text)
        .ok_or_else(|| Refusal::new(format!("Invalid NBD port number '{port_text}'")))?;
    let ip = match host {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(host) => match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').and_then(|v6| v6.parse().ok()).map(IpAddr::V6),
            None => host.parse().ok().map(IpAddr::V4),
        }
        .ok_or_else(|| {
            Refusal::new(format!(
                "Invalid NBD address '{text}': must be [ADDR:]PORT, an IPv6 address in brackets"
            ))
        })?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// `--nbd-group`: a name or a number.
pub fn group(text: &str) -> Result<u32, Refusal> {
    if let Some(gid) = number(text, 0..=u64::from(u32::MAX - 1)).filter(|_| !text.is_empty()) {
        return u32::try_from(gid).map_err(|_| Refusal::new(format!("Invalid group '{text}'")));
    }
    // The file, not NSS: a static lookup needs no C library and cannot hang on a directory server.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?;
            (name == text).then_some(gid)?.parse().ok()
        })
        .next()
        .ok_or_else(|| Refusal::new(format!("Invalid group '{text}': not in /etc/group")))
}

/// `--io`.
pub fn io(text: &str) -> Result<EngineChoice, Refusal> {
    match text {
        "auto" => Ok(EngineChoice::Auto),
        "ring" => Ok(EngineChoice::Ring),
        "blocking" => Ok(EngineChoice::Blocking),
        _ => Err(Refusal::new(format!(
            "Invalid I/O engine '{text}': must be auto, ring or blocking"
        ))),
    }
}

/// Bytes a second.
pub fn rate(text: &str) -> Result<u64, Refusal> {
    size::parse(text)
        .map_err(|_| Refusal::new(format!("Invalid rate '{text}': bytes a second, 0 for never")))
}

/// Splits `key=value,key,…`.
fn pairs(text: &OsStr) -> impl Iterator<Item = (String, Option<&OsStr>)> {
    text.as_bytes().split(|b| *b == b',').map(|pair| {
        let (key, value) = match pair.iter().position(|b| *b == b'=') {
            Some(at) => (&pair[..at], Some(OsStr::from_bytes(&pair[at + 1..]))),
            None => (pair, None),
        };
        (shown(OsStr::from_bytes(key)), value)
    })
}

/// `-j`: what was the journal's is the log's.
pub fn journal(text: &OsStr) -> Result<LogPlace, Refusal> {
    let (mut log_bytes, mut dir, mut skip) = (None, None, false);
    for (key, value) in pairs(text) {
        match (key.as_str(), value) {
            ("size", Some(value)) => {
                let value = shown(value);
                let parsed = size::parse(&value).ok();
                if size::is_too_large(&value) || parsed.is_some_and(|bytes| bytes > LOG_BYTES_MAX) {
                    let line = format!("invalid size {value}, must not be bigger than 1024P");
                    return Err(Refusal::new(line));
                }
                let bytes = parsed.filter(|bytes| *bytes >= LOG_BYTES_MIN).ok_or_else(|| {
                    Refusal::new(format!("invalid size {value}, must be bigger than 64(M)"))
                })?;
                log_bytes = Some(bytes);
            }
            ("dir", Some(value)) => dir = Some(path("journal", value)?),
            ("skip", None) => skip = true,
            _ => {
                return Err(Refusal {
                    line: format!("Invalid journal option '{key}'"),
                    help: Some(help::JOURNAL),
                });
            }
        }
    }
    // What has no effect needs no size.
    if log_bytes.is_none() && (dir.is_some() || !skip) {
        return Err(Refusal::new("you must specify size for journal"));
    }
    Ok(LogPlace { bytes: log_bytes, dir, skip })
}

/// `-l`.
pub fn log(text: &OsStr) -> Result<LogOptions, Refusal> {
    let mut options = LogOptions::default();
    for (key, value) in pairs(text) {
        let bad = |what: &str| Refusal {
            line: format!("Invalid log {what} '{}'", value.map_or_else(String::new, shown)),
            help: Some(help::LOG),
        };
        let name = value.map(|v| v.to_string_lossy().into_owned());
        let name = name.as_deref().unwrap_or_default();
        match key.as_str() {
            "level" => options.level = Level::from_name(name).ok_or_else(|| bad("level"))?,
            "format" => {
                options.format = match name {
                    "default" => Format::Default,
                    "server" => Format::Server,
                    "json" => Format::Json,
                    _ => return Err(bad("format")),
                }
            }
            "dst" => {
                options.destination = match name {
                    "default" => Destination::File,
                    "syslog" => Destination::Syslog,
                    "stdout" => Destination::Stdout,
                    _ => return Err(bad("destination")),
                }
            }
            "dir" => match value {
                Some(dir) if !dir.is_empty() => options.dir = Some(path("log", dir)?),
                _ => return Err(bad("directory")),
            },
            _ => {
                return Err(Refusal {
                    line: format!("Invalid log option '{key}'"),
                    help: Some(help::LOG),
                });
            }
        }
    }
    if options.dir.is_some() && options.destination != Destination::File {
        return Err(Refusal::new("log option 'dir' can be used only with the default destination"));
    }
    Ok(options)
}
