//! The program `sheep`.

use sheepdog_sheep::data::{DataPlane, VdiDirectory, WorkerConfig};
use sheepdog_types::{Error, ErrorKind, Result};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    // The one place that names the data worker: `sheepdog_sheep::worker::spawn` once it is there.
    sheepdog_sheep::process::main(no_worker)
}

fn no_worker(_: WorkerConfig, _: Arc<dyn VdiDirectory>) -> Result<Arc<dyn DataPlane>> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "this build has no data worker",
    ))
}
