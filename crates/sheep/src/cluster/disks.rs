//! Which disks a start has: what PATH names, compared with what the store remembers. A store that
//! holds nothing takes any list; later only the same disks, though a lost one may be missing.
//! Nothing is ever made in the place of a disk that is not there: it may be a mount that is late.
//!
//! A disk is a directory, or a whole block device; what is to be remembered of a device lies in
//! `STORE/disks/UUID`, and the uuid is in the device's superblock.

use super::{DISKS_MAX, Identity, KnownDisk};
use sheepdog_store::{StoreLock, device};
use sheepdog_types::{DiskId, Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Where the small files of devices are, in the store.
const DEVICES: &str = "disks";

/// A disk of this node.
#[derive(Debug)]
pub struct NodeDisk {
    /// Which.
    pub id: DiskId,
    /// Its directory or device, as PATH has it.
    pub path: PathBuf,
    /// What is known of it, or why it is lost: [`ErrorKind::NotFound`] if it is not there.
    pub found: Result<Found>,
}

/// A disk that is there.
#[derive(Debug)]
pub struct Found {
    /// Nobody else uses it; `None` for the store's own directory, which is locked already.
    pub lock: Option<StoreLock>,
    /// Its memory; `None` for the store's own directory.
    pub identity: Option<Identity>,
}

/// Looks, before anything is made or written, whether a store that holds nothing can have the disks
/// that PATH names behind it. A store with data may have lost some: [`find`] knows.
///
/// # Errors
/// The first disk that cannot be taken, and why.
pub fn refuse_unfit(store: &Path, said: &[PathBuf]) -> Result<()> {
    // What cannot be read is for whoever has the store.
    let Ok(node) = Identity::read(store) else { return Ok(()) };
    if node.as_ref().is_some_and(|node| !node.is_empty()) {
        return Ok(());
    }
    refuse_twice(store, said)?;
    for path in said {
        let found = match std::fs::metadata(path) {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // It will be made, but not what it is to be in: that may be a mount that is late.
                let parent = path.parent().unwrap_or(path);
                std::fs::metadata(parent).map_err(|e| unusable("create", path, e))?;
                continue;
            }
            Err(e) => return Err(unusable("use", path, e)),
        };
        if !found.is_dir() && !device::is_device(path) {
            let what = format!("{} is not a directory, nor a block device", path.display());
            return Err(invalid(what));
        }
        let known = look(store, path)?;
        if let Some(known) = &known
            && (node.is_none() || found.is_dir())
        {
            refuse_taken(store, node.as_ref(), path, known)?;
        }
        let is_ours = |known: &Identity| node.as_ref().is_some_and(|n| known.node == Some(n.disk));
        if !found.is_dir() && !known.as_ref().is_some_and(is_ours) {
            device::refuse_unless_blank(path)?;
        }
    }
    Ok(())
}

fn refuse_twice(store: &Path, said: &[PathBuf]) -> Result<()> {
    let own = store.canonicalize().unwrap_or_else(|_| store.to_owned());
    let mut paths = Vec::with_capacity(said.len());
    for path in said {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if real == own || paths.contains(&real) {
            return Err(invalid(format!("PATH names {} twice", path.display())));
        }
        paths.push(real);
    }
    Ok(())
}

/// For a disk that was somebody's. Where the store does not know who it is, that is what may be
/// wrong.
fn refuse_taken(
    store: &Path,
    node: Option<&Identity>,
    path: &Path,
    known: &Identity,
) -> Result<()> {
    let shown = path.display();
    if known.node.is_none() {
        return Err(invalid(format!("{shown} is a store of its own, not a disk of one")));
    }
    if known.is_empty() {
        return Ok(());
    }
    let mut what = format!("{shown} is a disk of another node and holds data: it is not taken");
    if node.is_none() {
        what.push_str(&format!(
            "; {} is missing: if {shown} is a disk of {}, bring that file back",
            Identity::file_in(store).display(),
            store.display()
        ));
    }
    Err(invalid(what))
}

/// Finds the disks of a store. `said` are those that PATH names behind the store.
///
/// # Errors
/// [`ErrorKind::Invalid`] with the difference to the list remembered, [`ErrorKind::Locked`], and
/// what making a new disk meets.
pub fn find(
    store: &StoreLock,
    identity: &mut Identity,
    said: &[PathBuf],
    take: impl Fn(&Path) -> Result<StoreLock>,
) -> Result<Vec<NodeDisk>> {
    refuse_twice(store.dir(), said)?;
    if identity.is_empty() {
        if !said.is_empty() {
            // A start without disks may have made files that held nothing.
            store.clear()?;
            return adopt(store, identity, said, take);
        }
        // An earlier start without data may have named disks.
        identity.remember_disks(Vec::new())?;
    }
    if identity.disks.is_empty() {
        if let Some(path) = said.first() {
            return Err(invalid(format!(
                "the store {} keeps its data in itself; to add {} is not supported by this version",
                store.dir().display(),
                path.display()
            )));
        }
        let found = Ok(Found { lock: None, identity: None });
        return Ok(vec![NodeDisk { id: identity.disk, path: store.dir().to_owned(), found }]);
    }
    remembered(store, identity, said, take)
}

/// What a path of PATH holds.
fn look(store: &Path, path: &Path) -> Result<Option<Identity>> {
    if !device::is_device(path) {
        return Identity::read(path);
    }
    match device::superblock(path)? {
        Some(superblock) => Identity::read(&dir_of_device(store, superblock.disk)),
        None => Ok(None),
    }
}

/// Where the small files of a device are.
#[must_use]
pub fn dir_of_device(store: &Path, id: DiskId) -> PathBuf {
    store.join(DEVICES).join(id.to_string())
}

/// All of `said` become the disks of a node without data.
fn adopt(
    store: &StoreLock,
    node: &mut Identity,
    said: &[PathBuf],
    take: impl Fn(&Path) -> Result<StoreLock>,
) -> Result<Vec<NodeDisk>> {
    if said.len() > DISKS_MAX {
        return Err(invalid(format!("{} disks, at most {DISKS_MAX}", said.len())));
    }
    let mut disks = Vec::new();
    for path in said {
        if device::is_device(path) {
            disks.push(adopt_device(store, node, path, &take)?);
            continue;
        }
        let lock = take(path)?;
        let identity = match Identity::read(path)? {
            Some(mut known) => {
                refuse_taken(store.dir(), Some(node), path, &known)?;
                known.remember_node(node.disk)?;
                known
            }
            None if lock.is_prepared()? => {
                return Err(Error::new(
                    ErrorKind::Io,
                    format!(
                        "the disk {} has data, but its file 'identity' is missing",
                        path.display()
                    ),
                ));
            }
            None => Identity::create(path, Some(node.disk))?,
        };
        let id = identity.disk;
        let found = Found { lock: Some(lock), identity: Some(identity) };
        disks.push(NodeDisk { id, path: path.clone(), found: Ok(found) });
    }
    node.remember_disks(known(&disks))?;
    Ok(disks)
}

/// A device that is blank, or was made a disk of this node before there was any data.
fn adopt_device(
    store: &StoreLock,
    node: &Identity,
    path: &Path,
    take: impl Fn(&Path) -> Result<StoreLock>,
) -> Result<NodeDisk> {
    let known = look(store.dir(), path)?.filter(|known| known.node == Some(node.disk));
    let identity = match known {
        Some(known) => known,
        None => {
            device::refuse_unless_blank(path)?;
            let id = Identity::new_disk();
            let dir = dir_of_device(store.dir(), id);
            std::fs::create_dir_all(&dir).map_err(|e| {
                Error::with_source(ErrorKind::Io, format!("cannot create {}", dir.display()), e)
            })?;
            Identity::create_of(id, &dir, Some(node.disk))?
        }
    };
    let lock = take(identity.dir())?;
    // Whatever was prepared holds nothing, and is prepared anew.
    lock.clear()?;
    let id = identity.disk;
    let found = Found { lock: Some(lock), identity: Some(identity) };
    Ok(NodeDisk { id, path: path.to_owned(), found: Ok(found) })
}

/// The disks of a node with data.
fn remembered(
    store: &StoreLock,
    node: &mut Identity,
    said: &[PathBuf],
    take: impl Fn(&Path) -> Result<StoreLock>,
) -> Result<Vec<NodeDisk>> {
    let mut rest: Vec<(&PathBuf, Result<Option<Identity>>)> =
        said.iter().map(|path| (path, look(store.dir(), path))).collect();
    let holds = |found: &Result<Option<Identity>>, id: DiskId| matches!(found, Ok(Some(identity)) if identity.disk == id);
    let mut disks = Vec::new();
    for KnownDisk { id, path } in &node.disks {
        let id = *id;
        let by_id = rest.iter().position(|(_, found)| holds(found, id));
        let Some(at) = by_id.or_else(|| rest.iter().position(|(said, _)| *said == path)) else {
            let shown = path.display();
            if holds(&look(store.dir(), path), id) {
                return Err(invalid(format!(
                    "{shown} is missing from PATH: the store {} has the disks {}",
                    store.dir().display(),
                    list(&node.disks)
                )));
            }
            let found = Err(not_there("it is not in PATH, and not where it was"));
            disks.push(NodeDisk { id, path: path.clone(), found });
            continue;
        };
        let (said, identity) = rest.swap_remove(at);
        let found = match identity {
            Ok(Some(identity)) if identity.disk == id => take_known(said, identity, &take),
            Ok(Some(identity)) => {
                return Err(invalid(format!(
                    "{} holds disk {}, not disk {id}, which was there",
                    said.display(),
                    identity.disk
                )));
            }
            Ok(None) if device::is_device(said) => Err(Error::new(
                ErrorKind::Io,
                format!(
                    "{} has no superblock of a disk of this store: it is damaged, or another device",
                    said.display()
                ),
            )),
            Ok(None) => Err(not_there("there is no disk; is it mounted?")),
            Err(error) => Err(error),
        };
        // Somebody else's, or a newer version's: not for a start to go on without.
        let found = match found {
            Err(error)
                if matches!(error.kind(), ErrorKind::Locked | ErrorKind::VersionMismatch) =>
            {
                return Err(error);
            }
            found => found,
        };
        disks.push(NodeDisk { id, path: said.clone(), found });
    }
    if let Some((path, _)) = rest.first() {
        return Err(invalid(format!(
            "{} is not a disk of the store {}, which has {}; to add one is not supported by this \
             version",
            path.display(),
            store.dir().display(),
            list(&node.disks)
        )));
    }
    // A lost disk keeps the place where it was seen.
    node.remember_disks(known(&disks))?;
    Ok(disks)
}

/// A disk that is where PATH says, with its data.
fn take_known(
    path: &Path,
    identity: Identity,
    take: impl Fn(&Path) -> Result<StoreLock>,
) -> Result<Found> {
    let lock = take(identity.dir())?;
    if device::is_device(path) {
        lock.follow_device(path)?;
    }
    if !lock.is_prepared()? {
        let what = format!("the data of the disk {} is not there", path.display());
        return Err(Error::new(ErrorKind::Io, what));
    }
    Ok(Found { lock: Some(lock), identity: Some(identity) })
}

fn known(disks: &[NodeDisk]) -> Vec<KnownDisk> {
    disks.iter().map(|disk| KnownDisk { id: disk.id, path: disk.path.clone() }).collect()
}

fn list(disks: &[KnownDisk]) -> String {
    disks.iter().map(|disk| disk.path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn not_there(line: &str) -> Error {
    Error::new(ErrorKind::NotFound, line)
}

fn unusable(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Io, format!("cannot {what} {}", path.display()), error)
}

fn invalid(line: String) -> Error {
    Error::new(ErrorKind::Invalid, line)
}
