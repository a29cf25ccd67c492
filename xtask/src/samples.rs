//! Samples of what this version writes, for all later ones to open.

use anyhow::{Result, bail};
use sheepdog_testkit::sample::{Kind, make};

/// `samples LABEL`.
pub fn run(args: &[&str]) -> Result<()> {
    let [label] = args else {
        bail!("samples LABEL");
    };
    for kind in Kind::ALL {
        println!("{}", make(label, kind).display());
    }
    Ok(())
}
