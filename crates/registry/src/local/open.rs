//! Opening a registry file: making it, joining it, and the one decision that concerns a whole
//! cluster, which registry belongs at this path.
//!
//! A new user starts a sheep, deletes its directory and starts again: the registry of the deleted
//! cluster must not be in the way. A user whose disk is not mounted must not lose the registry.
//! So a formatted registry is moved aside (never deleted) only when an *empty* store comes, nobody
//! has the registry open, and every recorded store is gone by [`is_gone`]. Otherwise the empty
//! store joins. And when that was wrong, it is mended: a store that belongs to a cluster whose
//! registry is aside brings it back, as long as the registry at this path is not formatted.
//!
//! All this happens under the gate, one process at a time. The rename is atomic and the file is
//! complete before it (its write-ahead log is copied in), so a crash at any point loses nothing.
//! Processes that have the unformatted registry open when it gives way are told by its `retired`
//! mark, which is set in a transaction that also sees that no format came first; they close it and
//! fail with `Unreachable`.

use super::bell::ring;
use super::db::{Db, Tuning};
use super::locks::{open_lock, pass_gate, try_exclusive, wait_alone};
use super::members::is_gone;
use super::paths::{Paths, io_error, make_directories, rename};
use super::schema;
use super::{Joined, Member};
use sheepdog_types::{Error, ErrorKind, Result};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use uuid::Uuid;

/// An open registry file.
pub(super) struct Opened {
    pub db: Db,
    pub cluster: Uuid,
    pub joined: Joined,
    /// Shared as long as the database is open.
    pub presence: File,
    /// Nobody else opens it until this is dropped.
    pub gate: File,
}

/// See the module. `member.store` is canonical.
pub(super) fn open(paths: &Paths, member: Option<&Member>, tuning: Tuning) -> Result<Opened> {
    make_directories(paths)?;
    let gate = pass_gate(paths)?;
    let presence = open_lock(&paths.presence)?;
    let alone = try_exclusive(&presence, &paths.presence)?;
    let mut opening = Opening { paths, member, tuning, presence: &presence, alone };
    let (mut db, mut joined) = opening.find()?;
    if let Some(member) = member {
        let known = db.recorded()?.iter().any(|r| r.store == member.store);
        if joined == Joined::Member && !known {
            joined = Joined::NewMember;
        }
        db.record(&member.store, member.disk)?;
    }
    let cluster = db.meta()?.cluster;
    presence.lock_shared().map_err(|e| io_error("lock", &paths.presence, e))?;
    Ok(Opened { db, cluster, joined, presence, gate })
}

struct Opening<'a> {
    paths: &'a Paths,
    member: Option<&'a Member>,
    tuning: Tuning,
    presence: &'a File,
    alone: bool,
}

impl Opening<'_> {
    /// The right registry, open.
    fn find(&mut self) -> Result<(Db, Joined)> {
        let file = &self.paths.file;
        let there = file.try_exists().map_err(|e| io_error("open registry", file, e))?;
        if !there {
            if !self.alone {
                return Err(Error::new(
                    ErrorKind::Locked,
                    format!(
                        "registry {} was removed while in use: stop its sheep first",
                        file.display()
                    ),
                ));
            }
            if has_log(self.paths) {
                // Whatever file came here, SQLite would mix these commits into it.
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "registry {} is missing, but not its log {}: restore it or put the log \
                         away",
                        file.display(),
                        self.paths.log().display()
                    ),
                ));
            }
            return match self.member.filter(|m| !m.empty) {
                None => self.create(Joined::Created),
                Some(member) => self.bring_back(self.claim(member)?),
            };
        }
        let mut db = self.connect()?;
        // Whoever retired it did not finish; under the gate nobody is about to.
        db.unretire()?;
        let meta = db.meta()?;
        let formatted = db.get(crate::FORMATTED_KEY)?.is_some();
        match self.member {
            Some(member) if member.empty && formatted && self.alone => {
                if !self.is_abandoned(&mut db)? {
                    return Ok((db, Joined::Member));
                }
                let to = self.move_aside(db, meta.cluster)?;
                self.create(Joined::CreatedAnew { old: to })
            }
            Some(member) if !member.empty && member.cluster != Some(meta.cluster) => {
                if formatted {
                    return Err(self.other_cluster(member, meta.cluster));
                }
                let aside = self.claim(member)?;
                let db = self.take_over(db)?;
                self.move_aside(db, meta.cluster)?;
                self.bring_back(aside)
            }
            Some(_) if !formatted => {
                // Stores that went before there was anything in them are not waited for.
                for gone in self.gone(&mut db)? {
                    if self.member.is_some_and(|m| m.store != gone) {
                        db.forget_store(&gone)?;
                    }
                }
                Ok((db, Joined::Member))
            }
            _ => Ok((db, Joined::Member)),
        }
    }

    fn connect(&self) -> Result<Db> {
        Db::open(self.paths, self.tuning)
    }

    /// Made under another name, so that a crash leaves no half registry.
    fn create(&self, joined: Joined) -> Result<(Db, Joined)> {
        let file = &self.paths.file;
        let new = self.paths.aside(Uuid::nil());
        match std::fs::remove_file(&new) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(io_error("remove", &new, e)),
        }
        schema::create(&new)?;
        rename(&new, file)?;
        Ok((self.connect()?, joined))
    }

    /// Whether nothing of its cluster is left.
    fn is_abandoned(&self, db: &mut Db) -> Result<bool> {
        let recorded = db.recorded()?.len();
        Ok(recorded > 0 && self.gone(db)?.len() == recorded)
    }

    /// The recorded stores that surely hold nothing.
    fn gone(&self, db: &mut Db) -> Result<Vec<PathBuf>> {
        let file = &self.paths.file;
        let device = file.metadata().map_err(|e| io_error("look at", file, e))?.dev();
        let Some(member) = self.member else {
            return Ok(Vec::new());
        };
        let mut recorded = db.recorded()?;
        recorded.retain(|r| {
            if r.store == member.store {
                // It may be prepared already: only it knows that it is empty.
                member.empty
            } else {
                (self.alone || !r.running) && is_gone(r, device, member.store_is_empty)
            }
        });
        Ok(recorded.into_iter().map(|r| r.store).collect())
    }

    /// Where the registry of a store with data is, if not at its place.
    fn aside_of(&self, member: &Member) -> Result<PathBuf> {
        let store = member.store.display();
        let file = self.paths.file.display();
        let Some(cluster) = member.cluster else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("store {store} holds data, but of no cluster"),
            ));
        };
        let aside = self.paths.aside(cluster);
        if aside.is_file() {
            Ok(aside)
        } else {
            Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "store {store} belongs to cluster {cluster}, whose registry is not at {file}: \
                     restore it, or name its file with -c local:FILE"
                ),
            ))
        }
    }

    fn other_cluster(&self, member: &Member, here: Uuid) -> Error {
        let whose =
            member.cluster.map_or_else(|| "no cluster".to_owned(), |c| format!("cluster {c}"));
        let mut line = format!(
            "store {} belongs to {whose}, registry {} to cluster {here}",
            member.store.display(),
            self.paths.file.display()
        );
        if let Ok(aside) = self.aside_of(member) {
            line.push_str(&format!(": use -c local:{}", aside.display()));
        }
        Error::new(ErrorKind::Invalid, line)
    }

    /// Makes all others close an unformatted registry.
    fn take_over(&mut self, mut db: Db) -> Result<Db> {
        if self.alone {
            return Ok(db);
        }
        let in_use = |how: &str| {
            Error::new(
                ErrorKind::Locked,
                format!("registry {} is in use by {how}", self.paths.file.display()),
            )
        };
        if !db.retire()? {
            return Err(in_use("a cluster formatted just now"));
        }
        ring(&self.paths.bell);
        if wait_alone(self.presence, self.paths)? {
            self.alone = true;
            db.unretire()?;
            Ok(db)
        } else {
            db.unretire()?;
            Err(in_use("a new cluster: stop its sheep first"))
        }
    }

    fn move_aside(&self, db: Db, cluster: Uuid) -> Result<PathBuf> {
        let file = &self.paths.file;
        db.close()?;
        remove_log(self.paths)?;
        let to = self.paths.aside(cluster);
        rename(file, &to)?;
        Ok(to)
    }

    /// Makes sure that the registry of a store is aside, in order and in nobody's use.
    fn claim(&self, member: &Member) -> Result<Aside> {
        let paths = Paths::of(&self.aside_of(member)?);
        make_directories(&paths)?;
        let gate = pass_gate(&paths)?;
        let presence = open_lock(&paths.presence)?;
        if !try_exclusive(&presence, &paths.presence)? {
            return Err(Error::new(
                ErrorKind::Locked,
                format!(
                    "registry {} is in use: stop its sheep, or use -c local:{0}",
                    paths.file.display()
                ),
            ));
        }
        let mut db = Db::open(&paths, self.tuning)?;
        let cluster = db.meta()?.cluster;
        db.close()?;
        remove_log(&paths)?;
        if member.cluster != Some(cluster) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("registry {} is of cluster {cluster}", paths.file.display()),
            ));
        }
        Ok(Aside { paths, _locks: (presence, gate) })
    }

    /// Puts it in the place of ours, which is empty.
    #[allow(clippy::needless_pass_by_value)] // its locks end here
    fn bring_back(&self, aside: Aside) -> Result<(Db, Joined)> {
        rename(&aside.paths.file, &self.paths.file)?;
        // Only locks, and they are ours.
        let _ = std::fs::remove_dir_all(&aside.paths.run);
        Ok((self.connect()?, Joined::BroughtBack))
    }
}

/// A registry that is aside, locked.
struct Aside {
    paths: Paths,
    _locks: (File, File),
}

/// Whether there is a write-ahead log with anything in it.
fn has_log(paths: &Paths) -> bool {
    match paths.log().metadata() {
        Ok(log) => log.len() > 0,
        Err(e) => e.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Before the registry, closed and locked, is moved: a file that goes without its write-ahead log
/// would lose commits.
fn remove_log(paths: &Paths) -> Result<()> {
    if has_log(paths) {
        return Err(Error::new(
            ErrorKind::Locked,
            format!("registry {} is in use by another program", paths.file.display()),
        ));
    }
    // They are empty. If they stay, they only take space.
    let _ = std::fs::remove_file(paths.log());
    let _ = std::fs::remove_file(paths.log_index());
    Ok(())
}
