use super::*;

const VID: Vid = Vid::new(7).expect("in range");

fn ops_of(history: &History, number: u64) -> Vec<Op> {
    let found = history.blocks().find(|(block, _)| block.number == number);
    found.map(|(_, ops)| ops.to_vec()).unwrap_or_default()
}

#[test]
fn a_request_is_an_operation_on_each_of_its_blocks() {
    let mut history = History::new();
    let write = history.invoke((1, 0), VID, 3, &[Kind::Write(5), Kind::Zero]);
    let read = history.invoke((2, 0), VID, 4, &[Kind::Read(0), Kind::Read(0)]);
    history.done(write);
    history.read(read, &[ZEROS, 9]);
    let op = |client, kind, invoked, end| Op { client, gateway: 0, kind, invoked, end };
    assert_eq!(ops_of(&history, 3), [op(1, Kind::Write(5), 1, End::Done(3))]);
    assert_eq!(
        ops_of(&history, 4),
        [op(1, Kind::Zero, 1, End::Done(3)), op(2, Kind::Read(ZEROS), 2, End::Done(4))]
    );
    assert_eq!(ops_of(&history, 5)[0].kind, Kind::Read(9));
}

#[test]
fn what_a_vanished_client_left_is_ruled_out_by_the_next_connection_through_its_gateway() {
    let mut history = History::new();
    history.invoke((1, 0), VID, 0, &[Kind::Write(1)]);
    history.invoke((2, 0), VID, 0, &[Kind::Write(2)]);
    history.disconnect(1);
    history.served(9, VID);
    assert_eq!(ops_of(&history, 0)[0].end, End::Open(None), "another gateway");
    history.served(0, VID);
    history.served(0, VID);
    let ends: Vec<End> = ops_of(&history, 0).iter().map(|op| op.end).collect();
    assert_eq!(ends, [End::Open(Some(5)), End::Open(None)], "the other client still waits");
}

#[test]
fn an_answer_after_a_fence_tells_of_what_happened_before() {
    let mut history = History::new();
    let write = history.invoke((1, 0), VID, 0, &[Kind::Write(1)]);
    let refused = history.invoke((1, 0), VID, 0, &[Kind::Write(2)]);
    let read = history.invoke((1, 0), VID, 0, &[Kind::Read(0)]);
    history.fenced(0);
    history.done(write);
    history.refused(refused);
    history.read(read, &[1]);
    let ends: Vec<End> = ops_of(&history, 0).iter().map(|op| op.end).collect();
    assert_eq!(ends, [End::Done(4), End::Never, End::Done(7)]);
}
