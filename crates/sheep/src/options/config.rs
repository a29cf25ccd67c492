//! The optional file of options: TOML with the long names of the command line. A table stands for
//! an argument of `key=value` pairs.

use super::{Arg, Opt, Refusal, SPECS, Settings};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use toml::Value;

/// A file of options is a few lines; more is a mistake.
const BYTES_MAX: u64 = 1 << 20;

/// Reads the file.
pub fn read(file: &Path) -> Result<Settings, Refusal> {
    let refuse = |why: &dyn std::fmt::Display| {
        Refusal::new(format!("configuration file {}: {why}", file.display()))
    };
    // Devices and pipes have no length that could be asked for.
    let opened = File::open(file).map_err(|e| refuse(&e))?;
    let mut bytes = Vec::new();
    opened.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| refuse(&e))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(refuse(&"larger than 1 MiB"));
    }
    let text = str::from_utf8(&bytes).map_err(|e| refuse(&e))?;
    parse(text).map_err(|line| refuse(&line))
}

/// Reads the text; an error is the reason without the file's name.
pub fn parse(text: &str) -> Result<Settings, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let at = e.span().map_or(0, |span| span.start.min(text.len()));
        let row = text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
        let message = e.message().lines().collect::<Vec<_>>().join(", ");
        format!("line {row}: {message}")
    })?;
    let mut said = Settings::default();
    for (key, value) in &table {
        let shown = key.escape_debug();
        if key == "path" {
            let path = value.as_str().ok_or("'path' must be a string")?;
            said.path = Some(path.into());
            continue;
        }
        let spec = SPECS
            .iter()
            .find(|s| s.long == key && !s.hidden)
            .filter(|s| !matches!(s.id, Opt::Help | Opt::Version | Opt::Config))
            .ok_or_else(|| format!("unknown key '{shown}'"))?;
        let result = match (spec.arg, value) {
            (Arg::No, Value::Boolean(true)) => said.set(spec.id, None),
            (Arg::No, Value::Boolean(false)) => Ok(()),
            (Arg::No, _) => return Err(format!("'{shown}' must be true or false")),
            (_, value) => {
                let argument = argument(value)
                    .ok_or_else(|| format!("'{shown}' must be a string or a number"))?;
                said.set(spec.id, Some(OsStr::new(&argument)))
            }
        };
        result.map_err(|refusal| refusal.line)?;
    }
    Ok(said)
}

/// The argument as the command line would have it.
fn argument(value: &Value) -> Option<String> {
    let Value::Table(pairs) = value else {
        return scalar(value);
    };
    let pairs: Option<Vec<_>> = pairs
        .iter()
        .map(|(key, value)| match value {
            Value::Boolean(true) => Some(key.clone()),
            value => Some(format!("{key}={}", scalar(value)?)),
        })
        .collect();
    Some(pairs?.join(","))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}
