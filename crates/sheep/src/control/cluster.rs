//! Requests about the cluster as a whole.

use super::connection::Session;
use super::convert;
use crate::node::{lock, now, table_copy};
use bytes::Bytes;
use sheepdog_registry::FORMATTED_KEY;
use sheepdog_types::kv::{Change, Compare, Txn};
use sheepdog_types::limits::OBJECT_SHIFT_DEFAULT;
use sheepdog_types::{Error, ErrorKind, Result, Vid};
use sheepdog_volume::Redundancy;
use sheepdog_volume::cluster::{
    CLUSTER_KEY, ClusterOptions, ClusterRecord, EPOCH_PREFIX, EpochRecord, epoch_key,
};
use sheepdog_volume::table::LINEAGE_KEY;
use sheepdog_wire::{
    ClusterFormat, ClusterFormatReply, ClusterInfo, ClusterInfoReply, ClusterState, EpochInfo,
    EpochNode,
};
use std::collections::BTreeSet;

/// Epochs in one reply.
const EPOCH_PAGE_MAX: usize = 1000;
/// Epochs deleted by one transaction.
const EPOCH_DELETE_MAX: usize = 100;
/// Stores a cluster can be formatted with; all mean the same.
const STORES: [&str; 2] = ["plain", "tree"];
/// How often a format begins anew when VDIs are created meanwhile.
const TRIES: u32 = 8;

impl Session {
    pub(super) async fn cluster_info(&self, info: ClusterInfo) -> Result<ClusterInfoReply> {
        let current = self.node.tables.current().await?;
        let mut reply = ClusterInfoReply {
            registry: self.node.me.registry.clone(),
            vdis: current.table.visible().count() as u64,
            ..ClusterInfoReply::default()
        };
        let state = if self.node.is_leaving() {
            ClusterState::ShuttingDown
        } else if current.formatted.is_some() {
            ClusterState::Running
        } else {
            ClusterState::WaitForFormat
        };
        reply.state = state.into();
        let Some((cluster, _)) = &current.formatted else {
            return Ok(reply);
        };
        reply.cluster_id = cluster.uuid.to_vec();
        reply.created = Some(convert::time(cluster.created));
        reply.redundancy = Some(convert::redundancy(cluster.redundancy));
        reply.object_shift = cluster.object_shift.into();
        reply.store = cluster.store.clone();
        reply.fixed_vnodes = cluster.options.fixed_vnodes;
        reply.recovery_disabled = cluster.options.recovery_disabled;
        let epochs = self.node.tables.registry().list(EPOCH_PREFIX).await?;
        let mut newest_first = epochs.entries.iter().rev().filter(|entry| {
            info.epochs_below == 0
                || u32::try_from(info.epochs_below).is_ok_and(|below| entry.key < epoch_key(below))
        });
        for entry in newest_first.by_ref().take(EPOCH_PAGE_MAX) {
            reply.epochs.push(epoch(&EpochRecord::decode(&entry.value)?));
        }
        reply.more = newest_first.next().is_some();
        Ok(reply)
    }

    /// All VDIs of the cluster before are gone when it returns; their space follows.
    pub(super) async fn cluster_format(&self, format: ClusterFormat) -> Result<ClusterFormatReply> {
        if self.node.is_leaving() {
            return Err(ErrorKind::ShuttingDown.into());
        }
        if !STORES.contains(&format.store.as_str()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("there is no store '{}'", format.store.escape_debug()),
            ));
        }
        let record = ClusterRecord {
            uuid: uuid::Uuid::new_v4().into_bytes(),
            created: now(),
            store: format.store.clone(),
            redundancy: convert::asked_redundancy(format.redundancy, Redundancy::DEFAULT)?,
            object_shift: convert::asked_shift(format.object_shift, OBJECT_SHIFT_DEFAULT)?,
            options: ClusterOptions {
                lock: format.lock,
                strict: format.strict,
                recycle_vids: format.recycle_vids,
                fixed_vnodes: format.fixed_vnodes,
                avoid_disk_full: format.avoid_diskfull,
                recovery_disabled: false,
            },
        };
        // First the store remembers where it belongs, then it may get data.
        lock(&self.node.identities).remember_cluster()?;
        for _ in 0..TRIES {
            let created_until_now = self.lineages().await?;
            self.hide_all(format.force).await?;
            self.forget_epochs().await?;
            if self.commit_format(&record, created_until_now).await? {
                tracing::info!("cluster formatted with {} copies", record.redundancy);
                table_copy::settled(&self.node).await;
                return Ok(ClusterFormatReply {
                    cluster_id: record.uuid.to_vec(),
                    redundancy: Some(convert::redundancy(record.redundancy)),
                    object_shift: record.object_shift.into(),
                });
            }
        }
        Err(Error::new(ErrorKind::Conflict, "VDIs are being created at the same time"))
    }

    /// Compares that no VDI was created since.
    async fn lineages(&self) -> Result<Compare> {
        let entry = self.node.tables.registry().get(LINEAGE_KEY).await?;
        Ok(match entry {
            Some(entry) => Compare::Unchanged(LINEAGE_KEY.to_owned(), entry.modified),
            None => Compare::Absent(LINEAGE_KEY.to_owned()),
        })
    }

    async fn hide_all(&self, force: bool) -> Result<()> {
        let mut hidden = BTreeSet::new();
        loop {
            let current = self.node.tables.current().await?;
            let Some(vid) = current.table.visible().next().map(|record| record.vid) else {
                break;
            };
            if !force {
                return Err(Error::new(ErrorKind::Exists, "there are VDIs"));
            }
            self.hide(vid).await?;
            hidden.insert(vid);
        }
        for vid in hidden {
            self.cut_off(vid).await?;
        }
        Ok(())
    }

    async fn hide(&self, vid: Vid) -> Result<()> {
        let hide = self.decide(|current| current.table.hide(vid)).await;
        match hide {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All but the first, which the format replaces.
    async fn forget_epochs(&self) -> Result<()> {
        let registry = self.node.tables.registry();
        let epochs = registry.list(EPOCH_PREFIX).await?;
        let old: Vec<_> = epochs
            .entries
            .into_iter()
            .map(|entry| entry.key)
            .filter(|key| *key != epoch_key(1))
            .collect();
        for keys in old.chunks(EPOCH_DELETE_MAX) {
            let changes = keys.iter().cloned().map(Change::Delete).collect();
            let txn = Txn { compares: Vec::new(), changes };
            registry.commit(txn).await?;
        }
        Ok(())
    }

    /// `false` if a VDI was created in between.
    async fn commit_format(
        &self,
        record: &ClusterRecord,
        created_until_now: Compare,
    ) -> Result<bool> {
        let first =
            EpochRecord { epoch: 1, began: record.created, nodes: vec![self.node.me.epoch_node()] };
        let committed = self
            .node
            .tables
            .change(|current| {
                if current.table.visible().next().is_some() {
                    return Err(ErrorKind::Conflict.into());
                }
                let before = match &current.formatted {
                    Some(_) => current.same_cluster()?,
                    None => Compare::Absent(CLUSTER_KEY.to_owned()),
                };
                let put = |key: &str, value: Bytes| Change::Put(key.to_owned(), value);
                let txn = Txn {
                    compares: vec![before, created_until_now.clone()],
                    changes: vec![
                        put(CLUSTER_KEY, record.encode()),
                        put(FORMATTED_KEY, Bytes::copy_from_slice(&record.uuid)),
                        put(&epoch_key(1), first.encode()),
                    ],
                };
                Ok((txn, ()))
            })
            .await;
        match committed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn epoch(record: &EpochRecord) -> EpochInfo {
    EpochInfo {
        epoch: record.epoch.into(),
        time: Some(convert::time(record.began)),
        nodes: record
            .nodes
            .iter()
            .map(|node| EpochNode {
                address: node.host.clone(),
                port: node.port.into(),
                vnodes: node.vnodes,
                disks: 1,
            })
            .collect(),
    }
}
