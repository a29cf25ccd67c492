//! Where our own programs are: beside the running one, built when they are not up to date.

use crate::shown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Names the directory of ready-built `sheep` and `dog`; without it they are built on first use.
pub const BIN_DIR: &str = "SHEEPDOG_BIN_DIR";

/// `target/<profile>` of the running program.
///
/// # Panics
/// When the running program is not below a target directory.
#[must_use]
pub fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the running program has a path");
    let dir = exe.parent().expect("a file has a directory");
    // Tests run in target/<profile>/deps, programs in target/<profile>.
    if dir.ends_with("deps") {
        dir.parent().expect("deps has a parent").to_owned()
    } else {
        dir.to_owned()
    }
}

/// The target directory, where things that may be thrown away are kept.
///
/// # Panics
/// As [`profile_dir`].
#[must_use]
pub fn target_dir() -> PathBuf {
    let dir = profile_dir();
    dir.parent().expect("a profile has a parent").to_owned()
}

/// The root of the work tree.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().expect("the work tree")
}

static DIR: OnceLock<PathBuf> = OnceLock::new();

/// Takes our programs from `dir`. Only the first call counts, and only before [`bin`].
pub fn use_dir(dir: PathBuf) {
    let _ = DIR.set(dir);
}

/// Path of one of our programs.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn bin(name: &str) -> PathBuf {
    let dir = DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os(BIN_DIR) {
            return PathBuf::from(dir);
        }
        let dir = profile_dir();
        let profile = match dir.file_name().and_then(|n| n.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        build(profile)
    });
    dir.join(name)
}

/// Builds sheep and dog (cargo's own lock keeps parallel callers apart) and says where they are.
///
/// # Panics
/// When the build fails.
#[must_use]
pub fn build(profile: &str) -> PathBuf {
    let target = target_dir();
    // Into a file, as whatever cargo starts may stay longer than it does.
    let log = tempfile::NamedTempFile::new().expect("a log");
    let out = || log.reopen().expect("open the log");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root())
        .args(["build", "--quiet", "--bins", "--profile", profile])
        .args(["-p", "sheepdog-sheep", "-p", "sheepdog-dog"])
        .arg("--target-dir")
        .arg(&target)
        .stdin(Stdio::null())
        .stdout(out())
        .stderr(out())
        .status()
        .expect("start cargo");
    let said = shown::file(log.path(), 0);
    assert!(status.success(), "cargo build of sheep and dog failed\n{said}");
    target.join(if profile == "dev" { "debug" } else { profile })
}
