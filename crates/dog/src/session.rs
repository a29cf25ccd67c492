//! The connection to a sheep, and the two old lines when there is none.

use crate::args::Target;
use crate::failure::{EXIT_SYSTEM, Failure, Result, strerror};
use sheepdog_wire::{Connection, Hello};
use std::io;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long an address may take to answer.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long a sheep may take to say HELLO.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// Connects to a sheep.
///
/// # Errors
/// Exit code 2 with the old lines when nobody answers in our protocol.
pub async fn connect(target: &Target) -> Result<Connection> {
    match attempt(target).await {
        Ok(connection) => Ok(connection),
        Err(why) => {
            let shown = if target.host.contains(':') {
                format!("[{}]:{}", target.host, target.port)
            } else {
                format!("{}:{}", target.host, target.port)
            };
            Err(Failure::new(EXIT_SYSTEM, format!("failed to connect to {shown}: {why}"))
                .and("Failed to get node list"))
        }
    }
}

async fn attempt(target: &Target) -> std::result::Result<Connection, String> {
    let addresses =
        lookup_host((target.host.as_str(), target.port)).await.map_err(|e| unresolved(&e))?;
    let mut why = "Name or service not known".to_owned();
    for address in addresses {
        let stream = match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                why = strerror(&error);
                continue;
            }
            Err(_) => {
                why = "Connection timed out".to_owned();
                continue;
            }
        };
        // Small requests must not wait for each other's acknowledgement.
        let _ = stream.set_nodelay(true);
        let hello = Hello::ours(concat!("dog ", env!("CARGO_PKG_VERSION")));
        match timeout(HELLO_TIME, Connection::open(stream, hello)).await {
            Ok(Ok((connection, driver))) => {
                tokio::spawn(driver.run());
                return Ok(connection);
            }
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = "no answer to HELLO".to_owned(),
        }
    }
    Err(why)
}

/// The resolver's words without Rust's.
fn unresolved(error: &io::Error) -> String {
    let text = strerror(error);
    match text.strip_prefix("failed to lookup address information: ") {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}
