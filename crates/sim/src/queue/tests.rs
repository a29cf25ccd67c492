use super::*;

const A: Host = Host(0);
const B: Host = Host(1);

fn drain(queue: &mut Queue<u32>) -> Vec<(u64, u32)> {
    let mut seen = Vec::new();
    while let Some(due) = queue.next() {
        seen.push((queue.now(), due.event));
    }
    seen
}

fn two_hosts() -> Queue<u32> {
    let mut queue: Queue<u32> = Queue::new();
    queue.add_host(A, 5_000, TRUE_RATE);
    queue.add_host(B, 0, TRUE_RATE);
    queue
}

#[test]
fn events_come_by_time_and_then_as_they_were_put() {
    let mut queue = two_hosts();
    queue.at(20, 1_u32);
    queue.at(10, 2_u32);
    queue.at_host(10, A, 3_u32);
    let gone = queue.at(15, 4_u32);
    assert_eq!(queue.cancel(gone), Some(4));
    assert_eq!(queue.cancel(gone), None);
    assert_eq!(queue.len(), 3);
    assert_eq!(drain(&mut queue), [(10, 2), (10, 3), (20, 1)]);
    assert_eq!(queue.delivered(), 3);
}

#[test]
fn a_paused_host_waits_and_then_sees_everything_in_order() {
    let mut queue = two_hosts();
    queue.at_host(10, A, 1_u32);
    queue.at_host(11, B, 2_u32);
    let gone = queue.at_host(12, A, 3_u32);
    queue.at_host(13, A, 4_u32);
    queue.at(50, 5_u32);
    queue.pause(A);
    assert_eq!(queue.next().map(|due| due.event), Some(2));
    assert_eq!(queue.next().map(|due| due.event), Some(5));
    assert!(queue.next().is_none() && queue.len() == 3, "they wait");
    assert_eq!(queue.cancel(gone), Some(3));
    queue.resume(A);
    // Its clock did not stop meanwhile.
    assert_eq!(queue.local(A), 5_050);
    assert_eq!(drain(&mut queue), [(50, 1), (50, 4)]);
}

#[test]
fn a_dead_process_gets_nothing() {
    let mut queue = two_hosts();
    queue.at_host(10, A, 1_u32);
    queue.at_host(10, B, 2_u32);
    queue.pause(A);
    assert_eq!(queue.next().map(|due| due.event), Some(2));
    queue.at_host(12, A, 3_u32);
    queue.forget(A);
    assert!(!queue.is_paused(A) && queue.is_empty());
    assert!(queue.next().is_none());
}

#[test]
fn deadlines_follow_the_rate_of_the_clock() {
    let mut queue = two_hosts();
    queue.at_local(A, 6_000, 1_u32);
    queue.at_local(B, 1_000, 2_u32);
    queue.at(100, 3_u32);
    queue.next();
    // 900 are left on A's clock: at double rate they take 450.
    queue.set_rate(A, 2 * TRUE_RATE);
    assert_eq!(queue.next_time(), Some(550));
    assert_eq!(queue.next().map(|due| due.event), Some(1));
    assert_eq!((queue.now(), queue.local(A)), (550, 6_000));
    // 450 are left on B's clock: at half rate they take 900.
    queue.set_rate(B, TRUE_RATE / 2);
    assert_eq!(drain(&mut queue), [(1_450, 2)]);
}

#[test]
fn a_deadline_is_never_early_on_its_own_clock() {
    let mut rng = crate::Rng::new(3);
    for _ in 0..20_000 {
        let mut queue: Queue<u32> = Queue::new();
        let rate = TRUE_RATE - NORMAL_ERROR + rng.below(2 * NORMAL_ERROR);
        queue.add_host(A, rng.below(1 << 40), rate);
        let wanted = queue.local(A) + rng.below(1 << 36);
        queue.at_local(A, wanted, 1_u32);
        queue.next();
        let shown = queue.local(A);
        assert!((wanted..wanted + 3).contains(&shown), "{shown} for {wanted} at {rate}");
    }
}
