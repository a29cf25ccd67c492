//! Samples of nodes as some version left them, kept in `crates/testkit/samples` for all later
//! versions to open: a directory with store, disks and registry, packed, and what its VDIs hold.
//!
//! The node of a sample was killed, with part of its data at home and part in the log, so that both
//! formats are in it.

use crate::Server;
use crate::bins::root;
use crate::kept::is_in_table;
use crate::loopfs::LoopDevice;
use crate::nbd::{Client, Command};
use crate::process::{run, wait_until};
use crate::rng::Rng;
use crate::sheep::Sheep;
use crate::stamp::{BLOCK, crc};
use crate::tools::command;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const HOLDS: &str = "holds.json";
const MIB: usize = 1 << 20;
/// Two fragments and a bit: the last one is not whole.
const BYTES: usize = 9 * MIB + 4096;

/// Where a node has its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// In its store.
    Alone,
    /// On two disks elsewhere.
    Disks,
    /// On a block device.
    Device,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Alone, Self::Disks, Self::Device];

    /// For file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Disks => "disks",
            Self::Device => "device",
        }
    }
}

/// A sample at a place of its own.
#[derive(Debug)]
pub struct Sample {
    /// Its node, not running.
    pub sheep: Sheep,
    /// What its VDIs must hold.
    pub vdis: Vec<Held>,
    /// What the offline tools are told.
    pub paths: String,
    _device: Option<LoopDevice>,
    _home: tempfile::TempDir,
}

/// What a VDI holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// CRC-64/NVME of all its bytes.
    pub crc: u64,
}

/// Every sample there is.
///
/// # Panics
/// When the directory cannot be read.
#[must_use]
pub fn all() -> Vec<PathBuf> {
    let entries = fs::read_dir(directory()).expect("the samples");
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    all.sort();
    all
}

fn directory() -> PathBuf {
    root().join("crates/testkit/samples")
}

/// The node of a kind at `home`; `None` for who may make no devices.
fn node(kind: Kind, home: &Path) -> Option<(Sheep, String, Option<LoopDevice>)> {
    let mut sheep = Sheep::at(&home.join("store"), &["-j", "size=64M"]);
    let (disks, device) = match kind {
        Kind::Alone => (Vec::new(), None),
        Kind::Disks => (vec![home.join("disk0"), home.join("disk1")], None),
        Kind::Device => {
            let device = LoopDevice::at(&home.join("image"))?;
            (vec![device.path().to_owned()], Some(device))
        }
    };
    sheep.set_disks(&disks.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    let mut paths = vec![home.join("store")];
    paths.extend(disks);
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    Some((sheep, paths.join(","), device))
}

impl Sample {
    /// Unpacks one; `None`, with a line, where that is not possible.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn open(packed: &Path) -> Option<Self> {
        let name = packed.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|kind| name.contains(kind.name()));
        let kind = kind.unwrap_or_else(|| panic!("of what kind is {}?", packed.display()));
        let home = tempfile::tempdir().expect("a directory");
        let _ = run(command("tar").arg("-xzSf").arg(packed).arg("-C").arg(home.path()), b"").ok();
        let (sheep, paths, device) = node(kind, home.path())?;
        let holds = fs::read(home.path().join(HOLDS)).expect("what it holds");
        let holds: Value = serde_json::from_slice(&holds).expect("JSON");
        let vdis = holds.as_array().expect("a list").iter().map(|held| Held {
            name: held["name"].as_str().expect("a name").to_owned(),
            size: held["size"].as_u64().expect("a size") as usize,
            crc: held["crc"].as_u64().expect("a checksum"),
        });
        Some(Self { sheep, vdis: vdis.collect(), paths, _device: device, _home: home })
    }
}

/// Makes a sample of this version and keeps it under `label`; says where.
///
/// # Panics
/// When anything fails.
#[must_use]
pub fn make(label: &str, kind: Kind) -> PathBuf {
    let home = tempfile::tempdir().expect("a directory");
    if kind == Kind::Device {
        let image = File::create(home.path().join("image")).expect("an image");
        image.set_len(320 << 20).expect("its size");
    }
    let (mut sheep, _, device) = node(kind, home.path()).expect("samples are made by root");
    sheep.start();
    let dog = sheep.dog();
    let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
    for words in [
        &["vdi", "create", "disk", "9441280"][..],
        &["vdi", "create", "räserved", "-P", "2M"],
        &["vdi", "create", "empty", "4T"],
        &["vdi", "create", "gone", "9441280"],
    ] {
        let _ = dog.run(words).ok();
    }
    let mut content = vec![0; BYTES];
    let mut rng = Rng::new(3);
    write(&sheep, "disk", &mut content, &mut rng);
    write(&sheep, "gone", &mut vec![0; BYTES], &mut rng);
    let _ = dog.run(&["vdi", "delete", "gone"]).ok();
    // Behind a clean end everything is at home.
    sheep.stop();
    sheep.start();
    write(&sheep, "disk", &mut content, &mut rng);
    let _ = sheep.dog().run(&["vdi", "create", "small", "4096"]).ok();
    wait_until("all are in the copies of the table", || {
        let places = with_tables(home.path());
        !places.is_empty() && places.iter().all(|place| is_in_table(place, "small"))
    });
    sheep.kill();
    // What it asked the device for may still be on its way.
    drop(device);
    let zeros =
        |name: &str, size: usize| json!({"name": name, "size": size, "crc": crc(&vec![0; size])});
    let holds = json!([
        {"name": "disk", "size": BYTES, "crc": crc(&content)},
        zeros("räserved", 2 * MIB),
        zeros("small", BLOCK),
    ]);
    fs::write(home.path().join(HOLDS), format!("{holds:#}\n")).expect("write");
    let packed = directory().join(format!("{label}-{}.tar.gz", kind.name()));
    let mut tar = command("tar");
    tar.args(["-czSf"]).arg(&packed).arg("-C").arg(home.path());
    let running = ["--exclude=*.sock", "--exclude=*.log", "--exclude=./.sheepdog-local/*.run"];
    let _ = run(tar.args(running).arg("."), b"").ok();
    packed
}

/// The directories from here on that have a copy of the VDI table.
fn with_tables(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(with_tables(&path));
        } else if path.ends_with("table") {
            found.push(directory.to_owned());
        }
    }
    found
}

/// Small and large writes, over each other, and discards; of bytes that pack well.
fn write(sheep: &Sheep, vdi: &str, content: &mut [u8], rng: &mut Rng) {
    let mut client = Client::connect(sheep.socket(), vdi).expect("connect");
    for step in 0..200_u64 {
        let longest = if step % 20 == 0 { 256 } else { 4 };
        let len = BLOCK * (1 + rng.below(longest) as usize);
        let at = BLOCK * rng.below(((content.len() - len) / BLOCK + 1) as u64) as usize;
        let part = &mut content[at..at + len];
        if step % 10 == 9 {
            part.fill(0);
            let reply = client.call(Command::Trim, 0, at as u64, len as u32, &[]).expect("trim");
            assert_eq!(reply.error, 0);
        } else {
            let value = rng.next_u64();
            part.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
            client.write(at as u64, part).expect("write");
        }
    }
}
