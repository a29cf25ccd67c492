//! Space for the registry's next start on a file system that is full, whoever filled it. SQLite
//! makes its log and its index of it anew at each start, and a claim is a write; without a
//! reserve a sheep could not start to serve the data it has.
//!
//! Held as a file whose space is allocated. It gives way when a start finds little space, most of it
//! also when a deletion finds none, and is made again when there is plenty, or at a clean end from
//! what SQLite just gave back.

use super::paths::Paths;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::path::PathBuf;

/// Enough for log and index of a start, the writes of a claim and of some deletions.
const BYTES: u64 = 1 << 20;
/// The least that helps: SQLite's index takes 32 KiB, a start's log about 100.
const BYTES_MIN: u64 = 128 << 10;
/// What a start may count on, whatever was deleted before.
const BYTES_START: u64 = 2 * BYTES_MIN;
/// Below this much free space the reserve gives way.
const SHORT: u64 = 4 << 20;
/// From this much on it is made again.
const PLENTY: u64 = 16 << 20;

fn file(paths: &Paths) -> PathBuf {
    paths.run.join("reserve")
}

fn free(paths: &Paths) -> Option<u64> {
    let stat = rustix::fs::statvfs(&paths.run).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Before the registry is opened: its space is free if there is little other.
pub(super) fn give_way(paths: &Paths) {
    if free(paths).is_some_and(|free| free < SHORT) {
        // If it is not there, there is nothing to give.
        let _ = std::fs::remove_file(file(paths));
    }
}

/// Now, except for what the next start needs.
pub(super) fn give_most(paths: &Paths) {
    // If it is not there, there is nothing to give.
    let Ok(held) = OpenOptions::new().write(true).open(file(paths)) else {
        return;
    };
    if held.metadata().is_ok_and(|found| found.len() > BYTES_START) {
        let _ = held.set_len(BYTES_START);
    }
}

/// While the registry is open: made again if that takes nobody's space.
pub(super) fn make_again(paths: &Paths) {
    if free(paths).is_some_and(|free| free >= PLENTY) {
        hold(paths);
    }
}

/// After a clean end: from what there is, as much as possible.
pub(super) fn hold(paths: &Paths) {
    let path = file(paths);
    let is_held = |held: File| held.metadata().is_ok_and(|found| found.len() >= BYTES);
    if File::open(&path).is_ok_and(is_held) {
        return;
    }
    let Ok(made) = OpenOptions::new().write(true).create(true).truncate(false).open(&path) else {
        return;
    };
    let mut bytes = BYTES;
    while bytes >= BYTES_MIN {
        if fallocate(&made, FallocateFlags::empty(), 0, bytes).is_ok() {
            return;
        }
        bytes /= 2;
    }
    // A file system that cannot allocate, or has not even that.
    let _ = std::fs::remove_file(&path);
}
