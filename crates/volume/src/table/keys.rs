//! The keys of the VDI table.

use sheepdog_types::Vid;

/// What all keys of the table begin with.
pub const PREFIX: &str = "vdi/";
/// What the keys of records begin with.
pub const ID_PREFIX: &str = "vdi/id/";
/// What the keys of names begin with.
pub const NAME_PREFIX: &str = "vdi/name/";
/// Key of the lineage counter.
pub const LINEAGE_KEY: &str = "vdi/next-lineage";

/// Key of a vid's record.
#[must_use]
pub fn id_key(vid: Vid) -> String {
    format!("{ID_PREFIX}{:06x}", vid.get())
}

/// Key of a name, at most 350 bytes of ASCII.
#[must_use]
pub fn name_key(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if name.bytes().all(plain) {
        format!("{NAME_PREFIX}={name}")
    } else {
        format!("{NAME_PREFIX}~{}", base64url(name.as_bytes()))
    }
}

/// What a key is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Id(Vid),
    /// Which name, its value says.
    Name,
    NextLineage,
    /// Not one of this version's table.
    Other,
}

impl Key {
    pub(super) fn parse(key: &str) -> Self {
        if key == LINEAGE_KEY {
            Self::NextLineage
        } else if key.starts_with(NAME_PREFIX) {
            Self::Name
        } else {
            key.strip_prefix(ID_PREFIX)
                .and_then(|hex| u32::from_str_radix(hex, 16).ok())
                .and_then(Vid::new)
                // One vid has one key, whatever else would parse as its number.
                .filter(|vid| id_key(*vid) == key)
                .map_or(Self::Other, Self::Id)
        }
    }
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .enumerate()
            .fold(0u32, |bits, (i, byte)| bits | u32::from(*byte) << (16 - 8 * i));
        for i in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vid(value: u32) -> Vid {
        Vid::new(value).expect("vid")
    }

    #[test]
    fn keys_never_change() {
        assert_eq!(id_key(vid(1)), "vdi/id/000001");
        assert_eq!(id_key(vid(0x7c_2b25)), "vdi/id/7c2b25");
        for (name, key) in [
            ("test", "vdi/name/=test"),
            ("sd/sheep", "vdi/name/~c2Qvc2hlZXA"),
            ("=", "vdi/name/~PQ"),
            ("a b", "vdi/name/~YSBi"),
            ("日本", "vdi/name/~5pel5pys"),
            ("a~1", "vdi/name/~YX4x"),
            ("..", "vdi/name/=.."),
            ("ÿ?>", "vdi/name/~w78_Pg"),
        ] {
            assert_eq!(name_key(name), key);
        }
        // The test vectors of RFC 4648.
        for (text, code) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64url(text.as_bytes()), code);
        }
    }

    #[test]
    fn foreign_keys_are_left_alone() {
        for key in [
            "",
            "vdi/",
            "vdi/id/",
            "vdi/id/000000",
            "vdi/id/1000000",
            "vdi/id/7C2B25",
            "vdi/id/+c2b25",
            "vdi/id/7c2b2",
            "vdi/id/7c2b25/lock",
            "vdi/next-lineage/",
            "vdi/trash/x",
            "cluster",
        ] {
            assert_eq!(Key::parse(key), Key::Other, "{key}");
        }
        assert_eq!(Key::parse("vdi/id/7c2b25"), Key::Id(vid(0x7c_2b25)));
        assert_eq!(Key::parse(LINEAGE_KEY), Key::NextLineage);
        assert_eq!(Key::parse("vdi/name/=a"), Key::Name);
    }

    proptest! {
        #[test]
        fn every_name_has_its_own_short_ascii_key(
            a in "[a-c~=/é]{1,3}|\\PC{1,60}",
            b in "[a-c~=/é]{1,3}",
        ) {
            prop_assert_eq!(name_key(&a) == name_key(&b), a == b);
            prop_assert!(name_key(&a).is_ascii());
        }
    }

    #[test]
    fn the_longest_names_fit() {
        for unit in ["x", " ", "é", "日", "🐑"] {
            let name = unit.repeat(255 / unit.len());
            let key = name_key(&name);
            assert!(key.is_ascii() && key.len() <= 350, "{}", key.len());
        }
    }
}
