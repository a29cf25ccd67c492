//! What is particular to the `local` engine; the contract is in the conformance suite.

mod files;
mod lost;
mod opening;

use super::db::Tuning;
use super::{LocalOptions, LocalRegistry, Member, directory_is_empty};
use crate::contract::Registry;
use bytes::Bytes;
use sheepdog_types::Result;
use sheepdog_types::kv::{Change, Outcome, Revision, Txn};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A directory with stores and a registry in the usual places.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> PathBuf {
        self.path().join(".sheepdog-local/registry.db")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.path().join(format!(".sheepdog-local/registry.db{suffix}"))
    }

    /// Makes an empty store.
    fn store(&self, name: &str) -> PathBuf {
        let store = self.path().join(name);
        std::fs::create_dir_all(&store).expect("a store");
        store
    }

    /// Puts something into a store.
    fn fill(&self, name: &str) {
        std::fs::write(self.store(name).join("data"), "x").expect("write");
    }

    async fn open_as(&self, member: Option<Member>) -> Result<LocalRegistry> {
        LocalRegistry::open(LocalOptions { file: self.file(), member }).await
    }

    /// As a sheep with this empty store.
    async fn empty(&self, name: &str) -> Result<LocalRegistry> {
        self.open_as(Some(member(self.store(name)))).await
    }

    /// As a sheep with this store, which has data of a cluster.
    async fn filled(&self, name: &str, cluster: uuid::Uuid) -> Result<LocalRegistry> {
        let member =
            Member { empty: false, cluster: Some(cluster), ..member(self.path().join(name)) };
        self.open_as(Some(member)).await
    }

    /// From outside.
    async fn look(&self) -> Result<LocalRegistry> {
        self.open_as(None).await
    }

    async fn look_with(&self, tuning: Tuning) -> LocalRegistry {
        let options = LocalOptions { file: self.file(), member: None };
        LocalRegistry::open_with(options, tuning).await.expect("open")
    }
}

fn member(store: PathBuf) -> Member {
    Member { store, disk: None, empty: true, cluster: None, store_is_empty: directory_is_empty }
}

fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn { compares: Vec::new(), changes: vec![Change::Put(key.to_owned(), value.into())] }
}

async fn commit(registry: &LocalRegistry, txn: Txn) -> Revision {
    match registry.commit(txn).await.expect("commit") {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("conflict"),
    }
}

async fn format(registry: &LocalRegistry) {
    commit(registry, put(crate::FORMATTED_KEY, "1")).await;
}

async fn is_formatted(registry: &LocalRegistry) -> bool {
    registry.get(crate::FORMATTED_KEY).await.expect("get").is_some()
}

fn run(test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs");
    });
}
