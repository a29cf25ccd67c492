//! What belongs to the node that is looked at, and so is never written: an image in its place would be
//! the end of what it is to save.

use super::Named;
use crate::cluster::{Identity, disks};
use sheepdog_registry::Driver;
use sheepdog_types::{DiskId, Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How deep the files of a store lie: `disks/UUID/identity`.
const DEPTH: usize = 3;

/// See the module.
#[derive(Default)]
pub struct Own {
    /// With all that is in them: store, disks, the registry's directory.
    trees: BTreeSet<PathBuf>,
    /// With the files in them: where logs are.
    around: BTreeSet<PathBuf>,
    /// Logs and devices.
    files: BTreeSet<PathBuf>,
    /// The stores that disks say they belong to: those need not be named.
    nodes: BTreeSet<DiskId>,
}

impl Own {
    /// Of what was named, and of what that knows of.
    pub fn of(paths: &[PathBuf], named: &[Named]) -> Self {
        let mut own = Self::default();
        for path in paths {
            own.add(path);
        }
        for one in named {
            match one {
                Named::Node(node) => {
                    for disk in &node.disks {
                        own.add(&disk.path);
                        own.add(&disks::dir_of_device(node.dir(), disk.id));
                    }
                }
                Named::Disk(disk) => {
                    if let Some(links) = &disk.links {
                        own.add(links);
                    }
                }
                Named::BrokenNode => {}
            }
        }
        own
    }

    fn add(&mut self, path: &Path) {
        if !path.is_dir() {
            self.files.insert(path.to_owned());
            return;
        }
        self.trees.insert(path.to_owned());
        if let Ok(log) = path.join("log").canonicalize() {
            self.around.extend(log.parent().map(Path::to_owned));
            self.files.insert(log);
        }
        let identity = Identity::read(path).ok().flatten();
        self.nodes.extend(identity.as_ref().and_then(|known| known.node));
        let said = identity.and_then(|known| known.registry);
        let driver = said.and_then(|text| Driver::parse(OsStr::new(&text)).ok());
        let given = driver.and_then(|Driver::Local { file }| file);
        let is_given = given.is_some();
        let Ok(registry) = Driver::local_file(given.as_deref(), path) else { return };
        if let Some(around) = registry.parent() {
            // Only the directory that a sheep makes for it is its alone.
            if is_given { &mut self.around } else { &mut self.trees }.insert(around.to_owned());
        }
    }

    /// # Errors
    /// [`ErrorKind::Invalid`] for a file that is the node's, or would be among its files, by whatever
    /// name.
    pub fn refuse(&self, file: &Path) -> Result<()> {
        let real = disks::led_to(&std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
        let found = std::fs::metadata(&real).ok();
        let is_it = |other: &Path| {
            let other = std::fs::metadata(other).ok();
            found.as_ref().zip(other).is_some_and(|(found, other)| is_same(found, &other))
        };
        let around: Vec<(&Path, Metadata)> = real
            .ancestors()
            .skip(1)
            .filter_map(|dir| Some((dir, std::fs::metadata(dir).ok()?)))
            .collect();
        let is_in = |dir: &Path, levels: usize| {
            let Ok(dir) = std::fs::metadata(dir) else { return false };
            around.iter().take(levels).any(|(_, above)| is_same(above, &dir))
        };
        let holds =
            |dir: &Path| is_in(dir, usize::MAX) || (found.is_some() && any_in(dir, DEPTH, &is_it));
        let of_node = |dir: &Path| {
            let identity = Identity::read(dir).ok().flatten();
            identity.is_some_and(|known| self.nodes.contains(&known.disk))
        };
        let whose = self
            .trees
            .iter()
            .find(|dir| holds(dir))
            .or_else(|| self.around.iter().find(|dir| is_in(dir, 1)))
            .or_else(|| self.files.iter().find(|other| is_it(other)))
            .map(PathBuf::as_path)
            .or_else(|| around.iter().map(|(dir, _)| *dir).find(|dir| of_node(dir)));
        let Some(whose) = whose else { return Ok(()) };
        let (file, whose) = (file.display(), whose.display());
        let line = format!("{file} belongs to {whose}, which is only read: choose another file");
        Err(Error::new(ErrorKind::Invalid, line))
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let is_block = one.file_type().is_block_device() && other.file_type().is_block_device();
    (is_block && one.rdev() == other.rdev()) || (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn any_in(dir: &Path, depth: usize, is_it: &dyn Fn(&Path) -> bool) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        if is_dir { depth > 1 && any_in(&path, depth - 1, is_it) } else { is_it(&path) }
    })
}
