//! Sizes as people type them and as the old tool prints them.

use crate::{Error, ErrorKind, Result};

/// Parses a byte count: digits, optionally a fraction, optionally one of `B K M G T P` in either
/// case (powers of 1024). Exact to the byte: no floating point is involved, and what is below one
/// byte is cut off.
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything else and for what does not fit 64 bits.
pub fn parse(text: &str) -> Result<u64> {
    let invalid = || Error::new(ErrorKind::Invalid, format!("Invalid size '{text}'"));
    let (whole, fraction, shift) = parts(text).ok_or_else(invalid)?;
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
    let whole = whole.checked_mul(1 << shift).ok_or_else(invalid)?;
    // From the last digit on, each time what is whole: below 2^shift, and exact however many there
    // are.
    let below = fraction
        .bytes()
        .rev()
        .fold(0, |below, digit| ((u64::from(digit - b'0') << shift) + below) / 10);
    whole.checked_add(below).ok_or_else(invalid)
}

/// Whether [`parse`] refuses what is a byte count, only because it does not fit 64 bits.
#[must_use]
pub fn is_too_large(text: &str) -> bool {
    parts(text).is_some() && parse(text).is_err()
}

/// Digits before and behind the point, and the unit as a power of two.
fn parts(text: &str) -> Option<(&str, &str, u32)> {
    let (number, shift) = match text.as_bytes().last()? {
        b'0'..=b'9' | b'.' => (text, 0),
        unit => {
            let power = b"bkmgtp".iter().position(|u| *u == unit.to_ascii_lowercase())?;
            (&text[..text.len() - 1], 10 * power as u32)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let is_one = (!whole.is_empty() || !fraction.is_empty()) && digits(whole) && digits(fraction);
    is_one.then_some((whole, fraction, shift))
}

/// The old tool's human form: units of 1024 from MB on, one digit after the point below ten
/// (`4.0 MB`, `64 MB`, `16 PB`).
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64 / f64::from(1 << 20);
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value >= 10.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_to_the_byte() {
        let ok = [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("1K", 1024),
            ("5B", 5),
            ("1.5G", 3 << 29),
            (".5m", 1 << 19),
            ("3.", 3),
            ("0.1k", 102),
            ("16P", 16 << 50),
            // 2^-50, to its last digit, and a little less.
            (".00000000000000088817841970012523233890533447265625P", 1),
            (".00000000000000088817841970012523233890533447265624P", 0),
            ("0.99999999999999999999999999999999999999999999999999k", 1023),
            ("9007199254740993", 9_007_199_254_740_993),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in ok {
            assert_eq!(parse(text).expect(text), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "G",
            ".",
            "-1",
            "+1",
            "1e3",
            "1GG",
            "0x10",
            "1 G",
            "1Z",
            "18446744073709551616",
            "16384P",
            "１",
        ] {
            assert_eq!(parse(text).expect_err(text).kind(), ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn human_sizes_are_those_of_old() {
        for (bytes, text) in [
            (0, "0.0 MB"),
            (4 << 20, "4.0 MB"),
            (64 << 20, "64 MB"),
            (10 << 30, "10 GB"),
            (16 << 50, "16 PB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
