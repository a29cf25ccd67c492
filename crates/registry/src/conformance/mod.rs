//! The suite that every engine passes, against the real thing: an engine's tests give it a
//! [`Harness`] and let [`crate::conformance_tests!`] make one test of each part.

pub mod basics;
pub mod concurrency;
pub mod crash;
pub mod sessions;
pub mod watches;

use crate::contract::{BoxFuture, Registry, Watch, WatchEvent};
use bytes::Bytes;
use sheepdog_types::kv::{Change, Compare, Entry, Outcome, Revision, Txn};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A registry of its own for one test, and the ways to it.
pub trait Harness: Send + Sync {
    /// A new client, as another process would have it (nothing shared but the registry).
    fn client(&self) -> BoxFuture<'_, Arc<dyn Registry>>;

    /// Makes the registry forget its history up to now.
    fn compact(&self) -> BoxFuture<'_, ()>;

    /// Stops whatever serves the registry and starts it again on the same data. All clients are
    /// gone when this is called.
    fn restart(&self) -> BoxFuture<'_, ()>;

    /// Ends all sessions there are against their clients' will, as when these are cut off.
    fn expire_sessions(&self) -> BoxFuture<'_, ()>;

    /// A command whose process makes a client of this registry and hands it to [`child`].
    fn process(&self) -> Command;

    /// The ttl the suite gives its sessions.
    fn ttl(&self) -> Duration;
}

/// How long any part may take before it counts as hung.
const PART_MAX: Duration = Duration::from_secs(120);
/// What the suite wants of a child process.
const ROLE: &str = "SHEEPDOG_CONFORMANCE_ROLE";
/// Begins each line that a child says, among whatever else its process prints.
const SAYS: &str = "conformance: ";

/// Makes one `#[test]` of each part of the suite. The argument is a function without arguments
/// that makes a fresh [`Harness`].
#[macro_export]
macro_rules! conformance_tests {
    ($fresh:path) => {
        $crate::conformance_tests!(@parts $fresh;
            basics: a_key_is_put_read_replaced_and_deleted, comparisons_decide,
                a_commit_is_all_or_nothing, what_changes_nothing_makes_no_revision,
                lists_follow_bytes_not_components, limits_are_kept_and_refused_alike;
            concurrency: counters_lose_no_increment, transfers_keep_their_sum,
                reads_and_commits_are_linearizable;
            watches: every_commit_is_seen_once_in_order, a_late_watch_sees_what_an_early_one_saw,
                a_commit_is_one_event, a_dropped_wait_loses_nothing,
                forgotten_history_is_announced, the_future_is_refused;
            sessions: keys_go_with_their_session, a_dropped_session_ends,
                an_ordinary_put_frees_a_key, an_expired_session_commits_nothing,
                a_killed_process_loses_its_keys, many_sessions_die_at_once;
            crash: everything_is_there_after_a_restart, a_killed_process_tears_no_commit;
        );
    };
    (@parts $fresh:path; $($group:ident: $($part:ident),+;)+) => {
        $($(
            #[test]
            fn $part() {
                $crate::conformance::run($crate::conformance::$group::$part(&$fresh()));
            }
        )+)+
    };
}

/// Runs one part.
pub fn run(part: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(PART_MAX, part).await.expect("the part hangs");
    });
}

/// What a process started by the suite does with its client, until it is killed or its standard
/// input ends.
pub async fn child(client: Arc<dyn Registry>, ttl: Duration) {
    let role = std::env::var(ROLE).expect("a role");
    std::thread::spawn(|| {
        // The suite is gone: so are we.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    match role.split_once(' ') {
        Some(("hold", prefix)) => sessions::hold(&*client, ttl, prefix).await,
        Some(("commit", prefix)) => crash::commit_for_ever(&*client, prefix).await,
        _ => panic!("role {role}"),
    }
}

/// Says a line to the suite.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{SAYS}{line}").and_then(|()| out.flush()).expect("say");
}

/// Longest line of a child that is listened to.
const LINE_MAX: u64 = 64 << 10;
/// Bytes shown of what a child wrote to its standard error.
const SHOWN: u64 = 64 << 10;

/// A running child; killed when dropped.
struct Kid {
    process: Child,
    lines: BufReader<ChildStdout>,
    /// What goes to its standard error. Not ours: a child that outlives us would keep it open, and
    /// whoever reads it reads without limit.
    errors: File,
}

impl Kid {
    fn start(harness: &dyn Harness, role: &str) -> Self {
        let errors = nameless_file().expect("a file for its errors");
        let mut process = harness
            .process()
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().expect("dup"))
            .spawn()
            .expect("start a process");
        let lines = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, lines, errors }
    }

    /// The next thing it says; `None` when it is dead.
    fn hear(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            // The last line may be cut off by the kill.
            let read = (&mut self.lines).take(LINE_MAX).read_line(&mut line);
            if read.expect("listen") == 0 || !line.ends_with('\n') {
                return None;
            }
            // Its test runner writes to the same line.
            if let Some((_, said)) = line.trim_end().split_once(SAYS) {
                return Some(said.to_owned());
            }
        }
    }

    /// kill -9.
    fn kill(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let mut said = Vec::new();
            let _ = self.errors.rewind();
            let _ = (&mut self.errors).take(SHOWN).read_to_end(&mut said);
            eprintln!("--- a child said:\n{}\n---", String::from_utf8_lossy(&said));
        }
    }
}

/// A file that is gone when it is closed.
fn nameless_file() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("conformance-{}", uuid::Uuid::new_v4()));
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Change {
    Change::Put(key.into(), Bytes::from(value.into()))
}

fn delete(key: &str) -> Change {
    Change::Delete(key.to_owned())
}

fn changes(changes: impl Into<Vec<Change>>) -> Txn {
    Txn { compares: Vec::new(), changes: changes.into() }
}

/// Commits what must not conflict.
async fn commit(registry: &dyn Registry, txn: Txn) -> Revision {
    match registry.commit(txn).await.expect("commit") {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict => panic!("conflict"),
    }
}

/// That the key is as it was read.
fn unchanged(key: &str, entry: Option<&Entry>) -> Compare {
    match entry {
        Some(entry) => Compare::Unchanged(key.to_owned(), entry.modified),
        None => Compare::Absent(key.to_owned()),
    }
}

async fn keys(registry: &dyn Registry, prefix: &str) -> Vec<String> {
    let listing = registry.list(prefix).await.expect("list");
    listing.entries.into_iter().map(|e| e.key).collect()
}

/// The next commit a watch reports, its changes by key.
async fn next(watch: &mut dyn Watch) -> (Revision, Vec<Change>) {
    match watch.next().await.expect("watch") {
        WatchEvent::Committed { revision, mut changes } => {
            changes.sort_by(|a, b| changed_key(a).cmp(changed_key(b)));
            (revision, changes)
        }
        WatchEvent::TooOld => panic!("too old"),
    }
}

fn changed_key(change: &Change) -> &str {
    let (Change::Put(key, _) | Change::Delete(key)) = change;
    key
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|s| s.parse().ok()).expect("a number")
}

/// Spawns on the runtime of [`run`] and gives back what each returned.
async fn all<T: Send + 'static>(
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let running: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::with_capacity(running.len());
    for task in running {
        results.push(task.await.expect("a task"));
    }
    results
}
