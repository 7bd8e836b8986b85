//! Delivery one step at a time, over a real connection and a real store: what is heard late, twice or not at all.

use super::*;
use crate::host::Host;
use crate::quic::Connection;
use crate::store::{Freshness, Issued, OpenStore, StoreLimits, file};
use godwit_certs::authority::Root;
use godwit_certs::tls::{self, Crypto, ServedCertificate, Tickets};
use godwit_core::{Action, Command, Outcome, Sender};
use godwit_wire::codec::{Decoded, FrameReader};
use godwit_wire::entry::{ChatKind, Content, Member, Role, Title};
use godwit_wire::frame::Stamp;
use godwit_wire::{ALPN_DEVICE, MessageId, RELAY_SERVER_NAME, UnixMillis};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

/// A fan-out whose inputs come when a test says so.
struct Bench {
    worker: Worker,
    committed: mpsc::UnboundedReceiver<Committed>,
    registry: Arc<Registry>,
    store: Store,
    folder: tempfile::TempDir,
    n: u64,
}

/// A device's end of its connection.
struct Phone {
    link: Arc<Link>,
    connection: quinn::Connection,
    lane: Option<(quinn::RecvStream, FrameReader)>,
    _endpoints: (Endpoint, Endpoint),
}

fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

fn device(id: &str) -> DeviceId {
    id.parse().unwrap()
}

fn chat() -> ChatId {
    ChatId::direct(&"alice@eu".parse().unwrap(), &"bob@eu".parse().unwrap())
}

impl Bench {
    /// Alice and bob with a phone each, in a direct chat that begins with seq 1. Fan-out has heard nothing yet.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, committed) = open(folder.path());
        let registry = Arc::new(Registry::new(1 << 20));
        let worker = worker(&store, &registry);
        let mut bench = Self { worker, committed, registry, store, folder, n: 0 };
        bench.enrol("alice@eu/phone").await;
        bench.enrol("bob@eu/phone").await;
        let bob = Member { user: "bob@eu".parse().unwrap(), role: Role::Member };
        let title = Title::default();
        bench.run(Action::Create { kind: ChatKind::Direct, title, participants: vec![bob] }).await;
        bench
    }

    async fn enrol(&self, id: &str) {
        let issue = |enrolment| Ok(Issued { enrolment, chain: Vec::new(), fingerprint: [0; 32] });
        self.store.enrol(device(id), Uuid::now_v7().to_string(), UnixMillis(u64::MAX), issue).await.unwrap();
    }

    /// Alice's next request in the chat.
    async fn run(&mut self, action: Action) -> Seq {
        self.n += 1;
        let id = |n: u64| MessageId(Uuid::from_u128(n.into()));
        let previous = (self.n > 1).then(|| id(self.n - 1));
        let stamp = Stamp { chat: chat(), n: self.n, oldest: self.n, id: id(self.n), previous };
        let sender = Sender { device: device("alice@eu/phone"), enrolment: 1 };
        let outcomes = self.store.submit(vec![Command { sender, stamp, action }]).await.unwrap().await.unwrap();
        let [Outcome::Sent { seq, .. }] = outcomes[..] else { panic!("{outcomes:?}") };
        seq
    }

    async fn send(&mut self) -> Seq {
        self.run(Action::Send { content: Content("text".into()), blobs: Vec::new() }).await
    }

    /// Fan-out hears of everything that is committed, and writes what follows.
    async fn hear(&mut self) {
        let mut batch = Vec::new();
        while let Ok(event) = self.committed.try_recv() {
            batch.push(event);
        }
        self.worker.committed(batch).await;
        self.written().await;
    }

    /// Fan-out's rows and moves are in the store.
    async fn written(&mut self) {
        self.worker.flush_rows();
        self.worker.flush_moves();
        self.saved().await;
    }

    /// Waits for everything that fan-out writes.
    async fn saved(&mut self) {
        let report = self.worker.report.clone();
        let next = Save::start(self.store.clone(), move |saved| drop(report.send(Report::Saved(saved))));
        std::mem::replace(&mut self.worker.saves, next).finish().await;
        while let Ok(report) = self.worker.results.try_recv() {
            self.worker.result(report);
        }
    }

    /// The next thing that one of fan-out's errands brings back.
    async fn report(&mut self) {
        let report = tokio::time::timeout(PATIENCE, self.worker.results.recv()).await.expect("an errand never ended");
        self.worker.result(report.expect("fan-out holds a sender itself"));
    }

    async fn connect(&self, id: &str, enrolment: u32) -> Phone {
        let (server, client, endpoints) = connection().await;
        let link = self.registry.attach(device(id), enrolment, Connection(server)).await;
        Phone { link, connection: client, lane: None, _endpoints: endpoints }
    }

    async fn attach(&mut self, phone: &Phone) {
        self.worker.input(Input::Attached(phone.link.clone())).await;
    }

    async fn ack(&mut self, phone: &Phone, up_to: Seq) {
        let acks = vec![Ack { chat: chat(), up_to }];
        self.worker.input(Input::Acks { link: phone.link.clone(), acks }).await;
        if self.worker.deferred.contains_key(&chat()) {
            self.report().await;
        }
        self.written().await;
    }

    /// Where bob's inboxes begin, by device.
    async fn rows(&self) -> Vec<(DeviceId, Seq)> {
        let rows =
            self.store.read(|store| store.inbox_of_user(&"bob@eu".parse().unwrap(), Freshness::Now)).await.unwrap();
        rows.into_iter().map(|(device, _, row)| (device, row.from)).collect()
    }

    /// The first entry that a restart would take up again.
    async fn unsettled(&mut self) -> Option<Seq> {
        self.worker.save_progress(|_| true);
        self.saved().await;
        let unsettled = self.store.read(|store| {
            let limit = crate::store::PageLimit { entries: 1024, bytes: 1 << 20 };
            store.unsettled(&chat(), None, limit)
        });
        unsettled.await.unwrap().entries.first().map(|(entry, _)| entry.seq)
    }
}

fn open(folder: &std::path::Path) -> (Store, mpsc::UnboundedReceiver<Committed>) {
    let host = Host::system();
    let opener = file::opener(host.disk.clone(), folder.join(file::NAME), "eu".parse().unwrap(), 1 << 20);
    let OpenStore { store, committed, .. } =
        Store::open(opener, None, &StoreLimits::default(), &host, Metrics::default()).unwrap();
    (store, committed)
}

fn worker(store: &Store, registry: &Arc<Registry>) -> Worker {
    let config = FanoutConfig { ack_timeout: Duration::from_millis(1), ..FanoutConfig::default() };
    Worker::new(config, "eu".parse().unwrap(), store.clone(), registry.clone(), Clock::system(), Metrics::default()).0
}

async fn connection() -> (quinn::Connection, quinn::Connection, (Endpoint, Endpoint)) {
    let (crypto, now) = (Crypto::system(), Clock::system().now());
    let root = Root::create(now).unwrap();
    let credential = root.issuer(&"eu".parse().unwrap(), now).unwrap().relay(&"eu/eu-1".parse().unwrap(), now).unwrap();
    let served = ServedCertificate::new(&crypto, credential).unwrap();
    let tickets = Tickets::Stateless(rustls::crypto::aws_lc_rs::Ticketer::new().unwrap());
    let tls = tls::relay(&crypto, root.certificate(), served, tickets, &[ALPN_DEVICE]).unwrap();
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let loopback = "127.0.0.1:0".parse().unwrap();
    let server = Endpoint::server(config, loopback).unwrap();
    let client = Endpoint::client(loopback).unwrap();
    let tls = tls::client(&crypto, root.certificate(), None, ALPN_DEVICE).unwrap();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let connecting = client.connect_with(config, server.local_addr().unwrap(), RELAY_SERVER_NAME).unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let (near, far) = tokio::join!(accepting, connecting);
    (near, far.unwrap(), (server, client))
}

impl Phone {
    /// The next entry that was pushed.
    async fn entry(&mut self) -> Seq {
        match self.event().await {
            Event::Entry { entry, .. } => entry.seq,
            other => panic!("pushed {other:?}"),
        }
    }

    async fn event(&mut self) -> Event {
        let next = async {
            if self.lane.is_none() {
                self.lane = Some((self.connection.accept_uni().await.unwrap(), FrameReader::default()));
            }
            let (lane, reader) = self.lane.as_mut().unwrap();
            loop {
                if let Some(frame) = reader.next_frame().unwrap() {
                    match codec::decode_event(&frame).unwrap() {
                        Decoded::Frame(event) => break event,
                        other @ Decoded::Unknown { .. } => panic!("pushed {other:?}"),
                    }
                }
                reader.push(&lane.read_chunk(1 << 16, true).await.unwrap().expect("the lane ended").bytes);
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("nothing was pushed")
    }
}

#[tokio::test]
async fn a_device_that_connects_before_its_enrolment_is_heard_of_stays_connected() {
    let mut bench = Bench::new().await;
    bench.hear().await;
    bench.enrol("bob@eu/laptop").await;
    let mut laptop = bench.connect("bob@eu/laptop", 1).await;
    bench.attach(&laptop).await;
    // Only now: the news of the enrolment.
    bench.hear().await;
    let sent = bench.send().await;
    bench.hear().await;
    while bench.worker.devices[&laptop.link.device].wants_drain() || bench.worker.devices[&laptop.link.device].reading {
        bench.report().await;
    }
    assert_eq!(laptop.entry().await, sent);
}

#[tokio::test]
async fn news_of_an_older_enrolment_brings_no_connection_back() {
    let mut bench = Bench::new().await;
    let old = bench.connect("bob@eu/phone", 1).await;
    bench.hear().await;
    bench.attach(&old).await;
    bench.enrol("bob@eu/phone").await;
    bench.hear().await;
    let known = bench.worker.devices.get(&old.link.device);
    assert!(known.is_none_or(|state| state.link.is_none()), "the certificate of enrolment 1 is superseded");
    tokio::time::timeout(PATIENCE, old.connection.closed()).await.expect("the old connection is closed");
}

#[tokio::test]
async fn a_live_entry_leaves_no_row_and_an_absent_device_gets_one() {
    let mut bench = Bench::new().await;
    let mut phone = bench.connect("bob@eu/phone", 1).await;
    bench.hear().await;
    assert_eq!(bench.rows().await, [(device("bob@eu/phone"), seq(1))], "bob was away when the chat began");
    bench.attach(&phone).await;
    bench.report().await;
    assert_eq!(phone.entry().await, seq(1));
    bench.ack(&phone, seq(1)).await;
    assert_eq!(bench.rows().await, []);

    let sent = bench.send().await;
    bench.hear().await;
    assert_eq!(phone.entry().await, sent);
    assert_eq!(bench.unsettled().await, Some(sent), "not settled before the device has it");
    bench.ack(&phone, sent).await;
    assert_eq!((bench.unsettled().await, bench.rows().await), (None, vec![]));

    bench.worker.input(Input::Detached(phone.link.clone())).await;
    let missed = bench.send().await;
    bench.hear().await;
    assert_eq!(bench.rows().await, [(device("bob@eu/phone"), missed)]);
    assert_eq!(bench.unsettled().await, None, "the row stands for the entry");
}

#[tokio::test]
async fn a_row_that_begins_before_the_end_of_the_last_one_is_written_stays() {
    let mut bench = Bench::new().await;
    bench.hear().await;
    let mut phone = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&phone).await;
    bench.report().await;
    assert_eq!(phone.entry().await, seq(1));
    let acks = vec![Ack { chat: chat(), up_to: seq(1) }];
    bench.worker.input(Input::Acks { link: phone.link.clone(), acks }).await;
    // In the same tick the phone is gone, and something comes for it.
    bench.worker.input(Input::Detached(phone.link.clone())).await;
    let missed = bench.send().await;
    bench.hear().await;
    assert_eq!(bench.rows().await, [(device("bob@eu/phone"), missed)]);
}

#[tokio::test]
async fn a_row_that_another_relay_began_lower_is_found_and_read() {
    let mut bench = Bench::new().await;
    let mut phone = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&phone).await;
    bench.hear().await;
    assert_eq!(phone.entry().await, seq(1));
    bench.ack(&phone, seq(1)).await;
    let (missed, second) = (bench.send().await, bench.send().await);
    // As another relay would, which owned the chat until now.
    let (device, enrolment) = (device("bob@eu/phone"), 1);
    let write = InboxWrite { device: device.clone(), enrolment, chat: chat(), change: InboxChange::Begin(missed) };
    assert_eq!(bench.store.write_inbox(vec![write]).await.unwrap(), []);
    while bench.committed.try_recv().is_ok() {}
    let newest = bench.send().await;
    bench.hear().await;
    assert_eq!(phone.entry().await, newest);
    // Nobody acknowledged it: a row begins, and the other one turns up.
    let later = bench.worker.now() + 1_000;
    bench.worker.time_out(later);
    bench.written().await;
    assert_eq!(bench.rows().await, [(device.clone(), missed)]);
    bench.report().await;
    let mut read = Vec::new();
    while read.last() != Some(&newest) {
        read.push(phone.entry().await);
    }
    assert_eq!(read, [missed, second, newest]);
    bench.ack(&phone, newest).await;
    assert_eq!(bench.rows().await, []);
}

#[tokio::test]
async fn a_silent_device_gets_a_row_and_nobody_waits_for_it() {
    let mut bench = Bench::new().await;
    let mut phone = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&phone).await;
    bench.hear().await;
    assert_eq!(phone.entry().await, seq(1));
    assert_eq!((bench.rows().await, bench.unsettled().await), (vec![], Some(seq(1))));
    // Later than the time-out of a millisecond, by fan-out's own clock.
    let later = bench.worker.now() + 1_000;
    bench.worker.time_out(later);
    bench.written().await;
    assert_eq!((bench.rows().await, bench.unsettled().await), (vec![(device("bob@eu/phone"), seq(1))], None));
    bench.ack(&phone, seq(1)).await;
    assert_eq!(bench.rows().await, [], "a late acknowledgement still counts");
}

#[tokio::test]
async fn the_late_end_of_an_old_connection_ends_nothing_of_the_new_one() {
    let mut bench = Bench::new().await;
    bench.hear().await;
    let old = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&old).await;
    bench.registry.detach(&old.link);
    let mut new = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&new).await;
    bench.worker.input(Input::Detached(old.link.clone())).await;
    bench.ack(&old, seq(1)).await;
    assert_eq!(bench.rows().await, [(device("bob@eu/phone"), seq(1))], "an old connection acknowledges nothing");
    while bench.worker.devices[&new.link.device].reading {
        bench.report().await;
    }
    assert_eq!(new.entry().await, seq(1));
}

#[tokio::test]
async fn nobody_takes_what_does_not_exist() {
    let mut bench = Bench::new().await;
    let mut phone = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&phone).await;
    bench.hear().await;
    assert_eq!(phone.entry().await, seq(1));
    bench.ack(&phone, seq(1_000_000)).await;
    let sent = bench.send().await;
    bench.hear().await;
    assert_eq!(phone.entry().await, sent, "an acknowledgement beyond the head must not cover it");
    assert_eq!(bench.unsettled().await, Some(sent));
}

#[tokio::test]
async fn a_restart_takes_up_what_was_not_settled() {
    let mut bench = Bench::new().await;
    // Committed, and the relay dies before fan-out hears of any of it.
    let sent = bench.send().await;
    let mut worker = worker(&bench.store, &bench.registry);
    std::mem::swap(&mut bench.worker, &mut worker);
    while bench.committed.try_recv().is_ok() {}
    bench.worker.recover().await.unwrap();
    bench.written().await;
    assert_eq!(bench.rows().await, [(device("bob@eu/phone"), seq(1))], "one row for {sent} and what came before");
    assert_eq!(bench.unsettled().await, None);
    assert!(bench.folder.path().join(file::NAME).exists());
}

#[tokio::test]
async fn a_sender_hears_of_delivery_however_late_it_comes() {
    let mut bench = Bench::new().await;
    let mut alice = bench.connect("alice@eu/phone", 1).await;
    bench.attach(&alice).await;
    bench.hear().await;
    let sent = bench.send().await;
    bench.hear().await;
    assert_eq!(bench.unsettled().await, None, "bob has a row");
    // So long ago that the chat has left memory.
    bench.worker.chats.clear();
    let mut bob = bench.connect("bob@eu/phone", 1).await;
    bench.attach(&bob).await;
    bench.report().await;
    assert_eq!((bob.entry().await, bob.entry().await), (seq(1), sent));
    bench.ack(&bob, sent).await;
    bench.worker.tick().await;
    let Event::Receipt { receipt, .. } = alice.event().await else { panic!("alice hears something else") };
    assert_eq!((receipt.delivered, receipt.read), (Some(sent), None));
    // Nothing is told twice, nor to bob, who sent nothing that alice has not taken.
    bench.worker.tick().await;
    bench.worker.input(Input::Read { user: "bob@eu".parse().unwrap(), chat: chat(), up_to: sent }).await;
    bench.worker.tick().await;
    let Event::Receipt { receipt, .. } = alice.event().await else { panic!("alice hears something else") };
    assert_eq!((receipt.delivered, receipt.read), (Some(sent), Some(sent)));
}
