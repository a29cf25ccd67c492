//! `sheep store list|check|export`: stores looked at without a cluster, while no sheep uses them.
//! Reads only; works on a copy, on a read-only mount and, as far as it goes, on a damaged disk.

mod check;
mod export;
mod list;
mod own;
mod words;

use crate::cluster::disks::dir_of_device;
use crate::cluster::{Identity, KnownDisk};
use crate::node::table_copy;
use crate::process::{say, told};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use own::Own;
use sheepdog_store::device;
use sheepdog_store::offline::{self, Found, OfflineStore};
use sheepdog_types::{DiskId, Error, ErrorKind, FragmentId, Geometry, LineageId, Result, Vid};
use sheepdog_volume::table::Table;
use sheepdog_volume::table_copy::TableCopy;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
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
    arguments.next().is_some_and(|word| word == "store")
}

/// Does what the words behind `sheep store` say.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.skip(1).collect();
    let json = arguments.iter().any(|word| word == "--json");
    let words = match Words::parse(arguments.into_iter()) {
        Ok(Some(words)) => words,
        Ok(None) => {
            print(words::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(line) => {
            failed(&line, &format!("\n{}", words::USAGE), json);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut looked = match Looked::at(&words.dirs, matches!(words.verb, Verb::Check)) {
        Ok(looked) => looked,
        Err(error) => {
            failed(&told(&error), "\n", json);
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
            failed(&told(&error), "\n", json);
            ExitCode::from(EXIT_DAMAGE)
        }
    }
}

/// Says why nothing came of it: to people, and to a program that reads JSON.
fn failed(line: &str, rest: &str, json: bool) {
    say(&format!("{line}{rest}"));
    if json {
        print(&format!("{:#}\n", serde_json::json!({ "error": line })));
    }
}

/// The opened stores of a node with what is known of its VDIs.
struct Looked {
    stores: Vec<LookedStore>,
    /// The newest copy of the VDI table, or why there is none.
    table: Result<Table>,
    /// Disks of the node that were not named or are not there, a line each.
    missing: Vec<String>,
    /// Disks that cannot be opened, and what is wrong with small files, a line each.
    broken: Vec<String>,
    /// What is never written.
    own: Own,
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
    /// A store that cannot say any more what its disks are.
    BrokenNode,
    /// What should hold data.
    Disk(NamedDisk),
}

struct NamedDisk {
    path: PathBuf,
    id: Option<DiskId>,
    /// It is one of the disks of a node, not a store of its own.
    of_node: bool,
    /// Where the links and small files of a device are.
    links: Option<PathBuf>,
    /// It never held anything.
    empty: bool,
    /// There is data, but no identity; the path of that.
    nameless: Option<PathBuf>,
}

impl Named {
    /// With a line if its identity is damaged.
    fn at(path: &Path, all: &[PathBuf]) -> (Self, Option<String>) {
        let mut disk = NamedDisk {
            path: path.to_owned(),
            id: None,
            of_node: false,
            links: None,
            empty: false,
            nameless: None,
        };
        let dir = if path.is_dir() {
            path.to_owned()
        } else {
            // A device: its store knows whose it is.
            disk.of_node = true;
            disk.id = device::superblock(path).ok().flatten().map(|found| found.disk);
            let id = disk.id;
            let links = all.iter().filter_map(|dir| Some(dir_of_device(dir, id?)));
            disk.links = links.into_iter().find(|links| links.is_dir());
            let Some(links) = disk.links.clone() else {
                return (Self::Disk(disk), None);
            };
            links
        };
        let mut damage = None;
        // A damaged identity does not keep anybody from looking at the rest.
        match Identity::read(&dir) {
            Ok(Some(node)) if !node.disks.is_empty() => return (Self::Node(node), None),
            Ok(Some(found)) => {
                disk.id = Some(found.disk);
                disk.of_node = found.node.is_some();
                disk.empty = found.is_empty();
            }
            Ok(None) if has_data(&dir) => disk.nameless = Some(dir.join("identity")),
            // Something was a store here, and is no mount that is late.
            Ok(None) if dir.join("table").exists() => {
                let identity = dir.join("identity");
                let line = format!("{} is not there, nor is any data", identity.display());
                return (Self::BrokenNode, Some(line));
            }
            Ok(None) => {}
            Err(error) => {
                damage = Some(told(&error));
                if !has_data(&dir) {
                    return (Self::BrokenNode, damage);
                }
            }
        }
        (Self::Disk(disk), damage)
    }

    fn disk(&self) -> Option<&NamedDisk> {
        match self {
            Self::Disk(disk) => Some(disk),
            Self::Node(_) | Self::BrokenNode => None,
        }
    }
}

fn has_data(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir.join("data")).is_ok()
}

impl Looked {
    fn at(paths: &[PathBuf], checks: bool) -> Result<Self> {
        refuse_twice(paths)?;
        for path in paths {
            refuse_no_store(path)?;
        }
        let (mut named, mut broken) = (Vec::new(), Vec::new());
        for path in paths {
            let (one, damage) = Named::at(path, paths);
            named.push(one);
            broken.extend(damage);
        }
        find_links(&mut named);
        let own = Own::of(paths, &named);
        let mut locks = Vec::new();
        for (path, one) in paths.iter().zip(&named) {
            if one.disk().is_none() {
                locks.extend(offline::lock(path)?);
            }
        }
        let Opened { stores, missing: gone, unopened } = open(&mut named)?;
        if stores.is_empty() && (unopened.is_empty() || !checks) {
            let error = unopened.into_iter().chain(gone).next();
            return Err(error.unwrap_or_else(|| no_disk_named(&named, broken.pop())));
        }
        let mut missing: Vec<String> = gone.iter().map(told).collect();
        broken.extend(unopened.iter().map(told));
        missing.extend(not_named(&named));
        for identity in lost_identities(&named) {
            broken.push(format!(
                "{} is not there: no sheep starts on this disk without it",
                identity.display()
            ));
        }
        let table = newest_table(paths, &named);
        if let Err(error) = &table {
            // A store that never belonged to a formatted cluster has none, and needs none.
            let needs_none = named.iter().filter_map(Named::disk).all(|disk| disk.empty);
            match error.kind() {
                ErrorKind::NotFound if needs_none => {}
                ErrorKind::NotFound => missing.push(told(error)),
                _ => broken.push(told(error)),
            }
        }
        Ok(Self { stores, table, missing, broken, own, _locks: locks })
    }

    /// Damage that is known without looking at any block, a line each.
    fn damage(&self) -> Vec<String> {
        let found = self.stores.iter().flat_map(|LookedStore { dir, found, .. }| {
            found.damage.iter().map(|line| format!("{}: {line}", dir.display()))
        });
        self.broken.iter().cloned().chain(found).collect()
    }

    /// What nothing is lost by, a line each.
    fn notes(&self) -> Vec<String> {
        let found = self.stores.iter().flat_map(|LookedStore { dir, found, .. }| {
            found.notes.iter().map(|line| format!("{}: {line}", dir.display()))
        });
        found.collect()
    }

    /// How fragments divide.
    fn geometry(&self) -> Geometry {
        // There is at least one.
        self.stores
            .first()
            .map_or(Geometry::STANDARD, |one| one.store.store().superblock().geometry)
    }

    /// Whose the blocks of a fragment are that cannot be read, for people: as far as the index knows.
    fn owners(&self, store: &LookedStore, fragment: FragmentId) -> String {
        let lineage = fragment.lineage;
        let owns = |vid: &Vid| {
            let summaries = store.store.store().owner_summaries(lineage, *vid);
            // Only a page knows more than a few owners.
            summaries.map_or(true, |found| found.iter().any(|(id, _)| *id == fragment))
        };
        let table = self.table.as_ref().ok();
        let records = table.into_iter().flat_map(|table| table.visible().chain(table.hidden()));
        let vids = records.filter(|record| record.lineage == lineage).map(|record| record.vid);
        let names: Vec<String> = vids.filter(owns).map(|vid| self.owner(lineage, vid)).collect();
        if names.is_empty() {
            return format!("lineage {}, whose VDIs nobody knows", lineage.0);
        }
        names.join(", ")
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
            let line = told(error);
            let what = match error.kind() {
                ErrorKind::NotFound => format!("missing: {line}"),
                _ => format!("a copy of the VDI table is needed to know the VDIs: {line}"),
            };
            Error::new(error.kind(), what)
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

/// What can hold no store, and may keep who reads it waiting for ever. What is not there is told
/// later.
fn refuse_no_store(path: &Path) -> Result<()> {
    let Ok(found) = std::fs::metadata(path) else { return Ok(()) };
    if found.is_dir() || device::is_device(path) {
        return Ok(());
    }
    if found.is_file() {
        return refuse_part(path);
    }
    let what = format!(
        "{} is neither a directory, nor a block device, nor a copy of one: it holds no store",
        path.display()
    );
    Err(Error::new(ErrorKind::Invalid, what))
}

/// A file of a store in a directory is no copy of a device, though it begins like one.
fn refuse_part(path: &Path) -> Result<()> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let is_beside = |name: &str| real.with_file_name(name).exists();
    let is_part = match real.file_name().and_then(OsStr::to_str) {
        Some("data") => is_beside("log") || is_beside("identity"),
        Some("log") => is_beside("data") || is_beside("identity"),
        _ => false,
    };
    match real.parent() {
        Some(dir) if is_part => {
            let (shown, dir) = (path.display(), dir.display());
            let what = format!("{shown} is only a part of a store: name the directory {dir}");
            Err(Error::new(ErrorKind::Invalid, what))
        }
        _ => Ok(()),
    }
}

/// What became of the disks that were named.
#[derive(Default)]
struct Opened {
    stores: Vec<LookedStore>,
    missing: Vec<Error>,
    unopened: Vec<Error>,
}

/// Opens the stores on the disks that were named. The others are looked at when one is not there or
/// cannot be opened.
fn open(named: &mut [Named]) -> Result<Opened> {
    let mut opened = Opened::default();
    for one in named {
        let Named::Disk(disk) = one else { continue };
        let path = &disk.path;
        match OfflineStore::open(path, disk.links.as_deref()) {
            Ok((store, mut found)) => {
                let there = store.store().superblock().disk;
                match disk.id {
                    Some(id) if id != there => found.damage.push(format!(
                        "the data is that of disk {there}, not of {id}, which this is"
                    )),
                    _ => disk.id = Some(there),
                }
                opened.stores.push(LookedStore { dir: path.clone(), store, found });
            }
            Err(error) if error.kind() == ErrorKind::Locked => return Err(error),
            // A link that leads nowhere tells of a log that may come back.
            Err(error) if error.kind() == ErrorKind::Invalid || log_is_gone(disk) => {
                opened.missing.push(error);
            }
            Err(error) => {
                let line = told(&error);
                let shown = path.display().to_string();
                let names_it = line.contains(&shown);
                let line = if names_it { line } else { format!("{shown}: {line}") };
                opened.unopened.push(Error::new(error.kind(), line));
            }
        }
    }
    Ok(opened)
}

fn log_is_gone(disk: &NamedDisk) -> bool {
    let log = disk.links.as_ref().unwrap_or(&disk.path).join("log");
    std::fs::read_link(&log).is_ok() && !log.exists()
}

/// A device that cannot say who it is may still be where its store saw it last.
fn find_links(named: &mut [Named]) {
    let nodes = named.iter().filter_map(|one| match one {
        Named::Node(node) => Some(node),
        Named::BrokenNode | Named::Disk(_) => None,
    });
    let seen: Vec<(PathBuf, PathBuf)> = nodes
        .flat_map(|node| {
            let links = |disk: &KnownDisk| (real(&disk.path), dir_of_device(node.dir(), disk.id));
            node.disks.iter().map(links)
        })
        .filter(|(_, links)| links.is_dir())
        .collect();
    for one in named {
        if let Named::Disk(disk) = one
            && disk.id.is_none()
        {
            let found = seen.iter().find(|(path, _)| *path == real(&disk.path));
            disk.links = found.map(|(_, links)| links.clone());
        }
    }
}

/// What a path leads to; itself if that is not there.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.canonicalize().unwrap_or(path)
}

/// The disks that the named stores remember.
fn known(named: &[Named]) -> impl Iterator<Item = &KnownDisk> {
    named.iter().flat_map(|one| match one {
        Named::Node(node) => node.disks.as_slice(),
        Named::BrokenNode | Named::Disk(_) => &[],
    })
}

/// The disks that belong to those that were named, a line each.
fn not_named(named: &[Named]) -> Vec<String> {
    let is_here = |known: &KnownDisk| {
        named.iter().filter_map(Named::disk).any(|disk| match disk.id {
            Some(id) => id == known.id,
            // It cannot say who it is; it was told of already.
            None => real(&disk.path) == real(&known.path),
        })
    };
    let mut lines: Vec<String> = known(named)
        .filter(|disk| !is_here(disk))
        .map(|disk| format!("disk {}, last seen at {}", disk.id, disk.path.display()))
        .collect();
    let is_orphan =
        |disk: &NamedDisk| disk.of_node && known(named).all(|known| Some(known.id) != disk.id);
    let store_is_named = named.iter().any(|one| one.disk().is_none());
    if !store_is_named && named.iter().filter_map(Named::disk).any(is_orphan) {
        lines.push("other disks of the node, if it has more: its store was not named".to_owned());
    }
    lines
}

/// The identities that a start needs and does not find. That of a device is in its store, which may
/// have lost the directory around it as well.
fn lost_identities(named: &[Named]) -> BTreeSet<PathBuf> {
    let disks = || named.iter().filter_map(Named::disk);
    let nodes = named.iter().filter_map(|one| match one {
        Named::Node(node) => Some(node),
        Named::BrokenNode | Named::Disk(_) => None,
    });
    let of_devices = nodes.flat_map(|node| {
        let is_named = |known: &&KnownDisk| {
            disks().any(|disk| disk.id == Some(known.id) && !disk.path.is_dir())
        };
        let identity = |known: &KnownDisk| Identity::file_in(&dir_of_device(node.dir(), known.id));
        node.disks.iter().filter(is_named).map(identity).collect::<Vec<_>>()
    });
    let lost = |identity: &PathBuf| std::fs::symlink_metadata(identity).is_err();
    of_devices.filter(lost).chain(disks().filter_map(|disk| disk.nameless.clone())).collect()
}

fn no_disk_named(named: &[Named], damage: Option<String>) -> Error {
    if let Some(line) = damage {
        let what = format!("{line}: name its disks too, it cannot tell which they are");
        return Error::new(ErrorKind::Io, what);
    }
    let listed: Vec<_> = known(named).map(|disk| disk.path.display().to_string()).collect();
    Error::new(
        ErrorKind::Invalid,
        format!("the data of this store is on its disks: name them too ({})", listed.join(", ")),
    )
}

/// The newest copy of the VDI table: in the directories that were named, and in those of devices.
fn newest_table(paths: &[PathBuf], named: &[Named]) -> Result<Table> {
    let links = named.iter().filter_map(|one| one.disk()?.links.as_ref());
    let dirs: Vec<&PathBuf> = paths.iter().filter(|path| path.is_dir()).chain(links).collect();
    let mut newest: Result<TableCopy> = Err(no_table(paths, &dirs));
    for dir in dirs {
        newest = match (newest, table_copy::read(dir)) {
            (Ok(one), Ok(other)) if other.revision <= one.revision => Ok(one),
            (_, Ok(copy)) | (Ok(copy), Err(_)) => Ok(copy),
            // A damaged one matters more than one that was never there.
            (Err(one), Err(other)) if other.kind() != ErrorKind::NotFound => {
                Err(if one.kind() == ErrorKind::NotFound { other } else { one })
            }
            (Err(one), Err(_)) => Err(one),
        };
    }
    newest.and_then(|copy| copy.table())
}

fn no_table(paths: &[PathBuf], dirs: &[&PathBuf]) -> Error {
    let list = |paths: &mut dyn Iterator<Item = &PathBuf>| {
        paths.map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    let what = if dirs.is_empty() {
        let devices = list(&mut paths.iter());
        format!("a copy of the VDI table, which {devices} cannot hold: name the store too")
    } else {
        let dirs = list(&mut dirs.iter().copied());
        format!(
            "a copy of the VDI table, a file 'table' in {dirs}: bring one back from another disk or \
             a copy of the node"
        )
    };
    Error::new(ErrorKind::NotFound, what)
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
