//! The main job, from nothing: build, start a sheep on a local directory, format, make a disk,
//! say how to use it. Run again, it picks up what is there.

use crate::shell::{cargo, output, step};
use anyhow::{Context, Result, bail};
use sheepdog_testkit::bins::{root, target_dir};
use sheepdog_testkit::sheep::free_port;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIR: &str = ".sheepdog-demo";
const PORT: u16 = 7000;
const VDI: &str = "demo";
const SIZE: &str = "8G";

struct Demo {
    sheep: PathBuf,
    dog: PathBuf,
    store: PathBuf,
    port: u16,
}

/// `demo [IMAGE]`.
pub fn run(args: &[&str]) -> Result<()> {
    let image = match args {
        [] => None,
        [image] if !image.starts_with('-') => {
            Some(fs::canonicalize(image).with_context(|| format!("the image {image}"))?)
        }
        _ => bail!("Usage: ./start [IMAGE]   (a raw or qcow2 image to make the disk from)"),
    };
    step(
        "build sheep and dog",
        &mut cargo(&[
            "build",
            "--release",
            "--locked",
            "-p",
            "sheepdog-sheep",
            "-p",
            "sheepdog-dog",
        ]),
    )?;
    let root = root();
    let home = root.join(DIR);
    fs::create_dir_all(&home)?;
    let bin = target_dir().join("release");
    let mut demo = Demo {
        sheep: bin.join("sheep"),
        dog: bin.join("dog"),
        store: home.join("store"),
        port: PORT,
    };
    demo.start(&home)?;
    demo.format()?;
    demo.disk(image.as_deref())?;
    demo.explain(&root);
    Ok(())
}

impl Demo {
    fn start(&mut self, home: &Path) -> Result<()> {
        let note = home.join("port");
        if UnixStream::connect(self.store.join("nbd.sock")).is_ok() {
            let port = fs::read_to_string(&note).unwrap_or_default();
            self.port = port.trim().parse().unwrap_or(PORT);
            println!("==> a sheep is already running on {DIR}, port {}", self.port);
            return Ok(());
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).is_err() {
            self.port = free_port();
            println!("    port {PORT} is taken, using {}", self.port);
        }
        let mut sheep = Command::new(&self.sheep);
        sheep
            .args(["-b", "127.0.0.1", "-p", &self.port.to_string()])
            .arg("-P")
            .arg(home.join("sheep.pid"))
            .arg(&self.store);
        step("start sheep", &mut sheep)?;
        fs::write(note, self.port.to_string())?;
        Ok(())
    }

    fn dog(&self, words: &[&str]) -> Command {
        let mut dog = Command::new(&self.dog);
        dog.args(words).args(["-p", &self.port.to_string()]);
        dog
    }

    fn format(&self) -> Result<()> {
        let info = output(&mut self.dog(&["cluster", "info"]))?;
        if info.contains("Waiting for cluster to be formatted") {
            step("format, one copy", &mut self.dog(&["cluster", "format", "-c", "1"]))?;
        }
        Ok(())
    }

    fn disk(&self, image: Option<&Path>) -> Result<()> {
        if !output(&mut self.dog(&["vdi", "list", "-r", VDI]))?.is_empty() {
            println!("==> the VDI \"{VDI}\" is there already; it stays as it is");
            if let Some(image) = image {
                println!(
                    "    {} was not imported; under another name: {} vdi import NAME '{}' -p {}",
                    image.display(),
                    self.dog.display(),
                    image.display(),
                    self.port
                );
            }
            return Ok(());
        }
        let Some(image) = image else {
            let what = format!("create the VDI \"{VDI}\", {SIZE}, thin");
            return step(&what, &mut self.dog(&["vdi", "create", VDI, SIZE]));
        };
        println!("==> import {} as the VDI \"{VDI}\"", image.display());
        let mut import = self.dog(&["vdi", "import", VDI]);
        // With our terminal, for its progress bar.
        let status = import.arg(image).stdin(Stdio::null()).status()?;
        if !status.success() {
            bail!("the import failed");
        }
        Ok(())
    }

    fn explain(&self, root: &Path) {
        let short = |path: &Path| {
            let path = path.strip_prefix(root).unwrap_or(path);
            path.display().to_string()
        };
        let socket = short(&self.store.join("nbd.sock"));
        let dog = short(&self.dog);
        let port = match self.port {
            PORT => String::new(),
            port => format!(" -p {port}"),
        };
        println!(
            "
Sheepdog is running. Everything below is typed in {root}.

  Look around:   {dog} vdi list{port}
                 {dog} node info{port}
  Use the disk, in a virtual machine (its data survives kill -9 of sheep; QEMU reconnects):
                 qemu-system-x86_64 -m 1G \\
                   -blockdev driver=nbd,node-name=d0,server.type=unix,server.path={socket},export={VDI},reconnect-delay=60,discard=unmap \\
                   -device virtio-blk-pci,drive=d0
  or with any NBD client:
                 nbdinfo 'nbd+unix:///{VDI}?socket={socket}'
                 qemu-img convert -n -O raw IMAGE 'nbd+unix:///{VDI}?socket={socket}'
  More disks:    {dog} vdi create NAME 20G{port}
                 {dog} vdi import NAME IMAGE.qcow2{port}
  Stop:          {dog} cluster shutdown{port}      (./start goes on where it stopped)
  Throw away:    stop, then rm -r {DIR}",
            root = root.display()
        );
    }
}
