//! What the door asks its owner: which exports there are, and to open one. And how an export name
//! names a VDI or one of its snapshots.

use sheepdog_types::{Error, ErrorKind, Result};
use sheepdog_volume::io::Volume;
use sheepdog_volume::name;
use std::future::Future;
use std::rc::Rc;

/// The exports a server offers.
pub trait Exports: 'static {
    /// What an open export is.
    type Volume: Volume + 'static;

    /// Opens an export. The door knows nothing about names; [`look_up`] is the rule for them.
    fn open(&self, name: &str) -> impl Future<Output = Result<Opened<Self::Volume>>>;

    /// Whether the VDI `key` can still be opened. Asked when a connection has begun to count as one
    /// of the VDI's: a deletion that comes later finds the connection, an earlier one is seen here.
    fn is_there(&self, key: u32) -> impl Future<Output = bool>;

    /// The names a client is shown.
    fn list(&self) -> impl Future<Output = Vec<String>>;
}

/// An open export.
pub struct Opened<V> {
    /// Where its bytes are.
    pub volume: Rc<V>,
    /// Its vid: connections with the same key are connections to the same VDI.
    pub key: u32,
    /// The name it is known by, however the client spelled it.
    pub name: String,
    /// One line for people; empty for none.
    pub description: String,
    /// Refuses writes, whatever the volume allows.
    pub read_only: bool,
}

/// Finds what an export name means: first the whole name as a VDI, then what is before and behind
/// the last `@` as a VDI and its tag. `find(vdi, None)` looks for a VDI, `find(vdi, Some(tag))`
/// for a snapshot; both answer [`ErrorKind::NotFound`] when there is no such VDI.
///
/// # Errors
/// [`ErrorKind::NotFound`] for the empty name, [`ErrorKind::Invalid`] for one that neither rule
/// allows, and what `find` answers.
pub async fn look_up<T>(
    name: &str,
    mut find: impl AsyncFnMut(&str, Option<&str>) -> Result<T>,
) -> Result<T> {
    if name.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            "the export name is empty, and there is no default export",
        ));
    }
    let whole = match name::check(name.as_bytes()) {
        Ok(vdi) => find(vdi, None).await,
        Err(error) => Err(error),
    };
    let Err(error) = whole else { return whole };
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) {
        return Err(error);
    }
    match name.rsplit_once('@') {
        Some((vdi, tag)) if !vdi.is_empty() && !tag.is_empty() => {
            let vdi = name::check(vdi.as_bytes())?;
            let tag = name::check_tag(tag.as_bytes())?;
            find(vdi, Some(tag)).await
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Looks a name up among VDIs and snapshots; the answer is what was found and what was asked.
    fn find_in(name: &str, vdis: &[&str], tags: &[(&str, &str)]) -> (Result<String>, Vec<String>) {
        let mut asked = Vec::new();
        let found = {
            let find = async |vdi: &str, tag: Option<&str>| match tag {
                None => {
                    asked.push(vdi.to_owned());
                    if vdi == "broken" {
                        return Err(ErrorKind::Incomplete.into());
                    }
                    vdis.contains(&vdi).then(|| vdi.to_owned()).ok_or(ErrorKind::NotFound.into())
                }
                Some(tag) => {
                    asked.push(format!("{vdi} {tag}"));
                    tags.contains(&(vdi, tag))
                        .then(|| format!("{vdi} {tag}"))
                        .ok_or(ErrorKind::NoTag.into())
                }
            };
            let mut future = pin!(look_up(name, find));
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(found) => found,
                Poll::Pending => unreachable!("nothing here waits"),
            }
        };
        (found, asked)
    }

    #[test]
    fn the_whole_name_comes_first_then_the_last_at_splits() {
        let vdis = ["disk", "a@b", "ä@"];
        let tags = [("a", "b"), ("a@b", "c"), ("disk", "s1")];
        for (name, want) in [
            ("disk", "disk"),
            ("a@b", "a@b"),
            ("a@b@c", "a@b c"),
            ("disk@s1", "disk s1"),
            ("ä@", "ä@"),
        ] {
            let (found, _) = find_in(name, &vdis, &tags);
            assert_eq!(found.expect(name), want);
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_the_right_kind() {
        for (name, kind) in [
            ("", ErrorKind::NotFound),
            ("disk", ErrorKind::NotFound),
            ("@", ErrorKind::NotFound),
            ("disk@", ErrorKind::NotFound),
            ("@tag", ErrorKind::NotFound),
            ("disk@tag", ErrorKind::NoTag),
            ("di\nsk", ErrorKind::Invalid),
            ("di\nsk@tag", ErrorKind::Invalid),
            ("broken", ErrorKind::Incomplete),
        ] {
            let (found, asked) = find_in(name, &[], &[]);
            assert_eq!(found.expect_err(name).kind(), kind, "{name:?}");
            assert!(asked.len() <= 2);
        }
        // Too long as a VDI, right as a VDI and a tag, and too long for both.
        let long = format!("{}@{}", "v".repeat(255), "t".repeat(255));
        let (found, asked) = find_in(&long, &[], &[(&"v".repeat(255), &"t".repeat(255))]);
        assert!(found.is_ok());
        assert_eq!(asked.len(), 1);
        let (found, asked) = find_in(&"v".repeat(256), &[], &[]);
        assert_eq!(found.expect_err("too long").kind(), ErrorKind::Invalid);
        assert!(asked.is_empty());
    }
}
