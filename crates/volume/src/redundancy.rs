//! How often or how coded a VDI's data is kept: `3` copies, or `4:2` data and parity strips.

use sheepdog_types::limits::{COPIES_DEFAULT, COPIES_MAX};
use sheepdog_types::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// A redundancy policy; only valid ones can be made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Redundancy {
    /// Copies if `parity` is 0, else data strips.
    data: u8,
    parity: u8,
}

impl Redundancy {
    /// Three copies.
    pub const DEFAULT: Self = Self { data: COPIES_DEFAULT, parity: 0 };

    /// So many full copies, 1 to 31.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] outside of that.
    pub fn copies(copies: u8) -> Result<Self> {
        Self::from_parts(u32::from(copies), 0)
    }

    /// So many data strips, a power of two from 2 to 16, and 1 to 15 parity strips.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] outside of that.
    pub fn erasure(data: u8, parity: u8) -> Result<Self> {
        if parity == 0 {
            return Err(invalid(&format!("{data}:0")));
        }
        Self::from_parts(u32::from(data), u32::from(parity))
    }

    /// The form records keep: copies and 0, or data and parity strips.
    pub(crate) fn from_parts(data: u32, parity: u32) -> Result<Self> {
        let good = match parity {
            0 => (1..=u32::from(COPIES_MAX)).contains(&data),
            1..=15 => matches!(data, 2 | 4 | 8 | 16),
            _ => false,
        };
        match (u8::try_from(data), u8::try_from(parity)) {
            (Ok(data), Ok(parity)) if good => Ok(Self { data, parity }),
            _ if parity == 0 => Err(invalid(&data.to_string())),
            _ => Err(invalid(&format!("{data}:{parity}"))),
        }
    }

    /// Whether data is kept as full copies.
    #[must_use]
    pub const fn is_replicated(self) -> bool {
        self.parity == 0
    }

    /// Copies, or data strips.
    #[must_use]
    pub const fn data(self) -> u8 {
        self.data
    }

    /// Parity strips; 0 for full copies.
    #[must_use]
    pub const fn parity(self) -> u8 {
        self.parity
    }

    /// Disks that hold a part of each fragment.
    #[must_use]
    pub const fn members(self) -> u8 {
        self.data + self.parity
    }
}

impl Default for Redundancy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// As lists show it: `3` or `4:2`.
impl fmt::Display for Redundancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_replicated() {
            write!(f, "{}", self.data)
        } else {
            write!(f, "{}:{}", self.data, self.parity)
        }
    }
}

/// The argument of `-c`: `3` or `4:2`, digits only.
impl FromStr for Redundancy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| match part.parse::<u8>() {
            Ok(value) if part.bytes().all(|b| b.is_ascii_digit()) => Ok(value),
            _ => Err(invalid(text)),
        };
        match text.split_once(':') {
            None => Self::copies(number(text)?),
            Some((data, parity)) => Self::erasure(number(data)?, number(parity)?),
        }
        .map_err(|_| invalid(text))
    }
}

fn invalid(text: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "redundancy '{}' is neither 1 to 31 copies nor 2, 4, 8 or 16 data strips with 1 to 15 parity strips",
            text.escape_debug()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_allowed_ones_parse_and_print_back() {
        let mut good = 0;
        for data in 0..=255u8 {
            if let Ok(policy) = data.to_string().parse::<Redundancy>() {
                good += 1;
                assert_eq!(policy, Redundancy::copies(data).expect("copies"));
                assert_eq!(policy.to_string(), data.to_string());
                assert_eq!((policy.data(), policy.members()), (data, data));
                assert!(policy.is_replicated());
            } else {
                assert!(!(1..=31).contains(&data), "{data}");
            }
            for parity in 0..=255u8 {
                let text = format!("{data}:{parity}");
                if let Ok(policy) = text.parse::<Redundancy>() {
                    good += 1;
                    assert_eq!(policy, Redundancy::erasure(data, parity).expect("erasure"));
                    assert_eq!(policy.to_string(), text);
                    assert_eq!(policy.members(), data + parity);
                    assert!(!policy.is_replicated());
                }
            }
        }
        assert_eq!(good, 31 + 4 * 15);
        assert_eq!(Redundancy::DEFAULT.to_string(), "3");
    }

    #[test]
    fn nonsense_is_refused_in_one_line() {
        for text in [
            "",
            "0",
            "32",
            "-1",
            "+3",
            " 3",
            "3 ",
            "1.5",
            "x",
            "256",
            "4:",
            ":2",
            "4:0",
            "4:16",
            "3:2",
            "1:2",
            "32:2",
            "4:2:1",
            "4:+2",
            "٣",
            "4\n:2",
            "99999999999",
        ] {
            let error = text.parse::<Redundancy>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(!error.context().contains('\n'));
        }
    }
}
