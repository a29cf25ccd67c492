//! The grammar of a GNU command line: permutation, bundled short options, long names and their
//! unambiguous beginnings, `--`. Knows nothing of what the options mean.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Whether an option takes an argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// None.
    No,
    /// Always: attached or the next word.
    Yes,
    /// Always, and only as `--name=ARG`, so that a following word is never taken for it.
    Equals,
}

/// How one option is written.
#[derive(Clone, Copy, Debug)]
pub struct Spec<T> {
    /// What the caller knows it by.
    pub id: T,
    /// The letter, if it has one.
    pub short: Option<char>,
    /// The long name, without dashes.
    pub long: &'static str,
    /// Its argument.
    pub arg: Arg,
    /// Neither listed nor found by its beginning.
    pub hidden: bool,
}

/// One piece of a command line.
#[derive(PartialEq, Eq, Debug)]
pub enum Item<T> {
    /// An option with its argument.
    Opt(T, Option<OsString>),
    /// Anything else.
    Word(OsString),
}

/// Why a command line could not be read: the line for the user and the option it is about.
#[derive(PartialEq, Eq, Debug)]
pub struct Bad<T> {
    /// Without the program's name.
    pub line: String,
    /// `None` if no such option is known.
    pub id: Option<T>,
}

/// Reads a command line from left to right.
pub struct Getopt<'a, T, I> {
    specs: &'a [Spec<T>],
    words: I,
    /// Letters left of a bundle.
    bundle: Vec<u8>,
    /// After `--`.
    only_words: bool,
}

impl<'a, T: Copy, I: Iterator<Item = OsString>> Getopt<'a, T, I> {
    /// `words` without the program's name.
    pub fn new(specs: &'a [Spec<T>], words: I) -> Self {
        Self { specs, words, bundle: Vec::new(), only_words: false }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// What GNU getopt would refuse, in its words.
    pub fn next_item(&mut self) -> Result<Option<Item<T>>, Bad<T>> {
        if !self.bundle.is_empty() {
            return self.short().map(Some);
        }
        let Some(word) = self.words.next() else {
            return Ok(None);
        };
        let bytes = word.as_bytes();
        if self.only_words || bytes.len() < 2 || bytes[0] != b'-' {
            return Ok(Some(Item::Word(word)));
        }
        if bytes == b"--" {
            self.only_words = true;
            return self.next_item();
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            return self.long(long).map(Some);
        }
        self.bundle = bytes[1..].to_vec();
        self.short().map(Some)
    }

    fn short(&mut self) -> Result<Item<T>, Bad<T>> {
        let letter = char::from(self.bundle.remove(0));
        let Some(spec) = self.specs.iter().find(|s| s.short == Some(letter)) else {
            let shown = if letter.is_ascii_graphic() { letter } else { '?' };
            return Err(Bad { line: format!("invalid option -- '{shown}'"), id: None });
        };
        if spec.arg == Arg::No {
            return Ok(Item::Opt(spec.id, None));
        }
        let attached = std::mem::take(&mut self.bundle);
        if !attached.is_empty() {
            return Ok(Item::Opt(spec.id, Some(OsString::from_vec(attached))));
        }
        match self.words.next() {
            Some(word) => Ok(Item::Opt(spec.id, Some(word))),
            None => Err(Bad {
                line: format!("option requires an argument -- '{letter}'"),
                id: Some(spec.id),
            }),
        }
    }

    fn long(&mut self, text: &[u8]) -> Result<Item<T>, Bad<T>> {
        let (name, value) = match text.iter().position(|b| *b == b'=') {
            Some(at) => (&text[..at], Some(OsStr::from_bytes(&text[at + 1..]))),
            None => (text, None),
        };
        let spec = self.find(name)?;
        let long = spec.long;
        let id = spec.id;
        match (spec.arg, value) {
            (Arg::No, None) => Ok(Item::Opt(id, None)),
            (Arg::No, Some(_)) => Err(Bad {
                line: format!("option '--{long}' doesn't allow an argument"),
                id: Some(id),
            }),
            (Arg::Yes | Arg::Equals, Some(value)) => Ok(Item::Opt(id, Some(value.to_owned()))),
            (Arg::Yes, None) => match self.words.next() {
                Some(word) => Ok(Item::Opt(id, Some(word))),
                None => Err(Bad {
                    line: format!("option '--{long}' requires an argument"),
                    id: Some(id),
                }),
            },
            (Arg::Equals, None) => Err(Bad {
                line: format!("option '--{long}' requires its argument with '='"),
                id: Some(id),
            }),
        }
    }

    fn find(&self, name: &[u8]) -> Result<&'a Spec<T>, Bad<T>> {
        if let Some(spec) = self.specs.iter().find(|s| s.long.as_bytes() == name) {
            return Ok(spec);
        }
        let shown = String::from_utf8_lossy(name).escape_debug().to_string();
        let mut found =
            self.specs.iter().filter(|s| !s.hidden && s.long.as_bytes().starts_with(name));
        match (found.next(), found.next()) {
            (Some(spec), None) => Ok(spec),
            (None, _) => Err(Bad { line: format!("unrecognized option '--{shown}'"), id: None }),
            (Some(first), Some(second)) => {
                let mut line = format!("option '--{shown}' is ambiguous; possibilities:");
                for spec in [first, second].into_iter().chain(found) {
                    line.push_str(&format!(" '--{}'", spec.long));
                }
                Err(Bad { line, id: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: [Spec<char>; 5] = [
        spec('p', Some('p'), "port", Arg::Yes, false),
        spec('P', Some('P'), "pidfile", Arg::Yes, false),
        spec('f', Some('f'), "foreground", Arg::No, false),
        spec('n', None, "nbd", Arg::Equals, false),
        spec('x', None, "inner", Arg::No, true),
    ];

    const fn spec(
        id: char,
        short: Option<char>,
        long: &'static str,
        arg: Arg,
        hidden: bool,
    ) -> Spec<char> {
        Spec { id, short, long, arg, hidden }
    }

    fn read(line: &str) -> Result<String, String> {
        let words = line.split_whitespace().map(OsString::from);
        let mut getopt = Getopt::new(&SPECS, words);
        let mut seen = Vec::new();
        while let Some(item) = getopt.next_item().map_err(|bad| bad.line)? {
            seen.push(match item {
                Item::Opt(id, None) => format!("-{id}"),
                Item::Opt(id, Some(arg)) => format!("-{id}:{}", arg.display()),
                Item::Word(word) => word.display().to_string(),
            });
        }
        Ok(seen.join(" "))
    }

    #[test]
    fn words_and_options_mix() {
        for (line, seen) in [
            ("", ""),
            ("-p 7000 a", "-p:7000 a"),
            ("a -p7000 b -f", "a -p:7000 b -f"),
            ("-fp 7000", "-f -p:7000"),
            ("-ffp7000", "-f -f -p:7000"),
            ("--port 1 --port=2 --po=3", "-p:1 -p:2 -p:3"),
            ("--port= -", "-p: -"),
            ("-p -f", "-p:-f"),
            ("-f -- -p --x", "-f -p --x"),
            ("--nbd=1 2", "-n:1 2"),
            ("--inner --for", "-x -f"),
        ] {
            assert_eq!(read(line).as_deref(), Ok(seen), "{line}");
        }
    }

    #[test]
    fn refusals_are_those_of_getopt() {
        for (line, refusal) in [
            ("-k", "invalid option -- 'k'"),
            ("-fk", "invalid option -- 'k'"),
            ("-é", "invalid option -- '?'"),
            ("-\u{1b}[2J", "invalid option -- '?'"),
            ("-p", "option requires an argument -- 'p'"),
            ("--port", "option '--port' requires an argument"),
            ("--por", "option '--port' requires an argument"),
            ("--foreground=1", "option '--foreground' doesn't allow an argument"),
            ("--what", "unrecognized option '--what'"),
            ("--inne", "unrecognized option '--inne'"),
            ("--p=1", "option '--p' is ambiguous; possibilities: '--port' '--pidfile'"),
            ("--nbd 1", "option '--nbd' requires its argument with '='"),
        ] {
            assert_eq!(read(line), Err(refusal.to_owned()), "{line}");
        }
    }
}
