//! Chore licences.

pub fn run() -> anyhow::Result<()> {
    Ok(())
}
