//! The cluster: state and epochs, what format and shutdown say.

use super::vdi::redundancy;
use super::{endpoint, json, time};
use crate::failure::Result;
use crate::output::Output;
use crate::verbs::Mode;
use sheepdog_types::ErrorKind;
use sheepdog_wire::{ClusterFormatReply, ClusterInfoReply, ClusterState, EpochInfo, EpochNode};
use std::fmt::Write as _;

/// Asked before VDIs are lost.
pub const CAUTION_NOT_EMPTY: &str = r"
    __
   /o \__
   \  ___|
  /  |   Caution! The cluster is not empty.
(/_)_|_  Are you sure you want to continue? [yes/no]: ";

/// What `cluster info` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Show {
    /// `-v`
    pub verbose: bool,
    /// `-d`
    pub differences: bool,
}

fn status(info: &ClusterInfoReply) -> String {
    match info.state() {
        ClusterState::Running if info.recovery_disabled => "running, auto-recovery disabled".into(),
        ClusterState::Running => "running, auto-recovery enabled".into(),
        other => stopped(other).to_owned(),
    }
}

/// The result text of a cluster that does not run.
const fn stopped(state: ClusterState) -> &'static str {
    match state {
        ClusterState::Running => "",
        ClusterState::WaitForFormat => ErrorKind::WaitForFormat.text(),
        ClusterState::WaitForJoin => ErrorKind::WaitForJoin.text(),
        ClusterState::ShuttingDown => ErrorKind::ShuttingDown.text(),
        ClusterState::Unknown => ErrorKind::Internal.text(),
    }
}

/// `cluster info`.
///
/// # Errors
/// When stdout fails.
pub fn info(out: &mut Output, mode: Mode, show: Show, info: &ClusterInfoReply) -> Result<()> {
    if mode == Mode::Json {
        return out.json(&document(info));
    }
    let raw = mode == Mode::Raw;
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        let label = if raw { "" } else { label };
        let _ = writeln!(text, "{label}{value}");
    };
    line("Cluster status: ", &status(info));
    if show.verbose {
        if info.state() == ClusterState::Running {
            let policy =
                format!("{} with {} redundancy policy", info.store, redundancy(info.redundancy));
            line("Cluster store: ", &policy);
            let strategy = if info.fixed_vnodes { "fixed" } else { "auto" };
            line("Cluster vnodes strategy: ", strategy);
        } else {
            line("Cluster store: ", stopped(info.state()));
        }
        line("Cluster vnode mode: ", "node");
    } else if !raw {
        text.push('\n');
    }
    if !raw {
        if info.created.is_some() {
            let _ = writeln!(text, "Cluster created at {}\n", time::ctime(info.created));
        }
        text.push_str("Epoch Time           Version [Host:Port:V-Nodes,,,]\n");
    }
    for (i, epoch) in info.epochs.iter().enumerate() {
        let nodes = if show.differences {
            difference(epoch, info.epochs.get(i + 1))
        } else {
            epoch.nodes.iter().map(member).collect::<Vec<_>>().join(", ")
        };
        let _ = if raw {
            writeln!(text, "{} {} [{nodes}]", time::unix(epoch.time), epoch.epoch)
        } else {
            writeln!(text, "{} {:6} [{nodes}]", time::seconds(epoch.time), epoch.epoch)
        };
    }
    out.text(&text)
}

fn member(node: &EpochNode) -> String {
    format!("{}:{}", endpoint(&node.address, node.port), node.vnodes)
}

/// What an epoch has that the one before it had not, and the other way round.
fn difference(epoch: &EpochInfo, before: Option<&EpochInfo>) -> String {
    let Some(before) = before else {
        return "formated".to_owned();
    };
    let same = |a: &EpochNode, b: &EpochNode| a.address == b.address && a.port == b.port;
    let new = epoch
        .nodes
        .iter()
        .filter(|a| !before.nodes.iter().any(|b| same(a, b)))
        .map(|node| format!("+{}", member(node)));
    let gone = before
        .nodes
        .iter()
        .filter(|b| !epoch.nodes.iter().any(|a| same(a, b)))
        .map(|node| format!("-{}", member(node)));
    new.chain(gone).collect::<Vec<_>>().join(", ")
}

fn document(info: &ClusterInfoReply) -> json::ClusterInfo {
    let formatted = info.created.is_some();
    json::ClusterInfo {
        state: json::state(info.state()),
        waiting_for: info.waiting_for.clone(),
        id: formatted.then(|| json::hex(&info.cluster_id)),
        created: info.created.map(|t| t.seconds),
        redundancy: formatted.then(|| info.redundancy.into()),
        object_size: formatted.then(|| 1 << info.object_shift.min(63)),
        store: info.store.clone(),
        vnodes: if info.fixed_vnodes { "fixed" } else { "auto" },
        recovery: !info.recovery_disabled,
        registry: info.registry.clone(),
        vdis: info.vdis,
        epochs: info
            .epochs
            .iter()
            .map(|epoch| json::Epoch {
                epoch: epoch.epoch,
                time: time::unix(epoch.time),
                nodes: epoch.nodes.iter().map(json::EpochMember::from).collect(),
            })
            .collect(),
    }
}

/// Said before every format.
///
/// # Errors
/// When stdout fails.
pub fn using_store(out: &mut Output, mode: Mode, store: &str) -> Result<()> {
    match mode {
        Mode::Json => Ok(()),
        _ => out.text(&format!("using backend {store} store\n")),
    }
}

/// Said when the store is none of these.
///
/// # Errors
/// When stdout fails.
pub fn stores(out: &mut Output, mode: Mode, names: &[&str]) -> Result<()> {
    match mode {
        Mode::Json => Ok(()),
        _ => out.text(&format!("Available stores:\n{}\n{} \n", "-".repeat(39), names.join(" "))),
    }
}

/// `cluster format`.
///
/// # Errors
/// When stdout fails.
pub fn formatted(out: &mut Output, mode: Mode, made: &ClusterFormatReply) -> Result<()> {
    match mode {
        Mode::Json => out.json(&json::Formatted {
            id: json::hex(&made.cluster_id),
            redundancy: made.redundancy.into(),
            object_size: 1 << made.object_shift.min(63),
        }),
        _ => Ok(()),
    }
}

/// `cluster shutdown`.
///
/// # Errors
/// When stdout fails.
pub fn shut_down(out: &mut Output, mode: Mode) -> Result<()> {
    match mode {
        Mode::Json => out.json(&json::ShutDown { shutdown: true }),
        _ => Ok(()),
    }
}
