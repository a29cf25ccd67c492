//! Times as the old tool prints them, in the local time zone.

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use sheepdog_wire::Time;

fn local(time: Option<Time>) -> Zoned {
    let seconds = time.map_or(0, |t| i64::try_from(t.seconds).unwrap_or(i64::MAX));
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::system())
}

/// `2019-01-01 00:00`
pub fn minutes(time: Option<Time>) -> String {
    local(time).strftime("%Y-%m-%d %H:%M").to_string()
}

/// `2019-01-01 00:00:00`
pub fn seconds(time: Option<Time>) -> String {
    local(time).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `Tue Jan  1 00:00:00 2019`, C's `ctime` without the end of the line.
pub fn ctime(time: Option<Time>) -> String {
    local(time).strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// Seconds since 1970.
pub fn unix(time: Option<Time>) -> u64 {
    time.map_or(0, |t| t.seconds)
}
