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
        if let Err(error) = tell(node).await {
            tracing::warn!("the weight of this node: {}; trying again", error.full());
        }
    }
}

/// Looks, and tells the cluster what is news.
async fn tell(node: &Node) -> Result<()> {
    if !look(node).await? {
        return Ok(());
    }
    let noted = note_epoch(node.tables.registry().as_ref(), &node.me).await;
    if noted.is_err() {
        // Not told yet.
        node.me.set_has_disk(node.me.vnodes() == 0);
    }
    noted
}

/// Looks whether a disk is left; whether the answer is news.
///
/// # Errors
/// Those of the worker.
pub async fn look(node: &Node) -> Result<bool> {
    let has_disk = node.data()?.has_disk().await?;
    let is_news = node.me.set_has_disk(has_disk);
    if is_news && !has_disk {
        tracing::error!("no disk is left: this node is a gateway now");
    }
    Ok(is_news)
}
