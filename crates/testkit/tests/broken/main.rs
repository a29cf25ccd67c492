//! Disks that break under a sheep at work: errors, lies about lengths, no space, no answer, no disk.
//! Clients get errors and never wrong bytes, the sheep stays, and what was acknowledged is there
//! when the disk is well again.

mod full;
mod gone;
mod reads;
mod several;
mod single;
mod writes;
