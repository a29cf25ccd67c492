//! `sheep store list|check|export`: stores looked at without a cluster, while no sheep uses them.
//! Reads only; works on a copy, on a read-only mount and, as far as it goes, on a damaged disk.

mod check;
mod export;
mod list;
mod words;

use crate::cluster::Identity;
use crate::node::table_copy;
use crate::process::{say, told};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sheepdog_store::device;
use sheepdog_store::offline::{Found, OfflineStore};
use sheepdog_types::{DiskId, Error, ErrorKind, Geometry, LineageId, Result, Vid};
use sheepdog_volume::table::Table;
use sheepdog_volume::table_copy::TableCopy;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use words::{Verb, Words};

/// Damage was found, or something could not be done.
const EXIT_DAMAGE: u8 = 1;
/// The store cannot be looked at at all.
const EXIT_NO_STORE: u8 = 2;
/// Bad usage.
const EXIT_USAGE: u8 = 64;

/// Whether a command line is for here.
#[must_use]
pub fn is_meant(mut arguments: impl Iterator<Item = OsString>) -> bool {
    // `sheep store` alone is a sheep on the directory of that name, as of old.
    arguments.next().is_some_and(|word| word == "store") && arguments.next().is_some()
}

/// Does what the words behind `sheep store` say.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let words = match Words::parse(arguments.skip(1)) {
        Ok(Some(words)) => words,
        Ok(None) => {
            print(words::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(line) => {
            say(&format!("{line}\n{}", words::USAGE));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut looked = match Looked::at(&words.dirs) {
        Ok(looked) => looked,
        Err(error) => {
            say(&format!("{}\n", told(&error)));
            return ExitCode::from(EXIT_NO_STORE);
        }
    };
    let ended = match &words.verb {
        Verb::List => list::run(&looked, words.json),
        Verb::Check => check::run(&mut looked, words.json),
        Verb::Export { vdi, file, force } => {
            export::run(&mut looked, vdi, file, *force, words.json)
        }
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DAMAGE),
        Err(error) => {
            say(&format!("{}\n", told(&error)));
            ExitCode::from(EXIT_DAMAGE)
        }
    }
}

/// The opened stores of a node with what is known of its VDIs.
struct Looked {
    stores: Vec<LookedStore>,
    /// The newest copy of the VDI table, or why there is none.
    table: Result<Table>,
    /// Disks of the node that were not named, a line each.
    missing: Vec<String>,
}

struct LookedStore {
    dir: PathBuf,
    store: OfflineStore,
    found: Found,
}

impl Looked {
    fn at(dirs: &[PathBuf]) -> Result<Self> {
        let (mut stores, mut nodes, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        let mut missing = Vec::new();
        let mut table: Option<Result<TableCopy>> = None;
        for dir in dirs {
            let newer = |copy: &TableCopy| match &table {
                Some(Ok(other)) => copy.revision > other.revision,
                _ => true,
            };
            match table_copy::read(dir) {
                Ok(copy) if newer(&copy) => table = Some(Ok(copy)),
                Ok(_) => {}
                // A damaged one matters more than one that was never there.
                Err(error) => match &table {
                    None => table = Some(Err(error)),
                    Some(Err(other)) if other.kind() == ErrorKind::NotFound => {
                        table = Some(Err(error));
                    }
                    Some(_) => {}
                },
            }
            // A damaged identity does not keep anybody from looking at the rest.
            match Identity::read(dir).ok().flatten() {
                Some(identity) if !identity.disks.is_empty() => {
                    nodes.push(identity);
                    continue;
                }
                Some(identity) => disks.push((identity.disk, identity.node)),
                None if dir.is_dir() => {}
                // A device: its store knows whose it is.
                None => {
                    let found = device::superblock(dir).ok().flatten();
                    disks.extend(found.map(|superblock| (superblock.disk, None)));
                }
            }
            match OfflineStore::open(dir) {
                Ok((store, found)) => stores.push(LookedStore { dir: dir.clone(), store, found }),
                // Of several the others are looked at.
                Err(error) if dirs.len() > 1 && error.kind() != ErrorKind::Locked => {
                    missing.push(told(&error));
                }
                Err(error) => return Err(error),
            }
        }
        for known in nodes.iter().flat_map(|node| &node.disks) {
            if disks.iter().all(|(disk, _)| *disk != known.id) {
                missing.push(format!("disk {}, last seen at {}", known.id, known.path.display()));
            }
        }
        let orphan = |(_, node): &(DiskId, Option<DiskId>)| {
            node.is_some_and(|node| nodes.iter().all(|known| known.disk != node))
        };
        if disks.iter().any(orphan) {
            missing.push(
                "other disks of the node, if it has more: its store was not named".to_owned(),
            );
        }
        if stores.is_empty() {
            let listed: Vec<_> =
                nodes.iter().flat_map(|n| &n.disks).map(|d| d.path.display().to_string()).collect();
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "the data of this store is on its disks: name them too ({})",
                    listed.join(", ")
                ),
            ));
        }
        let table = table.unwrap_or_else(|| Err(ErrorKind::NotFound.into()));
        Ok(Self { stores, table: table.and_then(|copy| copy.table()), missing })
    }

    /// Damage that is known without looking at any block, a line each.
    fn damage(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for LookedStore { dir, found, .. } in &self.stores {
            let several = self.stores.len() > 1;
            lines.extend(found.damage.iter().map(|line| {
                if several { format!("{}: {line}", dir.display()) } else { line.clone() }
            }));
        }
        match &self.table {
            // A store that never belonged to a formatted cluster has none, and needs none.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => lines.push(told(error)),
            Ok(_) => {}
        }
        lines
    }

    /// How fragments divide.
    fn geometry(&self) -> Geometry {
        // There is at least one.
        self.stores
            .first()
            .map_or(Geometry::STANDARD, |one| one.store.store().superblock().geometry)
    }

    /// Whose blocks a vid's are, for people.
    fn owner(&self, lineage: LineageId, vid: Vid) -> String {
        let record = self.table.as_ref().ok().and_then(|table| table.get(vid));
        match record.filter(|record| record.lineage == lineage) {
            Some(record) if record.tag.is_empty() => record.name.escape_debug().to_string(),
            Some(record) => format!("{}@{}", record.name, record.tag).escape_debug().to_string(),
            None => {
                format!("vid {vid} of lineage {}, which the VDI table does not know", lineage.0)
            }
        }
    }

    fn table(&self) -> Result<&Table> {
        self.table.as_ref().map_err(|error| {
            let what = "the store's copy of the VDI table is needed to know its VDIs";
            Error::new(error.kind(), format!("{what}: {}", told(error)))
        })
    }
}

/// Prints on standard output; whoever closed it wants no more.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A bar on standard error, if that is a terminal.
fn bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    // The template is ours; if it did not parse, the default one would do.
    if let Ok(style) = ProgressStyle::with_template(
        "{percent:>3} % [{wide_bar}] {binary_bytes} / {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
