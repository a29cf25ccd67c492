//! Which names and tags VDIs may have: 1 to 255 bytes of UTF-8 without control characters.

use sheepdog_types::limits::NAME_BYTES_MAX;
use sheepdog_types::{Error, ErrorKind, Result};

/// Checks a VDI name as it came from a person or the network.
///
/// # Errors
/// [`ErrorKind::Invalid`] with one line that says what is wrong.
pub fn check(name: &[u8]) -> Result<&str> {
    check_as("VDI name", name)
}

/// Checks a snapshot tag. The empty tag of an untagged snapshot is not one to check.
///
/// # Errors
/// As [`check`].
pub fn check_tag(tag: &[u8]) -> Result<&str> {
    check_as("tag", tag)
}

fn check_as<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str> {
    let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, format!("{what} {why}")));
    if bytes.is_empty() {
        return invalid("is empty".to_owned());
    }
    if bytes.len() > NAME_BYTES_MAX {
        return invalid(format!("is {} bytes long, the limit is {NAME_BYTES_MAX}", bytes.len()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return invalid("is not UTF-8".to_owned());
    };
    match text.chars().find(|c| c.is_control()) {
        // Escaped, so that the message stays one line and cannot steer a terminal.
        Some(c) => invalid(format!("contains the control character {}", c.escape_unicode())),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_script_and_length_pass() {
        let long = "n".repeat(255);
        for name in ["a", "test", "sd/sheep", "a b\\c", "Ωμέγα@1", "日本", "00", &long] {
            assert_eq!(check(name.as_bytes()).expect(name), name);
            assert_eq!(check_tag(name.as_bytes()).expect(name), name);
        }
    }

    #[test]
    fn each_bad_name_gets_its_line() {
        let long = [b'x'; 256];
        let wide = "é".repeat(128);
        for (name, line) in [
            (&b""[..], "VDI name is empty"),
            (&long, "VDI name is 256 bytes long, the limit is 255"),
            (wide.as_bytes(), "VDI name is 256 bytes long, the limit is 255"),
            (b"a\xff", "VDI name is not UTF-8"),
            (b"a\xc3", "VDI name is not UTF-8"),
            (b"a\nb", "VDI name contains the control character \\u{a}"),
            (b"a\0", "VDI name contains the control character \\u{0}"),
            (b"\x7f", "VDI name contains the control character \\u{7f}"),
            ("\u{85}".as_bytes(), "VDI name contains the control character \\u{85}"),
        ] {
            let error = check(name).expect_err(line);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert_eq!(error.context(), line);
        }
        assert_eq!(check_tag(b"").expect_err("empty").context(), "tag is empty");
    }
}
