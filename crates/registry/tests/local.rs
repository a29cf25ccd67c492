//! The `local` engine passes the suite.

use sheepdog_registry::conformance::Harness;
use sheepdog_registry::{BoxFuture, LocalOptions, LocalRegistry, Registry};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const FILE: &str = "SHEEPDOG_CONFORMANCE_FILE";

struct Local(TempDir);

impl Local {
    fn fresh() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    async fn open(&self) -> LocalRegistry {
        let file = self.0.path().join("registry.db");
        let options = LocalOptions { file, member: None };
        LocalRegistry::open(options).await.expect("open")
    }
}

impl Harness for Local {
    fn client(&self) -> BoxFuture<'_, Arc<dyn Registry>> {
        Box::pin(async { Arc::new(self.open().await) as Arc<dyn Registry> })
    }

    fn compact(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.open().await.compact().await.expect("compact") })
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        // There is no server; the file with nobody at it is all there is.
        Box::pin(async {})
    }

    fn expire_sessions(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let sessions = self.0.path().join("registry.db.run/sessions");
            for file in std::fs::read_dir(sessions).expect("sessions").flatten() {
                std::fs::remove_file(file.path()).expect("remove");
            }
        })
    }

    fn process(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .args(["--exact", "a_process_of_the_suite", "--ignored", "--nocapture"])
            .env(FILE, self.0.path().join("registry.db"));
        command
    }

    fn ttl(&self) -> Duration {
        Duration::from_secs(5)
    }
}

sheepdog_registry::conformance_tests!(Local::fresh);

/// Not a test of its own: what the suite starts as another process.
#[test]
#[ignore = "started by other tests"]
fn a_process_of_the_suite() {
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let options = LocalOptions { file: file.into(), member: None };
        let registry = LocalRegistry::open(options).await.expect("open");
        sheepdog_registry::conformance::child(Arc::new(registry), Duration::from_secs(5)).await;
    });
}
