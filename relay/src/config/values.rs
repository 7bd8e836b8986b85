//! Values that check themselves while they are read, so that a bad one is named with its line.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// A number of bytes, at least `MIN`: `4096`, `"64 KiB"`, `"1 GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size<const MIN: u64>(u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl<const MIN: u64> Size<MIN> {
    pub(super) fn of(bytes: u64) -> Self {
        Self(bytes)
    }

    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// For a rate.
    pub(super) fn small(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }

    fn parse(text: &str) -> Option<u64> {
        let (number, unit) = match UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))) {
            Some(found) => found,
            None => (text, 1),
        };
        number.trim().parse::<u64>().ok()?.checked_mul(unit)
    }

    fn checked(bytes: u64) -> Result<Self, String> {
        if bytes < MIN { Err(format!("must be at least {}, not {}", Show(MIN), Show(bytes))) } else { Ok(Self(bytes)) }
    }
}

struct Show(u64);

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) =
            UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)).unwrap_or(&UNITS[3]);
        write!(f, "{} {name}", self.0 / unit)
    }
}

impl<const MIN: u64> Serialize for Size<MIN> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&Show(self.0))
    }
}

/// A number or a text, as TOML and the environment give it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    Number(i64),
    Text(String),
}

impl<'de, const MIN: u64> Deserialize<'de> for Size<MIN> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = match Raw::deserialize(d) {
            Ok(Raw::Number(number)) => u64::try_from(number).ok(),
            Ok(Raw::Text(text)) => Self::parse(&text),
            Err(_) => None,
        };
        let bytes = bytes.ok_or_else(|| de::Error::custom("must be a size such as 4096 or \"64 MiB\""))?;
        Self::checked(bytes).map_err(de::Error::custom)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Count<MIN, MAX> {
    pub(super) fn of(count: u64) -> Self {
        Self(count)
    }

    pub fn count(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// For a rate.
    pub(super) fn small(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Count<MIN, MAX> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let count = match Raw::deserialize(d) {
            Ok(Raw::Number(number)) => u64::try_from(number).ok(),
            Ok(Raw::Text(text)) => text.trim().parse().ok(),
            Err(_) => None,
        };
        match count.filter(|count| (MIN..=MAX).contains(count)) {
            Some(count) => Ok(Self(count)),
            None => Err(de::Error::custom(format!("must be a whole number from {MIN} to {MAX}"))),
        }
    }
}

/// A time from `MIN` to `MAX` milliseconds: `"5s"`, `"30 days"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time<const MIN: u64, const MAX: u64>(Duration);

impl<const MIN: u64, const MAX: u64> Time<MIN, MAX> {
    pub(super) fn of(time: Duration) -> Self {
        Self(time)
    }

    pub fn duration(self) -> Duration {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Time<MIN, MAX> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Time<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let time = String::deserialize(d).ok().and_then(|text| humantime::parse_duration(&text).ok());
        let time = time.ok_or_else(|| de::Error::custom("must be a time such as \"5s\" or \"30 days\""))?;
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if millis < MIN {
            let least = humantime::format_duration(Duration::from_millis(MIN));
            return Err(de::Error::custom(format!("must be at least {least}")));
        }
        if millis > MAX {
            let most = humantime::format_duration(Duration::from_millis(MAX));
            return Err(de::Error::custom(format!("must be at most {most}")));
        }
        Ok(Self(time))
    }
}

/// The admin port has no authentication.
pub(super) fn loopback<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
    let address = SocketAddr::deserialize(d)?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(de::Error::custom("must be a loopback address, such as 127.0.0.1:9443"))
    }
}

pub(super) fn path<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    if path.as_os_str().is_empty() { Err(de::Error::custom("must name a folder")) } else { Ok(path) }
}

pub(super) fn url<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(d)?;
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() => Ok(Some(text)),
        _ => Err(de::Error::custom("must look like https://s3.example or http://127.0.0.1:8333")),
    }
}

/// True or false; as text, too, as variables of the environment are.
pub(super) fn switch<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = bool;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true or false")
        }
        fn visit_bool<E>(self, on: bool) -> Result<bool, E> {
            Ok(on)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<bool, E> {
            text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    d.deserialize_any(Visitor)
}

pub(super) fn log_filter<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    EnvFilter::try_new(&text).map_err(de::Error::custom)?;
    Ok(text)
}

/// A list of `host:port`, or a text with commas between them, as the environment gives it.
pub(super) fn addresses<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        List(Vec<String>),
        Text(String),
    }
    let list = match Raw::deserialize(d).map_err(|_| de::Error::custom("must be a list of host:port"))? {
        Raw::List(list) => list,
        Raw::Text(text) => text.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect(),
    };
    for one in &list {
        let port = one.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(de::Error::custom(format!("must look like relay.example:4433 (host:port), not {one:?}")));
        }
    }
    Ok(list)
}
