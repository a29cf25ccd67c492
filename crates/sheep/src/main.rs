//! The program `sheep`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sheepdog_sheep::process::main(sheepdog_sheep::worker::spawn)
}
