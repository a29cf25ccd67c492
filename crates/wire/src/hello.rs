//! HELLO: the first frame in each direction. Versions and features are agreed on, or the peer is
//! refused with a line that says who must be upgraded.

use crate::{OLDEST_VERSION, VERSION};
use sheepdog_types::{Error, ErrorKind, Result};

/// Feature bits this version knows. None so far.
pub const FEATURES_KNOWN: u64 = 0;

/// Who speaks and what it can do. Sent by the client, answered by the server with its own.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Hello {
    /// Highest version spoken.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Lowest version spoken.
    #[prost(uint32, tag = "2")]
    pub oldest: u32,
    /// Features that can be used.
    #[prost(uint64, tag = "3")]
    pub features: u64,
    /// Features without which it will not talk.
    #[prost(uint64, tag = "4")]
    pub required: u64,
    /// Program and its version, for logs (`dog 2.0.0`).
    #[prost(string, tag = "5")]
    pub program: String,
    /// Requests that may be in flight on this connection; from the server only.
    #[prost(uint32, tag = "6")]
    pub in_flight: u32,
}

/// What both sides agreed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Version of all frames that follow.
    pub version: u16,
    /// Features both sides can use.
    pub features: u64,
}

impl Hello {
    /// What this version of the crate says.
    #[must_use]
    pub fn ours(program: impl Into<String>) -> Self {
        Self {
            version: VERSION.into(),
            oldest: OLDEST_VERSION.into(),
            features: FEATURES_KNOWN,
            required: 0,
            program: program.into(),
            in_flight: 0,
        }
    }

    /// Compares ours (`self`) with the peer's.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] when there is no common version or a feature one side
    /// requires is not known to the other.
    pub fn agree(&self, peer: &Self) -> Result<Agreed> {
        let refuse = |why: String| Err(Error::new(ErrorKind::VersionMismatch, why));
        let name = if peer.program.is_empty() { "the peer" } else { &peer.program };
        if peer.oldest > self.version {
            return refuse(format!(
                "{name} speaks protocol versions {} to {}, {} only up to {}: upgrade the latter",
                peer.oldest, peer.version, self.program, self.version
            ));
        }
        if peer.version < self.oldest {
            return refuse(format!(
                "{name} speaks protocol versions up to {}, {} needs {} or later: upgrade the former",
                peer.version, self.program, self.oldest
            ));
        }
        let missing = (peer.required & !self.features) | (self.required & !peer.features);
        if missing != 0 {
            return refuse(format!(
                "{name} and {} do not share the protocol features {missing:#x}: upgrade the older one",
                self.program
            ));
        }
        let version = self.version.min(peer.version);
        Ok(Agreed {
            // Not above our own, which is 16 bits.
            version: u16::try_from(version).unwrap_or(VERSION),
            features: self.features & peer.features,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(oldest: u32, version: u32) -> Hello {
        Hello { version, oldest, ..Hello::ours("sheep 9") }
    }

    #[test]
    fn the_highest_common_version_is_taken() {
        let version = |peer| Hello::ours("dog 1").agree(&peer).map(|a| a.version);
        assert_eq!(version(hello(1, 1)).expect("same"), 1);
        assert_eq!(version(hello(1, 7)).expect("newer, compatible"), 1);
        assert_eq!(hello(2, 4).agree(&hello(3, 9)).map(|a| a.version).expect("4"), 4);
    }

    #[test]
    fn strangers_are_told_who_is_older() {
        let error = Hello::ours("dog 1").agree(&hello(2, 3)).expect_err("newer");
        assert_eq!(error.kind(), ErrorKind::VersionMismatch);
        assert_eq!(
            error.context(),
            "sheep 9 speaks protocol versions 2 to 3, dog 1 only up to 1: upgrade the latter"
        );
        let error = hello(2, 3).agree(&Hello::ours("dog 1")).expect_err("older");
        assert!(error.context().ends_with("upgrade the former"));
        let needy = Hello { required: 4, ..hello(1, 1) };
        assert!(Hello::ours("dog 1").agree(&needy).is_err());
        assert!(needy.agree(&Hello::ours("dog 1")).is_err());
    }
}
