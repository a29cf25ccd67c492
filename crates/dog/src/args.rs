//! Reads the values of options and arguments: addresses, sizes, names, selectors, redundancy.

use crate::definitions::{Opt, SubcommandDef, parse::Parsed};
use crate::failure::{Failure, Result};
use sheepdog_types::limits::{OBJECT_SHIFT_MAX, OBJECT_SHIFT_MIN, PORT_DEFAULT};
use sheepdog_types::{Error, size};
use sheepdog_volume::{Redundancy, name};
use sheepdog_wire::{RedundancyInfo, VdiSelector};
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;

/// Where the sheep is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// The options of the command line, else the environment, else the default.
///
/// # Errors
/// Exit code 1 for a bad address, 64 for a bad port (without usage, so the line is said here).
pub fn target(parsed: &Parsed) -> Result<Target> {
    let from = |opt, variable| {
        parsed.value(opt).map(OsStr::to_owned).or_else(|| std::env::var_os(variable))
    };
    let host = match from(Opt::Address, "SHEEPDOG_DOG_ADDR") {
        Some(text) => address(&text)?,
        None => "127.0.0.1".to_owned(),
    };
    let port = match from(Opt::Port, "SHEEPDOG_DOG_PORT") {
        Some(text) => port(&text)?,
        None => PORT_DEFAULT,
    };
    Ok(Target { host, port })
}

/// Quotes what a person typed so that it stays one line.
#[must_use]
pub fn shown(text: &OsStr) -> String {
    text.to_string_lossy().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn address(text: &OsStr) -> Result<String> {
    let bad = || Failure::failed(format!("Invalid ip address {}", shown(text)));
    let host = text.to_str().ok_or_else(bad)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let named = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    // fe80::1%eth0 names an interface, which may be called almost anything.
    let (literal, interface) = host.split_once('%').unwrap_or((host, ""));
    let literal = literal.parse::<IpAddr>().is_ok()
        && !interface.contains(|c: char| c.is_control() || c.is_whitespace());
    if named || literal { Ok(host.to_owned()) } else { Err(bad()) }
}

fn port(text: &OsStr) -> Result<u16> {
    text.to_str()
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| {
            Failure::new(
                crate::failure::EXIT_USAGE,
                format!("Invalid port number '{}'", shown(text)),
            )
        })
}

/// A size argument.
///
/// # Errors
/// Exit code 64 with the two old lines.
pub fn size(text: &OsStr) -> Result<u64> {
    text.to_str()
        .and_then(|t| size::parse(t).ok())
        .ok_or_else(|| {
            Failure::usage(format!("Invalid size '{}'", shown(text))).and(
                "You may use B, K, M, G, T or P suffixes for bytes, kilobytes, megabytes, gigabytes, terabytes and petabytes.",
            )
        })
}

/// The argument at a position, as the name of a VDI.
///
/// # Errors
/// Exit code 64 with `missing` when it is not there, 1 when it is no name.
pub fn vdi_name(args: &[OsString], at: usize, missing: &str) -> Result<String> {
    let word = args.get(at).ok_or_else(|| Failure::usage(missing))?;
    checked(name::check(word.as_bytes()))
}

fn checked(result: Result<&str, Error>) -> Result<String> {
    result.map(str::to_owned).map_err(|e| Failure::failed(e.to_string()))
}

/// A VDI's name together with `-s`.
///
/// # Errors
/// Exit code 1 for a bad snapshot id or tag.
pub fn selector(parsed: &Parsed, name: String) -> Result<VdiSelector> {
    let mut selector = VdiSelector { name, ..VdiSelector::default() };
    let Some(text) = parsed.value(Opt::Snapshot) else {
        return Ok(selector);
    };
    let digits = !text.is_empty() && text.as_bytes().iter().all(u8::is_ascii_digit);
    if digits {
        selector.snapshot_id = text
            .to_str()
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| Failure::failed(format!("Invalid snapshot id '{}'", shown(text))))?;
        if selector.snapshot_id == 0 {
            return Err(Failure::failed("The snapshot id must be larger than zero"));
        }
    } else {
        selector.tag = checked(name::check_tag(text.as_bytes()))?;
    }
    Ok(selector)
}

/// The argument of `-c`.
///
/// # Errors
/// Exit code 1 with the old explanation.
pub fn redundancy(parsed: &Parsed) -> Result<Option<RedundancyInfo>> {
    let Some(text) = parsed.value(Opt::Copies) else {
        return Ok(None);
    };
    match text.to_str().map(str::parse::<Redundancy>) {
        Some(Ok(redundancy)) => Ok(Some(RedundancyInfo {
            data: redundancy.data().into(),
            parity: redundancy.parity().into(),
        })),
        _ => Err(Failure::failed(format!("Invalid parameter {}", shown(text)))
            .and("To create replicated vdi, set -c x")
            .and("  x(1 to 31)   - number of replicated copies")
            .and("To create erasure coded vdi, set -c x:y")
            .and("  x(2,4,8,16)  - number of data strips")
            .and("  y(1 to 15)   - number of parity strips")),
    }
}

/// The argument of `-z`.
///
/// # Errors
/// Exit code 1 outside of 20 to 31.
pub fn object_shift(parsed: &Parsed) -> Result<Option<u8>> {
    let Some(text) = parsed.value(Opt::BlockSizeShift) else {
        return Ok(None);
    };
    let number: Option<u32> = text
        .to_str()
        .filter(|t| t.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|t| t.parse().ok());
    match number.map(u8::try_from) {
        None => Err(Failure::failed(format!("Invalid block size shift '{}'", shown(text)))),
        Some(Ok(shift)) if shift < OBJECT_SHIFT_MIN => Err(Failure::failed(
            "Object Size is larger than 2^20. Please set shift bit larger than 20",
        )),
        Some(Ok(shift)) if shift <= OBJECT_SHIFT_MAX => Ok(Some(shift)),
        Some(_) => Err(Failure::failed(
            "Object Size is limited to 2^31. Please set shift bit lower than 31",
        )),
    }
}

/// A positive number, as the pacing options of `vdi delete` take it.
///
/// # Errors
/// Exit code 1.
pub fn positive(parsed: &Parsed, opt: Opt, what: &str) -> Result<Option<u64>> {
    let Some(text) = parsed.value(opt) else {
        return Ok(None);
    };
    text.to_str()
        .and_then(|t| t.parse::<u64>().ok())
        .filter(|n| *n > 0)
        .map(Some)
        .ok_or_else(|| Failure::failed(format!("Invalid {what} '{}'", shown(text))))
}

/// Refuses a first word that is none of those a subcommand knows, if it knows some.
///
/// # Errors
/// The usage, exit code 1, as of old.
pub fn sub(subcommand: &SubcommandDef, parsed: &Parsed) -> Result<()> {
    let known = |word: &OsString| subcommand.subs.iter().any(|(sub, _)| word == sub);
    if subcommand.subs.is_empty() || parsed.args.first().is_some_and(known) {
        return Ok(());
    }
    Err(Failure::only_usage())
}

/// Refuses arguments behind those that a subcommand takes: whoever wrote them meant something.
///
/// # Errors
/// Exit code 64.
pub fn no_more(args: &[OsString], count: usize) -> Result<()> {
    match args.get(count) {
        None => Ok(()),
        Some(word) => Err(Failure::usage(format!("Unexpected argument '{}'", shown(word)))),
    }
}

#[cfg(test)]
#[path = "args/tests.rs"]
mod tests;
