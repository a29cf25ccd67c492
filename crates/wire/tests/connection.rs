//! Client and server ends against each other, and each against a misbehaving peer.

use bytes::Bytes;
use sheepdog_types::{Error, ErrorKind};
use sheepdog_wire::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

fn hello(name: &str) -> Hello {
    Hello::ours(name)
}

async fn pair(limits: ServerLimits) -> (Connection, Requests<DuplexStream>, Replies<DuplexStream>) {
    let (client, server) = duplex(1 << 16);
    let (opened, accepted) = tokio::join!(
        Connection::open(client, hello("dog 1")),
        accept(server, hello("sheep 1"), limits),
    );
    let (connection, driver) = opened.expect("client");
    tokio::spawn(driver.run());
    let (requests, replies, peer) = accepted.expect("server");
    assert_eq!(peer.program, "dog 1");
    assert_eq!(connection.peer().program, "sheep 1");
    (connection, requests, replies)
}

#[tokio::test]
async fn replies_in_any_order_find_their_requests() {
    let (connection, mut requests, replies) = pair(ServerLimits::default()).await;
    let server = async {
        let mut held = Vec::new();
        for _ in 0..10 {
            let incoming = requests.next().await.expect("good").expect("request");
            let Request::Read(read) = incoming.request else { panic!("read expected") };
            held.push((read, incoming.ticket));
        }
        while let Some((read, ticket)) = held.pop() {
            let result = if read.offset == 4 {
                Err(Error::new(ErrorKind::NoSpace, "disk 7"))
            } else {
                let data = Bytes::from(read.offset.to_le_bytes().to_vec());
                Ok(ReadReply::join([ReadSegment::Data(data), ReadSegment::Hole(2)]))
            };
            replies.send::<Read>(ticket, result).await.expect("sent");
        }
    };
    let client = async {
        let mut calls = Vec::new();
        for offset in 0..10 {
            let connection = connection.clone();
            calls.push(tokio::spawn(async move {
                let read = Read { handle: 1, offset, len: 10 };
                (offset, connection.exchange(&read, Vec::new()).await)
            }));
        }
        for call in calls {
            match call.await.expect("task") {
                (4, result) => {
                    let error = result.expect_err("refused");
                    assert_eq!(error.to_string(), "Server has no space for new objects: disk 7");
                }
                (offset, result) => {
                    let (reply, bulk) = result.expect("read");
                    let pieces = reply.split(bulk, 10).expect("adds up");
                    let data = Bytes::from(offset.to_le_bytes().to_vec());
                    assert_eq!(pieces, [ReadSegment::Data(data), ReadSegment::Hole(2)]);
                }
            }
        }
    };
    tokio::join!(server, client);
}

#[tokio::test]
async fn writes_arrive_aligned_and_whole() {
    let (connection, mut requests, replies) = pair(ServerLimits::default()).await;
    let data = Bytes::from((0..BULK_MAX).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    let write = Write { handle: 9, offset: 4096 + 512 };
    let (sent, ()) = tokio::join!(connection.exchange(&write, vec![data.clone()]), async {
        let incoming = requests.next().await.expect("good").expect("request");
        assert_eq!(incoming.request, Request::Write(write));
        assert_eq!(incoming.bulk, data);
        assert_eq!(incoming.bulk.as_ptr() as usize % 4096, 512);
        replies.send::<Write>(incoming.ticket, Ok((Done {}, Vec::new()))).await.expect("sent");
    });
    sent.expect("written");
    drop(connection);
    assert!(requests.next().await.expect("clean end").is_none());
}

#[tokio::test]
async fn no_more_requests_are_taken_than_the_limits_allow() {
    let limits = ServerLimits { in_flight: 2, ..ServerLimits::default() };
    let (connection, mut requests, replies) = pair(limits).await;
    // The client was told and would wait by itself; three clients' worth is forced by hand.
    assert_eq!(connection.peer().in_flight, 2);
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.call(&Flush { handle: 0 }).await })
        })
        .collect();
    let first = requests.next().await.expect("good").expect("one");
    let _second = requests.next().await.expect("good").expect("two");
    {
        let third = requests.next();
        tokio::pin!(third);
        let waits =
            std::future::poll_fn(|cx| std::task::Poll::Ready(third.as_mut().poll(cx).is_pending()));
        assert!(waits.await);
        replies.send::<Flush>(first.ticket, Ok((Done {}, Vec::new()))).await.expect("sent");
        assert!(third.await.expect("good").is_some());
    }
    drop((requests, replies));
    let mut failed = 0;
    for call in calls {
        if let Err(error) = call.await.expect("task") {
            assert_eq!(error.kind(), ErrorKind::Unreachable);
            failed += 1;
        }
    }
    assert_eq!(failed, 2, "calls in flight fail when the server goes");
}

#[tokio::test]
async fn unknown_and_wrong_requests_are_answered_and_the_connection_lives() {
    let (connection, mut requests, replies) = pair(ServerLimits::default()).await;
    let server = async {
        while let Some(incoming) = requests.next().await.expect("good") {
            replies.refuse(incoming.ticket, &Error::from(ErrorKind::NotFound)).await.expect("sent");
        }
    };
    let client = async {
        let long = Read { handle: 0, offset: 0, len: BULK_MAX as u32 + 1 };
        let error = connection.call(&long).await.expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = connection
            .exchange(&Flush { handle: 0 }, vec![Bytes::from_static(b"x")])
            .await
            .expect_err("bulk");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = connection.call(&Flush { handle: 0 }).await.expect_err("handler");
        assert_eq!(error.to_string(), "No VDI found");
        let huge = VdiList { above: 0, name: "n".repeat(REQUEST_CONTROL_MAX) };
        let error = connection.call(&huge).await.expect_err("never sent");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        drop(connection);
    };
    tokio::join!(server, client);
}

#[tokio::test]
async fn a_newer_client_is_told_to_upgrade_the_sheep() {
    let (client, server) = duplex(1 << 16);
    let newer = Hello { version: 3, oldest: 2, ..hello("dog 3") };
    let (opened, accepted) = tokio::join!(
        Connection::open(client, newer),
        accept(server, hello("sheep 1"), ServerLimits::default()),
    );
    let Err(told) = opened else { panic!("refused") };
    let Err(refused) = accepted else { panic!("refused") };
    assert_eq!(told.kind(), ErrorKind::VersionMismatch);
    assert_eq!(told.context(), refused.context());
    assert_eq!(
        told.context(),
        "dog 3 speaks protocol versions 2 to 3, sheep 1 only up to 1: upgrade the latter"
    );
}

#[tokio::test]
async fn strangers_are_refused() {
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a-long-enough-name-to-fill-sixty-four-bytes\r\n\r\n"[..],
        &[0; 64],
        &[0xD0; 64],
    ] {
        let (mut client, server) = duplex(1 << 16);
        client.write_all(bytes).await.expect("memory");
        let refused = accept(server, hello("sheep"), ServerLimits::default()).await;
        assert!(refused.is_err());
        // The stream is closed, nothing was said.
        assert_eq!(client.read(&mut [0; 8]).await.expect("end"), 0);

        let (mut server, client) = duplex(1 << 16);
        server.write_all(bytes).await.expect("memory");
        let Err(error) = Connection::open(client, hello("dog")).await else { panic!("refused") };
        assert_eq!(error.kind(), ErrorKind::VersionMismatch);
    }
}
