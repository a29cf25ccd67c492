//! What doors ask about VDIs: exports by name.

use super::{Node, view};
use crate::data::{BoxFuture, VdiDirectory, View};
use sheepdog_types::{ErrorKind, Result, Vid};
use sheepdog_volume::record::{State, VdiRecord};
use sheepdog_volume::table::{Selector, Table};
use std::sync::Arc;

impl VdiDirectory for Node {
    fn open<'a>(&'a self, export: &'a str) -> BoxFuture<'a, Result<Arc<View>>> {
        Box::pin(async move {
            let current = self.table().await?;
            let record = find(&current.table, export)?;
            self.gates.settle(record.vid).await;
            Ok(Arc::new(view(&current.table, record)))
        })
    }

    fn is_there(&self, vid: Vid) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let current = self.table().await;
            current.is_ok_and(|current| current.table.get(vid).is_some_and(can_be_opened))
        })
    }

    fn list(&self) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move {
            let Ok(current) = self.table().await else {
                return Vec::new();
            };
            current.table.visible().filter_map(export_of).collect()
        })
    }
}

/// The whole name first, then what is before the last `@` with what is behind it.
fn find<'a>(table: &'a Table, export: &str) -> Result<&'a VdiRecord> {
    if export.is_empty() {
        return Err(ErrorKind::NotFound.into());
    }
    let whole = table.open(export, Selector::Working);
    match (&whole, export.rsplit_once('@')) {
        (Err(error), Some((name, selector))) if error.kind() == ErrorKind::NotFound => {
            table.open(name, Selector::parse(selector)?)
        }
        _ => whole,
    }
}

fn can_be_opened(record: &VdiRecord) -> bool {
    matches!(record.state, State::Working | State::Snapshot)
}

/// How a VDI is asked for; `None` if it cannot be opened.
fn export_of(record: &VdiRecord) -> Option<String> {
    match record.state {
        State::Working => Some(record.name.clone()),
        // A tag that looks like a number would be taken for an id.
        State::Snapshot if matches!(Selector::parse(&record.tag), Ok(Selector::Tag(_))) => {
            Some(format!("{}@{}", record.name, record.tag))
        }
        State::Snapshot => Some(format!("{}@{}", record.name, record.snap_id)),
        State::Incomplete | State::Hidden => None,
    }
}
