//! Which of several relays decides for a user or a chat: the one that ranks first by rendezvous hashing (Thaler and
//! Ravishankar, "Using name-based mappings to increase hit rates", 1998). When a relay goes, only what it decided for
//! moves, and to all the others evenly.

use godwit_wire::RelayId;

/// The relay of `relays` that ranks first for `key`.
pub(crate) fn first<'a>(relays: impl IntoIterator<Item = &'a RelayId>, key: &[u8]) -> Option<&'a RelayId> {
    relays.into_iter().max_by_key(|relay| (weight(relay, key), relay.as_str()))
}

/// FNV-1a: the same at every relay, of whatever version, which a hasher of the library is not.
pub(crate) fn fnv_1a<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// With the finalizer of `SplitMix64`, so that near names lie far apart.
fn weight(relay: &RelayId, key: &[u8]) -> u64 {
    let hash = fnv_1a(relay.as_str().as_bytes().iter().chain([&0]).chain(key));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn relays(count: usize) -> Vec<RelayId> {
        (1..=count).map(|n| format!("eu/eu-{n}").parse().unwrap()).collect()
    }

    #[test]
    fn work_is_spread_and_only_that_of_a_lost_relay_moves() {
        let all = relays(4);
        let left = &all[..3];
        let mut shares: BTreeMap<&RelayId, usize> = BTreeMap::new();
        for n in 0..4_000_u32 {
            let key = format!("eu:chat-{n}");
            let before = first(&all, key.as_bytes()).unwrap();
            let after = first(left, key.as_bytes()).unwrap();
            *shares.entry(before).or_default() += 1;
            assert!(before == after || *before == all[3], "{key} moved from {before} to {after}");
        }
        for (relay, share) in shares {
            assert!((900..1_100).contains(&share), "{relay} has {share} of 4,000");
        }
    }

    #[test]
    fn the_order_in_which_relays_are_known_does_not_matter() {
        let (all, mut turned) = (relays(5), relays(5));
        turned.reverse();
        for n in 0..100_u32 {
            assert_eq!(first(&all, &n.to_be_bytes()), first(&turned, &n.to_be_bytes()));
        }
        assert_eq!(first(&[], b"any"), None);
    }
}
