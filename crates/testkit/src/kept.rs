//! A VDI whose content is known, to be found unharmed after whatever was done to its sheep.

use crate::rng::Rng;
use crate::sheep::Sheep;
use std::path::Path;

/// Bytes of the VDI.
pub const KEPT: u64 = 8 << 20;

/// A sheep with one VDI, `kept`, and its content.
#[must_use]
pub fn sheep_with_kept() -> (Sheep, Vec<u8>) {
    let sheep = Sheep::new();
    let mut content = vec![0; KEPT as usize];
    Rng::new(7).fill(&mut content);
    let _ = sheep.dog().run(&["vdi", "create", "kept", "8M"]).ok();
    let _ = sheep.dog().feed(&["vdi", "write", "kept"], &content).ok();
    (sheep, content)
}

/// Whether a directory's copy of the VDI table names a VDI. The copies follow changes at once, but by
/// themselves.
#[must_use]
pub fn is_in_table(directory: &Path, vdi: &str) -> bool {
    let table = std::fs::read(directory.join("table")).unwrap_or_default();
    table.windows(vdi.len()).any(|found| found == vdi.as_bytes())
}

/// # Panics
/// Unless that VDI is the only one and holds what it held.
pub fn assert_kept(sheep: &Sheep, content: &[u8]) {
    let list = sheep.dog().run(&["vdi", "list", "-r"]).ok().text();
    assert_eq!(list.lines().count(), 1, "{list}");
    assert!(list.starts_with("= kept 0 8388608 "), "{list}");
    let read = sheep.dog().run(&["vdi", "read", "kept"]).ok();
    assert!(read.stdout == content, "the content of the VDI changed");
}
