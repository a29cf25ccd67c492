//! `sheep store list|check|export`: stores looked at without a cluster, while no sheep uses them.
//! Reads only; works on a copy, on a read-only mount and, as far as it goes, on a damaged disk.

mod check;
mod export;
mod list;
mod words;

use crate::cluster::disks::dir_of_device;
use crate::cluster::{Identity, KnownDisk};
use crate::node::table_copy;
use crate::process::{say, told};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sheepdog_store::device;
use sheepdog_store::offline::{self, Found, OfflineStore};
use sheepdog_types::{DiskId, Error, ErrorKind, Geometry, LineageId, Result, Vid};
use sheepdog_volume::table::Table;
use sheepdog_volume::table_copy::TableCopy;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use words::{Verb, Words};

/// Damage was found, disks are missing, or something could not be done.
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
    /// Disks of the node that were not named or cannot be opened, a line each.
    missing: Vec<String>,
    /// Keep a sheep from starting on stores whose data is elsewhere.
    _locks: Vec<File>,
}

struct LookedStore {
    dir: PathBuf,
    store: OfflineStore,
    found: Found,
}

/// A path of the command line, before anything is opened.
enum Named {
    /// A store whose data is on its disks.
    Node(Identity),
    /// What should hold data.
    Disk {
        path: PathBuf,
        id: Option<DiskId>,
        /// It is one of the disks of a node, not a store of its own.
        of_node: bool,
    },
}

impl Named {
    fn at(path: &Path) -> Self {
        // A damaged identity does not keep anybody from looking at the rest.
        let (id, of_node) = match Identity::read(path).ok().flatten() {
            Some(node) if !node.disks.is_empty() => return Self::Node(node),
            Some(disk) => (Some(disk.disk), disk.node.is_some()),
            None if path.is_dir() => (None, false),
            // A device: its store knows whose it is.
            None => (device::superblock(path).ok().flatten().map(|found| found.disk), true),
        };
        Self::Disk { path: path.to_owned(), id, of_node }
    }
}

impl Looked {
    fn at(paths: &[PathBuf]) -> Result<Self> {
        refuse_twice(paths)?;
        let named: Vec<Named> = paths.iter().map(|path| Named::at(path)).collect();
        let mut locks = Vec::new();
        for one in &named {
            if let Named::Node(node) = one {
                locks.extend(offline::lock(node.dir())?);
            }
        }
        let (stores, unopened) = open(&named)?;
        if stores.is_empty() {
            return Err(unopened.into_iter().next().unwrap_or_else(|| no_disk_named(&named)));
        }
        let mut missing: Vec<String> = unopened.iter().map(told).collect();
        missing.extend(not_named(&named));
        Ok(Self { stores, table: newest_table(paths), missing, _locks: locks })
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

/// What lies on a disk named twice would be counted twice, and a device is opened for one alone.
fn refuse_twice(paths: &[PathBuf]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for path in paths {
        if !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            let what = format!("{} is named twice", path.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    }
    Ok(())
}

/// The stores on the disks that were named. Of several the others are looked at when one cannot be
/// opened.
fn open(named: &[Named]) -> Result<(Vec<LookedStore>, Vec<Error>)> {
    let links = |id: DiskId| {
        named.iter().find_map(|one| match one {
            Named::Node(node) if node.disks.iter().any(|known| known.id == id) => {
                Some(dir_of_device(node.dir(), id)).filter(|dir| dir.is_dir())
            }
            _ => None,
        })
    };
    let (mut stores, mut unopened) = (Vec::new(), Vec::new());
    for one in named {
        let Named::Disk { path, id, .. } = one else { continue };
        match OfflineStore::open(path, id.and_then(links).as_deref()) {
            Ok((store, found)) => {
                stores.push(LookedStore { dir: path.clone(), store, found });
            }
            Err(error) if named.len() > 1 && error.kind() != ErrorKind::Locked => {
                unopened.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok((stores, unopened))
}

/// The disks that the named stores remember.
fn known(named: &[Named]) -> impl Iterator<Item = &KnownDisk> {
    named.iter().flat_map(|one| match one {
        Named::Node(node) => node.disks.as_slice(),
        Named::Disk { .. } => &[],
    })
}

/// The disks that belong to those that were named, a line each.
fn not_named(named: &[Named]) -> Vec<String> {
    let is_here = |disk: &KnownDisk| {
        named.iter().any(|one| matches!(one, Named::Disk { id: Some(id), .. } if *id == disk.id))
    };
    let mut lines: Vec<String> = known(named)
        .filter(|disk| !is_here(disk))
        .map(|disk| format!("disk {}, last seen at {}", disk.id, disk.path.display()))
        .collect();
    let is_orphan = |one: &Named| match one {
        Named::Disk { id, of_node: true, .. } => known(named).all(|disk| Some(disk.id) != *id),
        Named::Disk { of_node: false, .. } | Named::Node(..) => false,
    };
    if named.iter().any(is_orphan) {
        lines.push("other disks of the node, if it has more: its store was not named".to_owned());
    }
    lines
}

fn no_disk_named(named: &[Named]) -> Error {
    let listed: Vec<_> = known(named).map(|disk| disk.path.display().to_string()).collect();
    Error::new(
        ErrorKind::Invalid,
        format!("the data of this store is on its disks: name them too ({})", listed.join(", ")),
    )
}

/// The newest copy of the VDI table.
fn newest_table(paths: &[PathBuf]) -> Result<Table> {
    let mut newest: Result<TableCopy> = Err(ErrorKind::NotFound.into());
    for path in paths {
        newest = match (newest, table_copy::read(path)) {
            (Ok(one), Ok(other)) if other.revision <= one.revision => Ok(one),
            (_, Ok(copy)) | (Ok(copy), Err(_)) => Ok(copy),
            // A damaged one matters more than one that was never there.
            (Err(one), Err(other)) if one.kind() == ErrorKind::NotFound => Err(other),
            (Err(one), Err(_)) => Err(one),
        };
    }
    newest.and_then(|copy| copy.table())
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
