//! How a command ends other than well: exit code and lines for stderr.

use crate::output::{complain, person_reads_stderr};
use sheepdog_types::{Error, ErrorKind};
use std::fmt::Display;
use std::io;

/// It worked, or the user said no.
pub const EXIT_OK: u8 = 0;
/// The command failed.
pub const EXIT_FAILURE: u8 = 1;
/// No sheep can be talked to.
pub const EXIT_SYSTEM: u8 = 2;
/// The command line is wrong.
pub const EXIT_USAGE: u8 = 64;

/// Why the command ends and what to say about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    code: u8,
    lines: Vec<String>,
    usage: bool,
}

/// Results of the layers above the connection.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// An exit code and its line.
    pub fn new(code: u8, line: impl Into<String>) -> Self {
        Self { code, lines: vec![line.into()], usage: code == EXIT_USAGE }
    }

    /// The command failed.
    pub fn failed(line: impl Into<String>) -> Self {
        Self::new(EXIT_FAILURE, line)
    }

    /// The command line is wrong: the usage follows on stdout.
    pub fn usage(line: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, line)
    }

    /// Only the usage is to be shown, as where a subcommand of a subcommand is missing.
    #[must_use]
    pub const fn only_usage() -> Self {
        Self { code: EXIT_FAILURE, lines: Vec::new(), usage: true }
    }

    /// Whether the usage follows on stdout.
    #[must_use]
    pub const fn wants_usage(&self) -> bool {
        self.usage
    }

    /// Nothing more to say.
    #[must_use]
    pub const fn silent(code: u8) -> Self {
        Self { code, lines: Vec::new(), usage: false }
    }

    /// What a sheep answered, or that it does not answer, behind what was tried. People are also
    /// told what the sentences that scripts match leave out.
    #[must_use]
    pub fn answered(tried: impl Display, error: &Error) -> Self {
        let failure = Self::new(code_of(error), format!("{tried}: {}", reason(error)));
        if stands_alone(error.kind()) && !error.context().is_empty() && person_reads_stderr() {
            return failure.and(error.context());
        }
        failure
    }

    /// Adds a line.
    #[must_use]
    pub fn and(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// The same words, another exit code.
    #[must_use]
    pub const fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self.usage = code == EXIT_USAGE;
        self
    }

    /// The exit code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The lines for stderr.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Says it.
    pub fn complain(&self) {
        self.lines.iter().for_each(|line| complain(line));
    }
}

/// Stdout failed. A reader that went away is nothing to talk about.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::silent(EXIT_FAILURE)
        } else {
            Self::failed(format!("Failed to write to standard output: {}", strerror(&error)))
        }
    }
}

/// 2 when no sheep answers, else 1.
#[must_use]
pub fn code_of(error: &Error) -> u8 {
    if error.kind() == ErrorKind::Unreachable { EXIT_SYSTEM } else { EXIT_FAILURE }
}

/// An error as one reads it behind a colon. The sentences that scripts match stand alone.
#[must_use]
pub fn reason(error: &Error) -> String {
    if stands_alone(error.kind()) { error.kind().text().to_owned() } else { error.to_string() }
}

const fn stands_alone(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Exists
            | ErrorKind::NotFound
            | ErrorKind::NoTag
            | ErrorKind::TooFewZones
            | ErrorKind::Locked
            | ErrorKind::ShuttingDown
            | ErrorKind::TooManyVdis
            | ErrorKind::WaitForFormat
    )
}

/// An operating system's error as C's `strerror` words it.
#[must_use]
pub fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_scripts_match_stand_alone() {
        let words = |kind| reason(&Error::new(kind, "more"));
        assert_eq!(words(ErrorKind::Exists), "VDI exists already");
        assert_eq!(words(ErrorKind::NotFound), "No VDI found");
        assert_eq!(words(ErrorKind::NoTag), "Failed to find requested tag");
        let strict = "Failed to write to requested VDI";
        assert_eq!(words(ErrorKind::TooFewZones), strict);
        assert_eq!(words(ErrorKind::Io), "I/O error: more");
        assert_eq!(words(ErrorKind::WaitForJoin), "Waiting for other nodes to join cluster: more");
    }

    #[test]
    fn system_errors_read_as_in_c() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(strerror(&refused), "Connection refused");
        assert_eq!(strerror(&io::Error::other("plain")), "plain");
    }

    #[test]
    fn a_broken_pipe_is_silent() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.lines().is_empty());
        assert_eq!(failure.code(), EXIT_FAILURE);
    }
}
