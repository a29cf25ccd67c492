//! A store on a simulated disk, watched by an oracle.

pub mod disk;
pub mod faults;
pub mod oracle;
pub mod platter;
pub mod run;
pub mod verify;
pub mod work;
