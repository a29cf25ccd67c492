//! The rules one by one. `model.rs` has the random ones.

mod model;

use super::*;
use crate::record::Base;
use crate::redundancy::Redundancy;
use bytes::Bytes;
use sheepdog_types::LineageId;
use sheepdog_types::kv::{Compare, Outcome};

/// A registry of the kind the table is kept in: one history, compare-and-swap.
#[derive(Default)]
struct Kv {
    entries: BTreeMap<String, Entry>,
    revision: u64,
    /// What was committed, for tables that follow.
    log: Vec<(Txn, Revision)>,
}

impl Kv {
    fn commit(&mut self, txn: &Txn) -> Outcome {
        let keys: BTreeSet<_> = txn
            .changes
            .iter()
            .map(|c| match c {
                Change::Put(key, _) | Change::Delete(key) => key,
            })
            .collect();
        assert_eq!(keys.len(), txn.changes.len(), "each key once");
        assert!(keys.len() <= 128);
        assert!(keys.iter().all(|k| k.is_ascii() && k.len() <= 512));
        // Nothing is changed that was not compared.
        let compared: BTreeSet<_> = txn
            .compares
            .iter()
            .map(|c| match c {
                Compare::Absent(key) | Compare::Unchanged(key, _) => key,
            })
            .collect();
        assert!(compared.is_superset(&keys));
        let holds = txn.compares.iter().all(|compare| match compare {
            Compare::Absent(key) => !self.entries.contains_key(key),
            Compare::Unchanged(key, at) => self.entries.get(key).is_some_and(|e| e.modified == *at),
        });
        if !holds {
            return Outcome::Conflict;
        }
        self.revision += 1;
        let modified = Revision(self.revision);
        for change in &txn.changes {
            match change {
                Change::Put(key, value) => {
                    let entry = Entry { key: key.clone(), value: value.clone(), modified };
                    self.entries.insert(key.clone(), entry);
                }
                Change::Delete(key) => {
                    self.entries.remove(key);
                }
            }
        }
        self.log.push((txn.clone(), modified));
        Outcome::Committed(modified)
    }

    fn table(&self) -> Table {
        Table::from_entries(self.entries.values()).expect("consistent")
    }

    /// Commits what must commit.
    fn must(&mut self, decision: Result<Decision>) -> VdiRecord {
        let decision = decision.expect("allowed");
        assert!(matches!(self.commit(&decision.txn), Outcome::Committed(_)));
        assert_eq!(self.table().get(decision.record.vid), Some(&decision.record));
        decision.record
    }

    fn create(&mut self, name: &str) -> VdiRecord {
        self.must(self.table().create(&new(name)))
    }
}

fn new(name: &str) -> NewVdi {
    NewVdi {
        name: name.to_owned(),
        size: 1 << 30,
        redundancy: Redundancy::DEFAULT,
        object_shift: 22,
        hyper: false,
        preallocated: false,
        created: 42,
    }
}

fn vid(value: u32) -> Vid {
    Vid::new(value).expect("vid")
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.expect_err("must be refused").kind()
}

/// What the issue of snapshots will do: the working VDI is frozen under its vid, a new vid of the
/// lineage takes over.
fn snapshot(table: &Table, name: &str, tag: &str) -> Result<Decision> {
    let old = table.lookup(name, Selector::Working)?.clone();
    let vid = crate::vid::first_free(crate::vid::home(name), &table.records)
        .ok_or(ErrorKind::TooManyVdis)?;
    let working = VdiRecord { vid, snap_id: old.snap_id + 1, parent: Some(old.vid), ..old.clone() };
    let frozen =
        VdiRecord { tag: tag.to_owned(), snapshotted: Some(7), state: State::Snapshot, ..old };
    let name_value = NameRecord { name: name.to_owned(), working: Some(vid) };
    let modified = |key: &str| table.names[key].modified;
    Ok(Decision {
        txn: Txn {
            compares: vec![
                Compare::Unchanged(id_key(frozen.vid), table.records[&frozen.vid].modified),
                Compare::Absent(id_key(vid)),
                Compare::Unchanged(name_key(name), modified(&name_key(name))),
            ],
            changes: vec![
                Change::Put(id_key(frozen.vid), frozen.encode()),
                Change::Put(id_key(vid), working.encode()),
                Change::Put(name_key(name), name_value.encode()),
            ],
        },
        record: working,
    })
}

#[test]
fn creating_takes_the_name_the_slot_and_a_lineage() {
    let mut kv = Kv::default();
    let decision = kv.table().create(&new("test")).expect("free");
    let key = || "vdi/id/7c2b25".to_owned();
    let name = || "vdi/name/=test".to_owned();
    let lineage = || "vdi/next-lineage".to_owned();
    let mut compares = decision.txn.compares.clone();
    compares.sort_by_key(|c| format!("{c:?}"));
    assert_eq!(compares, [key(), name(), lineage()].map(Compare::Absent).to_vec());
    let name_value = Bytes::from_static(b"\x08\x01\x12\x04test\x18\xa5\xd6\xf0\x03");
    for change in [
        Change::Put(key(), decision.record.encode()),
        Change::Put(name(), name_value),
        Change::Put(lineage(), Bytes::from_static(b"\x08\x01\x10\x02")),
    ] {
        assert!(decision.txn.changes.contains(&change), "{change:?}");
    }
    assert_eq!(decision.txn.changes.len(), 3);
    let record = kv.must(Ok(decision));
    assert_eq!((record.vid, record.lineage), (vid(0x7c_2b25), LineageId(1)));
    assert_eq!((record.snap_id, record.state), (1, State::Working));
    assert_eq!((record.size, record.created), (1 << 30, 42));
    assert_eq!(kv.create("foo").lineage, LineageId(2));
    assert_eq!(kind(kv.table().create(&new("test"))), ErrorKind::Exists);
}

#[test]
fn bad_sizes_and_names_are_refused_before_anything_else() {
    let mut kv = Kv::default();
    kv.create("test");
    let refuse = |change: &dyn Fn(&mut NewVdi)| {
        let mut new = new("test");
        change(&mut new);
        assert_eq!(kind(kv.table().create(&new)), ErrorKind::Invalid);
        assert_eq!(kind(kv.table().begin_import(&new)), ErrorKind::Invalid);
    };
    refuse(&|n| n.name.clear());
    refuse(&|n| n.name = "a\n".to_owned());
    refuse(&|n| n.name = "n".repeat(256));
    refuse(&|n| n.object_shift = 19);
    refuse(&|n| n.object_shift = 32);
    refuse(&|n| n.size = (4 << 40) + 1);
    refuse(&|n| (n.size, n.hyper) = ((16 << 50) + 1, true));
    for (size, shift, hyper) in [
        (0, 22, false),
        (1, 20, false),
        (4 << 40, 22, false),
        (16 << 50, 20, true),
        (2 << 50, 31, false),
    ] {
        let mut new = new("other");
        (new.size, new.object_shift, new.hyper) = (size, shift, hyper);
        let record = kv.table().create(&new).expect("legal").record;
        assert_eq!((record.size, record.object_shift, record.hyper), (size, shift, hyper));
    }
}

#[test]
fn deleting_frees_the_name_at_once_and_the_vid_after_the_sweep() {
    let mut kv = Kv::default();
    let first = kv.create("test");
    assert_eq!(kind(kv.table().remove_swept(first.vid)), ErrorKind::Conflict);
    let hidden = kv.must(kv.table().hide(first.vid));
    assert_eq!(hidden.state, State::Hidden);
    let table = kv.table();
    assert_eq!(kind(table.lookup("test", Selector::Working)), ErrorKind::NotFound);
    assert_eq!(kind(table.hide(first.vid)), ErrorKind::NotFound);
    assert_eq!(kind(table.resize(first.vid, 2 << 30)), ErrorKind::NotFound);
    assert_eq!(table.visible().count(), 0);
    assert_eq!(table.hidden().collect::<Vec<_>>(), [&hidden]);

    // The slot is taken until the sweep is done, the lineage for ever.
    let second = kv.create("test");
    assert_eq!(second.vid, vid(first.vid.get() + 1));
    assert_eq!(second.lineage, LineageId(2));
    let txn = kv.table().remove_swept(first.vid).expect("hidden");
    assert!(matches!(kv.commit(&txn), Outcome::Committed(_)));
    assert_eq!(kv.commit(&txn), Outcome::Conflict);
    assert_eq!(kind(kv.table().remove_swept(first.vid)), ErrorKind::NotFound);
    let _ = kv.must(kv.table().hide(second.vid));
    let third = kv.create("test");
    assert_eq!((third.vid, third.lineage), (first.vid, LineageId(3)));
}

#[test]
fn imports_finish_once_or_are_replaced() {
    let mut kv = Kv::default();
    let first = kv.must(kv.table().begin_import(&new("img")));
    assert_eq!(first.state, State::Incomplete);
    let table = kv.table();
    assert_eq!(kind(table.open("img", Selector::Working)), ErrorKind::Incomplete);
    assert_eq!(table.lookup("img", Selector::Working).expect("listed"), &first);
    assert_eq!(kind(table.create(&new("img"))), ErrorKind::Exists);
    assert_eq!(kind(table.resize(first.vid, 2 << 30)), ErrorKind::Incomplete);

    let late = table.finish_import(first.vid).expect("still running");
    let second = kv.must(kv.table().begin_import(&new("img")));
    assert_ne!((second.vid, second.lineage), (first.vid, first.lineage));
    assert_eq!(kv.table().get(first.vid).map(|r| r.state), Some(State::Hidden));
    // The first importer comes too late, by the table and by the transaction it has prepared.
    assert_eq!(kind(kv.table().finish_import(first.vid)), ErrorKind::NotFound);
    assert_eq!(kv.commit(&late.txn), Outcome::Conflict);

    let done = kv.must(kv.table().finish_import(second.vid));
    assert_eq!(done.state, State::Working);
    assert_eq!(kv.table().open("img", Selector::Working).expect("usable"), &done);
    assert_eq!(kind(kv.table().finish_import(second.vid)), ErrorKind::Conflict);
    assert_eq!(kind(kv.table().begin_import(&new("img"))), ErrorKind::Exists);
}

#[test]
fn resizing_only_grows_and_only_within_limits() {
    let mut kv = Kv::default();
    let vdi = kv.create("test");
    for size in [1 << 30, (1 << 30) + 1, 4 << 40] {
        assert_eq!(kv.must(kv.table().resize(vdi.vid, size)).size, size);
    }
    let table = kv.table();
    let shrink = table.resize(vdi.vid, (4 << 40) - 1).expect_err("smaller");
    assert_eq!(shrink.kind(), ErrorKind::Invalid);
    assert_eq!(shrink.context(), "Shrinking VDIs is not implemented");
    let large = table.resize(vdi.vid, (4 << 40) + 1).expect_err("larger");
    assert_eq!(large.kind(), ErrorKind::Invalid);
    assert!(large.context().ends_with("max size is 4398046511104"));
    assert_eq!(kind(table.resize(vid(1), 0)), ErrorKind::NotFound);
    let mut hyper = new("hyper");
    hyper.hyper = true;
    let hyper = kv.must(kv.table().create(&hyper));
    assert_eq!(kv.must(kv.table().resize(hyper.vid, 16 << 50)).size, 16 << 50);
    assert_eq!(kind(kv.table().resize(hyper.vid, u64::MAX)), ErrorKind::Invalid);
}

#[test]
fn names_tags_and_ids_find_what_they_should() {
    let mut kv = Kv::default();
    kv.create("vm");
    kv.create("plain");
    for tag in ["a", "", "a", "b"] {
        let _ = kv.must(snapshot(&kv.table(), "vm", tag));
    }
    let table = kv.table();
    let id = |selector| table.lookup("vm", selector).map(|r| r.snap_id);
    assert_eq!(id(Selector::Working).expect("working"), 5);
    assert_eq!(id(Selector::Tag("a")).expect("newest of both"), 3);
    assert_eq!(id(Selector::Tag("b")).expect("tag"), 4);
    for n in 1..=4 {
        assert_eq!(id(Selector::SnapId(n)).expect("id"), n);
    }
    for selector in [
        Selector::SnapId(0),
        // The working VDI has this id, but only snapshots are found by id.
        Selector::SnapId(5),
        Selector::Tag("c"),
        Selector::Tag(""),
    ] {
        assert_eq!(kind(table.lookup("vm", selector)), ErrorKind::NoTag);
        assert_eq!(kind(table.lookup("plain", selector)), ErrorKind::NoTag);
        assert_eq!(kind(table.lookup("none", selector)), ErrorKind::NotFound);
    }
    assert_eq!(kind(table.lookup("none", Selector::Working)), ErrorKind::NotFound);
    assert_eq!(kind(table.lookup("", Selector::Working)), ErrorKind::NotFound);
    let frozen = table.lookup("vm", Selector::SnapId(1)).expect("snapshot");
    assert_eq!(kind(table.resize(frozen.vid, 2 << 30)), ErrorKind::ReadOnly);
    assert_eq!(table.of_name("vm").count(), 5);

    // The working VDI goes, its snapshots stay and push the ids of the next one.
    let working = table.lookup("vm", Selector::Working).expect("working").vid;
    let _ = kv.must(kv.table().hide(working));
    let table = kv.table();
    assert_eq!(kind(table.lookup("vm", Selector::Working)), ErrorKind::NotFound);
    assert_eq!(table.lookup("vm", Selector::Tag("b")).expect("stays").snap_id, 4);
    assert_eq!(kv.create("vm").snap_id, 5);
}

#[test]
fn selectors_as_people_write_them() {
    assert_eq!(Selector::parse("12").expect("id"), Selector::SnapId(12));
    assert_eq!(Selector::parse("012").expect("id"), Selector::SnapId(12));
    for tag in ["12a", "-1", "1.0", "日本", "１"] {
        assert_eq!(Selector::parse(tag).expect(tag), Selector::Tag(tag));
    }
    let zero = Selector::parse("0").expect_err("zero");
    assert_eq!(zero.context(), "The snapshot id must be larger than zero");
    for text in ["", "00", "4294967296", "a\nb", &"t".repeat(256)] {
        assert_eq!(kind(Selector::parse(text)), ErrorKind::Invalid, "{text}");
    }
}

#[test]
fn renaming_takes_its_own_snapshots_along() {
    let mut kv = Kv::default();
    let old = kv.create("a");
    let _ = kv.must(snapshot(&kv.table(), "a", "left behind"));
    let working = kv.table().lookup("a", Selector::Working).expect("a").vid;
    let _ = kv.must(kv.table().hide(working));
    let second = kv.create("a");
    assert_eq!(second.snap_id, 2);
    let _ = kv.must(snapshot(&kv.table(), "a", "mine"));

    let renamed = kv.must(kv.table().rename("a", "b"));
    let table = kv.table();
    assert_eq!((renamed.name.as_str(), renamed.snap_id), ("b", 3));
    assert_eq!(table.lookup("b", Selector::Tag("mine")).expect("moved").vid, second.vid);
    assert_eq!(table.lookup("a", Selector::SnapId(1)).expect("stayed").vid, old.vid);
    assert_eq!(kind(table.lookup("a", Selector::Working)), ErrorKind::NotFound);
    assert_eq!(kind(table.lookup("a", Selector::Tag("mine"))), ErrorKind::NoTag);

    // Onto a name with snapshots: one without any gets a new id, one with some is refused.
    assert_eq!(kind(table.rename("b", "a")), ErrorKind::Exists);
    kv.create("c");
    assert_eq!(kv.must(kv.table().rename("c", "a")).snap_id, 2);
    let table = kv.table();
    assert_eq!(kind(table.lookup("c", Selector::Working)), ErrorKind::NotFound);
    assert!(!table.names.contains_key("vdi/name/=c"));
    assert_eq!(kind(table.rename("a", "b")), ErrorKind::Exists);
    assert_eq!(kind(table.rename("a", "a")), ErrorKind::Exists);
    assert_eq!(kind(table.rename("c", "d")), ErrorKind::NotFound);
    assert_eq!(kind(table.rename("a", "")), ErrorKind::Invalid);
}

#[test]
fn a_rename_fits_one_transaction_or_is_refused() {
    let mut kv = Kv::default();
    kv.create("a");
    for _ in 0..125 {
        let _ = kv.must(snapshot(&kv.table(), "a", "t"));
    }
    assert_eq!(kv.must(kv.table().rename("a", "b")).snap_id, 126);
    let _ = kv.must(snapshot(&kv.table(), "b", "t"));
    let error = kv.table().rename("b", "a").expect_err("127 records");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.context(), "a VDI with more than 125 snapshots cannot be renamed");
}

#[test]
fn a_base_stays_while_a_clone_names_it() {
    let mut kv = Kv::default();
    kv.create("a");
    let _ = kv.must(snapshot(&kv.table(), "a", "t"));
    let frozen = kv.table().lookup("a", Selector::Tag("t")).expect("t").clone();
    let mut clone = kv.table().create(&new("c")).expect("c");
    clone.record.base = Some(Base { lineage: frozen.lineage, vid: frozen.vid });
    for change in &mut clone.txn.changes {
        if let Change::Put(key, value) = change
            && *key == id_key(clone.record.vid)
        {
            *value = clone.record.encode();
        }
    }
    let clone = kv.must(Ok(clone));
    let _ = kv.must(kv.table().hide(frozen.vid));
    assert_eq!(kind(kv.table().remove_swept(frozen.vid)), ErrorKind::Locked);
    // Of its own lineage too, until the family tree is mended.
    let _ = kv.must(kv.table().hide(clone.vid));
    let txn = kv.table().remove_swept(clone.vid).expect("no child");
    assert!(matches!(kv.commit(&txn), Outcome::Committed(_)));
    assert_eq!(kind(kv.table().remove_swept(frozen.vid)), ErrorKind::Locked);
}

#[test]
fn of_two_deciders_with_one_table_one_wins() {
    let (a, b) = colliding_names();
    let (first_in_slot, second_in_slot) = (new(&a), new(&b));
    let one_slot: (Decide<'_>, Decide<'_>) =
        (&|t| t.create(&first_in_slot), &|t| t.create(&second_in_slot));
    let pairs: Vec<(&str, Decide<'_>, Decide<'_>)> = vec![
        ("one name", &|t| t.create(&new("x")), &|t| t.create(&new("x"))),
        ("one name", &|t| t.create(&new("x")), &|t| t.begin_import(&new("x"))),
        ("one slot", one_slot.0, one_slot.1),
        ("one lineage", &|t| t.create(&new("x")), &|t| t.create(&new("y"))),
        ("new and renamed", &|t| t.create(&new("x")), &|t| t.rename("test", "x")),
        ("twice renamed", &|t| t.rename("test", "x"), &|t| t.rename("test", "y")),
        ("renamed to one", &|t| t.rename("test", "x"), &|t| t.rename("foo", "x")),
        ("crossed", &|t| t.rename("test", "x"), &|t| t.hide(vid(0x7c_2b25))),
        ("grown", &|t| t.resize(vid(0x7c_2b25), 2 << 30), &|t| t.resize(vid(0x7c_2b25), 3 << 30)),
        ("grown, gone", &|t| t.resize(vid(0x7c_2b25), 2 << 30), &|t| t.hide(vid(0x7c_2b25))),
        ("gone twice", &|t| t.hide(vid(0x7c_2b25)), &|t| t.hide(vid(0x7c_2b25))),
        ("snapshot, gone", &|t| snapshot(t, "test", "t"), &|t| t.hide(vid(0x7c_2b25))),
        ("snapshot, renamed", &|t| snapshot(t, "test", "t"), &|t| t.rename("test", "x")),
        ("imports", &|t| t.begin_import(&new("img")), &|t| t.begin_import(&new("img"))),
        (
            "finished, replaced",
            &|t| t.finish_import(t.lookup("img", Selector::Working)?.vid),
            &|t| t.begin_import(&new("img")),
        ),
    ];
    for (what, one, other) in pairs {
        for swap in [false, true] {
            let mut kv = Kv::default();
            kv.create("test");
            kv.create("foo");
            let _ = kv.must(kv.table().begin_import(&new("img")));
            let table = kv.table();
            let (first, second) = if swap { (other, one) } else { (one, other) };
            let first = first(&table).expect(what);
            let second = second(&table).expect(what);
            assert!(matches!(kv.commit(&first.txn), Outcome::Committed(_)), "{what}");
            assert_eq!(kv.commit(&second.txn), Outcome::Conflict, "{what}");
            kv.table();
        }
    }
}

type Decide<'a> = &'a dyn Fn(&Table) -> Result<Decision>;

/// Two names with the same hash.
fn colliding_names() -> (String, String) {
    let mut seen = BTreeMap::new();
    (0..)
        .map(|i| format!("n{i}"))
        .find_map(|name| {
            seen.insert(crate::vid::home(&name), name.clone()).map(|other| (other, name))
        })
        .expect("24 bits are few")
}

#[test]
fn listings_and_watches_may_overlap() {
    let mut kv = Kv::default();
    let vdi = kv.create("test");
    let old: Vec<Entry> = kv.entries.values().cloned().collect();
    let _ = kv.must(kv.table().resize(vdi.vid, 2 << 30));
    let _ = kv.must(kv.table().rename("test", "foo"));
    let mut table = kv.table();
    let before = table.clone();
    for entry in old.iter().filter(|e| !e.key.starts_with(NAME_PREFIX)) {
        table.put(entry).expect("old but good");
    }
    table.delete(&id_key(vdi.vid), Revision(1));
    table.delete(LINEAGE_KEY, Revision(1));
    table.delete(&name_key("foo"), Revision(1));
    table.delete("vdi/unknown", Revision(99));
    assert_eq!(table, before);
    assert_eq!(table.modified(vdi.vid), Some(Revision(3)));

    for key in kv.entries.keys() {
        table.delete(key, Revision(4));
    }
    assert_eq!(table, Table::default());
    assert!(table.is_empty());
}

#[test]
fn unreadable_and_contradicting_entries_are_named() {
    let mut kv = Kv::default();
    let vdi = kv.create("test");
    let _ = kv.must(kv.table().begin_import(&new("img")));
    let (id, name) = (id_key(vdi.vid), name_key("test"));
    let refuse = |kind: ErrorKind, part: &str, change: &dyn Fn(&mut BTreeMap<String, Entry>)| {
        let mut entries = kv.entries.clone();
        change(&mut entries);
        let error = Table::from_entries(entries.values()).expect_err(part);
        assert_eq!(error.kind(), kind, "{part}");
        assert!(error.full().contains(part), "{} lacks {part}", error.full());
        assert!(!error.full().contains('\n'));
    };
    let put = |key: &str, value: Vec<u8>| {
        let key = key.to_owned();
        move |entries: &mut BTreeMap<String, Entry>| {
            let entry =
                Entry { key: key.clone(), value: value.clone().into(), modified: Revision(9) };
            entries.insert(key.clone(), entry);
        }
    };
    let damaged = ErrorKind::Internal;
    refuse(damaged, &id, &put(&id, b"junk".to_vec()));
    refuse(damaged, &name, &put(&name, vec![]));
    refuse(damaged, LINEAGE_KEY, &put(LINEAGE_KEY, vec![8, 1]));
    refuse(ErrorKind::VersionMismatch, &id, &put(&id, vec![8, 2]));
    refuse(ErrorKind::VersionMismatch, &name, &put(&name, vec![8, 2]));
    refuse(ErrorKind::VersionMismatch, LINEAGE_KEY, &put(LINEAGE_KEY, vec![8, 2]));
    refuse(damaged, "another VDI's", &put("vdi/id/000001", vdi.encode().to_vec()));
    let other_name = kv.entries[&name].value.to_vec();
    refuse(damaged, "another name's", &put("vdi/name/=x", other_name.clone()));
    refuse(damaged, "another name's", &put("vdi/name/~dGVzdA", other_name));

    refuse(damaged, "names nothing", &|e| drop(e.remove(&id)));
    refuse(damaged, "has no key", &|e| drop(e.remove(&name)));
    refuse(damaged, "never given out", &|e| drop(e.remove(LINEAGE_KEY)));
    let nobody = NameRecord { name: "test".to_owned(), working: None };
    refuse(damaged, "does not name", &put(&name, nobody.encode().to_vec()));
    let twin = |snap_id| {
        let mut twin = vdi.clone();
        (twin.vid, twin.snap_id) = (vid(1), snap_id);
        twin
    };
    refuse(damaged, "working", &put("vdi/id/000001", twin(2).encode().to_vec()));
    let mut same_id = twin(1);
    (same_id.state, same_id.snapshotted) = (State::Snapshot, Some(1));
    refuse(damaged, "twice", &put("vdi/id/000001", same_id.encode().to_vec()));

    // What a later version may add is no reason to refuse.
    let mut entries = kv.entries.clone();
    put("vdi/trash/000001", b"?".to_vec())(&mut entries);
    let table = Table::from_entries(entries.values()).expect("unknown key");
    assert_eq!(table, kv.table());
    assert_eq!(table.len(), 2);
}
