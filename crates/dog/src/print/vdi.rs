//! VDIs: rows, details, what was done to them.

use super::json;
use super::{left, right, time};
use crate::failure::Result;
use crate::output::Output;
use crate::verbs::Mode;
use sheepdog_types::size::human;
use sheepdog_wire::{RedundancyInfo, VdiEntry};
use std::fmt::Write as _;

const HEADER: &str = "  Name        Id    Size    Used  Shared    Creation time   VDI id  Copies  Tag   Block Size Shift\n";

/// What an import or export moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that were not zero.
    pub written: u64,
}

/// What happened to a VDI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Made.
    Created,
    /// Grown.
    Resized,
    /// Renamed.
    Renamed,
    /// Made from an image.
    Imported(Transfer),
    /// Saved as an image.
    Exported(Transfer),
}

/// Whether it came from a snapshot of another VDI and has no snapshot of its own yet.
pub(super) const fn is_clone(vdi: &VdiEntry) -> bool {
    !vdi.snapshot && vdi.snapshot_id == 1 && vdi.parent != 0
}

/// Only snapshots show theirs.
pub(super) const fn shown_snapshot_id(vdi: &VdiEntry) -> u32 {
    if vdi.snapshot { vdi.snapshot_id } else { 0 }
}

pub(super) const fn state(vdi: &VdiEntry) -> &'static str {
    if vdi.incomplete {
        "incomplete"
    } else if vdi.snapshot {
        "snapshot"
    } else {
        "working"
    }
}

/// `3` or `4:2`.
pub fn redundancy(info: Option<RedundancyInfo>) -> String {
    match info.unwrap_or_default() {
        RedundancyInfo { data, parity: 0 } => data.to_string(),
        RedundancyInfo { data, parity } => format!("{data}:{parity}"),
    }
}

/// Spaces and backslashes of a name get a backslash, so that raw rows can be split.
fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_whitespace() || c == '\\' {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn flag(vdi: &VdiEntry, working: char) -> char {
    if vdi.snapshot {
        's'
    } else if is_clone(vdi) {
        'c'
    } else {
        working
    }
}

fn row(vdi: &VdiEntry) -> String {
    format!(
        "{} {} {:5} {} {} {} {}  {:7x} {} {} {:3}\n",
        flag(vdi, ' '),
        left(&vdi.name, 8),
        shown_snapshot_id(vdi),
        right(&human(vdi.size), 7),
        right(&human(vdi.used), 7),
        right(&human(vdi.shared), 7),
        time::minutes(vdi.created),
        vdi.vid,
        right(&redundancy(vdi.redundancy), 6),
        right(&vdi.tag, 13),
        vdi.object_shift
    )
}

fn raw_row(vdi: &VdiEntry) -> String {
    format!(
        "{} {} {} {} {} {} {} {:x} {} {} {}\n",
        flag(vdi, '='),
        escaped(&vdi.name),
        shown_snapshot_id(vdi),
        vdi.size,
        vdi.used,
        vdi.shared,
        time::unix(vdi.created),
        vdi.vid,
        redundancy(vdi.redundancy),
        vdi.tag,
        vdi.object_shift
    )
}

/// `vdi list`.
///
/// # Errors
/// When stdout fails.
pub fn list(out: &mut Output, mode: Mode, vdis: &[VdiEntry]) -> Result<()> {
    match mode {
        Mode::Human => {
            out.text(HEADER)?;
            vdis.iter().try_for_each(|vdi| out.text(&row(vdi)))
        }
        Mode::Raw => vdis.iter().try_for_each(|vdi| out.text(&raw_row(vdi))),
        Mode::Json => out.json(&json::VdiList { vdis: vdis.iter().map(json::Vdi::from).collect() }),
    }
}

/// `vdi info`: one `key: value` per line, in raw mode `key value` with plain numbers.
///
/// # Errors
/// When stdout fails.
pub fn info(out: &mut Output, mode: Mode, vdi: &VdiEntry) -> Result<()> {
    let raw = match mode {
        Mode::Json => return out.json(&json::Vdi::from(vdi)),
        Mode::Raw => true,
        Mode::Human => false,
    };
    let bytes = |bytes: u64| {
        if raw { bytes.to_string() } else { format!("{} ({bytes} bytes)", human(bytes)) }
    };
    let when = |t| {
        if raw { time::unix(t).to_string() } else { time::seconds(t) }
    };
    let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
    let mut lines = vec![
        ("name", vdi.name.clone()),
        ("vid", format!("{:x}", vdi.vid)),
        ("state", state(vdi).to_owned()),
    ];
    if vdi.snapshot {
        lines.push(("snapshot_id", vdi.snapshot_id.to_string()));
        lines.push(("tag", vdi.tag.clone()));
        lines.push(("snapshotted", when(vdi.snapshotted)));
    }
    lines.extend([
        ("size", bytes(vdi.size)),
        ("used", bytes(vdi.used)),
        ("shared", bytes(vdi.shared)),
        ("stored", bytes(vdi.stored)),
        ("stored_total", bytes(vdi.stored_total)),
        ("object_size", bytes(1 << vdi.object_shift.min(63))),
        ("redundancy", redundancy(vdi.redundancy)),
        ("hyper", yes(vdi.hyper)),
        ("preallocated", yes(vdi.preallocated)),
        ("created", when(vdi.created)),
        ("lineage", format!("{:x}", vdi.lineage)),
    ]);
    if vdi.parent != 0 {
        lines.push(("parent", format!("{:x}", vdi.parent)));
    }
    lines.push(("open", vdi.open.to_string()));
    let mut text = String::new();
    for (key, value) in lines {
        let _ = if raw {
            writeln!(text, "{key} {value}")
        } else {
            writeln!(text, "{:<14}{value}", format!("{}:", key.replace('_', " ")))
        };
    }
    out.text(&text)
}

/// What changed a VDI: silent unless asked for more or for JSON.
///
/// # Errors
/// When stdout fails.
pub fn changed(
    out: &mut Output,
    mode: Mode,
    verbose: bool,
    change: Change,
    vdi: &VdiEntry,
) -> Result<()> {
    match (mode, change) {
        (Mode::Json, Change::Imported(transfer) | Change::Exported(transfer)) => {
            out.json(&json::VdiMoved {
                vdi: vdi.into(),
                format: transfer.format,
                size: transfer.size,
                written: transfer.written,
            })
        }
        (Mode::Json, _) => out.json(&json::VdiChanged { vdi: vdi.into() }),
        (Mode::Raw, Change::Created | Change::Imported(_)) if verbose => {
            out.text(&format!("{:x}\n", vdi.vid))
        }
        (Mode::Human, Change::Created) if verbose => {
            out.text(&format!("VDI ID of newly created VDI: {:x}\n", vdi.vid))
        }
        (Mode::Human, Change::Imported(t)) if verbose => out.text(&format!(
            "VDI ID of newly created VDI: {:x}\n{} of {} in the {} image are not zero\n",
            vdi.vid,
            human(t.written),
            human(t.size),
            t.format
        )),
        (Mode::Human, Change::Exported(t)) if verbose => out.text(&format!(
            "{} of {} in the {} image are not zero\n",
            human(t.written),
            human(t.size),
            t.format
        )),
        _ => Ok(()),
    }
}

/// `vdi delete`.
///
/// # Errors
/// When stdout fails.
pub fn deleted(out: &mut Output, mode: Mode, deleted: bool) -> Result<()> {
    match mode {
        Mode::Json => out.json(&json::Deleted { deleted }),
        _ => Ok(()),
    }
}

/// `vdi write`.
///
/// # Errors
/// When stdout fails.
pub fn written(out: &mut Output, mode: Mode, offset: u64, length: u64, padded: u64) -> Result<()> {
    match mode {
        Mode::Json => out.json(&json::Written { offset, length, padded }),
        _ => Ok(()),
    }
}

/// `vdi read --json`: `{"offset":0,"length":2,"data":"hex"}`, written as the bytes come.
pub struct HexDocument<'a> {
    out: &'a mut Output,
}

impl<'a> HexDocument<'a> {
    /// Everything before the data.
    ///
    /// # Errors
    /// When stdout fails.
    pub fn begin(out: &'a mut Output, offset: u64, length: u64) -> Result<Self> {
        out.text(&format!("{{\"offset\":{offset},\"length\":{length},\"data\":\""))?;
        Ok(Self { out })
    }

    /// More data.
    ///
    /// # Errors
    /// When stdout fails.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let text: Vec<u8> = bytes
            .iter()
            .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
            .collect();
        self.out.bytes(&text)
    }

    /// Everything behind the data.
    ///
    /// # Errors
    /// When stdout fails.
    pub fn end(self) -> Result<()> {
        self.out.text("\"}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vdi() -> VdiEntry {
        VdiEntry {
            vid: 0x7c_2b25,
            name: "test".into(),
            snapshot_id: 1,
            size: 1 << 30,
            used: 4 << 20,
            object_shift: 22,
            redundancy: Some(RedundancyInfo { data: 3, parity: 0 }),
            ..VdiEntry::default()
        }
    }

    /// The golden line of the contract, with the time cut out.
    #[test]
    fn raw_row_of_old() {
        assert_eq!(raw_row(&vdi()), "= test 0 1073741824 4194304 0 0 7c2b25 3  22\n");
        let snapshot = VdiEntry {
            snapshot: true,
            snapshot_id: 2,
            tag: "a b".into(),
            redundancy: Some(RedundancyInfo { data: 4, parity: 2 }),
            ..vdi()
        };
        assert_eq!(raw_row(&snapshot), "s test 2 1073741824 4194304 0 0 7c2b25 4:2 a b 22\n");
    }

    #[test]
    fn a_clone_is_one_until_its_first_snapshot() {
        let clone = VdiEntry { parent: 1, ..vdi() };
        assert!(raw_row(&clone).starts_with("c test 0 "));
        let after = VdiEntry { snapshot_id: 2, ..clone };
        assert!(raw_row(&after).starts_with("= test 0 "));
        assert!(row(&after).starts_with("  test     "));
    }

    #[test]
    fn names_are_escaped_in_raw_rows_only() {
        let odd = VdiEntry { name: "a b\\c".into(), ..vdi() };
        assert!(raw_row(&odd).starts_with("= a\\ b\\\\c 0 "));
        assert!(row(&odd).starts_with("  a b\\c    "));
    }

    #[test]
    fn human_row_of_old() {
        let before = "  test         0  1.0 GB  4.0 MB  0.0 MB ";
        let behind = format!("   7c2b25      3{}22\n", " ".repeat(16));
        let time = time::minutes(None);
        assert_eq!(row(&vdi()), format!("{before}{time}{behind}"));
    }
}
