//! The VDI table and the cluster's record as they are in the registry now: read anew only when
//! the registry has moved, changed by compare-and-swap.

use sheepdog_registry::Registry;
use sheepdog_types::kv::{Compare, Outcome, Revision, Txn};
use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::cluster::{CLUSTER_KEY, ClusterRecord};
use sheepdog_volume::table::{self, Table};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// How often a change is decided anew before it is given up.
const TRIES: u32 = 16;

/// Everything of one moment.
#[derive(Clone, Debug)]
pub struct Current {
    /// The cluster and when its record last changed; `None` while unformatted.
    pub formatted: Option<(Arc<ClusterRecord>, Revision)>,
    /// The VDIs.
    pub table: Arc<Table>,
    /// The moment.
    pub revision: Revision,
}

impl Current {
    /// The cluster.
    ///
    /// # Errors
    /// [`ErrorKind::WaitForFormat`].
    pub fn cluster(&self) -> Result<&ClusterRecord> {
        match &self.formatted {
            Some((cluster, _)) => Ok(cluster),
            None => Err(ErrorKind::WaitForFormat.into()),
        }
    }

    /// What a transaction compares so that it cannot slip into a cluster formatted anew.
    ///
    /// # Errors
    /// [`ErrorKind::WaitForFormat`].
    pub fn same_cluster(&self) -> Result<Compare> {
        match &self.formatted {
            Some((_, revision)) => Ok(Compare::Unchanged(CLUSTER_KEY.to_owned(), *revision)),
            None => Err(ErrorKind::WaitForFormat.into()),
        }
    }
}

/// The registry's part that this node serves from.
pub struct Tables {
    registry: Arc<dyn Registry>,
    /// Held during a change, so that those of one node never conflict with each other.
    cache: Mutex<Option<Arc<Current>>>,
    /// Of the last change made here.
    committed: AtomicU64,
}

impl Tables {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(registry: Arc<dyn Registry>) -> Self {
        Self { registry, cache: Mutex::new(None), committed: AtomicU64::new(0) }
    }

    /// The registry itself.
    #[must_use]
    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    /// The moment of the last change that was made here.
    #[must_use]
    pub fn committed(&self) -> Revision {
        Revision(self.committed.load(Ordering::Relaxed))
    }

    /// Everything as it is now.
    ///
    /// # Errors
    /// Those of the registry, and of records that cannot be read.
    pub async fn current(&self) -> Result<Arc<Current>> {
        let mut cache = self.cache.lock().await;
        self.refresh(&mut cache).await
    }

    /// Decides a transaction and commits it; decides anew when something came in between.
    /// `decide` adds what it compares itself. Returns what `decide` said of the transaction that
    /// was committed.
    ///
    /// # Errors
    /// Those of `decide` and of the registry; [`ErrorKind::Conflict`] after too many tries.
    pub async fn change<T>(
        &self,
        mut decide: impl FnMut(&Current) -> Result<(Txn, T)> + Send,
    ) -> Result<T>
    where
        T: Send,
    {
        let mut cache = self.cache.lock().await;
        for _ in 0..TRIES {
            let current = self.refresh(&mut cache).await?;
            let (txn, said) = decide(&current)?;
            match self.registry.commit(txn.clone()).await {
                Ok(Outcome::Committed(at)) => {
                    self.committed.fetch_max(at.0, Ordering::Relaxed);
                    *cache = follow(&current, &txn, at);
                    return Ok(said);
                }
                Ok(Outcome::Conflict) => *cache = None,
                Err(error) => {
                    *cache = None;
                    return Err(error);
                }
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the registry changed {TRIES} times in between"),
        ))
    }

    async fn refresh(&self, cache: &mut Option<Arc<Current>>) -> Result<Arc<Current>> {
        // A short listing tells the moment too.
        let listing = self.registry.list(CLUSTER_KEY).await?;
        if let Some(current) = cache.as_ref()
            && current.revision == listing.revision
        {
            return Ok(Arc::clone(current));
        }
        let formatted = match listing.entries.iter().find(|e| e.key == CLUSTER_KEY) {
            Some(entry) => Some((Arc::new(ClusterRecord::decode(&entry.value)?), entry.modified)),
            None => None,
        };
        let vdis = self.registry.list(table::PREFIX).await?;
        let current = Arc::new(Current {
            formatted,
            table: Arc::new(Table::from_entries(&vdis.entries)?),
            // If something came between the two listings, the next look reads again; what is
            // decided until then compares what it read.
            revision: listing.revision,
        });
        *cache = Some(Arc::clone(&current));
        Ok(current)
    }
}

/// The state after our own transaction, if nothing else came in between.
fn follow(current: &Current, txn: &Txn, at: Revision) -> Option<Arc<Current>> {
    let touches_cluster = txn.changes.iter().any(|change| match change {
        sheepdog_types::kv::Change::Put(key, _) | sheepdog_types::kv::Change::Delete(key) => {
            key.starts_with(CLUSTER_KEY)
        }
    });
    if touches_cluster || at.0 != current.revision.0 + 1 {
        return None;
    }
    let mut table = Table::clone(&current.table);
    table.committed(txn, at).ok()?;
    Some(Arc::new(Current {
        formatted: current.formatted.clone(),
        table: Arc::new(table),
        revision: at,
    }))
}
