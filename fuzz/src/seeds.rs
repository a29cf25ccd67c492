//! The inputs a fuzzer begins with. They are made by the encoders whenever a run begins, so they
//! follow the formats; what was found once is kept beside them in `corpus/`.

use std::path::Path;

/// Names the directory that the seeds are written to. The program ends then.
pub const SEED_DIR: &str = "SHEEPDOG_FUZZ_SEEDS";

/// Called when the target starts.
///
/// # Panics
/// When seeds were asked for and cannot be written.
pub fn begin(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(dir) = std::env::var_os(SEED_DIR) else {
        return;
    };
    for (number, seed) in seeds().iter().enumerate() {
        let file = Path::new(&dir).join(format!("seed-{number:02}"));
        std::fs::write(&file, seed).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    std::process::exit(0);
}
