//! What the device writes for what a client writes, by the device's own count: a real sheep on a
//! disk of its own, from an empty VDI to the clean end of the sheep, so that all is home.

use crate::Server;
use crate::loopfs::{LoopDevice, SmallFs};
use crate::nbd::{self, Command};
use crate::process::run;
use crate::rng::Rng;
use crate::sheep::Sheep;
use crate::usage::written;
use std::path::Path;

/// What the store lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    /// A raw device.
    Device,
    /// Files on ext4, whose own writes count too.
    Files,
}

/// The order of the writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Blocks of 4 KiB anywhere.
    Random,
    /// 1 MiB after the other, from the start again at the end.
    Sequential,
}

/// A measurement; all sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What the store lies on.
    pub ground: Ground,
    /// The order of the writes.
    pub order: Order,
    /// Size of the VDI.
    pub set: u64,
    /// Size of the log.
    pub log: u64,
    /// What the client writes.
    pub client: u64,
    /// Which random places.
    pub seed: u64,
}

impl Load {
    /// Bytes that the device wrote for each that the client wrote; `None`, with a line, for who may
    /// not make devices.
    ///
    /// # Panics
    /// When anything fails.
    #[must_use]
    pub fn measure(self) -> Option<f64> {
        // Room for the log, for units of which only a block is used, and for what must stay free.
        let bytes = (self.set + self.log) * 5 / 4 + (1 << 30);
        let log = format!("size={}M", self.log >> 20);
        match self.ground {
            Ground::Device => {
                let device = LoopDevice::new(bytes)?;
                let home = tempfile::tempdir().expect("a directory");
                let mut sheep = Sheep::at(&home.path().join("store"), &["-j", &log]);
                sheep.set_disks(&[device.path()]);
                Some(self.on(sheep, device.path()))
            }
            Ground::Files => {
                let disk = SmallFs::new(bytes)?;
                disk.be_quiet();
                let sheep = Sheep::at(&disk.path().join("store"), &["-j", &log]);
                Some(self.on(sheep, &disk.device()))
            }
        }
    }

    fn on(self, mut sheep: Sheep, device: &Path) -> f64 {
        sheep.start();
        let dog = sheep.dog();
        let _ = dog.run(&["cluster", "format", "-c", "1"]).ok();
        let _ = dog.run(&["vdi", "create", "disk", &self.set.to_string()]).ok();
        let before = written(device);
        self.write(&sheep);
        sheep.stop();
        // What the file system still holds back.
        let _ = run(&mut std::process::Command::new("sync"), b"").ok();
        (written(device) - before) as f64 / self.client as f64
    }

    fn write(self, sheep: &Sheep) {
        let (len, depth) = match self.order {
            Order::Random => (4096, 32),
            Order::Sequential => (1 << 20, 4),
        };
        let (mut sender, mut receiver) = nbd::connect(sheep.socket(), "disk").expect("connect");
        let mut rng = Rng::new(self.seed);
        let mut data = vec![0; len as usize];
        rng.fill(&mut data);
        let mut answer = || {
            let reply = receiver.receive().expect("an answer");
            assert_eq!(reply.error, 0, "a write was refused");
        };
        for number in 0..self.client / len {
            if number >= depth {
                answer();
            }
            let places = self.set / len;
            let place = match self.order {
                Order::Random => rng.below(places),
                Order::Sequential => number % places,
            };
            data[..8].copy_from_slice(&number.to_le_bytes());
            let sent = sender.send(Command::Write, 0, place * len, len as u32, &data);
            let _ = sent.expect("send");
        }
        (0..depth.min(self.client / len)).for_each(|_| answer());
    }
}
