//! Chore ci.

pub fn run() -> anyhow::Result<()> {
    Ok(())
}
