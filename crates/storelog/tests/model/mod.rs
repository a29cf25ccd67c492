//! A store on a simulated disk, watched by an oracle.

pub mod disk;
pub mod oracle;
pub mod run;
