//! What a replica asks of a store, one thing at a time.

use crate::model::faults::Faults;
use crate::model::oracle::block_bytes;
use crate::model::run::{Run, VIDS};
use crate::seeds;
use bytes::Bytes;
use sheepdog_storelog::{
    Answer, ChunkCopy, Command, Piece, REQUESTS_MAX, RequestEntry, SHARD_STATE_MAX,
};
use sheepdog_types::{
    ErrorKind, FragmentId, Interval, LineageId, NodeId, Process, RequestId, ShardId, Version,
};

const SHARD: ShardId = ShardId { set: 0, number: 9 };

const fn fragment(number: u64) -> FragmentId {
    FragmentId { lineage: LineageId(7), number }
}

/// All of a fragment, as one vid's.
fn copies(run: &Run, id: FragmentId, version: Version, stamp: u64) -> Vec<ChunkCopy> {
    let per_chunk = run.geometry().blocks_per_chunk();
    let chunks = 0..run.geometry().chunks_per_fragment() as u8;
    chunks
        .map(|chunk| {
            let first = u32::from(chunk) * per_chunk;
            let bytes: Vec<u8> = (first..first + per_chunk)
                .flat_map(|block| block_bytes(id, block, stamp))
                .collect();
            let vids = vec![(VIDS[0], vec![Piece::Data(Bytes::from(bytes))])];
            ChunkCopy { chunk, version, vids }
        })
        .collect()
}

/// Where clients find no space any more, recovery does, before and after a start, until the reserve
/// is half gone; then it is refused, and the store goes on.
#[test]
fn recovery_has_space_that_clients_have_not() {
    for seed in seeds(20) {
        let mut run = Run::new(seed);
        (run.limits.spare_pages, run.fragments) = (60, 1000);
        run.disk.capacity = Some(4000);
        run.open();
        run.tell_free();
        let mut number = 0;
        while run.counts.refused == 0 {
            run.write_all_of(number);
            run.settle();
            number += 1;
            assert!(number < 5000, "the host has an end");
        }
        let refused = run.counts.refused;
        let (id, needed) = (fragment(number + 1), run.version());
        run.command(Command::Miss { fragment: id, needed });
        let chunks = copies(&run, id, needed, run.next_command);
        run.command(Command::Fill { fragment: id, at: needed, chunks, last: true });
        run.settle();
        assert_eq!(run.counts.refused, refused, "seed {seed}: there is the reserve");
        assert_eq!(run.counts.completed, 1);
        run.die();
        run.tell_free();
        number += 2;
        while run.counts.refused == refused {
            let (id, needed) = (fragment(number), run.version());
            run.command(Command::Miss { fragment: id, needed });
            let chunks = copies(&run, id, needed, run.next_command);
            run.command(Command::Fill { fragment: id, at: needed, chunks, last: true });
            run.settle();
            number += 1;
            assert!(number < 10_000, "the reserve has an end");
        }
        run.disk.faults = Faults::default();
        run.delete_all();
        run.settle();
        run.command(Command::Checkpoint);
        run.settle();
        assert_eq!(run.counts.abandoned, 0, "checkpoints have their space");
        run.check_space();
    }
}

fn ask(run: &mut Run, command: Command) -> Result<Answer, ErrorKind> {
    run.ask(command).map_err(|error| error.kind())
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut run = Run::new(2);
    run.open();
    let id = fragment(1);
    let invalid = |run: &mut Run, command| {
        assert_eq!(ask(run, command), Err(ErrorKind::Invalid));
    };
    invalid(&mut run, Command::Miss { fragment: id, needed: Version::UNKNOWN });
    let at = Version { interval: Interval(1), seq: 1 };
    assert_eq!(ask(&mut run, Command::Miss { fragment: id, needed: at }), Ok(Answer::Done));
    let sound = copies(&run, id, at, 1);
    let mut fill = |change: &dyn Fn(&mut Vec<ChunkCopy>)| {
        let mut chunks = sound.clone();
        change(&mut chunks);
        invalid(&mut run, Command::Fill { fragment: id, at, chunks, last: true });
    };
    fill(&|chunks| chunks.push(chunks[0].clone()));
    fill(&|chunks| chunks[0].chunk = 200);
    fill(&|chunks| chunks[0].version = Version::UNKNOWN);
    fill(&|chunks| chunks[0].vids.push((VIDS[0], vec![])));
    fill(&|chunks| chunks[0].vids[0].1 = vec![]);
    fill(&|chunks| chunks[0].vids[0].1.push(Piece::Hole(1)));
    fill(&|chunks| chunks[0].vids[0].1 = vec![Piece::Zero(u32::MAX)]);
    fill(&|chunks| chunks[0].vids[0].1 = vec![Piece::Data(Bytes::from_static(b"part"))]);
    let state = Bytes::from(vec![0; SHARD_STATE_MAX + 1]);
    invalid(&mut run, Command::Shard { shard: SHARD, state, requests: None });
    let gateway = Process { node: NodeId([1; 16]), incarnation: 1 };
    let entry = RequestEntry { seq: 1, version: at, fragment: id };
    let request = |seq| RequestId { gateway, slot: 1, seq };
    for table in [vec![(request(1), entry); 2], vec![(request(2), entry)]] {
        let (state, requests) = (Bytes::new(), Some(table));
        invalid(&mut run, Command::Shard { shard: SHARD, state, requests });
    }
    let requests = Some(vec![(request(1), entry); REQUESTS_MAX + 1]);
    invalid(&mut run, Command::Shard { shard: SHARD, state: Bytes::new(), requests });
    let store = run.store.as_ref().expect("open");
    assert_eq!(store.shards().count(), 0);
    assert_eq!(store.held(id).map(|held| (held.needed, held.empty)), Some((Some(at), true)));
}

/// The largest tables, from one start to the next.
#[test]
fn the_largest_state_and_table_are_kept() {
    let mut run = Run::new(4);
    run.superblock.log_bytes = 64 << 20;
    run.prepare_anew();
    (run.limits.units_max, run.replica) = (1 << 20, true);
    run.open();
    let requests: Vec<(RequestId, RequestEntry)> = (0..REQUESTS_MAX as u64)
        .map(|n| {
            let node = NodeId([(n >> 16) as u8; 16]);
            let gateway = Process { node, incarnation: 1 + (n >> 8 & 0xff) };
            let version = Version { interval: Interval(1), seq: n + 1 };
            let id = RequestId { gateway, slot: n as u8, seq: n + 1 };
            (id, RequestEntry { seq: n + 1, version, fragment: fragment(n) })
        })
        .collect();
    let state = Bytes::from(vec![3; SHARD_STATE_MAX]);
    let shard =
        Command::Shard { shard: SHARD, state: state.clone(), requests: Some(requests.clone()) };
    run.command(shard);
    run.settle();
    let check = |run: &Run| {
        let store = run.store.as_ref().expect("open");
        assert!(store.requests(SHARD).eq(requests.iter().copied()), "all of them");
        assert!(store.shards().eq([(SHARD, &state)]));
    };
    check(&run);
    run.die();
    check(&run);
    run.command(Command::Checkpoint);
    run.settle();
    run.die();
    check(&run);
    // There is no room for one more.
    let gateway = Process { node: NodeId([0xee; 16]), incarnation: 1 };
    let request = Some((SHARD, RequestId { gateway, slot: 0, seq: 1 }));
    let version = run.version();
    let (vid, forget) = (VIDS[0], false);
    let delete = Command::DeleteVid { fragment: fragment(1), vid, version, forget, request };
    assert_eq!(ask(&mut run, delete), Err(ErrorKind::Conflict));
    check(&run);
}
