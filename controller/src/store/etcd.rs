//! The store in an etcd cluster.
//!
//! Our [`Revision`] is etcd's: a transaction's answer carries the header's, a
//! key its create and mod revisions. One client with one connection per endpoint
//! serves all calls and reconnects by itself.
//!
//! What is tried again: reading, and any call whose connection was refused, so
//! that nothing can have happened. A transaction whose answer got lost is
//! `Unavailable`; whoever sent it looks again.
//!
//! etcd keeps old revisions until it compacts; run it with
//! `--auto-compaction-mode=revision --auto-compaction-retention=10000`.

use std::collections::VecDeque;
use std::error::Error as _;
use std::future::Future;
use std::io::ErrorKind;
use std::time::Duration;

use async_trait::async_trait;
use ballast_model::{Refusal, RefusalCode, Revision};
use bytes::Bytes;
use etcd_client::{
    Client, CompareOp, ConnectOptions, Error, Event, EventType, GetOptions, GetResponse, KeyValue,
    KvClient, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::Code;

use super::{
    Change, Compare, Entry, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Write,
};

/// How long a call may take, further attempts included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting to one endpoint may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection is asked whether it is alive; etcd refuses less than five seconds.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts of a call that may be repeated.
const ATTEMPTS_MAX: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Keys of one page of a listing.
const PAGE_KEYS: usize = 256;
/// The largest page that is accepted: all keys at the largest size a transaction may have written.
const PAGE_BYTES_MAX: usize = PAGE_KEYS * (Transaction::BYTES_MAX + (64 << 10));
/// How often a listing starts again because its revision was compacted meanwhile.
const LISTINGS_MAX: u32 = 3;

/// A store in an etcd cluster.
#[derive(Clone)]
pub struct EtcdStore {
    client: Client,
    kv: KvClient,
    endpoints: String,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Connects and makes sure that somebody answers. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `InvalidArgument` for endpoints that are none, `Unavailable` when none answers.
    pub async fn open(endpoints: &[String]) -> Result<Self, Refusal> {
        let invalid = |reason: String| {
            let remedy = "configure endpoints as \"host:port\" or \"http://host:port\"";
            Refusal::new(RefusalCode::InvalidArgument, reason, remedy)
        };
        if endpoints.is_empty() {
            return Err(invalid("the etcd store has no endpoints".to_owned()));
        }
        if let Some(tls) = endpoints.iter().find(|endpoint| endpoint.starts_with("https://")) {
            return Err(Refusal::new(
                RefusalCode::Unsupported,
                format!("this version cannot talk TLS to etcd at {tls}"),
                "configure an http:// endpoint on the loopback or a protected network",
            ));
        }
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let client = Client::connect(endpoints, Some(options))
            .await
            .map_err(|error| invalid(format!("bad etcd endpoint: {error}")))?;
        let kv = client.kv_client().max_decoding_message_size(PAGE_BYTES_MAX);
        let store = Self { client, kv, endpoints: endpoints.join(", ") };
        store.get(super::keys::LEADER).await?;
        Ok(store)
    }

    fn unavailable(&self, why: impl Into<String>) -> StoreError {
        StoreError::Unavailable { endpoint: self.endpoints.clone(), why: why.into() }
    }

    /// Runs a call within its time, and again where nothing can have happened or `repeatable`.
    async fn call<T, F: Future<Output = Result<T, Error>>>(
        &self,
        repeatable: bool,
        call: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let attempts = async {
            let mut attempt = 1;
            loop {
                let error = match call().await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                let mapped = self.map(&error);
                let again = matches!(mapped, StoreError::Unavailable { .. })
                    && (repeatable || was_refused(&error));
                if !again || attempt >= ATTEMPTS_MAX {
                    return Err(mapped);
                }
                tokio::time::sleep(RETRY_PAUSE * attempt).await;
                attempt += 1;
            }
        };
        tokio::time::timeout(CALL_TIMEOUT, attempts).await.unwrap_or_else(|_| {
            Err(self.unavailable(format!("no answer within {} s", CALL_TIMEOUT.as_secs())))
        })
    }

    /// What an error of the client means to us.
    fn map(&self, error: &Error) -> StoreError {
        match error {
            Error::GRpcStatus(status) => match status.code() {
                Code::NotFound if status.message().contains("lease not found") => {
                    StoreError::LeaseLost
                }
                Code::OutOfRange if status.message().contains("compacted") => {
                    StoreError::Compacted(Revision(0))
                }
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                    self.unavailable(chain(status))
                }
                _ => StoreError::Failed(format!("etcd at {}: {}", self.endpoints, chain(status))),
            },
            Error::LeaseKeepAliveError(why) if why.contains("not found") => StoreError::LeaseLost,
            Error::InvalidArgs(why) => StoreError::Invalid(why.clone()),
            other => self.unavailable(other.to_string()),
        }
    }

    /// One page of `[from, to)`, at `revision` or the newest.
    async fn page(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        revision: Option<Revision>,
    ) -> Result<GetResponse, StoreError> {
        let options = GetOptions::new()
            .with_range(to)
            .with_limit(signed(limit as u64))
            .with_revision(signed(revision.unwrap_or_default().0));
        self.call(true, || {
            let (mut kv, options) = (self.kv.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        })
        .await
    }

    /// At most `limit` keys of `[from, to)` as one consistent view, page by page.
    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Listing, StoreError> {
        let mut listing = Listing { revision: Revision(0), entries: Vec::new() };
        let mut start = from.to_vec();
        let mut at = None;
        loop {
            let wanted = (limit - listing.entries.len()).clamp(1, PAGE_KEYS);
            let mut page = self.page(&start, to, wanted, at).await?;
            let revision = *at.get_or_insert(header_revision(page.header()));
            listing.revision = revision;
            let more = page.more();
            for pair in page.take_kvs() {
                listing.entries.push(entry(pair)?);
            }
            listing.entries.truncate(limit);
            match listing.entries.last() {
                Some(last) if more && listing.entries.len() < limit => {
                    start = last.key.clone().into_bytes();
                    start.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }

    /// [`scan`](Self::scan), started again when its revision was compacted under it.
    async fn listing(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Listing, StoreError> {
        let mut listings = 1;
        loop {
            match self.scan(from, to, limit).await {
                Err(StoreError::Compacted(_)) if listings < LISTINGS_MAX => listings += 1,
                answer => return answer,
            }
        }
    }
}

/// The error and its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<tonic::Status>() {
        Some(status) if !status.message().is_empty() => status.message().to_owned(),
        _ => error.to_string(),
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}

/// Whether nobody listened, so that the request was never sent.
fn was_refused(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}

/// etcd's numbers are signed and never negative.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}

fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Revision {
    revision(header.map_or(0, etcd_client::ResponseHeader::revision))
}

fn text(bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes)
        .map_err(|error| StoreError::Failed(format!("a key in etcd is no text: {error}")))
}

fn entry(pair: KeyValue) -> Result<Entry, StoreError> {
    let (created, modified) = (revision(pair.create_revision()), revision(pair.mod_revision()));
    let (key, value) = pair.into_key_value();
    Ok(Entry { key: text(key)?, value: Bytes::from(value), created, modified })
}

/// The first key after all that start with `prefix`; `"\0"`, etcd's name for no end, when there is none.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn compare(compare: &Compare) -> etcd_client::Compare {
    use etcd_client::Compare as Etcd;
    match compare {
        Compare::Absent(key) => Etcd::create_revision(key.as_str(), CompareOp::Equal, 0),
        Compare::CreatedAt(key, at) => {
            Etcd::create_revision(key.as_str(), CompareOp::Equal, signed(at.0))
        }
        Compare::ModifiedAt(key, at) => {
            Etcd::mod_revision(key.as_str(), CompareOp::Equal, signed(at.0))
        }
    }
}

fn operation(write: &Write) -> TxnOp {
    match write {
        Write::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key.as_str(), value.as_ref(), options)
        }
        Write::Delete { key } => TxnOp::delete(key.as_str(), None),
    }
}

fn change(event: &Event) -> Result<Change, StoreError> {
    let Some(pair) = event.kv() else {
        return Err(StoreError::Failed("etcd sent an event without a key".to_owned()));
    };
    Ok(match event.event_type() {
        EventType::Put => Change::Put(entry(pair.clone())?),
        EventType::Delete => {
            Change::Deleted(text(pair.key().to_vec())?, revision(pair.mod_revision()))
        }
    })
}

/// A watch under way.
struct Watch {
    store: EtcdStore,
    stream: WatchStream,
    after: Revision,
    ready: VecDeque<Change>,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        while self.ready.is_empty() {
            if self.ended {
                return None;
            }
            if let Err(error) = self.receive().await {
                self.ended = true;
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }

    /// Takes the next message: created, canceled, or changes.
    async fn receive(&mut self) -> Result<(), StoreError> {
        let message = self.stream.message().await.map_err(|error| self.store.map(&error))?;
        let Some(message) = message else {
            return Err(self.store.unavailable("it ended the watch"));
        };
        if message.compact_revision() > 0 {
            return Err(StoreError::Compacted(self.after));
        }
        if message.canceled() {
            let why = format!("it cancelled the watch: {}", message.cancel_reason());
            return Err(self.store.unavailable(why));
        }
        for event in message.events() {
            self.ready.push_back(change(event)?);
        }
        Ok(())
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let mut answer = self
            .call(true, || {
                let mut kv = self.kv.clone();
                async move { kv.get(key, None).await }
            })
            .await?;
        answer.take_kvs().pop().map(entry).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let from = if prefix.is_empty() { b"\0".to_vec() } else { prefix.as_bytes().to_vec() };
        self.listing(&from, &prefix_end(prefix), usize::MAX).await
    }

    async fn range(&self, from: &str, to: &str, limit: usize) -> Result<Listing, StoreError> {
        let from = if from.is_empty() { "\0" } else { from };
        // An end before the start is an empty range; an empty end would mean a single key to etcd.
        let to = if to.is_empty() { from } else { to };
        self.listing(from.as_bytes(), to.as_bytes(), limit).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        transaction.validate()?;
        let txn = Txn::new()
            .when(transaction.compares.iter().map(compare).collect::<Vec<_>>())
            .and_then(transaction.writes.iter().map(operation).collect::<Vec<_>>());
        let answer = self
            .call(false, || {
                let (mut kv, txn) = (self.kv.clone(), txn.clone());
                async move { kv.txn(txn).await }
            })
            .await?;
        Ok(if answer.succeeded() {
            Transacted::Committed(header_revision(answer.header()))
        } else {
            Transacted::CompareFailed
        })
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(signed(after.0.saturating_add(1)))
            .with_fragment();
        let stream = self
            .call(true, || {
                let (mut client, options) = (self.client.watch_client(), options.clone());
                async move { client.watch(prefix, Some(options)).await }
            })
            .await?;
        let store = self.clone();
        let watch = Watch { store, stream, after, ready: VecDeque::new(), ended: false };
        let changes = stream::unfold(watch, |mut watch| async move {
            let next = watch.next().await?;
            Some((next, watch))
        });
        Ok(changes.boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let answer = self
            .call(false, || {
                let mut client = self.client.lease_client();
                async move { client.grant(signed(seconds.max(1)), None).await }
            })
            .await?;
        Ok(LeaseId(answer.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        // Opening the stream sends the first request and waits for its answer.
        self.call(true, || {
            let mut client = self.client.lease_client();
            async move { client.keep_alive(lease.0).await.map(|_| ()) }
        })
        .await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.call(false, || {
            let mut client = self.client.lease_client();
            async move { client.revoke(lease.0).await.map(|_| ()) }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(prefix_end("a/"), b"a0");
        assert_eq!(prefix_end(""), [0]);
        assert!(prefix_end("/ballast/v1/audit/").as_slice() > b"/ballast/v1/audit/~".as_slice());
    }

    async fn check_refused(endpoints: &[&str], code: RefusalCode, expected: &str) {
        let endpoints: Vec<String> = endpoints.iter().map(|&text| text.to_owned()).collect();
        let refusal = EtcdStore::open(&endpoints).await.unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.reason.contains(expected), "{refusal}");
        assert!(!refusal.to_string().contains('\n'), "{refusal}");
    }

    #[tokio::test]
    async fn what_cannot_be_reached_is_named() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoint = free.to_string();
        check_refused(&[&endpoint], RefusalCode::Unavailable, &endpoint).await;
        check_refused(&[], RefusalCode::InvalidArgument, "no endpoints").await;
        check_refused(&["not a host"], RefusalCode::InvalidArgument, "bad etcd endpoint").await;
        check_refused(&["https://etcd:2379"], RefusalCode::Unsupported, "https://etcd:2379").await;
    }
}
