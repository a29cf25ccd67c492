//! A sheep whose data is in memory: everything but the data worker is real. For the tests of the
//! process, and for trying the control side alone.

#[allow(dead_code)]
#[path = "../tests/common/memory.rs"]
mod memory;

use memory::MemoryPlane;
use sheepdog_types::{Error, ErrorKind};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    sheepdog_sheep::process::main(|config, _directory| {
        // For the test of what a panic does.
        if std::env::var_os("SHEEP_TEST_PANIC").is_some() {
            std::thread::spawn(|| panic!("asked for"));
            loop {
                std::thread::park();
            }
        }
        if std::env::var_os("SHEEP_TEST_FAIL").is_some() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("disk {} is broken", config.disks[0].id),
            ));
        }
        // Its sockets stay open for the life of the process, though nobody serves them.
        std::mem::forget(config);
        Ok(Arc::new(MemoryPlane::default()))
    })
}
