//! The limits of keys and transactions. Every engine calls these first, so that all refuse alike
//! and a cluster can move from one engine to another.

use sheepdog_types::kv::{Change, Compare, Txn};
use sheepdog_types::{Error, ErrorKind, Result};
use std::collections::BTreeSet;

/// Bytes of a key or prefix.
pub const KEY_BYTES_MAX: usize = 512;
/// Bytes of a value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Changes of one transaction.
pub const CHANGES_MAX: usize = 128;
/// Comparisons of one transaction.
pub const COMPARES_MAX: usize = 128;

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::Invalid, context)
}

/// A key that may be long or hostile, fit for a line of an error.
fn shown(key: &str) -> String {
    const SHOWN: usize = 64;
    let mut text: String = key.chars().take(SHOWN).flat_map(char::escape_default).collect();
    if key.chars().nth(SHOWN).is_some() {
        text.push_str("...");
    }
    text
}

fn bytes(what: &str, key: &str) -> Result<()> {
    if key.len() > KEY_BYTES_MAX {
        return Err(invalid(format!(
            "registry {what} '{}' has {} bytes, the limit is {KEY_BYTES_MAX}",
            shown(key),
            key.len()
        )));
    }
    if !key.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(invalid(format!("registry {what} '{}' is not printable ASCII", shown(key))));
    }
    Ok(())
}

/// Components of printable ASCII joined by single slashes, none empty, `.` or `..` (ZooKeeper
/// could not hold them).
///
/// # Errors
/// `Invalid`.
pub fn key(key: &str) -> Result<()> {
    bytes("key", key)?;
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(format!("registry key '{}' has an empty component", shown(key))));
    }
    Ok(())
}

/// Printable ASCII; may end anywhere within a key.
///
/// # Errors
/// `Invalid`.
pub fn prefix(prefix: &str) -> Result<()> {
    bytes("prefix", prefix)
}

/// Keys, values and counts; each key is changed at most once.
///
/// # Errors
/// `Invalid`.
pub fn txn(txn: &Txn) -> Result<()> {
    for (what, count, limit) in [
        ("changes", txn.changes.len(), CHANGES_MAX),
        ("comparisons", txn.compares.len(), COMPARES_MAX),
    ] {
        if count > limit {
            return Err(invalid(format!(
                "registry transaction with {count} {what}, the limit is {limit}"
            )));
        }
    }
    for compare in &txn.compares {
        let (Compare::Absent(name) | Compare::Unchanged(name, _)) = compare;
        key(name)?;
    }
    let mut changed = BTreeSet::new();
    for change in &txn.changes {
        let (Change::Put(name, _) | Change::Delete(name)) = change;
        key(name)?;
        if !changed.insert(name) {
            return Err(invalid(format!("registry transaction changes '{}' twice", shown(name))));
        }
        if let Change::Put(_, value) = change
            && value.len() > VALUE_BYTES_MAX
        {
            return Err(invalid(format!(
                "value of registry key '{}' has {} bytes, the limit is {VALUE_BYTES_MAX}",
                shown(name),
                value.len()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths_of_printable_ascii() {
        for good in ["a", "a/b", "vdi/7c2b25", "a b", "~/!", ".a/..b", &"k".repeat(512)] {
            key(good).expect(good);
        }
        for bad in
            ["", "/", "/a", "a/", "a//b", ".", "a/../b", "ä", "a\n", "\x7f", &"k".repeat(513)]
        {
            assert_eq!(key(bad).expect_err(bad).kind(), ErrorKind::Invalid);
        }
        for good in ["", "a/", "/", "a//", &"k".repeat(512)] {
            prefix(good).expect(good);
        }
        for bad in ["\x7f", "é", &"k".repeat(513)] {
            assert_eq!(prefix(bad).expect_err(bad).kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn a_refusal_stays_one_short_line() {
        let line = key(&"\n".repeat(100_000)).expect_err("too long").full();
        assert!(line.len() < 300 && !line.contains('\n'), "{line}");
    }
}
