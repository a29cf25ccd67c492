//! What the device writes for what clients write. `cargo xtask long amplification` measures the same
//! on larger sets.

use sheepdog_testkit::amplification::{Ground, Load, Order};

const MIB: u64 = 1 << 20;
const SMALL: Load = Load {
    ground: Ground::Device,
    order: Order::Random,
    set: 64 * MIB,
    log: 64 * MIB,
    client: 48 * MIB,
    seed: 1,
};

#[test]
fn small_random_writes_are_written_twice() {
    for ground in [Ground::Device, Ground::Files] {
        let Some(factor) = (Load { ground, ..SMALL }).measure() else { return };
        // Once to the log and once home, with what a batch and a page of the index add.
        assert!((1.0..2.2).contains(&factor), "{ground:?}: {factor}");
    }
}

#[test]
fn large_writes_are_written_once() {
    for ground in [Ground::Device, Ground::Files] {
        let load = Load { ground, order: Order::Sequential, client: 128 * MIB, ..SMALL };
        let Some(factor) = load.measure() else { return };
        assert!((1.0..1.05).contains(&factor), "{ground:?}: {factor}");
    }
}
