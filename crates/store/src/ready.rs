//! Waiting for an engine in tokio.

use crate::engine::Engine;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for the completions of one engine without borrowing it.
#[derive(Debug)]
pub struct Ready {
    fd: AsyncFd<OwnedFd>,
}

impl Ready {
    /// Registers a copy of the engine's descriptor with the current tokio runtime.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn new(engine: &dyn Engine) -> io::Result<Self> {
        let fd = engine.ready_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor belongs to what is registered, which never replaces it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(Self { fd })
    }

    /// Returns when completions may be there. Reap once after it returns: whatever comes later makes
    /// it return again. Nothing is lost when it is dropped while waiting.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn wait(&self) -> io::Result<()> {
        self.fd.readable().await?.clear_ready();
        Ok(())
    }
}
