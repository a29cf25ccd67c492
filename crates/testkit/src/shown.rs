//! What failures show of things that may be large: the beginning and the end of a log, the place
//! where two buffers differ. A test's output is kept in memory by whoever runs it, so no failure
//! prints without limit.

use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes shown of the beginning, and of the end.
pub const EDGE: u64 = 64 << 10;

/// What a file holds from byte `from` on: all of it, or its beginning and its end.
#[must_use]
pub fn file(path: &Path, from: u64) -> String {
    shorten(path, from).unwrap_or_else(|e| format!("({}: {e})", path.display()))
}

fn shorten(path: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut part = |at: u64, len: u64| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        // Not more, although the file may be growing.
        (&mut file).take(len).read_to_end(&mut bytes)?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let from = from.min(end);
    let len = end - from;
    if len <= 2 * EDGE {
        return part(from, len);
    }
    Ok(part(from, EDGE)? + &omitted(len - 2 * EDGE) + &part(end - EDGE, EDGE)?)
}

/// The same of bytes in memory.
#[must_use]
pub fn bytes(bytes: &[u8]) -> String {
    let edge = EDGE as usize;
    if bytes.len() <= 2 * edge {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let (head, rest) = bytes.split_at(edge);
    let (middle, tail) = rest.split_at(rest.len() - edge);
    String::from_utf8_lossy(head).into_owned()
        + &omitted(middle.len() as u64)
        + &String::from_utf8_lossy(tail)
}

fn omitted(len: u64) -> String {
    format!("\n[… {len} bytes are not shown …]\n")
}

/// Fails unless both are the same bytes, and shows only where they begin to differ: `assert_eq!`
/// would print all of both.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same(found: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) {
    let (found, expected) = (found.as_ref(), expected.as_ref());
    assert!(found == expected, "{}", difference(found, expected));
}

/// Where two buffers begin to differ, in a line.
#[must_use]
pub fn difference(found: &[u8], expected: &[u8]) -> String {
    let at = found.iter().zip(expected).position(|(f, e)| f != e);
    let at = at.unwrap_or(found.len().min(expected.len()));
    let mut line =
        format!("{} bytes, {} expected; first difference at {at}", found.len(), expected.len());
    for (name, all) in [("found", found), ("expected", expected)] {
        let shown = &all[at.min(all.len())..all.len().min(at + 16)];
        let _ = write!(line, ", {name} {shown:02x?}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_logs_lose_their_middle() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("log");
        let edge = EDGE as usize;
        let all = [vec![b'a'; edge], vec![b'b'; 12345], vec![b'c'; edge]].concat();
        for len in [0, 5, 2 * edge] {
            std::fs::write(&path, &all[..len]).expect("write");
            let whole = String::from_utf8_lossy(&all[..len]);
            assert!(file(&path, 0) == whole && bytes(&all[..len]) == whole, "{len}");
        }
        std::fs::write(&path, &all).expect("write");
        let cut = format!("{}{}{}", "a".repeat(edge), omitted(12345), "c".repeat(edge));
        assert!(file(&path, 0) == cut);
        assert!(bytes(&all) == cut);
        assert!(file(&path, edge as u64 + 12345) == "c".repeat(edge));
        assert_eq!(file(&path, u64::MAX), "");
        assert!(file(&dir.path().join("none"), 0).contains("none"));
    }

    #[test]
    fn differences_are_found_and_short() {
        assert_same([1, 2, 3], vec![1, 2, 3]);
        let (mut a, b) = (vec![7; 10 << 20], vec![7; 10 << 20]);
        a[5_000_000] = 8;
        let line = difference(&a, &b);
        assert!(line.contains("first difference at 5000000, found [08, 07,"), "{line}");
        assert!(line.len() < 300, "{line}");
        assert!(difference(&[1, 2], &[1, 2, 3]).ends_with("at 2, found [], expected [03]"));
    }
}
