//! What one node needs of the cluster's map: the store's memory of where it belongs, the claim to
//! be the one sheep that serves, the interval of this run, and the history of epochs.

mod identity;
mod shards;

pub use identity::Identity;
pub use shards::{SHARDS_KEY, ShardPack};

use crate::node::{Me, now};
use bytes::Bytes;
use sheepdog_registry::{Registry, Session, WatchEvent};
use sheepdog_types::kv::{Change, Compare, Outcome, Txn};
use sheepdog_types::{DiskId, Error, ErrorKind, Interval, Result};
use sheepdog_volume::cluster::{CLUSTER_KEY, EPOCH_PREFIX, EpochRecord, epoch_key};
use std::time::Duration;

/// Held by the one sheep that serves; ephemeral.
pub const SERVING_KEY: &str = "node/serving";
/// How long to wait for a sheep that died just now to be noticed.
const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// Life of the session where the engine needs a number.
const SESSION_TTL: Duration = Duration::from_secs(10);
/// How often a change is tried again after another one came first.
const TRIES: u32 = 16;

/// Becomes the one sheep that serves this cluster, as long as the session lives.
///
/// # Errors
/// [`ErrorKind::Locked`] when another one does, and those of the registry.
pub async fn claim(registry: &dyn Registry, who: &str) -> Result<Box<dyn Session>> {
    let session = registry.session(SESSION_TTL).await?;
    let claim = Txn {
        compares: vec![Compare::Absent(SERVING_KEY.to_owned())],
        changes: vec![Change::Put(SERVING_KEY.to_owned(), Bytes::copy_from_slice(who.as_bytes()))],
    };
    let mut holder = String::new();
    let claimed = tokio::time::timeout(CLAIM_WAIT, async {
        loop {
            if let Outcome::Committed(_) = session.commit(claim.clone()).await? {
                return Ok::<(), Error>(());
            }
            let held = registry.list(SERVING_KEY).await?;
            if let Some(entry) = held.entries.first() {
                holder = String::from_utf8_lossy(&entry.value).escape_debug().to_string();
                let mut watch = registry.watch(SERVING_KEY, held.revision).await?;
                match watch.next().await? {
                    WatchEvent::Committed { .. } | WatchEvent::TooOld => {}
                }
            }
        }
    })
    .await;
    match claimed {
        Ok(result) => result.map(|()| session),
        Err(_) => Err(Error::new(
            ErrorKind::Locked,
            format!(
                "the cluster is served by another sheep ({holder}); more than one is not supported by this version"
            ),
        )),
    }
}

/// Begins a new interval for all shards. From now on versions that this run gives are newer than
/// all of earlier runs.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the cluster's data is on another disk, and those of the registry.
pub async fn begin_interval(registry: &dyn Registry, disk: DiskId) -> Result<Interval> {
    for _ in 0..TRIES {
        let formatted = registry.get(CLUSTER_KEY).await?;
        let entry = registry.get(SHARDS_KEY).await?;
        let mut compares = vec![match &entry {
            Some(entry) => Compare::Unchanged(SHARDS_KEY.to_owned(), entry.modified),
            None => Compare::Absent(SHARDS_KEY.to_owned()),
        }];
        compares.push(match &formatted {
            Some(entry) => Compare::Unchanged(CLUSTER_KEY.to_owned(), entry.modified),
            None => Compare::Absent(CLUSTER_KEY.to_owned()),
        });
        let before = entry.map(|e| ShardPack::decode(&e.value)).transpose()?;
        if let Some(before) = &before
            && formatted.is_some()
            && before.disk != disk
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the cluster's data is on disk {}, this is disk {disk}; more than one sheep is not supported by this version",
                    before.disk
                ),
            ));
        }
        let pack = ShardPack::after(before.as_ref(), disk)?;
        let txn =
            Txn { compares, changes: vec![Change::Put(SHARDS_KEY.to_owned(), pack.encode())] };
        if let Outcome::Committed(_) = registry.commit(txn).await? {
            return Ok(pack.interval);
        }
    }
    Err(too_many("the shard records"))
}

/// Adds an epoch if the cluster is formatted and its node has another address or weight now.
///
/// # Errors
/// Those of the registry.
pub async fn note_epoch(registry: &dyn Registry, me: &Me) -> Result<()> {
    for _ in 0..TRIES {
        let epochs = registry.list(EPOCH_PREFIX).await?;
        let Some(entry) = epochs.entries.last() else {
            return Ok(());
        };
        let last = EpochRecord::decode(&entry.value)?;
        let nodes = vec![me.epoch_node()];
        if last.nodes == nodes {
            return Ok(());
        }
        let epoch = last
            .epoch
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "all epochs are used"))?;
        let record = EpochRecord { epoch, began: now(), nodes };
        let txn = Txn {
            compares: vec![
                Compare::Unchanged(entry.key.clone(), entry.modified),
                Compare::Absent(epoch_key(epoch)),
            ],
            changes: vec![Change::Put(epoch_key(epoch), record.encode())],
        };
        if let Outcome::Committed(_) = registry.commit(txn).await? {
            tracing::info!("epoch {epoch} begins");
            return Ok(());
        }
    }
    Err(too_many("the epochs"))
}

fn too_many(what: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("{what} changed {TRIES} times in between"))
}
