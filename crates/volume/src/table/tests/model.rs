//! The table against a list of VDIs and the rules as one would say them, with several deciders
//! whose tables may be old.

use super::*;
use proptest::prelude::*;
use std::sync::OnceLock;

/// What one decider wants.
#[derive(Clone, Debug)]
enum Op {
    Create(usize, u64),
    BeginImport(usize, u64),
    /// The numbers choose among the vids there are.
    FinishImport(usize),
    Rename(usize, usize),
    Resize(usize, u64),
    Hide(usize),
    RemoveSwept(usize),
    Snapshot(usize),
}

/// How a decider's table gets its news before it decides.
#[derive(Clone, Copy, PartialEq, Debug)]
enum News {
    No,
    Watch,
    List,
}

#[derive(Clone, PartialEq, Debug)]
struct Vdi {
    name: String,
    vid: Vid,
    lineage: u64,
    snap_id: u32,
    size: u64,
    parent: Option<Vid>,
    state: State,
}

/// The truth as a plain list.
#[derive(Default)]
struct Model {
    vdis: Vec<Vdi>,
    lineages: u64,
}

impl Model {
    fn holder(&self, name: &str) -> Option<usize> {
        self.vdis
            .iter()
            .position(|v| v.name == name && matches!(v.state, State::Working | State::Incomplete))
    }

    fn visible(&self, vid: Vid) -> Result<usize, ErrorKind> {
        self.vdis
            .iter()
            .position(|v| v.vid == vid && v.state != State::Hidden)
            .ok_or(ErrorKind::NotFound)
    }

    /// By looking at one id after the other.
    fn free_vid(&self, name: &str) -> Vid {
        let mut value = crate::vid::home(name).get();
        while self.vdis.iter().any(|v| v.vid.get() == value) {
            value = value % (Vid::COUNT - 1) + 1;
        }
        vid(value)
    }

    fn highest(&self, name: &str, state: impl Fn(State) -> bool) -> u32 {
        let ids = self
            .vdis
            .iter()
            .filter(|v| v.name == name && v.state != State::Hidden && state(v.state));
        ids.map(|v| v.snap_id).max().unwrap_or(0)
    }

    /// Does it or says why not. `slot` is the vid a decider with an old table took.
    fn apply(&mut self, op: &Op, target: Vid, slot: Option<Vid>) -> Result<(), ErrorKind> {
        let names = names();
        match *op {
            Op::Create(name, size) | Op::BeginImport(name, size) => {
                let name = &names[name];
                let import = matches!(op, Op::BeginImport(..));
                if size > 4 << 40 {
                    return Err(ErrorKind::Invalid);
                }
                // The slot is chosen before an older import would free anything: it never does.
                let free = self.free_vid(name);
                if let Some(holder) = self.holder(name) {
                    if !import || self.vdis[holder].state != State::Incomplete {
                        return Err(ErrorKind::Exists);
                    }
                    self.vdis[holder].state = State::Hidden;
                }
                self.lineages += 1;
                let state = if import { State::Incomplete } else { State::Working };
                let vid = slot.unwrap_or(free);
                assert!(self.vdis.iter().all(|v| v.vid != vid), "slot taken twice");
                self.vdis.push(Vdi {
                    name: name.clone(),
                    vid,
                    lineage: self.lineages,
                    snap_id: self.highest(name, |s| s == State::Snapshot) + 1,
                    size,
                    parent: None,
                    state,
                });
            }
            Op::FinishImport(_) => {
                let at = self.visible(target)?;
                if self.vdis[at].state != State::Incomplete {
                    return Err(ErrorKind::Conflict);
                }
                self.vdis[at].state = State::Working;
            }
            Op::Rename(from, to) => {
                let (from, to) = (&names[from], &names[to]);
                let lineage = self.vdis[self.holder(from).ok_or(ErrorKind::NotFound)?].lineage;
                if self.holder(to).is_some() {
                    return Err(ErrorKind::Exists);
                }
                let there = self.highest(to, |_| true);
                let mut moving: Vec<&mut Vdi> = self
                    .vdis
                    .iter_mut()
                    .filter(|v| v.name == *from && v.lineage == lineage && v.state != State::Hidden)
                    .collect();
                if there > 0 && moving.len() > 1 {
                    return Err(ErrorKind::Exists);
                }
                for vdi in &mut moving {
                    vdi.name.clone_from(to);
                    if there > 0 {
                        vdi.snap_id = there + 1;
                    }
                }
            }
            Op::Resize(_, size) => {
                let at = self.visible(target)?;
                match self.vdis[at].state {
                    State::Working => {}
                    State::Incomplete => return Err(ErrorKind::Incomplete),
                    _ => return Err(ErrorKind::ReadOnly),
                }
                if size < self.vdis[at].size || size > 4 << 40 {
                    return Err(ErrorKind::Invalid);
                }
                self.vdis[at].size = size;
            }
            Op::Hide(_) => {
                let at = self.visible(target)?;
                self.vdis[at].state = State::Hidden;
            }
            Op::RemoveSwept(_) => {
                let at = self.vdis.iter().position(|v| v.vid == target);
                let at = at.ok_or(ErrorKind::NotFound)?;
                if self.vdis[at].state != State::Hidden {
                    return Err(ErrorKind::Conflict);
                }
                if self.vdis.iter().any(|v| v.parent == Some(target)) {
                    return Err(ErrorKind::Locked);
                }
                self.vdis.remove(at);
            }
            Op::Snapshot(name) => {
                let name = &names[name];
                let at = self.holder(name).ok_or(ErrorKind::NotFound)?;
                let vid = slot.unwrap_or_else(|| self.free_vid(name));
                let old = self.vdis[at].clone();
                self.vdis[at].state = State::Snapshot;
                self.vdis.push(Vdi { vid, snap_id: old.snap_id + 1, parent: Some(old.vid), ..old });
            }
        }
        Ok(())
    }

    fn check(&self, table: &Table) {
        let mut want: Vec<&Vdi> = self.vdis.iter().collect();
        want.sort_by_key(|v| v.vid);
        let have: Vec<Vdi> = table.all().map(plain).collect();
        assert!(have.iter().eq(want), "{have:#?}");
        for name in names() {
            let found = table.lookup(name, Selector::Working).ok().map(|r| r.vid);
            assert_eq!(found, self.holder(name).map(|at| self.vdis[at].vid));
            for id in 0..8 {
                let want = self
                    .vdis
                    .iter()
                    .find(|v| v.name == *name && v.snap_id == id && v.state == State::Snapshot);
                let found = table.lookup(name, Selector::SnapId(id));
                match (found, want) {
                    (Ok(found), Some(want)) => assert_eq!(found.vid, want.vid),
                    (Err(e), None) => {
                        let any =
                            self.vdis.iter().any(|v| v.name == *name && v.state != State::Hidden);
                        let kind = [ErrorKind::NotFound, ErrorKind::NoTag][usize::from(any)];
                        assert_eq!(e.kind(), kind);
                    }
                    (found, want) => panic!("{found:?} {want:?}"),
                }
            }
        }
    }
}

fn plain(record: &VdiRecord) -> Vdi {
    Vdi {
        name: record.name.clone(),
        vid: record.vid,
        lineage: record.lineage.0,
        snap_id: record.snap_id,
        size: record.size,
        parent: record.parent,
        state: record.state,
    }
}

/// Names that get into each other's way: two with one hash, one whose hash is the next id, and the
/// two at the seam.
fn names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let (a, b) = colliding_names();
        let home = crate::vid::home(&a).get();
        // A name that starts right behind is what a linear probe runs into.
        let next = (0..)
            .map(|i| format!("m{i}"))
            .find(|n| (1..200).contains(&crate::vid::home(n).get().wrapping_sub(home)));
        let next = next.expect("24 bits are few");
        vec![a, b, next, "05421217".to_owned(), "01909709".to_owned()]
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    let name = || 0..5usize;
    let pick = || 0..12usize;
    let size = || {
        prop_oneof![
            8 => 0..10u64,
            1 => Just(4 << 40),
            1 => Just((4 << 40) + 1),
        ]
    };
    prop_oneof![
        4 => (name(), size()).prop_map(|(n, s)| Op::Create(n, s)),
        2 => (name(), size()).prop_map(|(n, s)| Op::BeginImport(n, s)),
        2 => pick().prop_map(Op::FinishImport),
        3 => (name(), name()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (pick(), size()).prop_map(|(v, s)| Op::Resize(v, s)),
        3 => pick().prop_map(Op::Hide),
        3 => pick().prop_map(Op::RemoveSwept),
        2 => name().prop_map(Op::Snapshot),
    ]
}

fn any_news() -> impl Strategy<Value = News> {
    prop_oneof![Just(News::No), Just(News::Watch), Just(News::List)]
}

/// What a decider's table makes of an operation.
fn decide(table: &Table, op: &Op, target: Vid) -> Result<(Txn, Option<VdiRecord>)> {
    let names = names();
    let new = |name: usize, size| NewVdi { size, ..new(&names[name]) };
    let decision = match *op {
        Op::Create(name, size) => table.create(&new(name, size)),
        Op::BeginImport(name, size) => table.begin_import(&new(name, size)),
        Op::FinishImport(_) => table.finish_import(target),
        Op::Rename(from, to) => table.rename(&names[from], &names[to]),
        Op::Resize(_, size) => table.resize(target, size),
        Op::Hide(_) => table.hide(target),
        Op::RemoveSwept(_) => return table.remove_swept(target).map(|txn| (txn, None)),
        Op::Snapshot(name) => {
            // Not of an unfinished import: that rule belongs to the issue of snapshots.
            let found = table.open(&names[name], Selector::Working);
            found.and_then(|_| snapshot(table, &names[name], "t"))
        }
    }?;
    Ok((decision.txn, Some(decision.record)))
}

fn run(ops: &[(usize, News, Op)]) {
    let mut kv = Kv::default();
    let mut model = Model::default();
    let mut tables = vec![(Table::default(), 0usize); 3];
    for (who, news, op) in ops {
        let (table, seen) = &mut tables[*who];
        match news {
            News::No => {}
            News::Watch => {
                for (txn, at) in &kv.log[*seen..] {
                    table.committed(txn, *at).expect("own bytes");
                }
                *seen = kv.log.len();
                assert_eq!(*table, kv.table(), "a watch ends where a listing does");
            }
            News::List => (*table, *seen) = (kv.table(), kv.log.len()),
        }
        let fresh = *seen == kv.log.len();
        let target = match *op {
            Op::FinishImport(n) | Op::Resize(n, _) | Op::Hide(n) | Op::RemoveSwept(n) => {
                model.vdis.get(n).map_or(vid(0x12_3456), |v| v.vid)
            }
            _ => vid(1),
        };
        if let Op::Snapshot(name) = op
            && let Some(at) = model.holder(&names()[*name])
            && model.vdis[at].state == State::Incomplete
        {
            continue;
        }
        match decide(table, op, target) {
            Err(e) if fresh => {
                assert_eq!(model.apply(op, target, None), Err(e.kind()), "{op:?}");
            }
            Err(_) => {}
            Ok((txn, record)) => match kv.commit(&txn) {
                Outcome::Conflict => assert!(!fresh, "{op:?} lost against nobody"),
                Outcome::Committed(at) => {
                    let slot = record.as_ref().map(|r| r.vid).filter(|_| !fresh);
                    assert_eq!(model.apply(op, target, slot), Ok(()), "{op:?}");
                    if let Some(record) = record {
                        let in_model = model.vdis.iter().find(|v| v.vid == record.vid);
                        assert_eq!(in_model, Some(&plain(&record)), "{op:?}");
                    }
                    table.committed(&txn, at).expect("own bytes");
                    if fresh {
                        *seen += 1;
                    }
                    model.check(&kv.table());
                }
            },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn deciders_with_old_tables_never_break_a_rule(
        ops in proptest::collection::vec((0..3usize, any_news(), any_op()), 1..80),
    ) {
        run(&ops);
    }

    #[test]
    fn a_lone_decider_follows_the_rules_exactly(
        ops in proptest::collection::vec(any_op(), 1..80),
    ) {
        run(&ops.into_iter().map(|op| (0, News::Watch, op)).collect::<Vec<_>>());
    }
}
