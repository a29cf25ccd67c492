//! What one node needs of the cluster's map: the store's memory of where it belongs, the claim to
//! be the one sheep that serves, the interval of this run, and the history of epochs.

mod catch_up;
pub mod disks;
mod identity;
mod shards;

pub use catch_up::{OnDisks, catch_up, stamps};
pub use identity::{Identities, Identity, KnownDisk};
pub use shards::{DISKS_MAX, SHARD_BITS, SHARDS_KEY, ShardPack};

use crate::node::{Me, now};
use bytes::Bytes;
use sheepdog_registry::{Registry, Session, WatchEvent};
use sheepdog_types::kv::{Change, Compare, Outcome, Txn};
use sheepdog_types::{DiskId, Error, ErrorKind, Interval, Result};
use sheepdog_volume::cluster::{CLUSTER_KEY, EPOCH_PREFIX, EpochRecord, epoch_key};
use std::collections::BTreeSet;
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
/// all of earlier runs. While the cluster has no data, shards are spread anew over the disks, by
/// what `weight` says of each.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the cluster's data is on other disks, and those of the registry and
/// of `weight`.
pub async fn begin_interval(
    registry: &dyn Registry,
    disks: &[DiskId],
    weight: impl Fn(DiskId) -> Result<u64>,
) -> Result<ShardPack> {
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
        let pack = match before {
            Some(before) if formatted.is_some() => {
                let sorted = |ids: &[DiskId]| ids.iter().copied().collect::<BTreeSet<_>>();
                if sorted(&before.disks) != sorted(disks) {
                    let list = |ids: &[DiskId]| {
                        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                    };
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!(
                            "the cluster's data is on disk {}, this is disk {}; more than one sheep is not supported by this version",
                            list(&before.disks),
                            list(disks)
                        ),
                    ));
                }
                before.next()?
            }
            before => {
                let weights = disks.iter().map(|disk| Ok((*disk, weight(*disk)?)));
                ShardPack::spread(before, &weights.collect::<Result<Vec<_>>>()?)?
            }
        };
        let txn =
            Txn { compares, changes: vec![Change::Put(SHARDS_KEY.to_owned(), pack.encode())] };
        if let Outcome::Committed(_) = registry.commit(txn).await? {
            return Ok(pack);
        }
    }
    Err(too_many("the shard records"))
}

/// Begins an interval above `known`, which a store has versions of though the registry never gave
/// it, in place of the one that `pack` began: a registry that went back in time must not make
/// versions anew. Durable when it returns.
///
/// # Errors
/// [`ErrorKind::Conflict`] when another one began an interval, and those of the registry.
async fn raise_interval(
    registry: &dyn Registry,
    pack: ShardPack,
    known: Interval,
) -> Result<ShardPack> {
    let entry = registry.get(SHARDS_KEY).await?.filter(|entry| entry.value == pack.encode());
    let raised = pack.after(known)?;
    if let Some(entry) = entry {
        let txn = Txn {
            compares: vec![Compare::Unchanged(SHARDS_KEY.to_owned(), entry.modified)],
            changes: vec![Change::Put(SHARDS_KEY.to_owned(), raised.encode())],
        };
        if let Outcome::Committed(_) = registry.commit(txn).await? {
            return Ok(raised);
        }
    }
    Err(Error::new(ErrorKind::Conflict, "the shard records were changed by another sheep"))
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
