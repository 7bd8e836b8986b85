//! What one relay does: durable messages a second between pairs of users, and how fast a backlog drains. The relay is a
//! process of its own; the load comes from raw sessions in this one. One JSON line a run.
//!
//! ```text
//! cargo bench --package godwit-tests --bench relay -- chat --window 64
//! cargo bench --package godwit-tests --bench relay -- chat --window 1 --edge    # senders one hop away
//! cargo bench --package godwit-tests --bench relay -- drain
//! cargo bench --package godwit-tests --bench relay -- files                     # messages beside large uploads
//! ```

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use godwit_certs::DeviceKey;
use godwit_certs::authority::Credential;
use godwit_certs::folder::{AuthorityDir, read_certificate};
use godwit_certs::tls::{self, Crypto};
use godwit_tests::process::{self, RelayProcess, commands};
use godwit_tests::wire::{self, Wire, create_direct, message, stamp};
use godwit_wire::blob::{Manifest, PART_BYTES};
use godwit_wire::codec::{self, Decoded, FrameReader};
use godwit_wire::frame::{Ack, Event, Reply, Request};
use godwit_wire::{ChatId, Clock, DeviceId, Seq, UnixMillis};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

#[derive(Parser)]
struct Args {
    /// Cargo passes it to every benchmark.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    scenario: Option<Scenario>,
}

#[derive(Clone, Subcommand)]
enum Scenario {
    /// Pairs of online users; each sender keeps a window open. A message is closed when it is sent and received.
    Chat {
        #[arg(long, default_value_t = 50)]
        pairs: usize,
        #[arg(long, default_value_t = 64)]
        window: u64,
        #[arg(long, default_value_t = 200)]
        body: usize,
        #[arg(long, default_value_t = 1.5)]
        warm: f64,
        #[arg(long, default_value_t = 4.0)]
        secs: f64,
        /// Senders are connected at an edge, receivers at the store beside it.
        #[arg(long)]
        edge: bool,
    },
    /// Pairs of users who say something now and then, first alone, then beside devices that upload all the time.
    Files {
        #[arg(long, default_value_t = 10)]
        pairs: usize,
        #[arg(long, default_value_t = 8)]
        uploads: usize,
        /// Of one upload, in Mbit/s, as a phone's network has it; 0 is as fast as it goes.
        #[arg(long, default_value_t = 25.0)]
        uplink: f64,
        /// Between two messages of a pair, in milliseconds.
        #[arg(long, default_value_t = 20)]
        pause: u64,
        #[arg(long, default_value_t = 5.0)]
        secs: f64,
    },
    /// A backlog for a device that is away, then the time until it has all of it.
    Drain {
        #[arg(long, default_value_t = 10_000)]
        count: u64,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let scenario = args.scenario.unwrap_or(Scenario::Drain { count: 10_000 });
    runtime.block_on(async {
        let row = match scenario {
            Scenario::Chat { pairs, window, body, warm, secs, edge } => {
                let times = (Duration::from_secs_f64(warm), Duration::from_secs_f64(secs));
                chat(pairs, window, body, times, edge).await?
            }
            Scenario::Files { pairs, uploads, uplink, pause, secs } => {
                let times = (Duration::from_millis(pause), Duration::from_secs_f64(secs));
                files(pairs, uploads, uplink * 1e6 / 8.0, times).await?
            }
            Scenario::Drain { count } => drain(count).await?,
        };
        println!("{row}");
        Ok(())
    })
}

struct Place {
    folder: tempfile::TempDir,
    relay: RelayProcess,
    /// Beside it.
    edge: Option<RelayProcess>,
    authority: AuthorityDir,
    root: CertificateDer<'static>,
    address: SocketAddr,
}

impl Place {
    /// A relay whose limits are out of the way.
    async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let authority = AuthorityDir::new(folder.path().join("certs"));
        let now = Clock::system().now();
        authority.init(&"eu".parse()?, now)?;
        let relay = start(folder.path(), &authority, "eu-1", now, "role = \"store\"").await?;
        let root = read_certificate(&authority.root_certificate_path())?;
        let address = relay.quic.parse()?;
        Ok(Self { folder, relay, edge: None, authority, root, address })
    }

    /// Starts an edge beside the relay, and waits until they know each other.
    async fn with_edge(mut self) -> Result<Self> {
        let cluster = format!("role = \"edge\"\nnetwork = \"lan\"\njoin = [\"{}\"]", self.relay.quic);
        let now = Clock::system().now();
        let edge = start(self.folder.path(), &self.authority, "eu-2", now, &cluster).await?;
        let linked = async {
            while !process::get(&edge.admin, "/metrics")?.contains("link_round_trip_seconds{relay=\"eu/eu-1\"}") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(30), linked).await.context("the edge finds no store")??;
        self.edge = Some(edge);
        Ok(self)
    }

    async fn enrol(&self, device: &DeviceId) -> Result<Credential> {
        let token = self.authority.token(device, Duration::from_mins(10), Clock::system().now())?;
        let key = DeviceKey::generate()?;
        let chain = wire::ask_certificate(self.address, &self.root, token, key.request(device)?).await??;
        Ok(key.credential(chain))
    }

    async fn connect(&self, credential: Credential) -> Result<Wire> {
        Wire::connect(self.address, &self.root, credential).await
    }

    /// At the edge, if there is one.
    async fn session(&self, device: &str) -> Result<Wire> {
        let credential = self.enrol(&device.parse()?).await?;
        let at = self.edge.as_ref().map_or(Ok(self.address), |edge| edge.quic.parse())?;
        Wire::connect(at, &self.root, credential).await
    }

    fn server_cpu(&self) -> f64 {
        process_cpu(&self.relay)
    }

    fn edge_cpu(&self) -> f64 {
        self.edge.as_ref().map_or(0.0, process_cpu)
    }

    fn server_memory_mib(&self) -> f64 {
        let status = self.relay.id().and_then(|id| std::fs::read_to_string(format!("/proc/{id}/status")).ok());
        let line = status.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("VmRSS:")));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    }

    /// A metric of the relay.
    async fn metric(&self, name: &str) -> Result<f64> {
        let admin = self.relay.admin.clone();
        let text = tokio::task::spawn_blocking(move || process::get(&admin, "/metrics")).await??;
        wire::metric(&text, name).with_context(|| format!("no metric {name}"))
    }
}

/// Starts a relay whose limits are out of the way.
async fn start(
    folder: &Path,
    authority: &AuthorityDir,
    name: &str,
    now: UnixMillis,
    cluster: &str,
) -> Result<RelayProcess> {
    let certs = authority.relay(&format!("eu/{name}").parse()?, now)?;
    let config = folder.join(format!("{name}.toml"));
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nlog = \"warn\"\ncerts = \"{}\"\ndata = \"{}\"\n[limits]\n\
         sends_per_second = 1000000\nsends_burst = 1000000\nbytes_per_second = \"1 GiB\"\nbytes_burst = \"1 GiB\"\n\
         requests_per_second = 1000000\nrequests_burst = 1000000\n[attachments]\nper_user = \"1024 GiB\"\n\
         per_user_daily = \"1024 GiB\"\n[cluster]\n{cluster}\n",
        certs.path().display(),
        folder.join(name).display(),
    );
    std::fs::write(&config, text)?;
    let mut command = tokio::process::Command::new(commands().join("godwit"));
    command.arg("relay").arg("--config").arg(&config);
    RelayProcess::spawn(command).await
}

fn process_cpu(relay: &RelayProcess) -> f64 {
    relay.id().map_or(0.0, |id| cpu_seconds(&format!("/proc/{id}/stat")))
}

/// User and system time from a `stat` file of `/proc`, in seconds (100 ticks each, as Linux has it everywhere).
fn cpu_seconds(path: &str) -> f64 {
    let stat = std::fs::read_to_string(path).unwrap_or_default();
    let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    after.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

#[derive(Default)]
struct Run {
    measuring: AtomicBool,
    stop: AtomicBool,
    delivered: AtomicU64,
}

struct Flow {
    sender: Wire,
    receiver: Wire,
    chat: ChatId,
    /// Between two messages.
    pause: Duration,
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// Keeps `window` messages open. Gives what each took from sending to receipt, in microseconds.
async fn drive(flow: Flow, window: u64, body: usize, run: Arc<Run>) -> Result<Vec<u32>> {
    let Flow { sender, receiver, chat, pause } = flow;
    let mut next = tokio::time::Instant::now();
    let body = vec![b'x'; body];
    let (mut send, mut replies) = sender.connection.open_bi().await?;
    let (mut acks, mut ack_replies) = receiver.connection.open_bi().await?;
    // The entry that creates the chat opens the lane of its events.
    let mut lane = receiver.connection.accept_uni().await?;
    let (mut reply_frames, mut event_frames) = (FrameReader::default(), FrameReader::default());
    // The first entry creates the chat; it is received like any other.
    let (mut sent, mut taken, mut received) = (1u64, 1u64, 0u64);
    let mut open = VecDeque::from([Instant::now()]);
    let mut latencies = Vec::new();
    let mut frames = Vec::new();
    loop {
        let stopping = run.stop.load(Ordering::Relaxed);
        let closed = taken.min(received);
        if stopping && closed == sent {
            return Ok(latencies);
        }
        frames.clear();
        while !stopping && sent - closed < window.max(1) && tokio::time::Instant::now() >= next {
            if !pause.is_zero() {
                next = tokio::time::Instant::now() + pause;
            }
            sent += 1;
            let mut stamp = stamp(&chat, sent);
            stamp.oldest = taken + 1;
            codec::encode_numbered(0, &message(stamp, body.clone()), &mut frames)?;
            open.push_back(Instant::now());
            if frames.len() > 60_000 {
                break;
            }
        }
        if !frames.is_empty() {
            send.write_all(&frames).await?;
        }
        tokio::select! {
            chunk = replies.read_chunk(64 << 10, true) => {
                reply_frames.push(&chunk?.context("the lane ended")?.bytes);
                while let Some(frame) = reply_frames.next_frame()? {
                    match codec::decode_numbered::<Reply>(&frame)? {
                        (_, Decoded::Frame(Reply::Sent { .. })) => taken += 1,
                        other => anyhow::bail!("{other:?}"),
                    }
                }
            }
            chunk = lane.read_chunk(64 << 10, true) => {
                event_frames.push(&chunk?.context("the events ended")?.bytes);
                let before = received;
                while let Some(frame) = event_frames.next_frame()? {
                    if let Decoded::Frame(Event::Entry { entry, .. }) = codec::decode_event(&frame)? {
                        ensure!(entry.seq.get() == received + 1, "{} after {received}", entry.seq);
                        received += 1;
                        let begun = open.pop_front().context("received before it was sent")?;
                        if run.measuring.load(Ordering::Relaxed) {
                            latencies.push(micros(begun.elapsed()));
                        }
                    }
                }
                if run.measuring.load(Ordering::Relaxed) {
                    run.delivered.fetch_add(received - before, Ordering::Relaxed);
                }
                if received > before {
                    frames.clear();
                    let ack = Ack { chat: chat.clone(), up_to: Seq::new(received)? };
                    codec::encode_numbered(0, &Request::Ack(vec![ack]), &mut frames)?;
                    acks.write_all(&frames).await?;
                }
            }
            () = tokio::time::sleep_until(next), if !stopping && sent == closed => {}
            // Read, so that flow control goes on.
            chunk = ack_replies.read_chunk(64 << 10, true) => drop(chunk?),
        }
    }
}

/// Starts pairs of users in chats of their own.
async fn flows(
    place: &Place,
    pairs: usize,
    window: u64,
    body: usize,
    pause: Duration,
    run: &Arc<Run>,
    names: &str,
) -> Result<JoinSet<Result<Vec<u32>>>> {
    let mut flows = JoinSet::new();
    for i in 0..pairs {
        let sender = place.session(&format!("s{names}{i}@eu/d")).await?;
        let credential = place.enrol(&format!("r{names}{i}@eu/d").parse()?).await?;
        let config = tls::client(&Crypto::system(), &place.root, Some(credential), godwit_wire::ALPN_DEVICE)?;
        let connection = wire::dial(place.address, config).await?;
        // Its events are read by the flow itself.
        let receiver = Wire::hello_only(connection).await?;
        let chat = ChatId::direct(&format!("s{names}{i}@eu").parse()?, &format!("r{names}{i}@eu").parse()?);
        let reply = sender.ask(&create_direct(stamp(&chat, 1), &format!("r{names}{i}@eu"))).await?;
        ensure!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
        let flow = Flow { sender, receiver, chat, pause };
        flows.spawn(drive(flow, window, body, run.clone()));
    }
    Ok(flows)
}

/// The median and the 99th of a hundred of all latencies, once their flows have ended.
async fn quantiles(flows: &mut JoinSet<Result<Vec<u32>>>) -> Result<(Option<u32>, Option<u32>)> {
    let mut latencies = Vec::new();
    while let Some(flow) = flows.join_next().await {
        latencies.extend(flow??);
    }
    latencies.sort_unstable();
    let quantile = |q: usize| latencies.get(latencies.len() * q / 100).copied();
    Ok((quantile(50), quantile(99)))
}

async fn chat(
    pairs: usize,
    window: u64,
    body: usize,
    (warm, time): (Duration, Duration),
    edge: bool,
) -> Result<serde_json::Value> {
    let place = Place::new().await?;
    let place = if edge { place.with_edge().await? } else { place };
    let run = Arc::new(Run::default());
    let mut flows = flows(&place, pairs, window, body, Duration::ZERO, &run, "").await?;
    tokio::time::sleep(warm).await;
    let (begun, cpu, own) = (Instant::now(), place.server_cpu(), cpu_seconds("/proc/self/stat"));
    let edge_cpu = place.edge_cpu();
    let counts = async |name| place.metric(name).await;
    let (commits, sends) = (counts("godwit_commits_total").await?, counts("godwit_sends_total").await?);
    let memory = place.server_memory_mib();
    run.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    run.measuring.store(false, Ordering::Relaxed);
    let elapsed = begun.elapsed().as_secs_f64();
    let (cpu, own) = (place.server_cpu() - cpu, cpu_seconds("/proc/self/stat") - own);
    let edge_cpu = place.edge_cpu() - edge_cpu;
    let (commits, sends) =
        (counts("godwit_commits_total").await? - commits, counts("godwit_sends_total").await? - sends);
    let memory = [memory, place.server_memory_mib()].map(f64::round);
    let inbox_rows = counts("godwit_inbox_rows_written_total").await?;
    run.stop.store(true, Ordering::Relaxed);
    let (p50, p99) = quantiles(&mut flows).await?;
    #[expect(clippy::cast_precision_loss, reason = "a count of messages")]
    let delivered = run.delivered.load(Ordering::Relaxed) as f64;
    let round = |x: f64| (x * 1e4).round() / 1e4;
    Ok(json!({
        "scenario": "chat", "pairs": pairs, "window": window, "body": body, "secs": round(elapsed),
        "delivered_per_s": (delivered / elapsed).round(),
        "delivery_p50_us": p50, "delivery_p99_us": p99,
        "batch": round(sends / commits), "commits_per_s": (commits / elapsed).round(),
        "server_cpu_s_per_1k": round(cpu / delivered * 1000.0),
        "edge_cpu_s_per_1k": round(edge_cpu / delivered * 1000.0),
        "server_cores": round(cpu / elapsed), "client_cores": round(own / elapsed),
        "server_rss_mib_from_to": memory,
        "inbox_rows": inbox_rows,
    }))
}

/// Brings the same part again and again, as parts of one blob after another. Counts the bytes that were stored.
async fn upload(wire: Wire, user: String, sizes: u64, uplink: f64, stored: Arc<AtomicU64>) -> Result<()> {
    const PARTS: usize = 64;
    const PIECE: u16 = 16 << 10;
    // As much of a second as a piece takes.
    let takes = if uplink > 0.0 { Duration::from_secs_f64(f64::from(PIECE) / uplink) } else { Duration::ZERO };
    let mut next = Instant::now();
    let part = Bytes::from(vec![7; usize::try_from(PART_BYTES)?]);
    let digest: [u8; 32] = Sha256::digest(&part).into();
    let chat = ChatId::direct(&user.parse()?, &"friend@eu".parse()?);
    let reply = wire.ask(&create_direct(stamp(&chat, 1), "friend@eu")).await?;
    ensure!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
    for round in 0u64.. {
        // The last part makes each blob another.
        let last = vec![1; usize::try_from(sizes + 1000 * round + 1)?];
        let mut digests = vec![digest; PARTS];
        digests.push(Sha256::digest(&last).into());
        let blob = Manifest { size_bytes: PARTS as u64 * PART_BYTES + last.len() as u64, digests };
        let hash = blob.blob().hash;
        let reply = wire.ask(&Request::BeginBlob { chat: chat.clone(), blob }).await?;
        ensure!(matches!(reply, Reply::BlobState(_)), "{reply:?}");
        for n in 0..u32::try_from(PARTS)? {
            let (mut send, mut receive) = wire.connection.open_bi().await?;
            send.set_priority(-1)?;
            let mut frame = Vec::new();
            codec::encode_numbered(0, &Request::PutPart { chat: chat.clone(), hash, part: n, from: 0 }, &mut frame)?;
            send.write_all(&frame).await?;
            let mut rest = part.clone();
            while !rest.is_empty() {
                send.write_chunk(rest.split_to(usize::from(PIECE).min(rest.len()))).await?;
                next = Instant::now().max(next + takes);
                tokio::time::sleep_until(next.into()).await;
            }
            send.finish()?;
            receive.read_to_end(1 << 10).await?;
            stored.fetch_add(PART_BYTES, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn files(
    pairs: usize,
    uploads: usize,
    uplink: f64,
    (pause, time): (Duration, Duration),
) -> Result<serde_json::Value> {
    const ROUNDS: u8 = 3;
    let place = Place::new().await?;
    let run = Arc::new(Run::default());
    let stored = Arc::new(AtomicU64::new(0));
    place.enrol(&"friend@eu/d".parse()?).await?;
    let (mut p50, mut p99, mut cores) = ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    let (mut moved, mut memory) = (0, place.server_memory_mib());
    // In turns, for a machine that others use as well.
    for round in 0..ROUNDS {
        for (kind, beside) in [0, uploads].into_iter().enumerate() {
            run.stop.store(false, Ordering::Relaxed);
            let mut uploading = JoinSet::new();
            for i in 0..beside {
                let user = format!("u{round}-{i}@eu");
                let wire = place.session(&format!("{user}/d")).await?;
                uploading.spawn(upload(wire, user, 100 * u64::from(round) + i as u64, uplink, stored.clone()));
            }
            let mut flows = flows(&place, pairs, 1, 200, pause, &run, &format!("{round}-{beside}-")).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (before, cpu) = (stored.load(Ordering::Relaxed), place.server_cpu());
            run.measuring.store(true, Ordering::Relaxed);
            tokio::time::sleep(time).await;
            run.measuring.store(false, Ordering::Relaxed);
            cores[kind].push((place.server_cpu() - cpu) / time.as_secs_f64());
            moved += stored.load(Ordering::Relaxed) - before;
            memory = memory.max(place.server_memory_mib());
            run.stop.store(true, Ordering::Relaxed);
            let (median, most) = quantiles(&mut flows).await?;
            p50[kind].push(median);
            p99[kind].push(most);
            if let Some(ended) = uploading.try_join_next() {
                ended??;
            }
            uploading.shutdown().await;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let rate = moved as f64 / 1e6 / time.as_secs_f64() / f64::from(ROUNDS);
    let round = |cores: &Vec<f64>| (cores.iter().sum::<f64>() / f64::from(ROUNDS) * 100.0).round() / 100.0;
    Ok(json!({
        "scenario": "files", "pairs": pairs, "uploads": uploads, "upload_mb_per_s": rate.round(),
        "p50_us_alone": p50[0], "p50_us_beside": p50[1], "p99_us_alone": p99[0], "p99_us_beside": p99[1],
        "relay_cores": [round(&cores[0]), round(&cores[1])], "relay_rss_mib": memory.round(),
    }))
}

async fn drain(count: u64) -> Result<serde_json::Value> {
    let place = Place::new().await?;
    let away = place.enrol(&"bob@eu/d".parse()?).await?;
    let sender = place.session("alice@eu/d").await?;
    let chat = ChatId::direct(&"alice@eu".parse()?, &"bob@eu".parse()?);
    let begun = Instant::now();
    let mut lane = sender.lane().await?;
    lane.write(&[create_direct(stamp(&chat, 1), "bob@eu")]).await?;
    lane.reply().await?;
    let mut n = 1;
    while n < count {
        let last = (n + 256).min(count);
        let requests: Vec<Request> = (n + 1..=last).map(|n| message(stamp(&chat, n), vec![b'x'; 200])).collect();
        lane.write(&requests).await?;
        for _ in &requests {
            let (_, reply) = lane.reply().await?;
            ensure!(matches!(reply, Reply::Sent { .. }), "{reply:?}");
        }
        n = last;
    }
    let stored = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let mut bob = place.connect(away).await?;
    let mut events = Vec::new();
    let mut received = 0;
    while received < count {
        bob.events(&mut events).await;
        for event in events.drain(..) {
            if let Event::Entry { entry, .. } = event {
                ensure!(entry.seq.get() == received + 1, "{} after {received}", entry.seq);
                received += 1;
            }
        }
        bob.ask(&Request::Ack(vec![Ack { chat: chat.clone(), up_to: Seq::new(received)? }])).await?;
    }
    let drained = begun.elapsed().as_secs_f64();
    let round = |x: f64| (x * 1e4).round() / 1e4;
    Ok(json!({
        "scenario": "drain", "count": count, "store_s": round(stored), "drain_s": round(drained),
        "server_rss_mib": round(place.server_memory_mib()),
        "inbox_rows": place.metric("godwit_inbox_rows_written_total").await?,
    }))
}
