//! The copy of the VDI table that every store keeps, and the registry's values in it.
#![no_main]

use bytes::Bytes;
use sheepdog_fuzz::input::Input;
use sheepdog_fuzz::meter::bounded;
use sheepdog_sheep::cluster::{SHARDS_KEY, ShardPack};
use sheepdog_types::kv::{Entry, Revision};
use sheepdog_types::limits::{NAME_BYTES_MAX, VDI_BYTES_MAX};
use sheepdog_types::{DiskId, LineageId, Vid};
use sheepdog_volume::cluster::{
    CLUSTER_KEY, ClusterOptions, ClusterRecord, EpochNode, EpochRecord, epoch_key,
};
use sheepdog_volume::record::{Base, State, VdiRecord};
use sheepdog_volume::table::{LINEAGE_KEY, NAME_PREFIX, Selector, id_key, name_key};
use sheepdog_volume::table_copy::TableCopy;
use sheepdog_volume::{Redundancy, name};

sheepdog_fuzz::target!(seeds, run);

fn seeds() -> Vec<Vec<u8>> {
    let entry = |key: String, value: Bytes| Entry { key, value, modified: Revision(3) };
    let working = record("disk", "", 2, 7, State::Working);
    let snapshot = record("disk", "before", 1, 5, State::Snapshot);
    let clone = VdiRecord {
        parent: Vid::new(5),
        base: Vid::new(5).map(|vid| Base { lineage: LineageId(1), vid }),
        ..record("ä b", "", 1, 0xab_cdef, State::Incomplete)
    };
    let cluster = ClusterRecord {
        uuid: [7; 16],
        created: 1 << 60,
        store: "plain".to_owned(),
        redundancy: Redundancy::DEFAULT,
        object_shift: 22,
        options: ClusterOptions { strict: true, ..ClusterOptions::default() },
    };
    let node = EpochNode { host: "::1".to_owned(), port: 7000, vnodes: 128 };
    let epoch = EpochRecord { epoch: 1, began: 5, nodes: vec![node] };
    let shards = |disks: &[(DiskId, u64)]| {
        ShardPack::spread(None, disks).map_or(Bytes::new(), |shards| shards.encode())
    };
    let (one, other) = ((DiskId([3; 16]), 5), (DiskId([4; 16]), 9));
    let mut entries = vec![
        entry(CLUSTER_KEY.to_owned(), cluster.encode()),
        entry(epoch_key(1), epoch.encode()),
        entry(SHARDS_KEY.to_owned(), shards(&[one])),
        entry(SHARDS_KEY.to_owned(), shards(&[one, other])),
        entry(LINEAGE_KEY.to_owned(), Bytes::from_static(b"\x08\x01\x10\x09")),
        entry(name_key("disk"), Bytes::from_static(b"\x08\x01\x12\x04disk\x18\x07")),
    ];
    let records = [&working, &snapshot, &clone];
    entries.extend(records.map(|record| entry(id_key(record.vid), record.encode())));
    let copy = TableCopy { cluster: [7; 16], revision: Revision(9), entries };
    let mut seeds = vec![[&[0], &copy.encode()[..]].concat()];
    // Each value by itself.
    for (choice, entry) in (1..).zip(&copy.entries) {
        seeds.push([&[choice], &entry.value[..]].concat());
    }
    seeds
}

fn record(name: &str, tag: &str, snap_id: u32, vid: u32, state: State) -> VdiRecord {
    VdiRecord {
        name: name.to_owned(),
        tag: tag.to_owned(),
        snap_id,
        vid: Vid::new(vid).unwrap_or_else(|| panic!("vid {vid}")),
        lineage: LineageId(1),
        parent: None,
        base: None,
        size: 1 << 30,
        redundancy: Redundancy::DEFAULT,
        object_shift: 22,
        hyper: false,
        preallocated: false,
        created: 1 << 60,
        snapshotted: (state == State::Snapshot).then_some(1 << 61),
        state,
    }
}

/// The first byte: 0 for a whole copy, otherwise one value of every kind.
fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let whole = input.u8() == 0;
    let bytes = input.rest();
    // An empty entry takes two bytes here and 72 in memory, in two lists that double.
    bounded((64 << 10) + 400 * bytes.len(), || {
        if whole {
            copy(bytes);
        } else {
            values(bytes);
        }
    });
}

fn copy(bytes: &[u8]) {
    let Ok(copy) = TableCopy::decode(bytes) else {
        return;
    };
    assert_eq!(TableCopy::decode(&copy.encode()).as_ref().ok(), Some(&copy));
    if let Ok(cluster) = copy.cluster_record() {
        assert_eq!(ClusterRecord::decode(&cluster.encode()).ok(), Some(cluster));
    }
    let Ok(table) = copy.table() else {
        return;
    };
    table.check().expect("a table that was taken in is whole");
    assert_eq!(table.visible().count() + table.hidden().count(), table.len());
    for record in table.visible() {
        let vids = table.of_name(&record.name).filter(|other| other.vid == record.vid);
        assert_eq!(vids.count(), 1, "its name finds it");
        let found = match record.state {
            State::Snapshot => table.lookup(&record.name, Selector::SnapId(record.snap_id)),
            _ => table.lookup(&record.name, Selector::Working),
        };
        assert_eq!(found.ok(), Some(record));
        let key = name_key(&record.name);
        assert!(key.is_ascii() && key.len() <= 350 && key.starts_with(NAME_PREFIX));
    }
}

fn values(bytes: &[u8]) {
    if let Ok(record) = VdiRecord::decode(bytes) {
        assert!(record.size <= VDI_BYTES_MAX && record.name.len() <= NAME_BYTES_MAX);
        name::check(record.name.as_bytes()).expect("a name that was let in");
        assert!(u128::from(record.objects()) << record.object_shift >= u128::from(record.size));
        assert_eq!(VdiRecord::decode(&record.encode()).ok(), Some(record));
    }
    if let Ok(record) = ClusterRecord::decode(bytes) {
        assert_eq!(ClusterRecord::decode(&record.encode()).ok(), Some(record));
    }
    if let Ok(record) = EpochRecord::decode(bytes) {
        let shown: Vec<String> = record.nodes.iter().map(ToString::to_string).collect();
        assert!(shown.iter().all(|node| !node.contains(char::is_control)));
        assert_eq!(EpochRecord::decode(&record.encode()).ok(), Some(record));
    }
    if let Ok(pack) = ShardPack::decode(bytes) {
        assert_eq!(ShardPack::decode(&pack.encode()).ok(), Some(pack));
    }
}
