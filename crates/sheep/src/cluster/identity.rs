//! `STORE/identity`: which disk this is and which cluster it belongs to. Written before there is
//! anything else in a store, and before its cluster may get data. With several disks the store's
//! directory names them, and each of them names the store.

use crate::regular;
use sheepdog_types::{DiskId, Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const FILE: &str = "identity";
const NEW_FILE: &str = "identity.new";
/// A store that is its own only disk. Older programs read nothing else.
const FORMAT_ALONE: i64 = 1;
/// A store with disks elsewhere, or one of those disks. The newest this program reads.
const FORMAT_DISKS: i64 = 2;
/// The file is a few lines.
const BYTES_MAX: u64 = 64 << 10;

/// The store's memory of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Where it is remembered.
    dir: PathBuf,
    /// This disk, for ever.
    pub disk: DiskId,
    /// The formatted cluster it belongs to; `None` as long as it holds nothing.
    pub cluster: Option<Uuid>,
    /// Driver string of that cluster's registry.
    pub registry: Option<String>,
    /// The disks of this node, if they are elsewhere; this directory holds no data then.
    pub disks: Vec<KnownDisk>,
    /// The store this disk was added to; `None` for a store's own directory.
    pub node: Option<DiskId>,
    /// The registry this process has joined.
    joined: Option<(Uuid, Option<String>)>,
}

/// A disk as its node remembers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownDisk {
    /// Which.
    pub id: DiskId,
    /// Where it was seen last, absolute.
    pub path: PathBuf,
}

impl Identity {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// [`ErrorKind::VersionMismatch`] for a newer version's, [`ErrorKind::Io`] for what cannot be
    /// read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let failed = |e: std::io::Error| {
            Error::with_source(ErrorKind::Io, format!("cannot read {}", path.display()), e)
        };
        let read = || -> std::io::Result<Vec<u8>> {
            let file = regular::open(&path, File::options().read(true))?;
            let mut bytes = Vec::new();
            file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) if bytes.len() as u64 > BYTES_MAX => Err(damaged(&path, "it is too long")),
            Ok(bytes) => {
                let text = str::from_utf8(&bytes).map_err(|_| damaged(&path, "it is not TOML"))?;
                parse(dir, &path, text).map(Some)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// A new disk in an empty directory: a store's own, or one of the store `node`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(dir: &Path, node: Option<DiskId>) -> Result<Self> {
        Self::create_of(Self::new_disk(), dir, node)
    }

    /// An id that no disk has.
    #[must_use]
    pub fn new_disk() -> DiskId {
        DiskId(Uuid::new_v4().into_bytes())
    }

    /// As [`Identity::create`] with an id made before.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create_of(disk: DiskId, dir: &Path, node: Option<DiskId>) -> Result<Self> {
        let identity = Self {
            dir: dir.to_owned(),
            disk,
            cluster: None,
            registry: None,
            disks: Vec::new(),
            node,
            joined: None,
        };
        identity.write()?;
        Ok(identity)
    }

    /// The file that is read and written.
    #[must_use]
    pub fn file_in(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Where it is remembered.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the store never belonged to a formatted cluster, and so holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cluster.is_none()
    }

    /// Notes which registry this process has joined, to be remembered when its cluster is
    /// formatted. Without a driver string `-c` is needed at each start.
    pub fn join(&mut self, cluster: Uuid, registry: Option<String>) {
        self.joined = Some((cluster, registry));
    }

    /// Remembers, durably, the cluster that was joined. Must come before it is formatted.
    ///
    /// # Errors
    /// It cannot be written; nothing is remembered then.
    pub fn remember_cluster(&mut self) -> Result<()> {
        let Some((cluster, registry)) = self.joined.clone() else {
            return Ok(());
        };
        self.change(Self { cluster: Some(cluster), registry, ..self.clone() })
    }

    /// Remembers, durably, which disks the node has and where they are.
    ///
    /// # Errors
    /// As [`Identity::remember_cluster`]; [`ErrorKind::Invalid`] for a path that is not UTF-8.
    pub fn remember_disks(&mut self, disks: Vec<KnownDisk>) -> Result<()> {
        self.change(Self { disks, ..self.clone() })
    }

    /// Remembers, durably, the store this disk belongs to. It must hold nothing: a cluster that it
    /// remembers, of a format that came to nothing, is forgotten.
    ///
    /// # Errors
    /// As [`Identity::remember_cluster`].
    pub fn remember_node(&mut self, node: DiskId) -> Result<()> {
        self.change(Self { node: Some(node), cluster: None, registry: None, ..self.clone() })
    }

    fn change(&mut self, new: Self) -> Result<()> {
        if new != *self {
            new.write()?;
            *self = new;
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let alone = self.disks.is_empty() && self.node.is_none();
        let format = if alone { FORMAT_ALONE } else { FORMAT_DISKS };
        let mut text = format!("format = {format}\ndisk = \"{}\"\n", self.disk);
        if let Some(node) = self.node {
            text.push_str(&format!("node = \"{node}\"\n"));
        }
        if let Some(cluster) = self.cluster {
            text.push_str(&format!("cluster = \"{cluster}\"\n"));
        }
        if let Some(registry) = &self.registry {
            text.push_str(&format!("registry = {}\n", quoted(registry)));
        }
        for known in &self.disks {
            let path = known.path.to_str().ok_or_else(|| {
                let shown = known.path.display();
                Error::new(ErrorKind::Invalid, format!("the path of disk {shown} is not UTF-8"))
            })?;
            let (id, path) = (known.id, quoted(path));
            text.push_str(&format!("[[disks]]\nid = \"{id}\"\npath = {path}\n"));
        }
        let (path, new) = (self.dir.join(FILE), self.dir.join(NEW_FILE));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o640)
                .open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ErrorKind::NoSpace
                }
                _ => ErrorKind::Io,
            };
            Error::with_source(kind, format!("cannot write {}", path.display()), e)
        })
    }
}

/// What the node and its disks remember.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identities {
    /// The store's own.
    pub node: Identity,
    /// Those of disks elsewhere that are there.
    pub disks: Vec<Identity>,
}

impl Identities {
    /// As [`Identity::remember_cluster`], for all. The node comes last: a disk that remembers a
    /// cluster of which its node knows nothing holds nothing.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn remember_cluster(&mut self) -> Result<()> {
        for disk in &mut self.disks {
            disk.joined.clone_from(&self.node.joined);
            disk.remember_cluster()?;
        }
        self.node.remember_cluster()
    }

    /// Every directory that belongs to the node.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().chain([&self.node]).map(|identity| identity.dir.as_path())
    }
}

/// As TOML has it.
fn quoted(text: &str) -> String {
    // A string of JSON is one of TOML, but for the one control character JSON lets pass.
    serde_json::Value::String(text.to_owned()).to_string().replace('\u{7f}', "\\u007f")
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("{} is damaged: {why}", path.display()))
}

fn parse(dir: &Path, path: &Path, text: &str) -> Result<Identity> {
    let table: toml::Table = text.parse().map_err(|_| damaged(path, "it is not TOML"))?;
    match table.get("format").and_then(toml::Value::as_integer) {
        Some(FORMAT_ALONE | FORMAT_DISKS) => {}
        Some(newer) if newer > FORMAT_DISKS => {
            return Err(Error::new(
                ErrorKind::VersionMismatch,
                format!("the store {} was written by a newer version", dir.display()),
            ));
        }
        _ => return Err(damaged(path, "it has no format")),
    }
    let uuid_of = |value: &toml::Value| {
        let uuid = value.as_str().and_then(|text| Uuid::try_parse(text).ok());
        uuid.ok_or_else(|| damaged(path, "an id is not one"))
    };
    let uuid = |key: &str| table.get(key).map(uuid_of).transpose();
    let disk_id = |uuid: Uuid| DiskId(uuid.into_bytes());
    let disk = uuid("disk")?.ok_or_else(|| damaged(path, "it names no disk"))?;
    let registry = table.get("registry").and_then(toml::Value::as_str);
    let listed = table.get("disks").and_then(toml::Value::as_array);
    let known = listed.into_iter().flatten().map(|entry| {
        let (id, at) = (entry.get("id"), entry.get("path").and_then(toml::Value::as_str));
        let (Some(id), Some(at)) = (id, at) else {
            return Err(damaged(path, "a disk has no id or no path"));
        };
        Ok(KnownDisk { id: disk_id(uuid_of(id)?), path: at.into() })
    });
    Ok(Identity {
        dir: dir.to_owned(),
        disk: disk_id(disk),
        cluster: uuid("cluster")?,
        registry: registry.map(str::to_owned),
        disks: known.collect::<Result<_>>()?,
        node: uuid("node")?.map(disk_id),
        joined: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_remembers_its_cluster_once_it_is_formatted() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(Identity::read(dir.path()).expect("read"), None);
        let mut identity = Identity::create(dir.path(), None).expect("create");
        assert!(identity.is_empty());
        let read = || Identity::read(dir.path()).expect("read").expect("there");
        assert_eq!(read(), identity);
        let cluster = Uuid::from_bytes([7; 16]);
        let odd = "local:/a \"b\"\\\u{7f}\n\u{1}é";
        identity.join(cluster, Some(odd.to_owned()));
        assert!(read().is_empty(), "not before the format");
        identity.remember_cluster().expect("remember");
        let again = read();
        assert_eq!(again.cluster, Some(cluster));
        assert_eq!(again.registry.as_deref(), Some(odd));
        assert_eq!(again.disk, identity.disk);
    }

    #[test]
    fn a_store_and_its_disks_remember_each_other() {
        let (dir, other) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let mut store = Identity::create(dir.path(), None).expect("create");
        let text = || std::fs::read_to_string(dir.path().join(FILE)).expect("text");
        assert!(text().starts_with("format = 1\n"), "as older versions write and read it");
        let disk = Identity::create(other.path(), Some(store.disk)).expect("create");
        let known = KnownDisk { id: disk.disk, path: "/a \"b\"".into() };
        store.remember_disks(vec![known]).expect("remember");
        assert!(text().starts_with("format = 2\n"), "no older version takes it for empty");
        assert_eq!(Identity::read(dir.path()).expect("read"), Some(store));
        assert_eq!(Identity::read(other.path()).expect("read"), Some(disk));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE);
        for (text, kind) in [
            ("format = 3\n", ErrorKind::VersionMismatch),
            ("", ErrorKind::Io),
            ("format = 1\n", ErrorKind::Io),
            ("format = 1\ndisk = 5\n", ErrorKind::Io),
            ("format = 1\ndisk = \"x\"\n", ErrorKind::Io),
            (
                "format = 2\ndisk = \"00000000-0000-0000-0000-000000000001\"\n[[disks]]\nid = \"x\"\n",
                ErrorKind::Io,
            ),
            ("\0\0\0", ErrorKind::Io),
        ] {
            std::fs::write(&path, text).expect("write");
            let error = Identity::read(dir.path()).expect_err(text);
            assert_eq!(error.kind(), kind, "{text}");
            assert!(!error.full().contains('\n'));
        }
    }
}
