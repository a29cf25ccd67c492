//! Running the guest: QEMU in software emulation, its disks over NBD, its console read line by
//! line.

use super::cpio::Archive;
use super::kernel::Kernel;
use super::root::libraries;
use crate::process::Process;
use crate::shown;
use crate::tools::{command, find};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest silence of a guest that is not stuck. Software emulation on a busy machine is slow.
const SILENCE: Duration = Duration::from_secs(240);

/// How long QEMU holds requests back while it tries to reach a server again, in seconds.
const RECONNECT: u32 = 120;

/// The first program of the guest: loads what a disk needs and goes over to the root disk.
const FIRST: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
/bin/busybox mount -t ext4 /dev/vda /root || echo GUEST failed: no root disk
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
";

/// One disk of the guest: an export on a unix socket.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The NBD server's socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
}

/// A running guest.
#[derive(Debug)]
pub struct Machine {
    qemu: Process,
    lines: Receiver<String>,
    console: PathBuf,
}

impl Machine {
    /// Boots from the first disk, with `job` on the kernel's command line. Console and logs go
    /// into `dir`.
    ///
    /// # Panics
    /// When kernel or QEMU are missing.
    #[must_use]
    pub fn boot(dir: &Path, disks: &[Disk], job: &str) -> Self {
        let kernel = Kernel::find()
            .unwrap_or_else(|| panic!("no kernel for the guest: `cargo xtask deps` gets one"));
        let initramfs = dir.join("initramfs");
        fs::write(&initramfs, first_files(&kernel)).expect("write the initramfs");
        let log = dir.join(format!("qemu-{}.log", job.replace(' ', "-")));
        let console = log.with_extension("console");
        let mut qemu = command("qemu-system-x86_64");
        qemu.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initramfs)
            .arg("-append")
            .arg(format!("console=ttyS0 loglevel=4 panic=-1 job={job}"));
        for (number, disk) in disks.iter().enumerate() {
            qemu.arg("-blockdev")
                .arg(format!(
                    "driver=nbd,node-name=disk{number},export={},server.type=unix,server.path={},\
                     reconnect-delay={RECONNECT},discard=unmap",
                    disk.export,
                    disk.socket.display()
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=disk{number},discard=on"));
        }
        let mut qemu = Process::spawn_heard("qemu", &mut qemu, &log);
        let stdout = qemu.child().stdout.take().expect("piped");
        let mut copy = fs::File::create(&console).expect("create the console log");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                let _ = writeln!(copy, "{line}");
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { qemu, lines, console }
    }

    /// The next thing the guest reports, without the word GUEST; `None` once it is off.
    ///
    /// # Panics
    /// When the guest reports a failure, its kernel an error, or neither says anything for long.
    pub fn report(&mut self) -> Option<String> {
        let end = Instant::now() + SILENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("the guest is silent\n{}", self.said()),
            };
            for bad in [
                "GUEST failed",
                "I/O error",
                "EXT4-fs error",
                "EXT4-fs warning",
                "Kernel panic",
                "BUG:",
            ] {
                assert!(!line.contains(bad), "{line}\n{}", self.said());
            }
            if let Some(at) = line.find("GUEST ") {
                let report = line[at + 6..].to_owned();
                return (report != "off").then_some(report);
            }
        }
    }

    /// Waits until QEMU has ended by itself.
    ///
    /// # Panics
    /// When it ends with an error.
    pub fn wait_off(&mut self) {
        let status = self.qemu.wait(SILENCE);
        assert!(status.success(), "qemu: {status}\n{}", self.said());
    }

    /// What was on the console and what QEMU said, shortened if that is much.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}\nqemu: {}", shown::file(&self.console, 0), self.qemu.log())
    }
}

fn first_files(kernel: &Kernel) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "root", "modules"] {
        archive.directory(dir);
    }
    archive.program("init", FIRST.as_bytes());
    let busybox = find("busybox").expect("busybox: `cargo xtask deps` gets it");
    archive.program("bin/busybox", &fs::read(&busybox).expect("read busybox"));
    let mut made = std::collections::BTreeSet::new();
    for library in libraries(&busybox) {
        let path = library.strip_prefix("/").unwrap_or(&library).to_owned();
        for dir in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
            let dir = dir.to_string_lossy().into_owned();
            if !dir.is_empty() && made.insert(dir.clone()) {
                archive.directory(&dir);
            }
        }
        let bytes = fs::read(&library).expect("read a library");
        archive.program(&path.to_string_lossy(), &bytes);
    }
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let bytes = fs::read(module).expect("read a module");
        archive.program(&format!("modules/{name}"), &bytes);
    }
    archive.finish()
}
