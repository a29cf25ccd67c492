//! One event as one line.

use super::Format;
use jiff::Zoned;
use std::fmt::{Debug, Write};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// What an event carries: its message, and its fields as text.
#[derive(Default)]
struct Content {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Content {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
}

impl Content {
    fn put(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.push((field.name(), text));
        }
    }
}

/// The line, with its end.
pub fn line(format: Format, event: &Event<'_>, now: &Zoned) -> String {
    let mut content = Content::default();
    event.record(&mut content);
    let metadata = event.metadata();
    let place = metadata.module_path().and_then(|path| path.rsplit("::").next()).unwrap_or("?");
    let row = metadata.line().unwrap_or(0);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("?");
    let level = level_name(*metadata.level());
    if format == Format::Json {
        let mut object = serde_json::Map::new();
        let mut put = |key: &str, value: serde_json::Value| object.insert(key.to_owned(), value);
        put("time", now.timestamp().to_string().into());
        put("level", level.into());
        put("thread", thread.into());
        put("function", place.into());
        put("line", row.into());
        put("message", content.message.into());
        for (name, value) in content.fields {
            put(name, value.into());
        }
        return format!("{}\n", serde_json::Value::Object(object));
    }
    let mut text = String::with_capacity(128);
    if format == Format::Server {
        let _ = write!(text, "{} ", now.strftime("%b %d %H:%M:%S"));
    }
    let _ = write!(text, "{level:>6} [{thread}] {place}({row}) ");
    push_line(&mut text, &content.message);
    for (name, value) in content.fields {
        let _ = write!(text, " {name}=");
        push_line(&mut text, &value);
    }
    text.push('\n');
    text
}

/// Appends text that may come from anywhere without letting it start a line of its own.
fn push_line(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

const fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARN",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}
