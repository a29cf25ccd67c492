//! Transmission: reads requests, admits them and starts them, until the client leaves, breaks the
//! protocol, or the connection is stopped.

use crate::command::{Command, Session, Verdict, judge, run};
use crate::connection::{Connection, Slot};
use crate::inbox::Inbox;
use crate::limits::Limits;
use crate::proto::Request;
use bytes::Bytes;
use sheepdog_types::{BLOCK_SIZE, PageBuf};
use sheepdog_volume::io::Volume;
use std::rc::Rc;

/// Longest payload that is gathered in the inbox; the rest of a longer one is received where it
/// is to stay.
const SMALL: usize = 32 << 10;

/// The stream is over: nothing more is to be read from it.
struct Over;

/// Serves requests; returns when no more are admitted. Those that were may still run.
pub async fn receive<V: Volume + 'static>(
    connection: &Rc<Connection>,
    session: &Session<V>,
    inbox: &mut Inbox,
    limits: &Limits,
) {
    while let Ok(()) = one(connection, session, inbox, limits).await {}
}

async fn one<V: Volume + 'static>(
    connection: &Rc<Connection>,
    session: &Session<V>,
    inbox: &mut Inbox,
    limits: &Limits,
) -> Result<(), Over> {
    fill(connection, inbox, Request::SIZE).await?;
    let header = inbox.first().ok_or(Over)?;
    let Some(request) = Request::decode(header) else {
        tracing::info!("closing an NBD connection: a request without its magic");
        return Err(Over);
    };
    inbox.consume(Request::SIZE);
    match judge(&request, session, limits) {
        Verdict::Disconnect => Err(Over),
        Verdict::Refuse { answer, skip } => {
            let slot = connection.reserve(request.cookie, 0).await.ok_or(Over)?;
            slot.answer(answer);
            if skip > limits.skip_bytes {
                tracing::info!(skip, "closing an NBD connection: a write that is much too long");
                return Err(Over);
            }
            pass_over(connection, inbox, skip as usize).await
        }
        Verdict::Run { command, cost } => {
            let slot = connection.reserve(request.cookie, cost).await.ok_or(Over)?;
            let data = match command {
                Command::Write { offset, len } => {
                    payload(connection, inbox, offset, len as usize).await?
                }
                _ => Bytes::new(),
            };
            start(connection, session, slot, command, data)
        }
    }
}

/// Admits a complete request, unless the connection was stopped: then it never takes effect.
fn start<V: Volume + 'static>(
    connection: &Connection,
    session: &Session<V>,
    mut slot: Slot,
    command: Command,
    data: Bytes,
) -> Result<(), Over> {
    if connection.is_stopped() {
        return Err(Over);
    }
    slot.start();
    let volume = Rc::clone(&session.volume);
    tokio::task::spawn_local(async move {
        let answer = run(&*volume, command, data).await;
        slot.answer(answer);
    });
    Ok(())
}

/// Waits until so many bytes are in the inbox.
async fn fill(connection: &Connection, inbox: &mut Inbox, count: usize) -> Result<(), Over> {
    while inbox.bytes().len() < count {
        let received = connection.socket.read(inbox.room(count));
        let received = until_stopped(connection, received).await?;
        inbox.filled(received);
    }
    if connection.is_stopped() {
        return Err(Over);
    }
    Ok(())
}

/// A read's count, unless the stream ends or the connection is stopped first.
async fn until_stopped(
    connection: &Connection,
    read: impl Future<Output = std::io::Result<usize>>,
) -> Result<usize, Over> {
    tokio::select! {
        biased;
        () = connection.stopped() => Err(Over),
        count = read => match count {
            Ok(0) => Err(Over),
            Ok(count) => {
                connection.count_received(count);
                Ok(count)
            }
            Err(error) => {
                tracing::debug!(%error, "an NBD client is gone");
                Err(Over)
            }
        }
    }
}

/// Receives what a write carries into memory whose address is congruent to the offset on the
/// disk, so that its whole blocks can be written as they are.
async fn payload(
    connection: &Connection,
    inbox: &mut Inbox,
    offset: u64,
    len: usize,
) -> Result<Bytes, Over> {
    if len <= SMALL {
        fill_payload(connection, inbox, len).await?;
    }
    let skew = (offset % BLOCK_SIZE as u64) as usize;
    let mut buf = PageBuf::reused(skew + len);
    let target = &mut buf.as_mut()[skew..skew + len];
    let mut have = inbox.bytes().len().min(len);
    target[..have].copy_from_slice(&inbox.bytes()[..have]);
    inbox.consume(have);
    if have < len {
        connection.set_receiving(true);
        while have < len {
            // The inbox is empty: what follows the payload may come with it.
            let rest = len - have;
            let read = connection.socket.read_both(&mut target[have..], inbox.room(1));
            let received = until_stopped(connection, read).await;
            let received = received.inspect_err(|_| connection.set_receiving(false))?;
            inbox.filled(received.saturating_sub(rest));
            have += received.min(rest);
        }
        connection.set_receiving(false);
    }
    Ok(buf.freeze().slice(skew..skew + len))
}

/// Gathers a small payload in the inbox.
async fn fill_payload(connection: &Connection, inbox: &mut Inbox, len: usize) -> Result<(), Over> {
    if inbox.bytes().len() >= len {
        return Ok(());
    }
    connection.set_receiving(true);
    let filled = fill(connection, inbox, len).await;
    connection.set_receiving(false);
    filled
}

/// Drops the payload of a refused write.
async fn pass_over(
    connection: &Connection,
    inbox: &mut Inbox,
    mut count: usize,
) -> Result<(), Over> {
    while count > 0 {
        fill(connection, inbox, 1).await?;
        let now = inbox.bytes().len().min(count);
        inbox.consume(now);
        count -= now;
    }
    Ok(())
}
