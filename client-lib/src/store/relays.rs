//! The relays that a device knows: those it was given, and those that others named. Which to try first is decided here.

use super::Store;
use crate::error::Error;
use rusqlite::params;
use std::time::Duration;

/// Relays that were learned have ranks from here on, after those that were given.
const LEARNED: i64 = 1_000;
/// Twice the shortest round trip and so much more is still near.
const NEAR: Duration = Duration::from_millis(10);

#[derive(Clone, Debug)]
struct Known {
    address: String,
    /// As given, or as a relay named it: the less there is to do, the earlier.
    rank: i64,
    /// The device was there last.
    last: bool,
    round_trip: Option<Duration>,
}

/// Near ones first, the one used last before all others, then as they were ranked; one that was never measured may be
/// near. Far ones by their round trip.
fn order(mut relays: Vec<Known>) -> Vec<String> {
    let shortest = relays.iter().filter_map(|relay| relay.round_trip).min().unwrap_or_default();
    let far = |relay: &Known| relay.round_trip.filter(|round_trip| *round_trip > shortest * 2 + NEAR);
    relays.sort_by_key(|relay| (far(relay), !relay.last, relay.rank, relay.address.clone()));
    relays.into_iter().map(|relay| relay.address).collect()
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl Store {
    /// Notes the relays that a device was given when it was enrolled.
    pub(super) fn give_relays(txn: &rusqlite::Connection, relays: &[String]) -> Result<(), Error> {
        for (rank, address) in (0i64..).zip(relays) {
            txn.execute(
                "INSERT INTO relays (address, rank) VALUES (?1, ?2) ON CONFLICT (address) DO UPDATE SET rank = ?2",
                params![address, rank],
            )?;
        }
        Ok(())
    }

    /// The device is with the relay at `current`, which named these others. Learned ones that it does not name are
    /// forgotten.
    pub(crate) fn joined_relay(&mut self, current: &str, round_trip: Duration, others: &[String]) -> Result<(), Error> {
        let txn = self.db.transaction()?;
        if !others.is_empty() {
            txn.execute("UPDATE relays SET named = 0 WHERE rank >= ?1", [LEARNED])?;
        }
        for (rank, address) in (LEARNED..).zip(others) {
            txn.execute(
                "INSERT INTO relays (address, rank) VALUES (?1, ?2) ON CONFLICT (address)
                 DO UPDATE SET named = 1, rank = iif(rank < ?3, rank, ?2)",
                params![address, rank, LEARNED],
            )?;
        }
        txn.execute("UPDATE relays SET last = 0 WHERE last", [])?;
        txn.execute(
            "INSERT INTO relays (address, rank, last, round_trip) VALUES (?1, ?2, 1, ?3) ON CONFLICT (address)
             DO UPDATE SET named = 1, last = 1, round_trip = ?3",
            params![current, LEARNED, micros(round_trip)],
        )?;
        txn.execute("DELETE FROM relays WHERE NOT named", [])?;
        Ok(txn.commit()?)
    }

    pub(crate) fn set_round_trip(&self, address: &str, round_trip: Duration) -> Result<(), Error> {
        let sql = "UPDATE relays SET round_trip = ?2 WHERE address = ?1";
        self.db.execute(sql, params![address, micros(round_trip)])?;
        Ok(())
    }

    /// On another network what was measured means nothing.
    pub(crate) fn forget_round_trips(&self) -> Result<(), Error> {
        self.db.execute("UPDATE relays SET round_trip = NULL", [])?;
        Ok(())
    }

    /// Relays whose round trip is not known.
    pub(crate) fn unmeasured_relays(&self, limit: u32) -> Result<Vec<String>, Error> {
        let sql = "SELECT address FROM relays WHERE round_trip IS NULL ORDER BY rank, address LIMIT ?1";
        let mut query = self.db.prepare_cached(sql)?;
        Ok(query.query_map([limit], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// All relays, the one to try first at the front.
    pub(crate) fn relays(&self) -> Result<Vec<String>, Error> {
        let mut query = self.db.prepare_cached("SELECT address, rank, last, round_trip FROM relays")?;
        let known = query.query_map([], |row| {
            let round_trip: Option<i64> = row.get(3)?;
            Ok(Known {
                address: row.get(0)?,
                rank: row.get(1)?,
                last: row.get(2)?,
                round_trip: round_trip.map(|micros| Duration::from_micros(micros.unsigned_abs())),
            })
        })?;
        Ok(order(known.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(given: &[&str]) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &crate::host::Host::system(), true).unwrap();
        Store::give_relays(&store.db, &given.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        (folder, store)
    }

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_relay_used_last_is_tried_first_and_far_ones_last() {
        let (_folder, mut store) = store(&["a", "b"]);
        assert_eq!(store.relays().unwrap(), ["a", "b"]);
        store.joined_relay("b", 20 * MS, &names(&["c", "a", "d"])).unwrap();
        assert_eq!(store.relays().unwrap(), ["b", "a", "c", "d"]);
        store.set_round_trip("a", 120 * MS).unwrap();
        store.set_round_trip("c", 45 * MS).unwrap();
        assert_eq!(store.relays().unwrap(), ["b", "c", "d", "a"]);
        // Where it was last is far by now.
        store.set_round_trip("b", 300 * MS).unwrap();
        store.set_round_trip("d", 400 * MS).unwrap();
        assert_eq!(store.relays().unwrap(), ["c", "a", "b", "d"]);
        assert_eq!(store.unmeasured_relays(9).unwrap(), [""; 0]);
        store.forget_round_trips().unwrap();
        assert_eq!(store.relays().unwrap(), ["b", "a", "c", "d"]);
        assert_eq!(store.unmeasured_relays(2).unwrap(), ["a", "b"]);
    }

    #[test]
    fn what_no_relay_names_any_more_is_forgotten_but_for_what_was_given() {
        let (_folder, mut store) = store(&["a"]);
        store.joined_relay("a", MS, &names(&["b", "c"])).unwrap();
        store.joined_relay("b", MS, &names(&["d"])).unwrap();
        assert_eq!(store.relays().unwrap(), ["b", "a", "d"], "the one in use stays, though it does not name itself");
        store.joined_relay("d", MS, &names(&["a", "e"])).unwrap();
        assert_eq!(store.relays().unwrap(), ["d", "a", "e"]);
        store.joined_relay("d", MS, &[]).unwrap();
        assert_eq!(store.relays().unwrap(), ["d", "a", "e"], "one that names none knows no cluster");
    }
}
