//! What a process takes of the machine, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// The most it ever had, its program's pages included.
    pub peak: u64,
    /// What it has of its own now.
    pub own: u64,
}

/// The memory of a process.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn memory(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a known field");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib << 10
    };
    Memory { peak: field("VmHWM:"), own: field("RssAnon:") }
}

/// Processor time of a process and all its threads so far, in whole ticks.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn processor(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name before it may hold anything.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>());
    let ticks: u64 = ticks.map(|ticks| ticks.expect("a number of ticks")).sum();
    Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32
}

/// Bytes written to a block device so far, zeros and discards not counted.
///
/// # Panics
/// When there is no such device.
#[must_use]
pub fn written(device: &std::path::Path) -> u64 {
    let name = device.file_name().and_then(|name| name.to_str()).expect("a device's name");
    let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).expect("a block device");
    let sectors = stat.split_whitespace().nth(6).and_then(|field| field.parse::<u64>().ok());
    sectors.expect("a number of sectors") * 512
}
