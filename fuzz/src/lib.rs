//! What the fuzz targets share. Each target, in `targets/`, feeds one reader of foreign bytes:
//! what lies on disks, comes from the network, from users, from images.
//!
//! * [`target!`] makes a target of a function that takes one input and one that gives seeds.
//! * [`meter`] bounds the memory an input may cost.
//! * [`input`] takes inputs apart; [`store`] gives them the checksums a fuzzer cannot guess.
//! * [`disk`] is a store in memory whose bytes are changed and that is opened again.
//! * [`nbd`] is a client of the real NBD door that judges every answer.
//!
//! A target asserts more than that nothing panics: what was decoded encodes to the same again,
//! memory stays in proportion, limits hold. Product code is never weakened for it.

pub mod disk;
pub mod input;
pub mod meter;
pub mod nbd;
pub mod seeds;
pub mod store;

/// A fuzz target: `target!(seeds, run)`, where `seeds` gives the inputs to begin with and `run`
/// takes one and panics over what must not be.
#[macro_export]
macro_rules! target {
    ($seeds:path, $run:path) => {
        ::libfuzzer_sys::fuzz_target!(init: $crate::seeds::begin($seeds), |data: &[u8]| {
            $run(data);
        });
    };
}
