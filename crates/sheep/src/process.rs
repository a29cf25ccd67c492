//! The life of the process: what is taken in which order, when it serves, how it leaves.

mod listen;
mod start;

use crate::cluster::disks;
use crate::control;
use crate::daemonize::{self, Starter};
use crate::data::{DataPlane, VdiDirectory, WorkerConfig};
use crate::log::Log;
use crate::node::{Node, disk_watch, sweep, table_copy};
use crate::offline;
use crate::options::{self, Action, Options};
use crate::pidfile::PidFile;
use sd_notify::NotifyState;
use sheepdog_registry::SessionState;
use sheepdog_store::StoreLock;
use sheepdog_types::{Error, ErrorKind, Result};
use start::Started;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How long another process may take to let go of a directory or a port.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_STEP: Duration = Duration::from_millis(10);

/// Starts the data worker on a thread of its own; returns when it can serve.
pub type SpawnWorker = fn(WorkerConfig, Arc<dyn VdiDirectory>) -> Result<Arc<dyn DataPlane>>;

/// The program: reads the command line, becomes a daemon unless told otherwise, serves.
#[must_use]
pub fn main(spawn_worker: SpawnWorker) -> ExitCode {
    let arguments = || std::env::args_os().skip(1);
    if offline::is_meant(arguments()) {
        if arguments().count() == 1 {
            // Of old a sheep on the directory of that name; who types it wants to know what there is.
            say("To start a sheep on the directory 'store' say ./store\n");
        }
        return offline::main(arguments());
    }
    let options = match options::parse(arguments()) {
        Ok(Action::Run(options)) => *options,
        Ok(Action::Print(text)) => {
            // Whoever reads only the first lines is served too.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(refusal) => {
            let mut text = refusal.line + "\n";
            if let Some(help) = refusal.help {
                text = text + "\n" + help;
            }
            say(&text);
            return ExitCode::FAILURE;
        }
    };
    if !options.foreground && !options.daemonized {
        return match daemonize::run(arguments()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(line) => {
                say(&(line + "\n"));
                ExitCode::FAILURE
            }
        };
    }
    let starter = if options.daemonized {
        match Starter::child() {
            Ok(starter) => starter,
            Err(error) => {
                say(&format!("cannot become a daemon: {error}\n"));
                return ExitCode::FAILURE;
            }
        }
    } else {
        Starter::foreground()
    };
    run(&options, starter, spawn_worker)
}

/// Prints on standard error, if anybody listens.
pub(crate) fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn run(options: &Options, mut starter: Starter, spawn_worker: SpawnWorker) -> ExitCode {
    match serve(options, &mut starter, spawn_worker) {
        Ok(()) => {
            tracing::info!("shutdown");
            ExitCode::SUCCESS
        }
        Err(line) => {
            tracing::error!("{line}");
            starter.failed(&line);
            ExitCode::FAILURE
        }
    }
}

/// An error as one line for whoever started the program. What kind it is does not help them, unless
/// nothing else is known.
pub(crate) fn told(error: &Error) -> String {
    let full = error.full();
    if error.context().is_empty() {
        return full;
    }
    let kind = format!("{}: ", error.kind());
    full.strip_prefix(&kind).map_or(full.clone(), str::to_owned)
}

fn serve(
    options: &Options,
    starter: &mut Starter,
    spawn_worker: SpawnWorker,
) -> Result<(), String> {
    // A start that cannot be is refused before it leaves anything.
    disks::refuse_unfit(&options.store, &options.disks).map_err(|e| told(&e))?;
    // Nobody else is in the directory from here on: its log, sockets and files are ours.
    let store = patiently(|| StoreLock::take(&options.store), is_held).map_err(|e| told(&e))?;
    let pid_file = options.pid_file.as_deref();
    let _pid_file = pid_file.map(PidFile::create).transpose()?;
    let log = Log::open(&options.log, &options.store)
        .map_err(|e| format!("cannot open the log of {}: {e}", options.store.display()))?;
    log.install(options.log.level);
    for notice in &options.notices {
        tracing::warn!("{notice}");
        say(&format!("{notice}\n"));
    }
    stop_on_panic();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(async {
        let started = start::start(options, &store, spawn_worker).await.map_err(|e| told(&e))?;
        until_told_to_leave(started, &log, starter).await
    })
}

async fn until_told_to_leave(
    started: Started,
    log: &Log,
    starter: &mut Starter,
) -> Result<(), String> {
    let Started { node, control, sockets, claim, registry, disks: _disks } = started;
    let handle = |kind| signal(kind).map_err(|e| format!("cannot handle signals: {e}"));
    let mut terminate = handle(SignalKind::terminate())?;
    let mut interrupt = handle(SignalKind::interrupt())?;
    let mut hang_up = handle(SignalKind::hangup())?;
    let mut claim_state = claim.state();
    let sweeping = tokio::spawn(sweep::run(Arc::clone(&node)));
    let copying = tokio::spawn(table_copy::run(Arc::clone(&node)));
    let watching = tokio::spawn(disk_watch::run(Arc::clone(&node)));
    let serving = tokio::spawn(control::serve(Arc::clone(&node), control));
    tracing::info!("sheepdog daemon (version {}) started", env!("CARGO_PKG_VERSION"));
    let mut failed = None;
    if let Err(error) = starter.ready() {
        failed = Some(format!("whoever started the daemon is gone: {error}"));
        node.leave();
    }
    loop {
        // From the first of these on, signals to leave change nothing any more.
        tokio::select! {
            () = node.left() => break,
            _ = terminate.recv() => node.leave(),
            _ = interrupt.recv() => node.leave(),
            _ = hang_up.recv() => log.reopen(),
            () = worker_ended(&node) => {
                failed = Some("the data worker ended: stopping".to_owned());
                node.leave();
            }
            _ = claim_state.wait_for(|state| *state == SessionState::Expired) => {
                failed = Some("the registry is lost: stopping".to_owned());
                node.leave();
            }
        }
    }
    tracing::info!("leaving");
    daemonize::notify(&[NotifyState::Stopping, NotifyState::Status("leaving")]);
    match serving.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failed = Some(format!("the control server: {error}")),
        Err(error) => failed = Some(format!("the control server: {error}")),
    }
    let _ = sweeping.await;
    let _ = copying.await;
    let _ = watching.await;
    drop(sockets);
    if let Ok(data) = node.data()
        && let Err(error) = data.shutdown().await
    {
        failed.get_or_insert(format!("closing the store: {}", told(&error)));
    }
    // The data is safe already; a registry that cannot be told finds out by itself.
    let ended = async {
        claim.end().await?;
        registry.close().await
    };
    if let Err(error) = ended.await {
        tracing::warn!("leaving the registry: {}", error.full());
    }
    failed.map_or(Ok(()), Err)
}

async fn worker_ended(node: &Node) {
    match node.data() {
        Ok(data) => data.ended().await,
        // It is set before anything is served.
        Err(_) => std::future::pending().await,
    }
}

/// Whether another process may let go of it in a moment.
fn is_held(error: &Error) -> bool {
    error.kind() == ErrorKind::Locked
}

/// Tries again for a moment: a sheep that was killed just now may still be letting go of what it
/// held, thread by thread.
pub(crate) fn patiently<T, E>(
    mut take: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let until = Instant::now() + PATIENCE;
    loop {
        match take() {
            Err(error) if is_held(&error) && Instant::now() < until => {
                std::thread::sleep(PATIENCE_STEP);
            }
            taken => return taken,
        }
    }
}

/// A broken rule in any thread stops the process: what was acknowledged is on the disk, and what
/// would come after may be wrong.
fn stop_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("?").to_owned();
        let place = info.location().map_or_else(String::new, ToString::to_string);
        let payload = info.payload();
        let why = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("?");
        let line = format!("panic in thread {thread} at {place}: {why}");
        tracing::error!("{line}");
        say(&(line + "\n"));
        std::process::abort();
    }));
}

/// As many open files as the system lets this user have.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
