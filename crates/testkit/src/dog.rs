//! Running dog as a script would.

use crate::bins::bin;
use crate::process::{Ended, run};
use std::process::Command;

/// A dog for the sheep on one port.
#[derive(Clone, Copy, Debug)]
pub struct Dog {
    port: u16,
}

impl Dog {
    /// Talks to 127.0.0.1 on that port.
    #[must_use]
    pub const fn new(port: u16) -> Self {
        Self { port }
    }

    /// Runs `dog WORDS` to its end.
    #[must_use]
    pub fn run(self, words: &[&str]) -> Ended {
        self.feed(words, b"")
    }

    /// The same with an input.
    #[must_use]
    pub fn feed(self, words: &[&str], input: &[u8]) -> Ended {
        run(self.command().args(words), input)
    }

    /// The program with its environment, no words yet.
    #[must_use]
    pub fn command(self) -> Command {
        let mut command = Command::new(bin("dog"));
        command
            .env("LC_ALL", "C")
            .env("SHEEPDOG_DOG_ADDR", "127.0.0.1")
            .env("SHEEPDOG_DOG_PORT", self.port.to_string());
        command
    }
}
