//! What a person should know though the command succeeded: one line on stderr, only when that is a
//! terminal and neither raw nor JSON output was asked for. Nothing is asked of the sheep for it
//! otherwise, and a hint that cannot be had is no failure.

use super::cluster::nodes;
use super::{Context, Mode};
use crate::output::{complain, person_reads_stderr};
use crate::print;
use sheepdog_wire::{Connection, VdiEntry, VdiInfo, VdiSelector};
use std::collections::BTreeSet;

fn wanted(cx: &Context<'_>) -> bool {
    cx.mode == Mode::Human && person_reads_stderr()
}

/// After a VDI was made: there may be fewer zones than it is to have copies.
pub async fn reduced_redundancy(cx: &Context<'_>, sheep: &Connection, vdi: &VdiEntry) {
    if !wanted(cx) {
        return;
    }
    let Ok(nodes) = nodes(sheep).await else {
        return;
    };
    let zones: BTreeSet<u32> = nodes.iter().filter(|n| n.vnodes > 0).map(|n| n.zone).collect();
    let members = vdi.redundancy.map_or(0, |r| r.data.saturating_add(r.parity));
    if members as usize > zones.len() {
        complain(&format!(
            "Reduced redundancy: VDI {} with {} takes {members} zones, and there {} {}",
            vdi.name,
            match vdi.redundancy {
                Some(r) if r.parity == 0 => format!("{} copies", r.data),
                other => print::vdi::redundancy(other),
            },
            if zones.len() == 1 { "is" } else { "are" },
            zones.len()
        ));
    }
}

/// Before a VDI is deleted: by how many it is open.
pub async fn open_count(cx: &Context<'_>, sheep: &Connection, vdi: &VdiSelector) -> u64 {
    if !wanted(cx) {
        return 0;
    }
    let info = sheep.call(&VdiInfo { vdi: Some(vdi.clone()) }).await;
    info.ok().and_then(|info| info.vdi).map_or(0, |vdi| vdi.open.into())
}

/// After it was deleted.
pub fn deleted_while_open(vdi: &VdiSelector, open: u64) {
    match open {
        0 => {}
        1 => complain(&format!("VDI {} was open at 1 connection, which was cut off", vdi.name)),
        n => complain(&format!("VDI {} was open at {n} connections, which were cut off", vdi.name)),
    }
}
