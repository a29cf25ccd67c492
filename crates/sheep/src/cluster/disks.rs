//! Which disks a start has: what PATH names, compared with what the store remembers. A store that
//! holds nothing takes any list; later only the same disks, though a lost one may be missing.
//! Nothing is ever made in the place of a disk that is not there: it may be a mount that is late.
//!
//! A disk is a directory, or a whole block device; what is to be remembered of a device lies in
//! `STORE/disks/UUID`, and the uuid is in the device's superblock.

use super::{DISKS_MAX, Identity, KnownDisk};
use crate::process::told;
use sheepdog_store::{StoreLock, device, offline};
use sheepdog_types::{DiskId, Error, ErrorKind, Result};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Where the small files of devices are, in the store.
const DEVICES: &str = "disks";

/// What to do about a lost identity.
pub const BRING_IT_BACK: &str =
    "bring that file back from a copy; 'sheep store export' reads the data without it";

/// So many links the kernel follows.
const LINKS_MAX: usize = 40;

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
    for path in said.iter().map(PathBuf::as_path).chain([store]) {
        refuse_among_devices(path)?;
    }
    let places = refuse_twice(store, said)?;
    refuse_nested(&places)?;
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
            refuse_unless_blank(store, path)?;
        }
    }
    Ok(())
}

/// Whoever names a place among the devices means one of them. A directory made there is in memory,
/// and would take data that the next boot does not find.
fn refuse_among_devices(path: &Path) -> Result<()> {
    let real = led_to(path);
    let shown = path.display();
    match std::fs::metadata(&real) {
        Err(_) if is_for_devices(&real) => Err(invalid(format!("there is no device {shown}"))),
        Ok(found) if found.is_dir() && is_on_devtmpfs(&found) => Err(invalid(format!(
            "{shown} is a directory among the devices, where nothing outlives a boot: name a device, \
             or a directory elsewhere"
        ))),
        _ => Ok(()),
    }
}

/// Whether what is not there would be among the devices. Shared memory, which is beside them, is
/// what it says.
fn is_for_devices(real: &Path) -> bool {
    let around = real.ancestors().find_map(|dir| std::fs::metadata(dir).ok());
    (real.starts_with("/dev") && !real.starts_with("/dev/shm"))
        || around.is_some_and(|around| is_on_devtmpfs(&around))
}

/// The kernel tells it from other file systems in memory only in its list of mounts.
fn is_on_devtmpfs(found: &std::fs::Metadata) -> bool {
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let device = format!("{major}:{minor}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| {
        let is_it = line.split(' ').nth(2) == Some(&device);
        is_it && line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("devtmpfs "))
    })
}

fn refuse_twice(store: &Path, said: &[PathBuf]) -> Result<Vec<Place>> {
    let mut places = vec![Place::of(store)];
    for path in said {
        let place = Place::of(path);
        if places.iter().any(|other| other.is(&place)) {
            return Err(invalid(format!("PATH names {} twice", path.display())));
        }
        places.push(place);
    }
    Ok(places)
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
    // One of this node may remember the cluster of a format that was interrupted.
    if known.is_empty() || node.is_some_and(|node| known.node == Some(node.disk)) {
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

/// A device that this node does not know must be blank. Nobody is told how to clear one that may hold
/// what another node misses.
fn refuse_unless_blank(store: &Path, path: &Path) -> Result<()> {
    let Some(superblock) = device::superblock(path)? else {
        return device::refuse_unless_blank(path);
    };
    match offline::is_unused(path, None) {
        Ok(true) => return device::refuse_unless_blank(path),
        Err(error) if error.kind() == ErrorKind::Locked => return Err(error),
        // Its log may be elsewhere, and hold all there is.
        Ok(false) | Err(_) => {}
    }
    let (shown, id) = (path.display(), superblock.disk);
    Err(invalid(format!(
        "{shown} is a disk of another node and holds data: it is not taken; it is disk {id}, which \
         {} does not know: name it behind its own store",
        store.display()
    )))
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
    let places = refuse_twice(store.dir(), said)?;
    if identity.is_empty() {
        // A node that has data this way keeps it.
        refuse_nested(&places)?;
        // An identity of before the format, put back by mistake, knows nothing of what came later.
        refuse_used("the store", store.dir(), None)?;
        for KnownDisk { id, path } in &identity.disks {
            if holds(&look(store.dir(), path), *id) {
                refuse_used("the disk", path, Some(&dir_of_device(store.dir(), *id)))?;
            }
        }
        if !said.is_empty() {
            // A start without disks may have made files that held nothing.
            let disks = adopt(store, identity, said, take)?;
            store.clear()?;
            return Ok(disks);
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

/// Where a path of PATH leads.
struct Place {
    said: PathBuf,
    /// Without links.
    real: PathBuf,
    /// Whether it is a device, and which; or file system and inode: a directory may be mounted in
    /// two places, a device have two nodes.
    inode: Option<(bool, u64, u64)>,
}

impl Place {
    fn of(path: &Path) -> Self {
        let inode = std::fs::metadata(path).ok().map(|found| {
            if found.file_type().is_block_device() {
                (true, found.rdev(), 0)
            } else {
                (false, found.dev(), found.ino())
            }
        });
        Self { said: path.to_owned(), real: led_to(path), inode }
    }

    fn is(&self, other: &Self) -> bool {
        self.real == other.real || (self.inode.is_some() && self.inode == other.inode)
    }
}

/// Where a path leads, also if what it names is not there yet.
#[must_use]
pub fn led_to(path: &Path) -> PathBuf {
    resolved(path, LINKS_MAX)
}

fn resolved(path: &Path, links_left: usize) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let Some(parent) = path.parent() else {
        return path.to_owned();
    };
    match (path.read_link(), links_left.checked_sub(1)) {
        (Ok(to), Some(links_left)) => return resolved(&parent.join(to), links_left),
        // In circles: nothing will be made there.
        (Ok(_), None) => return path.to_owned(),
        (Err(_), _) => {}
    }
    let parent = resolved(parent, links_left);
    match path.components().next_back() {
        Some(Component::ParentDir) => parent.parent().map_or(parent.clone(), Path::to_owned),
        Some(Component::Normal(name)) => parent.join(name),
        _ => parent,
    }
}

/// A directory in another one of the node is taken for a part of that: who removes it, or mounts
/// something over it, has the other one too.
fn refuse_nested(places: &[Place]) -> Result<()> {
    for outer in places {
        let inside =
            |inner: &&Place| inner.real != outer.real && inner.real.starts_with(&outer.real);
        if let Some(inner) = places.iter().find(inside) {
            return Err(invalid(format!(
                "{} is in {}: the store and its disks must be beside each other",
                inner.said.display(),
                outer.said.display()
            )));
        }
    }
    Ok(())
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

/// Which disk a device says that it is.
fn on_device(path: &Path) -> Option<DiskId> {
    let device = device::is_device(path).then(|| device::superblock(path).ok().flatten());
    device.flatten().map(|superblock| superblock.disk)
}

/// Whether what was found in a place is that disk.
fn holds(found: &Result<Option<Identity>>, id: DiskId) -> bool {
    matches!(found, Ok(Some(identity)) if identity.disk == id)
}

/// What is to be prepared must hold nothing, whatever its identity says.
fn refuse_used(what: &str, path: &Path, links: Option<&Path>) -> Result<()> {
    let but = "its identity knows of no cluster";
    match offline::is_unused(path, links) {
        Ok(true) => Ok(()),
        Ok(false) => Err(invalid(format!(
            "{what} {} holds data, but {but}: restore the file 'identity'; 'sheep store' gets at \
             the data",
            path.display()
        ))),
        Err(error) if matches!(error.kind(), ErrorKind::Locked | ErrorKind::VersionMismatch) => {
            Err(error)
        }
        Err(error) => Err(Error::new(
            error.kind(),
            format!("{what} {} may hold data, but {but}: {}", path.display(), told(&error)),
        )),
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
    // All are looked at before anything is written to one.
    let mut looked = Vec::with_capacity(said.len());
    for path in said {
        looked.push(if device::is_device(path) {
            look_at_device(store, node, path)?.map(|known| (None, known))
        } else if path.exists() {
            let lock = take(path)?;
            look_at_directory(store, node, &lock)?.map(|known| (Some(lock), known))
        } else {
            None
        });
    }
    let seen = |known: &Option<(_, Identity)>| known.as_ref().map(|(_, known)| known.disk);
    for (at, (path, id)) in said.iter().zip(looked.iter().map(seen)).enumerate() {
        let before = looked.iter().take(at).position(|other| id.is_some() && seen(other) == id);
        if let Some(other) = before.and_then(|before| said.get(before)) {
            return Err(same_disk(other, path));
        }
    }
    let mut disks = Vec::new();
    for (path, known) in said.iter().zip(looked) {
        let (lock, identity) = match known {
            Some((lock, mut known)) => {
                known.remember_node(node.disk)?;
                (lock, known)
            }
            None if device::is_device(path) => (None, new_device(store, node)?),
            None => {
                let lock = take(path)?;
                (Some(lock), Identity::create(path, Some(node.disk))?)
            }
        };
        let lock = match lock {
            Some(lock) => lock,
            None => {
                let lock = take(identity.dir())?;
                // Whatever was prepared holds nothing, and is prepared anew.
                lock.clear()?;
                lock
            }
        };
        let id = identity.disk;
        let found = Found { lock: Some(lock), identity: Some(identity) };
        disks.push(NodeDisk { id, path: path.clone(), found: Ok(found) });
    }
    node.remember_disks(known(&disks))?;
    Ok(disks)
}

/// Two names that PATH has for what is one disk by what is on it.
#[must_use]
pub fn same_disk(one: &Path, other: &Path) -> Error {
    invalid(format!("{} and {} are the same disk: name it once", one.display(), other.display()))
}

/// A directory that is there: `None` if it is no disk yet.
fn look_at_directory(
    store: &StoreLock,
    node: &Identity,
    lock: &StoreLock,
) -> Result<Option<Identity>> {
    let shown = lock.dir().display();
    let Some(known) = Identity::read(lock.dir())? else {
        if lock.is_prepared()? {
            let what = format!(
                "the disk {shown} has data, but its file 'identity' is missing: {BRING_IT_BACK}"
            );
            return Err(Error::new(ErrorKind::Io, what));
        }
        return Ok(None);
    };
    refuse_taken(store.dir(), Some(node), lock.dir(), &known)?;
    refuse_used("the disk", lock.dir(), None)?;
    Ok(Some(known))
}

/// A device: `None` if it is blank, else it was made a disk of this node before there was any data.
fn look_at_device(store: &StoreLock, node: &Identity, path: &Path) -> Result<Option<Identity>> {
    match look(store.dir(), path)?.filter(|known| known.node == Some(node.disk)) {
        Some(known) => {
            refuse_used("the disk", path, Some(known.dir()))?;
            Ok(Some(known))
        }
        None => {
            refuse_unless_blank(store.dir(), path)?;
            Ok(None)
        }
    }
}

/// A blank device becomes a disk.
fn new_device(store: &StoreLock, node: &Identity) -> Result<Identity> {
    let id = Identity::new_disk();
    let dir = dir_of_device(store.dir(), id);
    std::fs::create_dir_all(&dir).map_err(|e| {
        Error::with_source(ErrorKind::Io, format!("cannot create {}", dir.display()), e)
    })?;
    Identity::create_of(id, &dir, Some(node.disk))
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
    let mut disks = Vec::new();
    for KnownDisk { id, path } in &node.disks {
        let id = *id;
        let is_it = |(said, found): &(&PathBuf, Result<Option<Identity>>)| {
            holds(found, id) || (matches!(found, Ok(None)) && on_device(said) == Some(id))
        };
        let by_id = rest.iter().position(is_it);
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
            Ok(None) if device::is_device(said) => {
                let what = match on_device(said) {
                    Some(on_it) if on_it == id => nameless(store.dir(), id, said),
                    Some(on_it) => format!(
                        "{} holds disk {on_it}, which is none of this store, not disk {id}",
                        said.display()
                    ),
                    None => format!(
                        "{} has no superblock of a disk of this store: it is damaged, or another \
                         device",
                        said.display()
                    ),
                };
                Err(Error::new(ErrorKind::Io, what))
            }
            // An empty directory is a mount that is late; this one is not.
            Ok(None) if said.join("data").symlink_metadata().is_ok() => {
                let identity = Identity::file_in(said);
                let what = format!("{} is missing: {BRING_IT_BACK}", identity.display());
                Err(Error::new(ErrorKind::Io, what))
            }
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

/// What is to be said where a device is there and the file that says whose it is is not.
fn nameless(store: &Path, id: DiskId, path: &Path) -> String {
    let dir = dir_of_device(store, id);
    let identity = Identity::file_in(&dir);
    // Where a log elsewhere is, nobody else knows.
    let superblock = device::superblock(path).ok().flatten();
    if superblock.is_some_and(|found| found.log_is_elsewhere()) && !dir.is_dir() {
        return format!("{} is missing: bring {} back", identity.display(), dir.display());
    }
    format!("{} is missing: {BRING_IT_BACK}", identity.display())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_among_the_devices() {
        let home = tempfile::tempdir().expect("directory");
        let link = home.path().join("link");
        std::os::unix::fs::symlink("/dev/sheepdog-none", &link).expect("link");
        for path in [Path::new("/dev/sheepdog-none"), Path::new("/dev/none/of/these"), &link] {
            let refused = refuse_among_devices(path).expect_err("no device");
            assert!(refused.full().ends_with(&format!("there is no device {}", path.display())));
        }
        // Other file systems in memory are.
        for path in [Path::new("/dev/shm"), Path::new("/dev/shm/none"), home.path()] {
            refuse_among_devices(path).expect("a directory like others");
        }
        refuse_among_devices(&home.path().join("none")).expect("a directory like others");
    }
}
