//! Notices that no disk is left, or one again: the node's weight changes, and with it the epoch.

use super::Node;
use crate::cluster::note_epoch;
use sheepdog_types::Result;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
const BETWEEN: Duration = Duration::from_secs(1);

/// Looks until the node leaves.
pub async fn run(node: Arc<Node>) {
    tokio::select! {
        () = node.left() => {}
        () = watch(&node) => {}
    }
}

async fn watch(node: &Node) {
    loop {
        tokio::time::sleep(BETWEEN).await;
        if let Err(error) = look(node).await {
            tracing::warn!("the weight of this node: {}; trying again", error.full());
        }
    }
}

/// Looks once, and tells the cluster what is news.
///
/// # Errors
/// Those of the worker and of the registry.
pub async fn look(node: &Node) -> Result<()> {
    let disks = node.data()?.disks().await?;
    let has_disk = disks.iter().any(|disk| disk.lost.is_none());
    if node.me.set_has_disk(has_disk) {
        if !has_disk {
            tracing::error!("no disk is left: this node is a gateway now");
        }
        let noted = note_epoch(node.tables.registry().as_ref(), &node.me).await;
        if noted.is_err() {
            // Not told yet.
            node.me.set_has_disk(!has_disk);
        }
        noted?;
    }
    Ok(())
}
