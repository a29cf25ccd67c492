//! Negotiation: from the greeting to an export, or the end. Bounded in time, options and bytes.

use crate::command::Session;
use crate::connection::Connection;
use crate::exports::{Exports, Opened};
use crate::inbox::{INBOX_BYTES, Inbox};
use crate::limits::Limits;
use crate::option::{self, Refusal};
use crate::proto::{self, be32, be64, handshake, info, one_line, option_reply};
use crate::table::Member;
use sheepdog_types::Error;
use sheepdog_volume::io::Volume;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Bytes in front of an option's data.
const OPTION_HEAD: usize = 16;
/// Preferred size of a request, told to clients. Any alignment is served.
const BLOCK_PREFERRED: u32 = 4096;
/// How often a client whose export is not ready yet is checked for being there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers to LIST that leave at a time.
const LIST_BATCH: usize = 32 << 10;

/// Why a negotiation ended without an export.
#[derive(Debug)]
pub enum Ended {
    /// The client left, or the server stopped.
    Left,
    /// The client did something it must be cut off for.
    Cut(&'static str),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self::Left
    }
}

/// The state of one negotiation.
pub struct Handshake<'a, E> {
    connection: &'a Connection,
    exports: &'a E,
    member: &'a Member,
    limits: &'a Limits,
    inbox: &'a mut Inbox,
    /// When the client's time is over.
    until: Instant,
    fixed: bool,
    zeroes: bool,
    structured: bool,
    /// The export `base:allocation` was chosen for.
    allocation: Option<String>,
}

impl<'a, E: Exports> Handshake<'a, E> {
    /// One that starts now.
    pub fn new(
        connection: &'a Connection,
        exports: &'a E,
        member: &'a Member,
        limits: &'a Limits,
        inbox: &'a mut Inbox,
    ) -> Self {
        Self {
            connection,
            exports,
            member,
            limits,
            inbox,
            until: Instant::now() + limits.handshake,
            fixed: false,
            zeroes: true,
            structured: false,
            allocation: None,
        }
    }

    /// Negotiates; what the client sent behind its choice stays in the inbox.
    pub async fn run(mut self) -> Result<Session<E::Volume>, Ended> {
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        let mut greeting = Vec::with_capacity(18);
        greeting.extend(proto::GREETING.to_be_bytes());
        greeting.extend(proto::OPTION_MAGIC.to_be_bytes());
        greeting.extend(flags.to_be_bytes());
        self.send(&greeting).await?;
        self.need(4).await?;
        let answer = be32(self.inbox.bytes(), 0);
        self.inbox.consume(4);
        if answer & !u32::from(flags) != 0 {
            return Err(Ended::Cut("unknown client flags"));
        }
        self.fixed = answer & u32::from(handshake::FIXED_NEWSTYLE) != 0;
        self.zeroes = answer & u32::from(handshake::NO_ZEROES) == 0;
        for _ in 0..self.limits.options {
            if let Some(session) = self.option().await? {
                return Ok(session);
            }
        }
        Err(Ended::Cut("too many options"))
    }

    /// Reads and answers one option.
    async fn option(&mut self) -> Result<Option<Session<E::Volume>>, Ended> {
        use proto::option as o;
        self.need(OPTION_HEAD).await?;
        let head = self.inbox.bytes();
        let (magic, option, len) = (be64(head, 0), be32(head, 8), be32(head, 12) as usize);
        self.inbox.consume(OPTION_HEAD);
        if magic != proto::OPTION_MAGIC {
            return Err(Ended::Cut("an option without its magic"));
        }
        if !self.fixed && option != o::EXPORT_NAME {
            return Err(Ended::Cut("an option of a client that does not speak fixed newstyle"));
        }
        let most = self.limits.option_bytes.min(INBOX_BYTES);
        if len > most {
            if option == o::EXPORT_NAME {
                return Err(Ended::Cut("an export name that is too long"));
            }
            let refusal = (option_reply::TOO_BIG, "the option is too long");
            self.refuse(option, refusal).await?;
            if len > 16 * most {
                return Err(Ended::Cut("an option that is much too long"));
            }
            self.skip(len).await?;
            return Ok(None);
        }
        self.need(len).await?;
        let data = self.inbox.bytes()[..len].to_vec();
        self.inbox.consume(len);
        match option {
            o::EXPORT_NAME => return self.export_name(&data).await.map(Some),
            o::GO | o::INFO => return self.info(option, &data).await,
            o::LIST_META_CONTEXT | o::SET_META_CONTEXT => self.contexts(option, &data).await?,
            o::ABORT => {
                self.reply(option, option_reply::ACK, &[]).await?;
                return Err(Ended::Left);
            }
            o::LIST | o::STARTTLS | o::STRUCTURED_REPLY if len > 0 => {
                let refusal = (option_reply::INVALID, "this option has no data");
                self.refuse(option, refusal).await?;
            }
            o::LIST => self.list().await?,
            o::STARTTLS => {
                let refusal = (option_reply::POLICY, "TLS is not set up on this server");
                self.refuse(option, refusal).await?;
            }
            o::STRUCTURED_REPLY => {
                self.structured = true;
                self.reply(option, option_reply::ACK, &[]).await?;
            }
            _ => {
                let refusal = (option_reply::UNSUPPORTED, "unknown option");
                self.refuse(option, refusal).await?;
            }
        }
        Ok(None)
    }

    async fn list(&mut self) -> Result<(), Ended> {
        let names = self.own_time(self.exports.list()).await;
        let mut out = Vec::new();
        for name in names.iter().filter(|name| name.len() <= proto::TEXT_MAX) {
            let len = (name.len() as u32).to_be_bytes();
            let parts: [&[u8]; 2] = [&len, name.as_bytes()];
            option::reply(&mut out, proto::option::LIST, option_reply::SERVER, &parts);
            if out.len() >= LIST_BATCH {
                self.send(&out).await?;
                out.clear();
            }
        }
        option::reply(&mut out, proto::option::LIST, option_reply::ACK, &[]);
        self.send(&out).await
    }

    /// EXPORT_NAME has no way to say no but to hang up.
    async fn export_name(&mut self, data: &[u8]) -> Result<Session<E::Volume>, Ended> {
        let name = option::export_name(data).map_err(|(_, why)| Ended::Cut(why))?;
        let opened = self.open(name).await.map_err(|error| {
            tracing::info!(name = one_line(name), error = error.full(), "no NBD export");
            Ended::Cut("an export that cannot be had")
        })?;
        let session = self.serve(name, opened).await?;
        let flags = option::export_flags(session.read_only, self.structured);
        let mut out = session.volume.size().to_be_bytes().to_vec();
        out.extend(flags.to_be_bytes());
        if self.zeroes {
            out.extend([0; 124]);
        }
        self.send(&out).await?;
        Ok(session)
    }

    async fn info(
        &mut self,
        option: u32,
        data: &[u8],
    ) -> Result<Option<Session<E::Volume>>, Ended> {
        let request = match option::info_request(data) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(option, refusal).await.map(|()| None),
        };
        let opened = match self.open(request.name).await {
            Ok(opened) => opened,
            Err(error) => return self.refuse_export(option, &error).await.map(|()| None),
        };
        let mut out = Vec::new();
        let mut say = |kind: u16, parts: &[&[u8]]| {
            let kind = kind.to_be_bytes();
            let parts = [&[&kind[..]], parts].concat();
            option::reply(&mut out, option, option_reply::INFO, &parts);
        };
        let read_only = opened.read_only || opened.volume.read_only();
        let flags = option::export_flags(read_only, self.structured);
        let most = self.limits.request_bytes;
        if request.wants_name {
            say(info::NAME, &[one_line(&opened.name).as_bytes()]);
        }
        if request.wants_description && !opened.description.is_empty() {
            say(info::DESCRIPTION, &[one_line(&opened.description).as_bytes()]);
        }
        say(
            info::BLOCK_SIZE,
            &[&1_u32.to_be_bytes(), &BLOCK_PREFERRED.to_be_bytes(), &most.to_be_bytes()],
        );
        let volume = Rc::clone(&opened.volume);
        let session = if option == proto::option::GO {
            Some(self.serve(request.name, opened).await?)
        } else {
            None
        };
        // After the wait: the disk may have grown meanwhile.
        let size = volume.size();
        say(info::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
        option::reply(&mut out, option, option_reply::ACK, &[]);
        self.send(&out).await?;
        Ok(session)
    }

    async fn contexts(&mut self, option: u32, data: &[u8]) -> Result<(), Ended> {
        let set = option == proto::option::SET_META_CONTEXT;
        if set {
            // Whatever comes of it, an earlier choice is void.
            self.allocation = None;
        }
        if !self.structured {
            let refusal = (option_reply::INVALID, "negotiate structured replies first");
            return self.refuse(option, refusal).await;
        }
        let request = match option::context_request(data) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(option, refusal).await,
        };
        if let Err(error) = self.open(request.name).await {
            return self.refuse_export(option, &error).await;
        }
        let is_asked_for =
            |query: &&[u8]| *query == proto::ALLOCATION.as_bytes() || !set && *query == b"base:";
        let all = !set && request.queries.is_empty();
        let mut out = Vec::new();
        if all || request.queries.iter().any(is_asked_for) {
            let id = if set { proto::ALLOCATION_ID } else { 0 }.to_be_bytes();
            let parts: [&[u8]; 2] = [&id, proto::ALLOCATION.as_bytes()];
            option::reply(&mut out, option, option_reply::META_CONTEXT, &parts);
            if set {
                self.allocation = Some(request.name.to_owned());
            }
        }
        option::reply(&mut out, option, option_reply::ACK, &[]);
        self.send(&out).await
    }

    async fn open(&mut self, name: &str) -> Result<Opened<E::Volume>, Error> {
        self.own_time(self.exports.open(name)).await
    }

    /// Makes this the connection's export. From here on the connection counts as one of the VDI's;
    /// it is served when nothing of a client that is gone is left.
    async fn serve(
        &mut self,
        name: &str,
        opened: Opened<E::Volume>,
    ) -> Result<Session<E::Volume>, Ended> {
        self.member.set_key(Some(opened.key));
        let (connection, member) = (self.connection, self.member);
        let settled = async {
            let mut settled = std::pin::pin!(member.settle_others(opened.key));
            loop {
                tokio::select! {
                    biased;
                    () = connection.stopped() => return Err(Ended::Left),
                    () = &mut settled => return Ok(()),
                    () = tokio::time::sleep(PATIENCE) => {}
                }
                if connection.socket.peer_gone() {
                    return Err(Ended::Left);
                }
            }
        };
        self.own_time(settled).await?;
        if !self.own_time(self.exports.is_there(opened.key)).await {
            return Err(Ended::Left);
        }
        if self.structured {
            connection.use_structured_replies();
        }
        Ok(Session {
            read_only: opened.read_only || opened.volume.read_only(),
            volume: opened.volume,
            structured: self.structured,
            allocation: self.allocation.as_deref() == Some(name),
        })
    }

    async fn refuse(&mut self, option: u32, (kind, text): Refusal) -> Result<(), Ended> {
        self.reply(option, kind, text.as_bytes()).await
    }

    async fn refuse_export(&mut self, option: u32, error: &Error) -> Result<(), Ended> {
        let text = one_line(&error.full());
        let kind = proto::option_error_of(error);
        self.reply(option, kind, text.as_bytes()).await
    }

    async fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> Result<(), Ended> {
        let mut out = Vec::with_capacity(20 + data.len());
        option::reply(&mut out, option, kind, &[data]);
        self.send(&out).await
    }

    /// Time the server takes for itself is not the client's.
    async fn own_time<T>(&mut self, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = work.await;
        self.until += start.elapsed();
        result
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let sent = timeout_at(self.until, self.connection.socket.send_all(bytes));
        tokio::select! {
            biased;
            () = self.connection.stopped() => Err(Ended::Left),
            sent = sent => match sent {
                Ok(sent) => Ok(sent?),
                Err(_elapsed) => Err(Ended::Cut("a negotiation that takes too long")),
            }
        }
    }

    /// Waits until so many bytes are in the inbox.
    async fn need(&mut self, count: usize) -> Result<(), Ended> {
        while self.inbox.bytes().len() < count {
            let room = self.inbox.room(count);
            let received = timeout_at(self.until, self.connection.socket.read(room));
            let received = tokio::select! {
                biased;
                () = self.connection.stopped() => return Err(Ended::Left),
                received = received => received,
            };
            match received {
                Ok(Ok(0)) => return Err(Ended::Left),
                Ok(received) => self.inbox.filled(received?),
                Err(_elapsed) => return Err(Ended::Cut("a negotiation that takes too long")),
            }
        }
        Ok(())
    }

    async fn skip(&mut self, mut count: usize) -> Result<(), Ended> {
        while count > 0 {
            self.need(1).await?;
            let now = self.inbox.bytes().len().min(count);
            self.inbox.consume(now);
            count -= now;
        }
        Ok(())
    }
}
