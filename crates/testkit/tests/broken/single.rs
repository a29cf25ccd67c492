//! One operation goes wrong, wherever that is: a few places of each kind here, all of them in
//! `cargo xtask long broken`.

use sheepdog_testkit::broken::rounds::{AtWork, Round, first_start, next_start};
use sheepdog_testkit::brokenfs::{BrokenFs, Fault, Mode};
use sheepdog_testkit::rng::Rng;

fn seed() -> u64 {
    let seed = Rng::fresh_seed();
    eprintln!("seed {seed}");
    seed
}

#[test]
fn one_operation_without_space_is_refused_and_forgotten() {
    for (mode, more) in [(Mode::AsAsked, false), (Mode::Bypass, true)] {
        let Some(disk) = BrokenFs::new(mode) else {
            return;
        };
        let seed = seed();
        let (mut work, mut rng) = (AtWork::new(&disk, seed), Rng::new(seed));
        let mut sum = Round::default();
        for number in 0..5 {
            let spared = rng.below(60);
            let round = work.without_space(&disk, spared, more);
            let round =
                round.unwrap_or_else(|e| panic!("{mode:?}, {number}, spared {spared}: {e}"));
            sum.hits += round.hits;
            sum.refused += round.refused;
        }
        assert!(sum.hits > 0, "no operation needed space");
        assert!(sum.refused > 0 || !more, "a full disk took everything");
    }
}

#[test]
fn one_error_anywhere_costs_a_restart_at_most() {
    let Some(disk) = BrokenFs::new(Mode::AsAsked) else {
        return;
    };
    let seed = seed();
    let (mut work, mut rng) = (AtWork::new(&disk, seed), Rng::new(seed));
    let mut failed = 0;
    for number in 0..6 {
        let spared = rng.below(150);
        let round = work.with_an_error(&disk, spared);
        let round = round.unwrap_or_else(|e| panic!("{number}, spared {spared}: {e}"));
        assert_eq!(round.hits, 1, "{number}, spared {spared}");
        failed += u32::from(round.failed);
    }
    assert!(failed > 0, "no error failed the disk");
}

#[test]
fn a_start_on_which_something_goes_wrong_is_only_a_start() {
    let Some(disk) = BrokenFs::new(Mode::AsAsked) else {
        return;
    };
    let mut rng = Rng::new(seed());
    let mut refused = 0;
    for fault in [Fault::eio(), Fault::full()] {
        let spare_all = fault.clone().after(u64::MAX);
        let all = first_start(&disk, spare_all).expect("nothing is wrong").met;
        assert!(all > 20, "{all}");
        for _ in 0..4 {
            let spared = rng.below(all);
            let round = first_start(&disk, fault.clone().after(spared).times(1));
            let round = round.unwrap_or_else(|e| panic!("{fault:?}, spared {spared}: {e}"));
            refused += round.refused;
        }
    }
    assert!(refused > 0, "a start takes everything");
    std::fs::remove_dir_all(disk.path().join("store")).expect("remove it");
    let mut work = AtWork::new(&disk, rng.next_u64());
    for _ in 0..6 {
        let spared = rng.below(60);
        let round = next_start(&mut work, &disk, Fault::eio().after(spared).times(1));
        let _ = round.unwrap_or_else(|e| panic!("spared {spared}: {e}"));
    }
}
