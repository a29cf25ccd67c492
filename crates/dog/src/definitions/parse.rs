//! The command line's grammar: options anywhere among the arguments, letters in clusters,
//! long names with `=` and abbreviated, `--` ends the options.

use super::{Opt, OptionDef, SubcommandDef};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parsed {
    options: BTreeMap<Opt, OsString>,
    /// Everything that is no option, in order.
    pub args: Vec<OsString>,
}

impl Parsed {
    /// Whether the option was given.
    #[must_use]
    pub fn has(&self, opt: Opt) -> bool {
        self.options.contains_key(&opt)
    }

    /// Its argument; the last one counts.
    #[must_use]
    pub fn value(&self, opt: Opt) -> Option<&OsStr> {
        self.options.get(&opt).map(OsString::as_os_str)
    }
}

/// Sorts words into options and arguments.
///
/// # Errors
/// One line that says what is wrong with which option.
pub fn parse(
    subcommand: &SubcommandDef,
    words: impl IntoIterator<Item = OsString>,
) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            parsed.args.extend(words);
            break;
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|b| *b == b'=') {
                Some(at) => (&long[..at], Some(owned(&long[at + 1..]))),
                None => (long, None),
            };
            let option = find_long(subcommand, name)?;
            let value = match (option.takes_value, value) {
                (true, Some(value)) => value,
                (true, None) => words.next().ok_or_else(|| {
                    format!("dog: option '--{}' requires an argument", option.long)
                })?,
                (false, None) => OsString::new(),
                (false, Some(_)) => {
                    return Err(format!(
                        "dog: option '--{}' doesn't allow an argument",
                        option.long
                    ));
                }
            };
            parsed.options.insert(option.opt, value);
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            let mut letters = &bytes[1..];
            while let [letter, rest @ ..] = letters {
                let option = find_short(subcommand, *letter)?;
                if !option.takes_value {
                    parsed.options.insert(option.opt, OsString::new());
                    letters = rest;
                    continue;
                }
                let value = if rest.is_empty() {
                    words.next().ok_or_else(|| {
                        format!("dog: option requires an argument -- '{}'", char::from(*letter))
                    })?
                } else {
                    owned(rest)
                };
                parsed.options.insert(option.opt, value);
                break;
            }
        } else {
            parsed.args.push(word);
        }
    }
    Ok(parsed)
}

fn owned(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

fn find_short(subcommand: &SubcommandDef, letter: u8) -> Result<&'static OptionDef, String> {
    subcommand
        .options
        .iter()
        .find(|o| o.short == Some(char::from(letter)))
        .copied()
        .ok_or_else(|| format!("dog: invalid option -- '{}'", char::from(letter).escape_debug()))
}

fn find_long(subcommand: &SubcommandDef, name: &[u8]) -> Result<&'static OptionDef, String> {
    let shown = || String::from_utf8_lossy(name).escape_debug().to_string();
    let mut candidates = subcommand
        .options
        .iter()
        .copied()
        .filter(|o| !name.is_empty() && o.long.as_bytes().starts_with(name));
    match (candidates.next(), candidates.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(format!("dog: unrecognized option '--{}'", shown())),
        (Some(_), Some(_)) => subcommand
            .options
            .iter()
            .copied()
            .find(|o| o.long.as_bytes() == name)
            .ok_or_else(|| format!("dog: option '--{}' is ambiguous", shown())),
    }
}
