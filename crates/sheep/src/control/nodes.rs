//! Requests about nodes: there is one.

use super::connection::Session;
use crate::data::Finding;
use sheepdog_types::Result;
use sheepdog_volume::record::State;
use sheepdog_wire::{
    DiskHealth, NodeEntry, NodeInfo, NodeInfoReply, NodeList, NodeListReply, NodeSpace,
};

impl Session {
    pub(super) async fn node_list(&self, list: NodeList) -> Result<NodeListReply> {
        let me = &self.node.me;
        let disk = crate::node::lock(&self.node.identity).disk;
        let node = NodeEntry {
            address: me.address.to_string(),
            port: me.port.into(),
            vnodes: me.vnodes,
            zone: me.zone,
            fixed_vnodes: false,
            disks: vec![disk.0.to_vec()],
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
            let capacity = self.node.data()?.capacity().await?;
            let health = self.node.data()?.health().await?;
            let me = &self.node.me;
            let place = |finding: &Finding| {
                let record = finding.vid.and_then(|vid| current.table.get(vid));
                let owner = record.filter(|record| record.lineage == finding.lineage).map_or_else(
                    || format!("lineage {}", finding.lineage.0),
                    |record| record.name.escape_debug().to_string(),
                );
                format!("{owner} at {}: {}", finding.offset, finding.why)
            };
            nodes.push(NodeSpace {
                health: Some(DiskHealth {
                    checksum_errors: health.checksum_errors,
                    nosync: health.nosync,
                    scrub_rate: health.scrub.rate,
                    scrub_done: health.scrub.done,
                    scrub_total: health.scrub.total,
                    scrub_passes: health.scrub.passes,
                    bad: health.scrub.bad,
                    findings: health.scrub.findings.iter().map(place).collect(),
                }),
                address: me.address.to_string(),
                port: me.port.into(),
                reachable: true,
                used: capacity.used,
                available: capacity.free,
            });
        }
        Ok(NodeInfoReply { nodes, more: false, virtual_bytes })
    }
}
