//! The guest's root disk: busybox, the tools of ext4 and one script, in an ext4 image that
//! `mke2fs` fills and `qemu-img` turns into qcow2.

use crate::process::run;
use crate::tools::{command, find};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Size of the root disk.
pub const ROOT_BYTES: u64 = 96 << 20;

/// What the guest does once its root disk is mounted; `job=` on the kernel's command line chooses.
/// Every line it owes the host begins with `GUEST`.
const INIT: &str = include_str!("init.sh");

/// Makes the root disk as a qcow2 image in `dir`.
///
/// # Panics
/// When a tool is missing or fails.
#[must_use]
pub fn make(dir: &Path) -> PathBuf {
    let tree = dir.join("root");
    for sub in ["bin", "sbin", "proc", "sys", "dev", "mnt", "etc", "tmp"] {
        fs::create_dir_all(tree.join(sub)).expect("make the tree");
    }
    for program in ["busybox", "mke2fs", "e2fsck"] {
        add_program(&tree, program);
    }
    fs::write(tree.join("sbin/init"), INIT).expect("write init");
    executable(&tree.join("sbin/init"));
    let raw = dir.join("root.raw");
    let image = fs::File::create(&raw).expect("create the image");
    image.set_len(ROOT_BYTES).expect("size the image");
    let _ = run(command("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&raw), b"")
        .ok();
    let qcow2 = dir.join("root.qcow2");
    let _ = run(
        command("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&qcow2),
        b"",
    )
    .ok();
    fs::remove_file(raw).expect("remove the raw image");
    fs::remove_dir_all(tree).expect("remove the tree");
    qcow2
}

/// Copies a program with the libraries it is linked to.
fn add_program(tree: &Path, program: &str) {
    let file = find(program).unwrap_or_else(|| panic!("{program}: see `cargo xtask deps`"));
    let place = if program == "busybox" { "bin" } else { "sbin" };
    copy(&file, &tree.join(place).join(program));
    for library in libraries(&file) {
        copy(&library, &tree.join(library.strip_prefix("/").unwrap_or(&library)));
    }
}

/// The libraries of a dynamic program, none for a static one.
#[must_use]
pub fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let listed = run(command("ldd").arg(program).env("LC_ALL", "C"), b"");
    // `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux.so.2 (0x…)`
    listed
        .text()
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("below the tree")).expect("make the directory");
    fs::copy(from, to).unwrap_or_else(|e| panic!("copy {}: {e}", from.display()));
    executable(to);
}

fn executable(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("chmod");
}
