//! The program `sheep`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // What a burst of large requests took goes back to the system when it is over: without this
    // the allocator keeps freed buffers for good. They are few and large, so a map each is cheap.
    #[cfg(target_env = "gnu")]
    // SAFETY: called before any other thread exists, with values that glibc documents.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
    sheepdog_sheep::process::main(sheepdog_sheep::worker::spawn)
}
