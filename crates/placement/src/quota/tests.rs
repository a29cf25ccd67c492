//! Quotas against pouring water, and the promises bands make.

use super::*;
use crate::map::Member;
use proptest::prelude::*;
use sheepdog_types::DiskId;

fn roster(disks: &[(u32, u64)]) -> Roster {
    let mut zones: Vec<u32> = disks.iter().map(|(zone, _)| *zone).collect();
    zones.sort_unstable();
    zones.dedup();
    let members = (0u8..).zip(disks).map(|(i, (zone, weight))| Member {
        id: DiskId([i; 16]),
        zone: zones.partition_point(|z| z < zone) as u32,
        weight: *weight,
        key: 0,
    });
    Roster { members: members.collect(), zones }
}

/// Zone loads by raising the level a little at a time (bisection) until all water is in.
fn poured(weights: &[f64], copies: f64, shards: f64) -> Vec<f64> {
    let loads = |level: f64| weights.iter().map(move |w| (w * level).min(shards));
    let (mut low, mut high) = (0.0, shards * 1e9);
    for _ in 0..200 {
        let level = (low + high) / 2.0;
        if loads(level).sum::<f64>() < copies * shards {
            low = level;
        } else {
            high = level;
        }
    }
    loads(high).collect()
}

proptest! {
    #[test]
    fn quotas_are_what_water_finds(
        disks in prop::collection::vec((0u32..7, 1u64..1000), 1..30),
        width in 1usize..6,
        bits in 4u32..20,
    ) {
        let roster = roster(&disks);
        let stride = roster.zones.len().min(width);
        let quotas = quotas(&roster, stride, 1 << bits);
        let mut weights = vec![0.0; roster.zones.len()];
        for m in &roster.members {
            weights[m.zone as usize] += m.weight as f64;
        }
        let loads = poured(&weights, stride as f64, f64::from(1 << bits));
        for (m, quota) in roster.members.iter().zip(&quotas) {
            let zone = m.zone as usize;
            let expected = loads[zone] * m.weight as f64 / weights[zone];
            let ours = quota.exact as f64 / 32f64.exp2();
            prop_assert!((ours / expected - 1.0).abs() < 1e-6, "{ours} {expected}");
        }
        // Rounding every quota down or up can hold exactly all replicas.
        let total = (stride as u32) << bits;
        prop_assert!(quotas.iter().map(|q| q.floor()).sum::<u32>() <= total);
        prop_assert!(quotas.iter().map(|q| q.ceil()).sum::<u32>() >= total);
    }

    #[test]
    fn bands_are_narrower_than_two_percent(exact in 1u64..1 << 52) {
        let quota = Quota { exact };
        let (low, high) = quota.band();
        prop_assert!(low <= quota.floor() && quota.ceil() <= high);
        for load in [low, high] {
            let distance = (u128::from(load) << QUOTA_BITS).abs_diff(u128::from(exact));
            prop_assert!(distance < 1 << QUOTA_BITS || distance * 64 <= u128::from(exact));
            if quota.floor() >= 50 {
                prop_assert!(distance * 50 <= u128::from(exact), "{load} of {exact}");
            }
        }
    }
}

#[test]
fn a_heavy_zone_is_full_and_the_rest_shares_what_is_left() {
    let roster = roster(&[(1, 8), (1, 2), (2, 1), (3, 1), (4, 2)]);
    let quotas = quotas(&roster, 3, 100);
    let whole: Vec<u64> = quotas.iter().map(|q| q.exact >> QUOTA_BITS).collect();
    // Zone 1 holds each shard once; of the other two copies zone 4 has its half, again full.
    assert_eq!(whole, [80, 20, 50, 50, 100]);
}
