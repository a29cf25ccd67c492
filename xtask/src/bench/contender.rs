//! Who is compared, and the disk they share.

use anyhow::{Context, Result};
use sheepdog_testkit::Server;
use sheepdog_testkit::qemu_nbd::QemuNbd;
use sheepdog_testkit::sheep::{Sheep, uri};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One side of the comparison.
pub struct Contender {
    /// In the table.
    pub name: &'static str,
    /// When an acknowledged write is durable.
    pub durability: &'static str,
    /// How fio reaches it.
    pub target: Target,
    /// Keeps the server running.
    _server: Option<Box<dyn Server>>,
}

/// How fio reaches a contender.
pub enum Target {
    /// A file, opened with `O_DIRECT`, and `O_DSYNC` for writes.
    File(PathBuf),
    /// An NBD export.
    Uri(String),
}

impl Contender {
    /// fio on a file.
    pub fn direct(dir: &Path, bytes: u64) -> Result<Self> {
        let file = preallocated(&dir.join("direct.raw"), bytes)?;
        Ok(Self {
            name: "direct",
            durability: "fio on the file: O_DIRECT|O_DSYNC writes, durable when done; O_DIRECT reads",
            target: Target::File(file),
            _server: None,
        })
    }

    /// qemu-nbd on a file.
    pub fn qemu_nbd(dir: &Path, cache: &'static str, bytes: u64) -> Result<Self> {
        let file = preallocated(&dir.join(format!("{cache}.raw")), bytes)?;
        let server = QemuNbd::serve(&file, cache);
        let target = Target::Uri(uri(server.socket(), "disk"));
        let (name, durability) = match cache {
            "directsync" => {
                ("directsync", "qemu-nbd --cache=directsync: durable when acknowledged")
            }
            _ => (
                "none",
                "qemu-nbd --cache=none: writes NOT durable until a flush, which is not sent",
            ),
        };
        Ok(Self { name, durability, target, _server: Some(Box::new(server)) })
    }

    /// A sheep.
    pub fn sheep(dir: &Path, bytes: u64) -> Result<Self> {
        let mut sheep = Sheep::at(&dir.join("store"), &[]);
        sheep.start();
        let dog = sheep.dog();
        let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
        let size = bytes.to_string();
        let _ = dog.run(&["vdi", "create", "bench", &size]).ok();
        Ok(Self {
            name: "sheep",
            durability: "sheep: durable when acknowledged, with FUA or without",
            target: Target::Uri(sheep.uri("bench")),
            _server: Some(Box::new(sheep)),
        })
    }
}

/// A file whose space is the file system's already, so that writing to it changes data only.
fn preallocated(path: &Path, bytes: u64) -> Result<PathBuf> {
    let file = fs::File::create(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
        .with_context(|| format!("preallocate {}", path.display()))?;
    Ok(path.to_owned())
}

/// The kernel's counters of the disk that a directory is on.
pub struct DiskStat {
    file: PathBuf,
    name: String,
}

impl DiskStat {
    /// Finds the disk.
    pub fn of(dir: &Path) -> Result<Self> {
        let device = fs::metadata(dir)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let mut node = fs::canonicalize(&link).context("the directory is on no block device")?;
        // Flushes are counted for whole disks only.
        if node.join("partition").exists() {
            node.pop();
        }
        let name = node.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self { file: node.join("stat"), name: format!("/dev/{name}") })
    }

    /// The disk's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Flushes the device has completed.
    pub fn flushes(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.file)?;
        // Documentation/block/stat.rst: the 16th number.
        let flushes = text.split_whitespace().nth(15);
        let flushes = flushes.context("this kernel does not count flushes")?;
        Ok(flushes.parse()?)
    }
}
