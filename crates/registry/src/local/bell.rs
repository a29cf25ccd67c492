//! How processes that share a registry wake each other without polling: whoever committed writes
//! a byte to the bell file, and everybody watches that file and the session files with inotify.
//! A process that dies between commit and ringing is heard too, as the kernel closes its files.
//! Where inotify is not to be had (its instances are limited per user), callers look on a short
//! timer instead; a slow timer runs in any case.

use super::paths::{Paths, io_error};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;
use sheepdog_types::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often to look when nothing rings; with inotify only against its gaps.
const LOOK: Duration = Duration::from_secs(1);
/// The same without inotify.
const LOOK_ALONE: Duration = Duration::from_millis(50);

/// Wakes the worker's thread; also when it is dropped.
#[derive(Clone, Debug)]
pub(super) struct Waker(Arc<OwnedFd>);

impl Waker {
    fn new() -> Result<Self> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(|fd| Self(Arc::new(fd)))
            .map_err(|e| Error::with_source(ErrorKind::Io, "eventfd", e))
    }

    pub fn wake(&self) {
        // The only way to fail is a full counter, and then it is awake.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.wake();
    }
}

/// Events taken in at once; the rest wait their turn.
const EVENTS_AT_ONCE: usize = 1024;

/// What was heard.
#[derive(Default, Debug)]
pub(super) struct Heard {
    /// Somebody committed, ended or the time to look has come.
    pub news: bool,
    /// The slow timer: look at everything.
    pub time: bool,
    /// Session files that were closed or removed: their process may be dead.
    pub closed: Vec<Uuid>,
}

/// One process's ear and hand.
pub(super) struct Bell {
    file: File,
    waker: Waker,
    events: Option<OwnedFd>,
    looked: Instant,
}

impl Bell {
    pub fn new(paths: &Paths, inotify: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&paths.bell)
            .map_err(|e| io_error("open", &paths.bell, e))?;
        Ok(Self {
            file,
            waker: Waker::new()?,
            events: inotify.then(|| listen(paths).ok()).flatten(),
            looked: Instant::now(),
        })
    }

    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Tells the others.
    pub fn ring(&self) {
        // Should it fail (a full disk), they find out by their timer.
        let _ = self.file.write_at(b".", 0);
    }

    /// Waits for our own waker, a ring, the timer, or `at_most`.
    pub fn wait(&mut self, at_most: Option<Duration>) -> Heard {
        let look = if self.events.is_some() { LOOK } else { LOOK_ALONE };
        let rest = look.saturating_sub(self.looked.elapsed());
        let timeout = Timespec::try_from(at_most.map_or(rest, |t| t.min(rest))).ok();
        let mut fds = vec![PollFd::new(&*self.waker.0, PollFlags::IN)];
        fds.extend(self.events.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            // Out of memory: do not spin.
            std::thread::sleep(LOOK_ALONE);
        }
        let _ = rustix::io::read(&*self.waker.0, &mut [0u8; 8]);
        let mut heard = Heard::default();
        self.drain(&mut heard);
        if self.looked.elapsed() >= look {
            self.looked = Instant::now();
            heard.time = true;
        }
        heard.news |= heard.time;
        heard
    }

    fn drain(&self, heard: &mut Heard) {
        let Some(fd) = &self.events else { return };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(fd, &mut buffer);
        for _ in 0..EVENTS_AT_ONCE {
            let Ok(event) = events.next() else { return };
            heard.news = true;
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                heard.time = true;
            }
            let name = event.file_name().and_then(|n| n.to_str().ok());
            heard.closed.extend(name.and_then(|n| Uuid::try_parse(n).ok()));
        }
        // Those read but not looked at may have been anything.
        heard.time = true;
    }
}

fn listen(paths: &Paths) -> rustix::io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, &paths.bell, WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE)?;
    // Those who look at another's session open it read-only and are not heard.
    inotify::add_watch(&fd, &paths.sessions, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE)?;
    Ok(fd)
}

/// Rings for a process that has no bell of its own yet.
pub(super) fn ring(bell: &Path) {
    if let Ok(file) = OpenOptions::new().write(true).open(bell) {
        let _ = file.write_at(b".", 0);
    }
}
