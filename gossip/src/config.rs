//! Every knob, with two settings that fit most clusters: [`Config::lan`] and [`Config::wan`].

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Whom a relay tells about its claims, and whose claims it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceScope {
    Cluster,
    /// Only relays of the same region.
    Region,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How often one member is probed. A probe must succeed, directly or through others, within this time.
    pub probe_period: Duration,
    /// After this time without an answer others are asked to probe. A late answer still counts.
    pub probe_timeout: Duration,
    pub indirect_probes: usize,
    /// How long a suspect has to answer before it is declared down.
    pub suspicion: Duration,
    /// How often news is sent to `gossip_fanout` random members. Nothing is sent when there is no news.
    pub gossip_period: Duration,
    pub gossip_fanout: usize,
    /// How often each relay passes on one piece of news.
    pub transmissions: u8,
    /// How often one random member is asked for the members that it knows.
    pub announce_period: Duration,
    /// How often two members that are down are called, so that a healed partition is noticed.
    pub heal_period: Duration,
    /// How long a member that is down is remembered.
    pub forget_after: Duration,
    /// Members known at a time, those that are down included. Packets that name more are refused.
    pub members_max: usize,
    /// A packet travels as one QUIC datagram.
    pub packet_bytes: usize,
    pub scope: PresenceScope,
    /// Changes of claims are collected for this long.
    pub presence_flush: Duration,
    /// How long a change is repeated in every new item of this relay: about the time news takes to reach everyone.
    pub presence_window: Duration,
    /// Rest between two pulls from one relay, about; so a storm costs each receiver one stream in this time.
    pub pull_rest: Duration,
    /// First and last step of the back-off of failed pulls.
    pub pull_retry: (Duration, Duration),
    /// Claims of others kept at a time. A relay whose claims do not fit is treated as if its pull had failed.
    pub claims_max: usize,
    /// Least time between two broadcasts of this relay's load. Draining is told at once.
    pub status_period: Duration,
}

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{0} must not be zero")]
    Zero(&'static str),
    #[error("probe_timeout must be shorter than probe_period")]
    ProbeTimeout,
    #[error("packet_bytes must lie between 512 and 1200")]
    PacketBytes,
    #[error("presence_window must be at least presence_flush, and the second step of pull_retry at least the first")]
    Order,
    #[error("members_max must be at most 16384")]
    Members,
}

impl Config {
    /// Relays in one place: round trips of a few milliseconds.
    pub fn lan() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(200),
            indirect_probes: 4,
            suspicion: Duration::from_secs(3),
            gossip_period: Duration::from_millis(200),
            gossip_fanout: 3,
            transmissions: 12,
            announce_period: Duration::from_secs(30),
            heal_period: Duration::from_secs(10),
            forget_after: Duration::from_hours(24),
            members_max: 10_000,
            packet_bytes: 1200,
            scope: PresenceScope::Cluster,
            presence_flush: Duration::from_millis(100),
            presence_window: Duration::from_secs(2),
            pull_rest: Duration::from_secs(1),
            pull_retry: (Duration::from_secs(1), Duration::from_secs(30)),
            claims_max: 8_000_000,
            status_period: Duration::from_secs(10),
        }
    }

    /// Regions over the world: round trips up to 300 ms, up to 5 % of packets lost.
    pub fn wan() -> Self {
        Self {
            probe_timeout: Duration::from_millis(350),
            suspicion: Duration::from_secs(6),
            gossip_period: Duration::from_millis(500),
            gossip_fanout: 4,
            // Each transmission more makes news miss e times fewer: at 1,000 relays that all start at once, 12 leave
            // some pairs unknown to each other until they probe each other, a quarter of an hour later.
            transmissions: 16,
            announce_period: Duration::from_mins(1),
            heal_period: Duration::from_secs(15),
            presence_flush: Duration::from_millis(200),
            presence_window: Duration::from_secs(5),
            status_period: Duration::from_secs(30),
            ..Self::lan()
        }
    }

    pub fn check(&self) -> Result<(), ConfigError> {
        let zero = [
            ("probe_timeout", self.probe_timeout.is_zero()),
            ("indirect_probes", self.indirect_probes == 0),
            ("suspicion", self.suspicion.is_zero()),
            ("gossip_period", self.gossip_period.is_zero()),
            ("gossip_fanout", self.gossip_fanout == 0),
            ("transmissions", self.transmissions == 0),
            ("announce_period", self.announce_period.is_zero()),
            ("heal_period", self.heal_period.is_zero()),
            ("forget_after", self.forget_after.is_zero()),
            ("members_max", self.members_max == 0),
            ("presence_flush", self.presence_flush.is_zero()),
            ("pull_rest", self.pull_rest.is_zero()),
            ("pull_retry", self.pull_retry.0.is_zero()),
            ("status_period", self.status_period.is_zero()),
        ];
        if let Some((name, _)) = zero.into_iter().find(|(_, zero)| *zero) {
            return Err(ConfigError::Zero(name));
        }
        if self.probe_timeout >= self.probe_period {
            return Err(ConfigError::ProbeTimeout);
        }
        if !(512..=1200).contains(&self.packet_bytes) {
            return Err(ConfigError::PacketBytes);
        }
        if self.presence_window < self.presence_flush || self.pull_retry.1 < self.pull_retry.0 {
            return Err(ConfigError::Order);
        }
        // Each member takes up to two of the 65,536 numbers of the claims table.
        if self.members_max > 16_384 {
            return Err(ConfigError::Members);
        }
        Ok(())
    }

    pub(crate) fn swim(&self, packet_bytes: usize) -> foca::Config {
        let count = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        let every = |frequency, n| Some(foca::PeriodicParams { frequency, num_members: count(n) });
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: count(self.indirect_probes),
            max_transmissions: NonZeroU8::new(self.transmissions).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(self.forget_after),
            max_packet_size: count(packet_bytes),
            notify_down_members: true,
            periodic_announce: every(self.announce_period, 1),
            periodic_announce_to_down_members: every(self.heal_period, 2),
            periodic_gossip: every(self.gossip_period, self.gossip_fanout),
        }
    }

    /// Changes that fit one item beside the longest possible header of a packet (302 bytes with everything around).
    pub(crate) fn item_changes(&self) -> usize {
        self.packet_bytes.saturating_sub(320) / 8
    }

    /// The presence window, counted in flushes.
    pub(crate) fn window_ticks(&self) -> usize {
        let ticks = self.presence_window.as_millis() / self.presence_flush.as_millis().max(1);
        usize::try_from(ticks).unwrap_or(usize::MAX).clamp(1, 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_settings_hold_and_bad_ones_are_named() {
        assert_eq!(Config::lan().check(), Ok(()));
        assert_eq!(Config::wan().check(), Ok(()));
        let bad = Config { suspicion: Duration::ZERO, ..Config::lan() };
        assert_eq!(bad.check().unwrap_err().to_string(), "suspicion must not be zero");
        let bad = Config { packet_bytes: 1400, ..Config::lan() };
        assert_eq!(bad.check(), Err(ConfigError::PacketBytes));
    }
}
