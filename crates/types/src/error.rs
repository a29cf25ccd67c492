//! The error that crosses every layer and the network: a kind that says what the caller must do,
//! one line of context, and its source.

use std::fmt;

/// What the caller must do about it. The numbers are those of the original protocol where it has
/// one, so they survive the network and old clients know them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ErrorKind {
    /// The bytes cannot be read or written; trying again will not help.
    Io = 0x03,
    /// A VDI of that name and tag is there already: choose another name.
    Exists = 0x04,
    /// The request itself is wrong: correct it.
    Invalid = 0x05,
    /// A rule of the program was broken; what it guarded was stopped. Report it.
    Internal = 0x06,
    /// Someone else holds it: wait for them or ask them.
    Locked = 0x07,
    /// There is no such VDI.
    NotFound = 0x08,
    /// The cluster is strict and has fewer zones than the VDI has copies: add nodes, or ask for
    /// fewer copies.
    TooFewZones = 0x0B,
    /// The VDI is there, the tag or snapshot id is not.
    NoTag = 0x0E,
    /// The program is leaving: connect to another node.
    ShuttingDown = 0x11,
    /// All VDI ids are taken.
    TooManyVdis = 0x13,
    /// Made by a newer version, or speaks another protocol: upgrade.
    VersionMismatch = 0x14,
    /// Make or add space.
    NoSpace = 0x15,
    /// Run `dog cluster format` first.
    WaitForFormat = 0x16,
    /// Nodes are missing; the context says which.
    WaitForJoin = 0x17,
    /// It may not be written.
    ReadOnly = 0x1A,
    /// This program cannot do that.
    Unsupported = 0x8B,
    /// The state changed in between: look again and retry.
    Conflict = 0x8F,
    /// An import did not finish: import again or delete.
    Incomplete = 0x94,
    /// Nobody answers there.
    Unreachable = 0x86,
}

impl ErrorKind {
    /// Every kind, for decoding and for tests.
    pub const ALL: [Self; 19] = [
        Self::Io,
        Self::Exists,
        Self::Invalid,
        Self::Internal,
        Self::Locked,
        Self::NotFound,
        Self::TooFewZones,
        Self::NoTag,
        Self::ShuttingDown,
        Self::TooManyVdis,
        Self::VersionMismatch,
        Self::NoSpace,
        Self::WaitForFormat,
        Self::WaitForJoin,
        Self::ReadOnly,
        Self::Unsupported,
        Self::Conflict,
        Self::Incomplete,
        Self::Unreachable,
    ];

    /// The number that travels.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The kind of a number that travelled; [`ErrorKind::Internal`] for one this version does not
    /// know (it can only say that something failed).
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|k| k.code() == code).unwrap_or(Self::Internal)
    }

    /// The sentence users and scripts know it by.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Io => "I/O error",
            Self::Exists => "VDI exists already",
            Self::Invalid => "Invalid parameters",
            Self::Internal => "System error",
            Self::Locked => "VDI is already locked",
            Self::NotFound => "No VDI found",
            Self::TooFewZones => "Failed to write to requested VDI",
            Self::NoTag => "Failed to find requested tag",
            Self::ShuttingDown => "System is shutting down",
            Self::TooManyVdis => "Maximum number of VDIs reached",
            Self::VersionMismatch => "Protocol version mismatch",
            Self::NoSpace => "Server has no space for new objects",
            Self::WaitForFormat => "Waiting for cluster to be formatted",
            Self::WaitForJoin => "Waiting for other nodes to join cluster",
            Self::ReadOnly => "Object is read-only",
            Self::Unsupported => "Operation is not supported",
            Self::Conflict => "Ask to try again",
            Self::Incomplete => "VDI is incomplete",
            Self::Unreachable => "Network error between sheep",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A kind, one line that says where and what to do, and what caused it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Results of every layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `context` is one line without a full stop; empty when the kind says it all.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// As [`Error::new`], with its cause.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// What the caller must do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Where and why; may be empty.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Kind, context and all causes as one line, for a log or a terminal.
    #[must_use]
    pub fn full(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.context.is_empty() {
            write!(f, "{}", self.kind)
        } else {
            write!(f, "{}: {}", self.kind, self.context)
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_the_network() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), kind);
        }
        assert_eq!(ErrorKind::from_code(0xEE), ErrorKind::Internal);
    }

    #[test]
    fn the_full_line_names_every_cause() {
        let error = Error::with_source(
            ErrorKind::Io,
            "write the log",
            std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
        );
        assert_eq!(error.full(), "I/O error: write the log: unexpected end of file");
    }
}
