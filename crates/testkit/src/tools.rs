//! The other people's programs that the tests use as judges, and where they come from.

use std::path::PathBuf;
use std::process::Command;

/// Program and the Debian package that has it.
pub const TOOLS: [(&str, &str); 14] = [
    ("busybox", "busybox-static"),
    // For libFuzzer.
    ("c++", "g++"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("fio", "fio"),
    ("ldd", "libc-bin"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];

/// Finds a program in `PATH` and where systems keep those for root.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A command for a program that must be there.
///
/// # Panics
/// With one line that says what to do when it is not.
#[must_use]
pub fn command(program: &str) -> Command {
    let found = find(program).unwrap_or_else(|| {
        panic!("{program} is not on this machine: `cargo xtask deps` says how to get it")
    });
    Command::new(found)
}

/// Whether the tests may mount things.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
