//! The proving ground's tools: real sheep and dog processes on temporary stores, an NBD client of
//! its own, a writer that knows what every block may hold, a small virtual machine, and the
//! baselines everything is compared with. Used by tests and `cargo xtask` only; it shares no code
//! with what it judges.
//!
//! Processes are waited for by their own signals (`sd_notify`, pidfds, sockets), never by time.

pub mod amplification;
pub mod bins;
pub mod broken;
pub mod brokenfs;
pub mod dog;
pub mod fio;
pub mod guest;
pub mod kept;
pub mod kill;
pub mod loopfs;
pub mod nbd;
pub mod process;
pub mod qemu_nbd;
pub mod rng;
pub mod sample;
pub mod sheep;
pub mod shown;
pub mod stamp;
pub mod tools;
pub mod usage;
pub mod verify;

use process::Process;
use rustix::process::Signal;
use std::path::Path;

/// Something that serves one disk by NBD on a unix socket and can be killed and started again.
pub trait Server {
    /// Where it listens.
    fn socket(&self) -> &Path;
    /// Starts it again on the data it left; it is ready when this returns.
    fn start(&mut self);
    /// kill -9, reaped when this returns.
    fn kill(&mut self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }
    /// Stops it in its tracks (`true`) or lets it go on (`false`).
    fn freeze(&mut self, frozen: bool) {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        if let Some(process) = self.process() {
            process.signal(signal);
        }
    }
    /// Its process, while it runs.
    fn process(&mut self) -> &mut Option<Process>;
}
