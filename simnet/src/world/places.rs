//! Where hosts are, and how they are connected.

use serde::{Deserialize, Deserializer};
use std::fmt;
use std::time::Duration;

/// Round trips between regions in milliseconds, as cloud providers publish them between their data centres (medians,
/// rounded). What is not listed here is [`ELSEWHERE`].
const ROUND_TRIPS: [(&str, &str, u32); 15] = [
    ("eu", "us", 88),
    ("eu", "us-west", 140),
    ("eu", "ap", 160),
    ("eu", "sa", 190),
    ("eu", "af", 155),
    ("us", "us-west", 62),
    ("us", "ap", 215),
    ("us", "sa", 115),
    ("us", "af", 225),
    ("us-west", "ap", 170),
    ("us-west", "sa", 175),
    ("us-west", "af", 285),
    ("ap", "sa", 320),
    ("ap", "af", 245),
    ("sa", "af", 340),
];
/// Milliseconds between two regions of other names.
const ELSEWHERE: u32 = 120;
/// Within a region, from rack to rack or from a city's exchange to the data centre.
const NEAR: Duration = Duration::from_micros(500);

/// The time a packet takes between two regions, one way.
pub fn distance(from: &str, to: &str) -> Duration {
    if from == to {
        return NEAR;
    }
    let listed = ROUND_TRIPS.iter().find(|(a, b, _)| (*a, *b) == (from, to) || (*b, *a) == (from, to));
    let millis = listed.map_or(ELSEWHERE, |(.., millis)| *millis);
    Duration::from_millis(millis.into()) / 2
}

/// How packets get lost: at random, and in bursts (Gilbert, 1960: a link that is good or bad, and loses in its bad times).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// The share lost at random.
    pub random: f64,
    /// The chance of each packet to begin a bad time.
    pub burst: f64,
    /// How many packets a bad time lasts on average; most of them are lost.
    pub burst_length: f64,
}

/// One direction of a host's way to the rest of the world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pipe {
    pub latency: Duration,
    /// Up to so much more, at random. Packets keep their order but for [`Pipe::reorder`].
    pub jitter: Duration,
    pub loss: Loss,
    /// The share that comes twice.
    pub duplicate: f64,
    /// The share that is late by up to 20 ms, behind packets that were sent after it.
    pub reorder: f64,
    /// Bytes a second.
    pub bandwidth: u64,
    /// What waits for bandwidth longer is dropped.
    pub queue: Duration,
    /// Longer datagrams are dropped, bytes.
    pub mtu: usize,
}

const MBIT: u64 = 1_000_000 / 8;

impl Pipe {
    const fn new(latency_ms: u64, jitter_ms: u64, bandwidth: u64) -> Self {
        Self {
            latency: Duration::from_millis(latency_ms),
            jitter: Duration::from_millis(jitter_ms),
            loss: Loss { random: 0.0, burst: 0.0, burst_length: 0.0 },
            duplicate: 0.0,
            reorder: 0.0,
            bandwidth,
            queue: Duration::from_millis(200),
            mtu: 1452,
        }
    }

    const fn losing(mut self, random: f64, burst: f64, burst_length: f64) -> Self {
        self.loss = Loss { random, burst, burst_length };
        self
    }

    const fn untidy(mut self, duplicate: f64, reorder: f64) -> Self {
        (self.duplicate, self.reorder) = (duplicate, reorder);
        self
    }

    const fn narrow(mut self, mtu: usize) -> Self {
        self.mtu = mtu;
        self
    }

    const fn queueing(mut self, millis: u64) -> Self {
        self.queue = Duration::from_millis(millis);
        self
    }
}

/// What is different about a pipe. Shares are from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipeChanges {
    #[serde(deserialize_with = "some_time")]
    pub latency: Option<Duration>,
    #[serde(deserialize_with = "some_time")]
    pub jitter: Option<Duration>,
    /// The share lost at random.
    pub loss: Option<f64>,
    /// The chance of each packet to begin a bad time.
    pub burst: Option<f64>,
    /// How many packets a bad time lasts on average.
    pub burst_length: Option<f64>,
    pub duplicate: Option<f64>,
    pub reorder: Option<f64>,
    pub mbit_per_second: Option<f64>,
    #[serde(deserialize_with = "some_time")]
    pub queue: Option<Duration>,
    /// At least 1200 bytes, without which there is no QUIC (RFC 9000, 14).
    pub mtu: Option<usize>,
}

/// A time as people write it, such as `80ms`.
pub(crate) fn time<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    humantime::parse_duration(&text).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
}

fn some_time<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    time(d).map(Some)
}

impl fmt::Display for PipeChanges {
    /// What is different, each after a space.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, time) in [("latency", self.latency), ("jitter", self.jitter), ("queue", self.queue)] {
            time.map_or(Ok(()), |time| write!(f, " {name} {time:?}"))?;
        }
        let shares = [
            ("loss", self.loss),
            ("burst", self.burst),
            ("burst_length", self.burst_length),
            ("duplicate", self.duplicate),
            ("reorder", self.reorder),
            ("mbit_per_second", self.mbit_per_second),
        ];
        for (name, share) in shares {
            share.map_or(Ok(()), |share| write!(f, " {name} {share:.3}"))?;
        }
        self.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

impl PipeChanges {
    const SLOWEST: Duration = Duration::from_mins(1);

    /// What is wrong with them, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let shares =
            [("loss", self.loss), ("burst", self.burst), ("duplicate", self.duplicate), ("reorder", self.reorder)];
        for (name, share) in shares {
            if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                return Err(format!("{name} must be from 0 to 1"));
            }
        }
        for (name, time) in [("latency", self.latency), ("jitter", self.jitter), ("queue", self.queue)] {
            if time.is_some_and(|time| time > Self::SLOWEST) {
                return Err(format!("{name} must be at most {:?}", Self::SLOWEST));
            }
        }
        if self.burst_length.is_some_and(|length| !(1.0..=1e6).contains(&length)) {
            return Err("burst_length must be from 1 to 1000000".to_owned());
        }
        if self.mbit_per_second.is_some_and(|rate| !(0.001..=1e6).contains(&rate)) {
            return Err("mbit_per_second must be from 0.001 to 1000000".to_owned());
        }
        if self.mtu.is_some_and(|mtu| !(1200..=65_535).contains(&mtu)) {
            return Err("mtu must be from 1200 to 65535".to_owned());
        }
        Ok(())
    }

    pub(crate) fn over(&self, pipe: Pipe) -> Pipe {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be from 125 to 1.25e11"
        )]
        let bandwidth = self.mbit_per_second.map(|rate| (rate * 125_000.0) as u64);
        Pipe {
            latency: self.latency.unwrap_or(pipe.latency),
            jitter: self.jitter.unwrap_or(pipe.jitter),
            loss: Loss {
                random: self.loss.unwrap_or(pipe.loss.random),
                burst: self.burst.unwrap_or(pipe.loss.burst),
                burst_length: self.burst_length.unwrap_or(pipe.loss.burst_length),
            },
            duplicate: self.duplicate.unwrap_or(pipe.duplicate),
            reorder: self.reorder.unwrap_or(pipe.reorder),
            bandwidth: bandwidth.unwrap_or(pipe.bandwidth),
            queue: self.queue.unwrap_or(pipe.queue),
            mtu: self.mtu.unwrap_or(pipe.mtu),
        }
    }
}

/// What is between two regions.
pub(crate) fn between(from: &str, to: &str) -> Pipe {
    Pipe { latency: distance(from, to), ..Access::DATA_CENTRE.up }
}

/// How a host is connected. The profiles are typical measurements, not limits of a technology.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    pub up: Pipe,
    pub down: Pipe,
    /// Nothing but TCP passes.
    pub udp_blocked: bool,
}

impl Access {
    const fn of(up: Pipe, down: Pipe) -> Self {
        Self { up, down, udp_blocked: false }
    }

    /// A relay's.
    pub const DATA_CENTRE: Self = Self::of(Pipe::new(0, 0, 10_000 * MBIT), Pipe::new(0, 0, 10_000 * MBIT));
    pub const WIFI: Self = Self::of(
        Pipe::new(4, 3, 40 * MBIT).losing(0.001, 0.0, 0.0),
        Pipe::new(4, 3, 150 * MBIT).losing(0.001, 0.0, 0.0),
    );
    pub const FOUR_G: Self = Self::of(
        Pipe::new(22, 15, 10 * MBIT).losing(0.003, 0.0005, 5.0).queueing(600),
        Pipe::new(22, 15, 35 * MBIT).losing(0.003, 0.0005, 5.0).queueing(600),
    );
    /// At the edge of coverage.
    pub const EDGE: Self = Self::of(
        Pipe::new(120, 180, MBIT / 5).losing(0.03, 0.01, 12.0).untidy(0.005, 0.02).queueing(2_000),
        Pipe::new(120, 180, MBIT / 2).losing(0.03, 0.01, 12.0).untidy(0.005, 0.02).queueing(2_000),
    );
    /// In a train: cells change, tunnels come as faults of their own.
    pub const TRAIN: Self = Self::of(
        Pipe::new(35, 60, 5 * MBIT).losing(0.01, 0.004, 40.0).untidy(0.001, 0.01).queueing(1_000),
        Pipe::new(35, 60, 20 * MBIT).losing(0.01, 0.004, 40.0).untidy(0.001, 0.01).queueing(1_000),
    );
    /// An airport's: crowded, and behind a tunnel with a small MTU.
    pub const AIRPORT: Self = Self::of(
        Pipe::new(15, 80, MBIT).losing(0.02, 0.002, 10.0).narrow(1280).queueing(1_500),
        Pipe::new(15, 80, 2 * MBIT).losing(0.02, 0.002, 10.0).narrow(1280).queueing(1_500),
    );
    /// A network that lets no UDP through.
    pub const UDP_BLOCKED: Self = Self { udp_blocked: true, ..Self::WIFI };

    /// The profiles by their names in scenario files.
    pub const NAMED: [(&'static str, Self); 7] = [
        ("data-centre", Self::DATA_CENTRE),
        ("wifi", Self::WIFI),
        ("4g", Self::FOUR_G),
        ("edge", Self::EDGE),
        ("train", Self::TRAIN),
        ("airport", Self::AIRPORT),
        ("udp-blocked", Self::UDP_BLOCKED),
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, access)| *access)
    }
}
