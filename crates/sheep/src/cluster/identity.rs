//! `STORE/identity`: which disk this is and which cluster it belongs to. Written before there is
//! anything else in a store, and before its cluster may get data.

use sheepdog_types::{DiskId, Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const FILE: &str = "identity";
const NEW_FILE: &str = "identity.new";
/// The newest format this program reads, and the one it writes.
const FORMAT: i64 = 1;
/// The file is a few lines.
const BYTES_MAX: u64 = 64 << 10;

/// The store's memory of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    dir: PathBuf,
    /// This disk, for ever.
    pub disk: DiskId,
    /// The formatted cluster it belongs to; `None` as long as it holds nothing.
    pub cluster: Option<Uuid>,
    /// Driver string of that cluster's registry.
    pub registry: Option<String>,
    /// The registry this process has joined.
    joined: Option<(Uuid, Option<String>)>,
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
        match std::fs::metadata(&path) {
            Ok(found) if found.len() > BYTES_MAX => Err(damaged(&path, "it is too long")),
            Ok(_) => {
                let text = std::fs::read_to_string(&path).map_err(failed)?;
                parse(dir, &path, &text).map(Some)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// A new disk in an empty directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let identity = Self {
            dir: dir.to_owned(),
            disk: DiskId(Uuid::new_v4().into_bytes()),
            cluster: None,
            registry: None,
            joined: None,
        };
        identity.write()?;
        Ok(identity)
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
        let new = Self { cluster: Some(cluster), registry, ..self.clone() };
        if new != *self {
            new.write()?;
            *self = new;
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let mut text = format!("format = {FORMAT}\ndisk = \"{}\"\n", self.disk);
        if let Some(cluster) = self.cluster {
            text.push_str(&format!("cluster = \"{cluster}\"\n"));
        }
        if let Some(registry) = &self.registry {
            // A string of JSON is one of TOML, but for the one control character JSON lets pass.
            let quoted = serde_json::Value::String(registry.clone()).to_string();
            text.push_str(&format!("registry = {}\n", quoted.replace('\u{7f}', "\\u007f")));
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

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("{} is damaged: {why}", path.display()))
}

fn parse(dir: &Path, path: &Path, text: &str) -> Result<Identity> {
    let table: toml::Table = text.parse().map_err(|_| damaged(path, "it is not TOML"))?;
    match table.get("format").and_then(toml::Value::as_integer) {
        Some(FORMAT) => {}
        Some(newer) if newer > FORMAT => {
            return Err(Error::new(
                ErrorKind::VersionMismatch,
                format!("the store {} was written by a newer version", dir.display()),
            ));
        }
        _ => return Err(damaged(path, "it has no format")),
    }
    let uuid = |key: &str| match table.get(key) {
        None => Ok(None),
        Some(value) => value
            .as_str()
            .and_then(|text| Uuid::try_parse(text).ok())
            .map(Some)
            .ok_or_else(|| damaged(path, key)),
    };
    let disk = uuid("disk")?.ok_or_else(|| damaged(path, "it names no disk"))?;
    let registry = table.get("registry").and_then(toml::Value::as_str);
    Ok(Identity {
        dir: dir.to_owned(),
        disk: DiskId(disk.into_bytes()),
        cluster: uuid("cluster")?,
        registry: registry.map(str::to_owned),
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
        let mut identity = Identity::create(dir.path()).expect("create");
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
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE);
        for (text, kind) in [
            ("format = 2\n", ErrorKind::VersionMismatch),
            ("", ErrorKind::Io),
            ("format = 1\n", ErrorKind::Io),
            ("format = 1\ndisk = 5\n", ErrorKind::Io),
            ("format = 1\ndisk = \"x\"\n", ErrorKind::Io),
            ("\0\0\0", ErrorKind::Io),
        ] {
            std::fs::write(&path, text).expect("write");
            let error = Identity::read(dir.path()).expect_err(text);
            assert_eq!(error.kind(), kind, "{text}");
            assert!(!error.full().contains('\n'));
        }
    }
}
