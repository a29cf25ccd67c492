//! The words of `sheep -c`: which engine, and where it is.

use sheepdog_types::{Error, ErrorKind, Result};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A parsed driver string.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Driver {
    /// `local[:FILE]`: one file shared by the sheep of one machine.
    Local {
        /// `None`: beside the store, see [`Driver::local_file`].
        file: Option<PathBuf>,
    },
}

impl Driver {
    /// The drivers of this build, as a user types them; for the list below the line
    /// `Invalid cluster driver '...'`.
    pub const AVAILABLE: &[&str] = &["local[:FILE]"];

    /// Planned or known from the original, but not in this build.
    const ELSEWHERE: &[&str] = &["raft", "etcd", "zookeeper", "corosync", "shepherd"];

    /// # Errors
    /// `Unsupported` for a driver that this build lacks; `Invalid` with the context
    /// `Invalid cluster driver '...'` for any other word, and for an empty FILE.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|b| *b == b':');
        let (name, rest) = match colon {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None => (bytes, None),
        };
        match (name, rest) {
            (b"local", None) => Ok(Self::Local { file: None }),
            (b"local", Some(b"")) => {
                Err(Error::new(ErrorKind::Invalid, "cluster driver 'local:' names no file"))
            }
            (b"local", Some(file)) => {
                Ok(Self::Local { file: Some(PathBuf::from(OsStr::from_bytes(file))) })
            }
            _ if Self::ELSEWHERE.iter().any(|known| known.as_bytes() == name) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("cluster driver '{}' is not in this build", String::from_utf8_lossy(name)),
            )),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("Invalid cluster driver '{}'", text.to_string_lossy()),
            )),
        }
    }

    /// The registry file of the `local` driver for a sheep with this store: FILE, or
    /// `.sheepdog-local/registry.db` in the directory that holds the store, so that sheep on
    /// sibling directories form one cluster. Absolute, as a daemon changes its directory.
    ///
    /// # Errors
    /// `Invalid` for a store that has no directory around it.
    pub fn local_file(file: Option<&Path>, store: &Path) -> Result<PathBuf> {
        if let Some(file) = file {
            return std::path::absolute(file)
                .map_err(|e| Error::with_source(ErrorKind::Invalid, "registry file", e));
        }
        let store = named(store)?;
        let Some(around) = store.parent() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("store {} is in no directory", store.display()),
            ));
        };
        Ok(around.join(".sheepdog-local").join("registry.db"))
    }
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { file: None } => f.write_str("local"),
            Self::Local { file: Some(file) } => write!(f, "local:{}", file.display()),
        }
    }
}

impl From<&Driver> for OsString {
    /// The driver string; parses to the same driver, whatever bytes FILE has.
    fn from(driver: &Driver) -> Self {
        match driver {
            Driver::Local { file: None } => Self::from("local"),
            Driver::Local { file: Some(file) } => {
                let mut bytes = b"local:".to_vec();
                bytes.extend_from_slice(file.as_os_str().as_bytes());
                Self::from_vec(bytes)
            }
        }
    }
}

/// The path made absolute, with a real name at its end (`dir/..` has none).
pub(crate) fn named(path: &Path) -> Result<PathBuf> {
    let invalid = |e| Error::with_source(ErrorKind::Invalid, path.display().to_string(), e);
    let absolute = std::path::absolute(path).map_err(invalid)?;
    if absolute.file_name().is_some() {
        Ok(absolute)
    } else {
        absolute.canonicalize().map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Driver> {
        Driver::parse(OsStr::new(text))
    }

    #[test]
    fn local_with_and_without_a_file() {
        assert_eq!(parse("local").expect("local"), Driver::Local { file: None });
        let file = parse("local:/x/y:z").expect("file");
        assert_eq!(file, Driver::Local { file: Some("/x/y:z".into()) });
        let odd = OsString::from_vec(b"local:/\xff".to_vec());
        let driver = Driver::parse(&odd).expect("odd");
        assert_eq!(OsString::from(&driver), odd);
        assert_eq!(parse("local:").expect_err("empty").kind(), ErrorKind::Invalid);
    }

    #[test]
    fn other_drivers_are_named_in_the_refusal() {
        for text in ["raft", "etcd:h:1", "zookeeper:h:1,i:2/c", "corosync"] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.context().ends_with("is not in this build"), "{error}");
        }
        for text in ["", "locally", "Local", "nfs:x", ":"] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert_eq!(error.context(), format!("Invalid cluster driver '{text}'"));
        }
    }

    #[test]
    fn the_default_file_is_beside_the_store() {
        let file = |store: &str| Driver::local_file(None, Path::new(store)).expect(store);
        assert_eq!(file("/x/a"), Path::new("/x/.sheepdog-local/registry.db"));
        assert_eq!(file("/x/a/"), Path::new("/x/.sheepdog-local/registry.db"));
        assert_eq!(file("/usr/lib/.."), Path::new("/.sheepdog-local/registry.db"));
        assert!(Driver::local_file(None, Path::new("/")).is_err());
        let given = Driver::local_file(Some(Path::new("r.db")), Path::new("/x")).expect("given");
        assert!(given.is_absolute() && given.ends_with("r.db"));
    }
}
