//! Puts a configuration together from its layers, and remembers where each value came from.

use super::{BlobStoreKind, Config, StoreEngine};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {what}", path.display())]
    File { path: PathBuf, line: usize, what: String },
    #[error("{origin}: {key}: {what}")]
    Value { origin: Origin, key: String, what: String },
}

/// The values so far.
#[derive(Clone, Debug)]
pub struct Layers {
    values: Table,
    origins: BTreeMap<String, Origin>,
}

/// Keys without a default: TOML has nothing for them that would be in [`leaves`].
const WITHOUT_DEFAULT: [&str; 6] =
    ["attachments.folder", "cluster.advertise", "dynamodb.endpoint", "dynamodb.region", "s3.endpoint", "s3.region"];

impl Default for Layers {
    fn default() -> Self {
        let values = Table::try_from(Config::default()).expect("the defaults are TOML");
        let mut origins = BTreeMap::new();
        let keys = leaves(&values, "").into_iter().map(|(key, _)| key);
        for key in keys.chain(WITHOUT_DEFAULT.map(str::to_owned)) {
            origins.insert(key, Origin::Default);
        }
        Self { values, origins }
    }
}

fn leaves(table: &Table, prefix: &str) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => all.extend(leaves(inner, &key)),
            leaf => all.push((key, leaf.clone())),
        }
    }
    all
}

/// An error's message, with the key of its line if the message does not name it.
fn named(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let line = error.span().and_then(|span| text.lines().nth(line_of(text, span.start) - 1));
    match line.and_then(|line| line.split_once('=')) {
        Some((key, _)) if !message.contains(key.trim()) => format!("{}: {message}", key.trim()),
        _ => message.to_owned(),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

impl Layers {
    /// What the names of environment variables begin with.
    pub const PREFIX: &str = "GODWIT_";

    /// Takes a file over what there is.
    pub fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.text(path, &text)
    }

    fn text(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |error: toml::de::Error| ConfigError::File {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            what: named(text, &error),
        };
        // Read as a configuration first: its errors know their place.
        toml::from_str::<Config>(text).map_err(at)?;
        let values: Table = toml::from_str(text).map_err(at)?;
        let places = DeTable::parse(text).map_err(at)?;
        for (key, value) in leaves(&values, "") {
            let line = place(places.get_ref(), &key).map_or(1, |offset| line_of(text, offset));
            self.set(&key, value, Origin::File { path: path.to_owned(), line });
        }
        Ok(())
    }

    /// Takes the environment over what there is. A variable that names no key is refused.
    pub fn environment(&mut self, variables: impl Iterator<Item = (String, String)>) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let Some(key) = name.strip_prefix(Self::PREFIX) else { continue };
            let key = key.to_ascii_lowercase().replace("__", ".");
            self.override_with(&key, &text, Origin::Environment(name.clone()))?;
        }
        Ok(())
    }

    /// Takes a flag over what there is.
    pub fn flag(&mut self, flag: &'static str, key: &str, text: &str) -> Result<(), ConfigError> {
        self.override_with(key, text, Origin::Flag(flag))
    }

    fn override_with(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let bad =
            |what: &str| ConfigError::Value { origin: origin.clone(), key: key.to_owned(), what: what.to_owned() };
        if !self.origins.contains_key(key) {
            return Err(bad("no such key"));
        }
        let mut changed = self.clone();
        changed.set(key, Value::String(text.to_owned()), origin.clone());
        if let Err(error) = changed.read() {
            return Err(bad(error.message()));
        }
        *self = changed;
        Ok(())
    }

    fn set(&mut self, key: &str, value: Value, origin: Origin) {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.values;
        for part in section.split('.').filter(|part| !part.is_empty()) {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else { return };
            table = inner;
        }
        table.insert(name.to_owned(), value);
        self.origins.insert(key.to_owned(), origin);
    }

    fn read(&self) -> Result<Config, toml::de::Error> {
        Config::deserialize(self.values.clone().into_deserializer())
    }

    pub fn config(&self) -> Result<Config, ConfigError> {
        let config = self.read().map_err(|error| ConfigError::Value {
            origin: Origin::Default,
            key: "configuration".to_owned(),
            what: error.message().to_owned(),
        })?;
        if config.attachments.store == BlobStoreKind::S3 && config.s3.bucket.is_empty() {
            let key = "s3.bucket".to_owned();
            let what = "must be given, since attachments.store is s3".to_owned();
            return Err(ConfigError::Value { origin: Origin::Default, key, what });
        }
        if config.store.engine == StoreEngine::Dynamodb && config.attachments.store == BlobStoreKind::Files {
            let key = "attachments.store".to_owned();
            let origin = self.origins.get(&key).cloned().unwrap_or(Origin::Default);
            let what = "must be s3 or off, since store.engine is dynamodb: files lie at one relay".to_owned();
            return Err(ConfigError::Value { origin, key, what });
        }
        Ok(config)
    }

    /// Every value with where it came from, one a line, as TOML with comments.
    pub fn describe(&self) -> Result<String, ConfigError> {
        let config = self.config()?;
        let values = Table::try_from(config).expect("a configuration is TOML");
        let (mut text, mut section) = (String::new(), String::new());
        let mut all = leaves(&values, "");
        all.sort_by_key(|(key, _)| (key.contains('.'), key.clone()));
        for (key, value) in all {
            let (in_section, name) = key.rsplit_once('.').unwrap_or(("", &key));
            if in_section != section {
                in_section.clone_into(&mut section);
                writeln!(text, "\n[{section}]").expect("writing to a string does not fail");
            }
            let origin = self.origins.get(&key).unwrap_or(&Origin::Default);
            writeln!(text, "{name} = {value}  # {origin}").expect("writing to a string does not fail");
        }
        Ok(text)
    }
}

/// Where a key's value stands in a file.
fn place(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    match (rest, value.get_ref()) {
        (None, _) => Some(value.span().start),
        (Some(rest), DeValue::Table(inner)) => place(inner, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let mut layers = Layers::default();
        layers.text(Path::new("relay.toml"), text).and_then(|()| layers.config()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        assert_eq!(Layers::default().config().unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, expected) in [
            ("listen = \"127.0.0.1:1\"\nlisten_on = 3\n", "relay.toml:2: unknown field `listen_on`"),
            (
                "[limits]\n\nsends_per_second = 0\n",
                "relay.toml:3: sends_per_second: must be a whole number from 1 to 1000000000",
            ),
            ("[store]\ncache = \"lots\"\n", "relay.toml:2: cache: must be a size such as 4096 or \"64 MiB\""),
            ("[store]\ncache = \"4 KiB\"\n", "relay.toml:2: cache: must be at least 1 MiB, not 4 KiB"),
            ("[delivery]\nack_timeout = \"1ms\"\n", "relay.toml:2: ack_timeout: must be at least 100ms"),
            ("admin = \"0.0.0.0:9443\"\n", "relay.toml:1: admin: must be a loopback address"),
            ("listen = \"nowhere\"\n", "relay.toml:1: "),
            ("listen = \n", "relay.toml:1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn later_layers_win_and_say_so() {
        let mut layers = Layers::default();
        layers.text(Path::new("relay.toml"), "[limits]\nsends_per_second = 7\nsends_burst = 9\n").unwrap();
        let env = [("GODWIT_LIMITS__SENDS_BURST", "11"), ("GODWIT_DATA", "/d"), ("PATH", "/bin")];
        layers.environment(env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).unwrap();
        layers.flag("--listen", "listen", "127.0.0.1:0").unwrap();
        let config = layers.config().unwrap();
        assert_eq!((config.limits.sends_per_second.count(), config.limits.sends_burst.count()), (7, 11));
        assert_eq!(config.listen.port(), 0);
        let text = layers.describe().unwrap();
        for line in [
            "sends_per_second = 7  # relay.toml:2",
            "sends_burst = 11  # environment GODWIT_LIMITS__SENDS_BURST",
            "listen = \"127.0.0.1:0\"  # flag --listen",
            "ack_timeout = \"5s\"  # default",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn keys_without_a_default_and_switches_can_be_set_like_all_others() {
        let mut layers = Layers::default();
        for (name, value) in [
            ("GODWIT_ATTACHMENTS__FOLDER", "/blobs"),
            ("GODWIT_CLUSTER__ADVERTISE", "192.0.2.1:4433"),
            ("GODWIT_S3__ENDPOINT", "http://127.0.0.1:8333"),
            ("GODWIT_S3__REGION", "eu-north-1"),
            ("GODWIT_S3__URLS", "true"),
        ] {
            layers.environment([(name.to_owned(), value.to_owned())].into_iter()).unwrap();
            assert!(layers.describe().unwrap().contains(value), "{name}");
        }
        let refused = layers.flag("--urls", "s3.urls", "perhaps").unwrap_err().to_string();
        assert!(refused.contains("s3.urls") && refused.contains("true or false"), "{refused}");
        for bad in ["", "s3.example", "ftp://s3.example", "http://"] {
            let refused = layers.flag("--endpoint", "s3.endpoint", bad).unwrap_err().to_string();
            assert!(refused.contains("s3.endpoint") && refused.contains("https://"), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_bucket_is_asked_for() {
        let mut layers = Layers::default();
        layers.flag("--store", "attachments.store", "s3").unwrap();
        assert!(layers.config().unwrap_err().to_string().contains("s3.bucket"));
        layers.flag("--bucket", "s3.bucket", "films").unwrap();
        layers.config().unwrap();
    }

    #[test]
    fn a_bad_variable_is_named() {
        let mut layers = Layers::default();
        let mut env = |name: &str, value: &str| {
            layers.environment([(name.to_owned(), value.to_owned())].into_iter()).unwrap_err().to_string()
        };
        assert_eq!(env("GODWIT_NOTHING", "1"), "environment GODWIT_NOTHING: nothing: no such key");
        let error = env("GODWIT_STORE__CACHE", "1");
        assert!(error.starts_with("environment GODWIT_STORE__CACHE: store.cache: must be at least 1 MiB"), "{error}");
    }
}
