//! The device's own store: SQLite, one file in the device's home.
//!
//! Every change that must not be torn is one transaction: an entry with the position and the event it makes, a message
//! with its number. Several processes may open it; one of them holds the home's lock and keeps the connection.
//!
//! - [`outbox`]: what is unsent
//! - [`entries`]: chats and their logs
//! - [`relays`]: which to try first
//! - [`restored`]: what changes once a chat's home was restored from a backup
//! - [`uploads`]: files on their way
//! - [`take`]: what the relay sent, and what becomes an event

mod entries;
mod outbox;
mod relays;
mod restored;
mod take;
mod uploads;

pub(crate) use entries::{ChatRow, Fetch, Orders};
pub(crate) use outbox::{Outgoing, Stored};
pub(crate) use restored::Here;
pub(crate) use take::{Incoming, Taken};
pub(crate) use uploads::{Draft, UploadRow};

use crate::error::Error;
use crate::event::{Event, Next};
use crate::host::Host;
use crate::locked::Locked;
use godwit_certs::tls::Crypto;
use godwit_wire::DeviceId;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// The number of the schema.
const SCHEMA: i64 = 4;
/// What `schema.sql` makes; the steps after it are for new homes too.
const FIRST_WHOLE: i64 = 3;
/// How long another process may hold the database.
const BUSY: Duration = Duration::from_secs(10);
/// Events that an app has not acknowledged are read so many at a time.
const EVENTS: u32 = 256;

/// What a device is.
#[derive(Clone, Debug)]
pub(crate) struct DeviceRow {
    pub(crate) id: DeviceId,
    pub(crate) key: Vec<u8>,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) authority: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    db: Connection,
    crypto: Crypto,
}

/// Takes the home's lock, the exclusive right to keep its connection; none if another process has it.
pub(crate) fn lock(home: &Path) -> Result<Option<Locked>, Error> {
    let path = home.join("lock");
    let io = |source| Error::Io { path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(io)?;
    Locked::take(file).map_err(io)
}

fn corrupt(path: &Path, error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Error::Corrupt { path: path.to_owned(), what: error.to_string() }
        }
        _ => error.into(),
    }
}

impl Store {
    /// Opens the store in `home`; makes both if `create`.
    pub(crate) fn open(home: &Path, host: &Host, create: bool) -> Result<Self, Error> {
        let path = home.join("device.db");
        let io = |source| Error::Io { path: path.clone(), source };
        if create {
            std::fs::create_dir_all(home).map_err(io)?;
            // Made first, so that the key in it is never readable by others.
            OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(io)?;
        } else if !path.exists() {
            return Err(Error::NotEnrolled(home.to_owned()));
        }
        let db = Connection::open(&path).map_err(|error| corrupt(&path, error))?;
        db.busy_timeout(BUSY)?;
        let mut store = Self { path, db, crypto: host.crypto.clone() };
        store.prepare().map_err(|error| match error {
            Error::Store(error) => corrupt(&store.path, error),
            other => other,
        })?;
        if let Some(may_commit) = host.may_commit.clone() {
            store.db.commit_hook(Some(move || !may_commit()));
        }
        Ok(store)
    }

    fn prepare(&mut self) -> Result<(), Error> {
        let found: i64 = self.db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > SCHEMA {
            return Err(Error::Newer { path: self.path.clone(), found, known: SCHEMA });
        }
        self.db.pragma_update(None, "journal_mode", "WAL")?;
        // What was promised to the app, or acknowledged to the relay, survives a loss of power.
        self.db.pragma_update(None, "synchronous", "FULL")?;
        // What is erased leaves no bytes behind.
        self.db.pragma_update(None, "secure_delete", "ON")?;
        if found < SCHEMA {
            let txn = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            // Another process may have been faster.
            let now: i64 = txn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            let now = if now == 0 {
                txn.execute_batch(include_str!("store/schema.sql"))?;
                FIRST_WHOLE
            } else {
                now
            };
            let steps = [
                include_str!("store/schema-2.sql"),
                include_str!("store/schema-3.sql"),
                include_str!("store/schema-4.sql"),
            ];
            for (_, step) in (1..).zip(steps).filter(|(from, _)| *from >= now) {
                txn.execute_batch(step)?;
            }
            txn.pragma_update(None, "user_version", SCHEMA)?;
            txn.commit()?;
        }
        Ok(())
    }

    /// Changes whenever another process wrote.
    pub(crate) fn data_version(&self) -> Result<i64, Error> {
        Ok(self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
    }

    pub(crate) fn device(&self) -> Result<Option<DeviceRow>, Error> {
        let row = self.db.query_row("SELECT id, key, chain, authority FROM device", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?))
        });
        let Some((id, key, chain, authority)) = row.optional()? else { return Ok(None) };
        let corrupt = |what: &str| Error::Corrupt { path: self.path.clone(), what: what.to_owned() };
        Ok(Some(DeviceRow {
            id: id.parse().map_err(|_| corrupt("the device's id"))?,
            key,
            chain: postcard::from_bytes(&chain).map_err(|_| corrupt("the device's certificate"))?,
            authority,
        }))
    }

    /// Enters a device that was just enrolled. Numbers begin anew with each enrolment; chats and entries stay.
    pub(crate) fn enrol(&mut self, device: &DeviceRow, relays: &[String]) -> Result<(), Error> {
        let txn = self.db.transaction()?;
        let chain = encode_chain(&device.chain);
        txn.execute(
            "INSERT INTO device (one, id, key, chain, authority) VALUES (1, ?1, ?2, ?3, ?4)
             ON CONFLICT (one) DO UPDATE SET key = ?2, chain = ?3, authority = ?4",
            params![device.id.as_str(), device.key, chain, device.authority],
        )?;
        outbox::renumber_all(&txn)?;
        Self::give_relays(&txn, relays)?;
        Ok(txn.commit()?)
    }

    pub(crate) fn set_chain(&self, chain: &[Vec<u8>]) -> Result<(), Error> {
        self.db.execute("UPDATE device SET chain = ?1", [encode_chain(chain)])?;
        Ok(())
    }

    /// All of the user's chats are here: one that is not here later has begun since.
    pub(crate) fn set_listed(&self) -> Result<(), Error> {
        self.db.execute("UPDATE device SET listed = 1 WHERE listed = 0", [])?;
        Ok(())
    }

    /// Notes the generation of the home's store, with which everything here was compared.
    pub(crate) fn set_generation(&self, generation: u64) -> Result<(), Error> {
        self.db.execute("UPDATE device SET generation = ?1", [generation.cast_signed()])?;
        Ok(())
    }

    /// The generation of the home's store, as it was seen last.
    pub(crate) fn generation(&self) -> Result<Option<u64>, Error> {
        let generation: Option<i64> = self.db.query_row("SELECT generation FROM device", [], |row| row.get(0))?;
        Ok(generation.map(i64::cast_unsigned))
    }

    /// Events after `after` that the app has not acknowledged, in order.
    pub(crate) fn events(&self, after: i64) -> Result<Vec<Next>, Error> {
        let mut query = self.db.prepare_cached("SELECT id, event FROM events WHERE id > ?1 ORDER BY id LIMIT ?2")?;
        let rows =
            query.query_map(params![after, EVENTS], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut events = Vec::new();
        for row in rows {
            let (id, bytes) = row?;
            let event = postcard::from_bytes(&bytes)
                .map_err(|_| Error::Corrupt { path: self.path.clone(), what: format!("event {id}") })?;
            events.push(Next { id: Some(id), event });
        }
        Ok(events)
    }

    /// The app has everything up to `id`.
    pub(crate) fn acknowledge(&self, id: i64) -> Result<(), Error> {
        self.db.prepare_cached("DELETE FROM events WHERE id <= ?1")?.execute([id])?;
        Ok(())
    }
}

/// A new id for a message or a chat: a UUIDv7 (RFC 9562).
pub(crate) fn fresh_id(crypto: &Crypto) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(crypto.clock.now().0, &crypto.random()).into_uuid()
}

fn encode_chain(chain: &[Vec<u8>]) -> Vec<u8> {
    postcard::to_stdvec(chain).expect("a chain is a list of bytes")
}

fn put_event(txn: &Connection, event: &Event) -> Result<(), Error> {
    let bytes = postcard::to_stdvec(event).map_err(|error| Error::Invalid(error.to_string()))?;
    txn.prepare_cached("INSERT INTO events (event) VALUES (?1)")?.execute([bytes])?;
    Ok(())
}

fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
