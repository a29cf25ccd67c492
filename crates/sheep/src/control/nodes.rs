//! Requests about nodes: there is one.

use super::connection::Session;
use crate::data::{DiskState, Finding};
use sheepdog_types::Result;
use sheepdog_volume::record::State;
use sheepdog_wire::{
    DiskInfo, NodeEntry, NodeInfo, NodeInfoReply, NodeList, NodeListReply, NodeSpace,
};

impl Session {
    pub(super) async fn node_list(&self, list: NodeList) -> Result<NodeListReply> {
        let me = &self.node.me;
        let disks = self.node.data()?.disks().await?;
        let node = NodeEntry {
            address: me.address.to_string(),
            port: me.port.into(),
            vnodes: me.vnodes(),
            zone: me.zone,
            fixed_vnodes: false,
            disks: disks.iter().map(|disk| disk.id.0.to_vec()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(NodeListReply {
            nodes: if list.skip == 0 { vec![node] } else { Vec::new() },
            more: false,
        })
    }

    pub(super) async fn node_info(&self, info: NodeInfo) -> Result<NodeInfoReply> {
        let current = self.node.table().await?;
        let virtual_bytes = current
            .table
            .visible()
            .filter(|record| record.state != State::Snapshot)
            .map(|record| record.size)
            .fold(0, u64::saturating_add);
        let mut nodes = Vec::new();
        if info.skip == 0 {
            let me = &self.node.me;
            let place = |finding: &Finding| {
                let record = finding.vid.and_then(|vid| current.table.get(vid));
                let owner = record.filter(|record| record.lineage == finding.lineage).map_or_else(
                    || format!("lineage {}", finding.lineage.0),
                    |record| record.name.escape_debug().to_string(),
                );
                format!("{owner} at {}: {}", finding.offset, finding.why)
            };
            let disk = |disk: DiskState| DiskInfo {
                id: disk.id.0.to_vec(),
                path: disk.path.display().to_string(),
                lost: disk.lost.unwrap_or_default(),
                used: disk.capacity.used,
                available: disk.capacity.free,
                checksum_errors: disk.checksum_errors,
                nosync: disk.nosync,
                scrub_rate: disk.scrub.rate,
                scrub_done: disk.scrub.done,
                scrub_total: disk.scrub.total,
                scrub_passes: disk.scrub.passes,
                bad: disk.scrub.bad,
                findings: disk.scrub.findings.iter().map(place).collect(),
            };
            let disks: Vec<_> = self.node.data()?.disks().await?.into_iter().map(disk).collect();
            nodes.push(NodeSpace {
                address: me.address.to_string(),
                port: me.port.into(),
                reachable: true,
                used: disks.iter().map(|disk| disk.used).sum(),
                available: disks.iter().map(|disk| disk.available).sum(),
                disks,
                here: true,
            });
        }
        Ok(NodeInfoReply { nodes, more: false, virtual_bytes })
    }
}
