//! Relays that are not to be trusted, over real links to a real relay.

use super::frame::{PeerFrame, PeerPage};
use super::*;
use crate::config::{Config, Layers};
use crate::host::Host;
use crate::quic::endpoint::peer_transport;
use crate::relay::Relay;
use godwit_certs::DeviceKey;
use godwit_certs::authority::{Credential, Root};
use godwit_certs::folder::AuthorityDir;
use godwit_certs::tls::{self, Crypto};
use godwit_core::device::Revocation;
use godwit_gossip::{Kind, Versions};
use godwit_wire::frame::{Ack, Options, Reply, Request, SendMessage, Stamp};
use godwit_wire::{ChatId, DeviceId, MessageId, Seq};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use uuid::Uuid;

/// Relay eu/eu-1, with the authority that it trusts.
struct Victim {
    _folder: tempfile::TempDir,
    authority: AuthorityDir,
    relay: Relay,
}

impl Victim {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = AuthorityDir::new(folder.path().join("certs"));
        let now = Clock::system().now();
        for region in ["eu", "us"] {
            authority.init(&region.parse().unwrap(), now).unwrap();
        }
        let certs = authority.relay(&"eu/eu-1".parse().unwrap(), now).unwrap();
        let mut layers = Layers::default();
        for (key, value) in [
            ("listen", "127.0.0.1:0"),
            ("admin", "127.0.0.1:0"),
            ("certs", &certs.path().to_string_lossy()),
            ("data", &folder.path().join("data").to_string_lossy()),
            ("cluster.network", "lan"),
        ] {
            layers.flag("test", key, value).unwrap();
        }
        let config: Config = layers.config().unwrap();
        let relay = Relay::start(&config, &Host::system()).await.unwrap();
        Self { _folder: folder, authority, relay }
    }

    fn root(&self) -> CertificateDer<'static> {
        godwit_certs::folder::read_certificate(&self.authority.root_certificate_path()).unwrap()
    }

    /// The credential of a relay of this authority.
    fn credential(&self, id: &str) -> Credential {
        self.authority.relay(&id.parse().unwrap(), Clock::system().now()).unwrap().read().unwrap().credential
    }

    /// What a relay called `id` with this credential has in hand.
    fn peers(&self, id: &str, credential: Credential) -> Peers {
        let tls = tls::client(&Crypto::system(), &self.root(), Some(credential), ALPN_PEER).unwrap();
        let mut dialling = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        dialling.transport_config(Arc::new(peer_transport()));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let me = identity(id.parse().unwrap(), address, 1, Kind::Store);
        Peers::new(me, Some(1), Clock::system(), endpoint, dialling)
    }

    /// A link of relay us/us-1, whose replies are read.
    async fn link(&self) -> Arc<PeerLink> {
        let link = self.peers("us/us-1", self.credential("us/us-1")).dial(self.relay.quic).await.unwrap();
        let reading = link.clone();
        tokio::spawn(async move {
            while let Ok(mut lane) = reading.connection.0.accept_uni().await {
                let link = reading.clone();
                tokio::spawn(async move {
                    let mut reader = FrameReader::with_limit(frame::FRAME_BYTES);
                    while let Ok(Some(chunk)) = lane.read_chunk(1 << 16, true).await {
                        reader.push(&chunk.bytes);
                        while let Ok(Some(frame)) = reader.next_frame() {
                            if let Ok((number, Decoded::Frame(frame))) = codec::decode_numbered::<PeerFrame>(&frame) {
                                link.answered(number, frame);
                            }
                        }
                    }
                });
            }
        });
        link
    }
}

async fn refused(link: &Arc<PeerLink>, frame: PeerFrame) -> Refusal {
    match link.request(None, &frame).unwrap().await.unwrap() {
        PeerFrame::Refused(refusal) => refusal,
        other => panic!("answered with {other:?}"),
    }
}

/// By which `relay` may act for a device.
fn authorize(key: &DeviceKey, chain: &[CertificateDer<'static>], relay: &str) -> PeerFrame {
    PeerFrame::Authorize {
        certificate: chain.iter().map(|der| godwit_wire::frame::Credential(der.to_vec().into())).collect(),
        ticket: key.ticket_for(&relay.parse().unwrap(), chain).unwrap(),
    }
}

fn alice() -> DeviceId {
    "alice@eu/phone".parse().unwrap()
}

fn chat() -> ChatId {
    ChatId::direct(&alice().user(), &"bob@us".parse().unwrap())
}

fn message() -> Request {
    let stamp = Stamp { chat: chat(), n: 1, oldest: 1, id: MessageId(Uuid::from_u128(1)), previous: None };
    let content = godwit_wire::entry::Content("forged".into());
    Request::SendMessage(SendMessage { stamp, content, blobs: Vec::new(), options: Options::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ticket_a_relay_acts_for_nobody() {
    let victim = Victim::new().await;
    let link = victim.link().await;
    let device = alice();
    for frame in [
        PeerFrame::Commands { device: device.clone(), requests: vec![message()] },
        PeerFrame::Attach { device: device.clone(), epoch: 1, again: false },
    ] {
        assert_eq!(refused(&link, frame).await.code, Code::Unauthenticated);
    }
    let asked = PeerAsk::Device { device: device.clone(), request: Request::GetChat { chat: chat() } };
    let Reply::Refused(refusal) = link.ask_one(&asked).await.unwrap() else { panic!("answered") };
    assert_eq!(refusal.code, Code::Unauthenticated);
    // What is not answered changes nothing either; the link stays.
    assert!(
        link.note(None, &PeerFrame::Acks { device, epoch: 1, acks: vec![Ack { chat: chat(), up_to: Seq::FIRST }] })
    );
    assert_eq!(
        refused(&link, PeerFrame::Attach { device: alice(), epoch: 1, again: true }).await.code,
        Code::Unauthenticated
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_for_another_relay_or_of_another_authority_is_refused() {
    let victim = Victim::new().await;
    let link = victim.link().await;
    let now = Clock::system().now();
    let key = DeviceKey::generate().unwrap();
    let csr = key.request(&alice()).unwrap();
    let authorize = |chain: &[CertificateDer<'static>], relay: &str| authorize(&key, chain, relay);
    let own = victim.authority.relay(&"eu/eu-9".parse().unwrap(), now).unwrap().read().unwrap().issuer;
    let chain = own.device(&csr, &alice(), 1, now).unwrap();
    assert_eq!(refused(&link, authorize(&chain, "us/us-2")).await.code, Code::Unauthenticated);
    let strange = Root::create(now).unwrap().issuer(&"eu".parse().unwrap(), now).unwrap();
    let forged = strange.device(&csr, &alice(), 1, now).unwrap();
    assert_eq!(refused(&link, authorize(&forged, "us/us-1")).await.code, Code::Unauthenticated);
    // With its own it may ask, and the home says that it knows no such device.
    let reply = link.request(None, &authorize(&chain, "us/us-1")).unwrap().await.unwrap();
    assert_eq!(reply, PeerFrame::Done);
    let refusal = refused(&link, PeerFrame::Attach { device: alice(), epoch: 1, again: false }).await;
    assert_ne!(refusal.code, Code::Internal);
}

/// The peer would go on with the earlier enrolment, which is shut out.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_comes_with_another_ticket_is_shown_anew() {
    let victim = Victim::new().await;
    let link = victim.link().await;
    let now = Clock::system().now();
    let key = DeviceKey::generate().unwrap();
    let csr = key.request(&alice()).unwrap();
    let show = async |chain: &[CertificateDer<'static>]| {
        let PeerFrame::Authorize { certificate, ticket } = authorize(&key, chain, "us/us-1") else { unreachable!() };
        link.show(&alice(), &DeviceCredential { certificate, ticket }).await.map_err(|refusal| refusal.code)
    };
    let own = victim.authority.relay(&"eu/eu-9".parse().unwrap(), now).unwrap().read().unwrap().issuer;
    for enrolment in [1, 2, 2] {
        assert_eq!(show(&own.device(&csr, &alice(), enrolment, now).unwrap()).await, Ok(()));
    }
    // The peer looks at each.
    let strange = Root::create(now).unwrap().issuer(&"eu".parse().unwrap(), now).unwrap();
    let forged = strange.device(&csr, &alice(), 3, now).unwrap();
    assert_eq!(show(&forged).await, Err(Code::Unauthenticated));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_shuts_out_only_users_of_its_own_region() {
    let victim = Victim::new().await;
    let link = victim.link().await;
    let key = DeviceKey::generate().unwrap();
    let now = Clock::system().now();
    let acts = async |device: &str, issuer: &str| {
        let device: DeviceId = device.parse().unwrap();
        let issuer = victim.authority.relay(&issuer.parse().unwrap(), now).unwrap().read().unwrap().issuer;
        let chain = issuer.device(&key.request(&device).unwrap(), &device, 1, now).unwrap();
        link.request(None, &authorize(&key, &chain, "us/us-1")).unwrap().await.unwrap()
    };
    let revoked =
        |device: &str| Revocation { device: device.parse().unwrap(), enrolment: 1, why: Code::Revoked, at: now };
    let frame = PeerFrame::Revoked(vec![revoked("alice@eu/phone"), revoked("bob@us/phone")]);
    assert_eq!(link.request(None, &frame).unwrap().await.unwrap(), PeerFrame::Done);
    assert_eq!(acts("alice@eu/phone", "eu/eu-8").await, PeerFrame::Done, "not by a relay of us");
    assert_eq!(acts("bob@us/phone", "us/us-8").await, PeerFrame::Refused(Code::Revoked.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_a_link_and_nothing_else() {
    let victim = Victim::new().await;
    let link = victim.link().await;
    let mut lane = link.connection.0.open_uni().await.unwrap();
    lane.write_all(&[0xff; 64]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), link.connection.closed()).await.expect("the link is ended");
    let again = victim.peers("us/us-2", victim.credential("us/us-2")).dial(victim.relay.quic).await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_relay_of_the_authority_gets_no_link() {
    let victim = Victim::new().await;
    let now = Clock::system().now();
    let strange = Root::create(now).unwrap().issuer(&"us".parse().unwrap(), now).unwrap();
    let forged = strange.relay(&"us/us-1".parse().unwrap(), now).unwrap();
    let past = now.minus(Duration::from_hours(24 * 400));
    let folder = victim.authority.relay(&"us/us-3".parse().unwrap(), past).unwrap();
    let expired = folder.read().unwrap().credential;
    let key = DeviceKey::generate().unwrap();
    let issuer = victim.authority.relay(&"eu/eu-9".parse().unwrap(), now).unwrap().read().unwrap().issuer;
    let device = key.credential(issuer.device(&key.request(&alice()).unwrap(), &alice(), 1, now).unwrap());
    for (what, id, credential) in [
        ("another authority", "us/us-1", forged),
        ("an expired certificate", "us/us-3", expired),
        ("a device", "us/us-4", device),
        ("a hello in another's name", "us/us-5", victim.credential("us/us-6")),
    ] {
        let dialled = victim.peers(id, credential).dial(victim.relay.quic).await;
        // With TLS 1.3 the refusal of a client's certificate may come after the handshake.
        if let Ok(link) = dialled {
            let ended = tokio::time::timeout(Duration::from_secs(5), link.connection.closed()).await;
            assert!(ended.is_ok(), "{what} got a link");
        }
    }
    assert_eq!(victim.relay.cluster().members.len(), 1, "nobody joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_a_common_version_is_told_so() {
    let victim = Victim::new().await;
    let peers = victim.peers("us/us-1", victim.credential("us/us-1"));
    let newer = Versions { min: VERSIONS.max + 1, max: VERSIONS.max + 2 };
    let me = peers.me();
    peers.renewed(Identity::new(me.relay().clone(), me.addr(), 1, newer, Kind::Store));
    let refusal = peers.dial(victim.relay.quic).await.expect_err("no common version");
    assert!(refusal.explanation.contains("no common version"), "{refusal}");
    // One that speaks an older version too is understood in that.
    let both = Versions { min: VERSIONS.min, max: VERSIONS.max + 1 };
    peers.renewed(Identity::new(me.relay().clone(), me.addr(), 2, both, Kind::Store));
    let link = peers.dial(victim.relay.quic).await.unwrap();
    assert_eq!(link.version, VERSIONS.max);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_the_version_before_is_understood() {
    let victim = Victim::new().await;
    let peers = victim.peers("us/us-1", victim.credential("us/us-1"));
    let me = peers.me();
    let before = Versions { min: VERSIONS.min, max: VERSIONS.min };
    peers.renewed(Identity::new(me.relay().clone(), me.addr(), 1, before, Kind::Store));
    let link = peers.dial(victim.relay.quic).await.unwrap();
    assert_eq!(link.version, VERSIONS.min);
    // It is asked in that version, and what it asks is answered.
    let nobody: godwit_wire::UserId = "nobody@eu".parse().unwrap();
    let PeerPage::Missing(missing) = link.ask_one(&PeerAsk::Missing(vec![nobody.clone()])).await.unwrap() else {
        panic!("answered with something else")
    };
    assert_eq!(missing, [nobody]);
    assert!(!link.connection.is_closed());
}
