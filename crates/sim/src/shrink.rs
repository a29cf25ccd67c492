//! Makes a failing run short: leaves out choices as long as it still fails (delta debugging), so that
//! a person can read what is left.

/// What is left of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shrunk<T> {
    /// Still fails.
    pub items: Vec<T>,
    /// How often it was tried.
    pub runs: usize,
    /// Nothing more can be left out singly; else the runs were used up.
    pub minimal: bool,
}

/// Leaves out of `items` what `fails` does not need, trying at most `most_runs` times. `items` must
/// fail as a whole; `fails` must answer the same for the same list.
pub fn list<T: Clone>(
    items: &[T],
    most_runs: usize,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Shrunk<T> {
    let mut kept = items.to_vec();
    let mut runs = 0;
    let mut size = kept.len().div_ceil(2).max(1);
    loop {
        let mut smaller = false;
        let mut start = 0;
        while start < kept.len() {
            if runs == most_runs {
                return Shrunk { items: kept, runs, minimal: false };
            }
            let end = (start + size).min(kept.len());
            let without: Vec<T> = kept[..start].iter().chain(&kept[end..]).cloned().collect();
            runs += 1;
            if fails(&without) {
                kept = without;
                smaller = true;
            } else {
                start = end;
            }
        }
        if size > 1 {
            size = size.div_ceil(2);
        } else if !smaller {
            return Shrunk { items: kept, runs, minimal: true };
        }
    }
}

/// Makes the items themselves simpler, one at a time, within the same kind of limit: `simpler` lists
/// what may be tried in place of one, simplest first.
pub fn each<T: Clone>(
    items: &[T],
    most_runs: usize,
    simpler: impl Fn(&T) -> Vec<T>,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Shrunk<T> {
    let mut kept = items.to_vec();
    let mut runs = 0;
    for place in 0..kept.len() {
        for candidate in simpler(&kept[place]) {
            if runs == most_runs {
                return Shrunk { items: kept, runs, minimal: false };
            }
            let before = std::mem::replace(&mut kept[place], candidate);
            runs += 1;
            if fails(&kept) {
                break;
            }
            kept[place] = before;
        }
    }
    Shrunk { items: kept, runs, minimal: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    /// Fails if an open (1) is followed by a write (2) without a close (3) between them.
    fn toy(events: &[u32]) -> bool {
        let mut open = false;
        events.iter().any(|event| {
            match event {
                1 => open = true,
                3 => open = false,
                _ => {}
            }
            *event == 2 && open
        })
    }

    #[test]
    fn what_a_failure_does_not_need_is_left_out() {
        let mut rng = Rng::new(11);
        let mut failing = 0;
        for _ in 0..200 {
            let events: Vec<u32> = (0..300).map(|_| rng.below(40) as u32).collect();
            if !toy(&events) {
                continue;
            }
            failing += 1;
            let shrunk = list(&events, 10_000, toy);
            assert_eq!((shrunk.items, shrunk.minimal), (vec![1, 2], true));
            assert!(shrunk.runs < 1_000, "{} runs", shrunk.runs);
        }
        assert!(failing > 50, "{failing}");
    }

    #[test]
    fn the_budget_is_kept_and_what_is_left_still_fails() {
        let events: Vec<u32> = (0..1000).map(|event| [1, 2, 9, 9][event % 4]).collect();
        let shrunk = list(&events, 7, toy);
        assert_eq!((shrunk.runs, shrunk.minimal), (7, false));
        assert!(toy(&shrunk.items) && shrunk.items.len() < events.len());
    }

    #[test]
    fn items_get_simpler() {
        let fails = |numbers: &[u64]| numbers.iter().sum::<u64>() >= 100;
        let halves = |number: &u64| vec![0, number / 2, number.saturating_sub(1)];
        let shrunk = each(&[90, 90, 90], 100, halves, fails);
        assert_eq!(shrunk.items, [0, 45, 89]);
    }
}
