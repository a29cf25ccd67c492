//! Third layer: how results look. The old human and raw forms to the byte, and the JSON shapes.

pub mod cluster;
pub mod json;
pub mod node;
mod time;
pub mod vdi;

/// Percent of a whole, as an integer cut off, 0 of nothing.
fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 0 } else { (u128::from(part) * 100 / u128::from(whole)) as u64 }
}

/// `HOST:PORT`, with brackets around what has colons of its own.
fn endpoint(address: &str, port: u32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Padded to the left edge by bytes, as C's `%-8s` counts.
fn left(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.len())))
}

/// Padded to the right edge by bytes, as C's `%13s` counts.
fn right(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(text.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_as_in_c() {
        assert_eq!(left("ab", 4), "ab  ");
        assert_eq!(left("é", 4), "é  ");
        assert_eq!(right("abcde", 4), "abcde");
        assert_eq!(endpoint("::1", 7000), "[::1]:7000");
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(2, 3), 66);
    }
}
