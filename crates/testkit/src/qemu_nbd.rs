//! `qemu-nbd` on a raw file: a baseline of the benchmark, and the server that the harness itself
//! is tried against.

use crate::Server;
use crate::process::Process;
use crate::tools::find;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A running `qemu-nbd`.
#[derive(Debug)]
pub struct QemuNbd {
    image: PathBuf,
    cache: String,
    socket: PathBuf,
    process: Option<Process>,
}

impl QemuNbd {
    /// Serves the raw file `image` under the export name `disk` on a socket beside it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn serve(image: &Path, cache: &str) -> Self {
        let mut server = Self {
            image: image.to_owned(),
            cache: cache.to_owned(),
            socket: image.with_extension("sock"),
            process: None,
        };
        server.start();
        server
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }
}

impl Server for QemuNbd {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn start(&mut self) {
        // The socket is ours and handed over (LISTEN_FDS), so clients can connect at once and
        // nobody waits for the server to come up.
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).expect("bind");
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg("export LISTEN_PID=$$; exec \"$0\" \"$@\" 3<&0 </dev/null")
            .arg(find("qemu-nbd").expect("qemu-nbd: `cargo xtask deps` gets it"))
            .args(["--persistent", "--shared=16", "--format=raw"])
            .args(["--discard=unmap", "--export-name=disk"])
            .arg(format!("--cache={}", self.cache))
            // Native I/O is its fastest, and only for uncached files.
            .arg(match self.cache.as_str() {
                "none" | "directsync" => "--aio=native",
                _ => "--aio=threads",
            })
            .arg(&self.image)
            .env("LISTEN_FDS", "1");
        let log = self.image.with_extension("log");
        let input = Stdio::from(OwnedFd::from(listener));
        let process = Process::spawn_with_input("qemu-nbd", &mut command, input, &log);
        self.process = Some(process);
    }

    fn process(&mut self) -> &mut Option<Process> {
        &mut self.process
    }
}
