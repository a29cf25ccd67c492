//! The daemon's log: which lines, in what form, to where. Lines are written as they come, so that
//! nothing said before a crash is lost.

mod format;
mod sink;
#[cfg(test)]
mod tests;

use sink::Sink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Name of the log's file.
pub const FILE_NAME: &str = "sheep.log";

/// How much is logged, in the words of old.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Level {
    /// Nothing works.
    Emerg,
    /// Someone must act now.
    Alert,
    /// A part does not work.
    Crit,
    /// Something did not work.
    Err,
    /// Something may not work soon.
    Warning,
    /// Worth knowing.
    Notice,
    /// What happens.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
}

impl Level {
    /// Names in the order of their numbers, which are those of syslog.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("emerg", Self::Emerg),
        ("alert", Self::Alert),
        ("crit", Self::Crit),
        ("err", Self::Err),
        ("warning", Self::Warning),
        ("notice", Self::Notice),
        ("info", Self::Info),
        ("debug", Self::Debug),
    ];

    /// The level of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
    }

    /// What passes; our lines have four levels.
    const fn filter(self) -> LevelFilter {
        match self {
            Self::Emerg | Self::Alert | Self::Crit | Self::Err => LevelFilter::ERROR,
            Self::Warning => LevelFilter::WARN,
            Self::Notice | Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        }
    }
}

/// The form of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Time, level, thread, place, message: what scripts grep.
    #[default]
    Server,
    /// The same without the time, for destinations that have their own.
    Default,
    /// An object per line.
    Json,
}

/// Where lines go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Destination {
    /// `sheep.log` in the store or another directory.
    #[default]
    File,
    /// The system's log.
    Syslog,
    /// The terminal; only in the foreground.
    Stdout,
}

/// What `-l` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogOptions {
    /// Least important level that is logged.
    pub level: Level,
    /// Directory of the file; the store if not given.
    pub dir: Option<PathBuf>,
    /// Form of the lines.
    pub format: Format,
    /// Where they go.
    pub destination: Destination,
}

impl LogOptions {
    /// Whether lines go to the terminal.
    #[must_use]
    pub fn to_stdout(&self) -> bool {
        self.destination == Destination::Stdout
    }
}

/// The open log. Clones are the same log.
#[derive(Clone)]
pub struct Log {
    format: Format,
    sink: Arc<Mutex<Sink>>,
}

impl Log {
    /// Opens the destination.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(options: &LogOptions, store: &Path) -> std::io::Result<Self> {
        let dir = options.dir.as_deref().unwrap_or(store);
        let sink = match options.destination {
            Destination::File => Sink::file(dir.join(FILE_NAME))?,
            Destination::Syslog => Sink::syslog(),
            Destination::Stdout => Sink::Stdout,
        };
        Ok(Self { format: options.format, sink: Arc::new(Mutex::new(sink)) })
    }

    /// Makes it the log of the process. Later calls change nothing.
    pub fn install(&self, level: Level) {
        let subscriber = tracing_subscriber::registry().with(self.clone().with_level(level));
        let _ = tracing::subscriber::set_global_default(subscriber);
    }

    /// As a layer, without making it the log of the process.
    fn with_level<S: Subscriber>(self, level: Level) -> impl Layer<S> {
        Filtered { log: self, filter: level.filter() }
    }

    /// Opens the file anew, after something else has moved it away.
    pub fn reopen(&self) {
        if let Err(error) = self.lock().reopen() {
            tracing::warn!("cannot reopen the log: {error}");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink> {
        // A panic while the lock was held cannot leave a sink that is worse than none.
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Filtered {
    log: Log,
    filter: LevelFilter,
}

impl<S: Subscriber> Layer<S> for Filtered {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.filter
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = format::line(self.log.format, event, &jiff::Zoned::now());
        self.log.lock().write(*event.metadata().level(), &line);
    }
}
