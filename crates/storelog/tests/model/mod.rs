//! A store on a simulated disk, watched by an oracle.

pub mod disk;
pub mod faults;
pub mod oracle;
pub mod platter;
pub mod replica;
pub mod run;
pub mod shards;
pub mod verify;
pub mod work;
