//! A herd of devices: where they go, and where they are once a relay died. Devices: 600, or `HERD_DEVICES`.

use anyhow::{Context, Result, bail, ensure};
use godwit_certs::DeviceKey;
use godwit_certs::authority::Credential;
use godwit_certs::folder::{AuthorityDir, read_certificate};
use godwit_certs::tls::{self, Crypto};
use godwit_tests::cluster::until;
use godwit_tests::processes::Processes;
use godwit_tests::wire::{self, ask, ticket};
use godwit_wire::frame::{Address, Hello, Options, Reply, Request};
use godwit_wire::{ALPN_DEVICE, Clock, DeviceId};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, TransportConfig};
use rustls::pki_types::CertificateDer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// A difference of so many devices is no herd, however few there are.
const FEW: usize = 64;
/// Devices that share a socket.
const SHARE: usize = 100;
/// Devices that enrol at the same time.
const AT_ONCE: usize = 64;

/// Where the devices are.
type Places = Arc<Mutex<HashMap<SocketAddr, usize>>>;

/// What a device does that wants to be connected, as the client library does it: the relay it was at last, then those
/// that this one named, in their order.
struct Device {
    endpoint: Endpoint,
    config: ClientConfig,
    credential: Credential,
    relays: Vec<SocketAddr>,
    places: Places,
}

impl Device {
    async fn run(mut self) {
        loop {
            for address in self.relays.clone() {
                if self.stay(address, false).await.is_ok() {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..400))).await;
        }
    }

    /// Is connected there, or to where it is sent, until that ends.
    async fn stay(&mut self, address: SocketAddr, sent_here: bool) -> Result<()> {
        let connecting = self.endpoint.connect_with(self.config.clone(), address, godwit_wire::RELAY_SERVER_NAME)?;
        let connection = tokio::time::timeout(Duration::from_secs(3), connecting).await??;
        let options = Options::with_ticket(&ticket(&connection, &self.credential)?);
        let options = if sent_here { options.sent_here() } else { options };
        let hello = Request::Hello(Hello { client: "herd".into(), options });
        let parse =
            |relays: Vec<Address>| relays.iter().map(|address| address.0.parse()).collect::<Result<Vec<_>, _>>();
        match ask(&connection, &hello).await? {
            Reply::Welcome(welcome) => {
                self.relays = std::iter::once(address).chain(parse(welcome.relays)?).collect();
                *self.places.lock().expect("not poisoned").entry(address).or_default() += 1;
                connection.closed().await;
                *self.places.lock().expect("not poisoned").entry(address).or_default() -= 1;
                Ok(())
            }
            Reply::Elsewhere { relays, .. } => {
                connection.close(0u32.into(), b"");
                for address in parse(relays)? {
                    if Box::pin(self.stay(address, true)).await.is_ok() {
                        return Ok(());
                    }
                }
                bail!("nobody takes it")
            }
            other => bail!("hello was answered with {other:?}"),
        }
    }
}

fn config(root: &CertificateDer<'_>, credential: Credential) -> Result<ClientConfig> {
    let tls = tls::client(&Crypto::system(), root, Some(credential), ALPN_DEVICE)?;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let mut transport = TransportConfig::default();
    // So that a relay's death is noticed.
    transport.keep_alive_interval(Some(Duration::from_secs(2)));
    transport.max_idle_timeout(Some(Duration::from_secs(6).try_into()?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Whether relays have about the same number of devices: within a fifth of each other.
fn even(counts: &[usize]) -> bool {
    let (most, fewest) = (counts.iter().max().unwrap_or(&0), counts.iter().min().unwrap_or(&0));
    most - fewest <= FEW.max(fewest / 5)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_of_devices_spreads_over_the_relays_that_are_left() -> Result<()> {
    let all = std::env::var("HERD_DEVICES").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let folder = tempfile::tempdir()?;
    let relays = [("eu/eu-1", "store"), ("eu/eu-2", "edge"), ("eu/eu-3", "edge")];
    // They all come from one address.
    let settings = [("GODWIT_ADMISSION__ADDRESS_PER_SECOND", "5000"), ("GODWIT_ADMISSION__ADDRESS_BURST", "5000")];
    let mut processes = Processes::start(folder.path(), &relays, &settings).await?;
    let authority = AuthorityDir::new(folder.path().join("relay").join("certs"));
    let root = read_certificate(&authority.root_certificate_path())?;
    let addresses: Vec<SocketAddr> =
        processes.relays.iter().map(|relay| relay.quic.parse()).collect::<Result<_, _>>()?;
    let places = Places::default();
    let mut devices = JoinSet::new();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    for share in 0..all / SHARE {
        let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
        for n in 0..SHARE {
            let device: DeviceId = format!("user{share}x{n}@eu/phone").parse()?;
            let token = authority.token(&device, Duration::from_mins(10), Clock::system().now())?;
            let (root, endpoint, places) = (root.clone(), endpoint.clone(), places.clone());
            let (turn, given) = (turns.clone().acquire_owned().await?, addresses[0]);
            devices.spawn(async move {
                let key = DeviceKey::generate()?;
                let chain = wire::ask_certificate(given, &root, token, key.request(&device)?).await??;
                drop(turn);
                let credential = key.credential(chain);
                let config = config(&root, credential.clone())?;
                // All were given the same relay.
                Device { endpoint, config, credential, relays: vec![given], places }.run().await;
                anyhow::Ok(())
            });
        }
    }
    let counts = || {
        let places = places.lock().expect("not poisoned");
        addresses.iter().map(|address| places.get(address).copied().unwrap_or(0)).collect::<Vec<_>>()
    };
    until("all devices to be connected", || counts().iter().sum::<usize>() == all).await?;
    let at_first = counts();
    ensure!(even(&at_first), "within a fifth of each other, though they all knew one relay: {at_first:?}");
    let begun = Instant::now();
    processes.relays[1].kill().await?;
    let all_back = || counts()[1] == 0 && counts().iter().sum::<usize>() == all;
    until("all devices to be connected again", all_back).await?;
    let left = [counts()[0], counts()[2]];
    eprintln!("{at_first:?} devices at each, and {left:?} {:?} after a kill", begun.elapsed());
    ensure!(even(&left), "within a fifth of each other: {left:?}, and {at_first:?} before");
    let served = processes.metric(0, "godwit_connections").context("the relay counts them")?;
    ensure!(served.to_string() == left[0].to_string(), "the relay says {served}");
    Ok(())
}
