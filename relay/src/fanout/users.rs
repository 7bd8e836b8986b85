//! The users and devices that fan-out has met, and those that are new, enrolled anew or shut out.

use super::device::DeviceFan;
use super::{ROWS_TICKS_MOST, STORE_POLL, Worker, region};
use crate::store::{Committed, Freshness, StoreError};
use godwit_core::device::Revocation;
use godwit_core::inbox::Track;
use godwit_wire::{Code, DeviceId, UserId};
use std::collections::{BTreeSet, HashSet};

/// Users kept in memory who have no device connected.
const IDLE_USERS: usize = 100_000;

impl Worker {
    /// Waits until the recipients of all of `events` are known: one whose devices were not read would count as served.
    pub(super) async fn meet(&mut self, events: &[Committed]) {
        let mut unknown = HashSet::new();
        for event in events {
            if let Committed::Entry { chat, recipients, .. } = event {
                let abroad = region::abroad(&self.region, chat, recipients);
                let served = region::served(&self.region, recipients, &abroad);
                unknown.extend(served.filter(|user| !self.users.contains_key(*user)).cloned());
            }
        }
        while let Err(error) = self.load_users(unknown.iter().cloned()).await {
            tracing::warn!(%error, "fan-out cannot read devices, and waits for the store");
            tokio::time::sleep(STORE_POLL).await;
        }
    }

    /// Devices and inbox rows of users that were not met yet.
    pub(super) async fn load_users(&mut self, users: impl Iterator<Item = UserId>) -> Result<(), StoreError> {
        let unknown: Vec<UserId> = users.filter(|user| !self.users.contains_key(user)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let loaded = self
            .store
            .read(move |store| {
                let mut all = Vec::new();
                for user in unknown {
                    let rows = store.inbox_of_user(&user, Freshness::Now)?;
                    let devices = if user.is_region() {
                        vec![(DeviceId::of_region(&user.home()), 0)]
                    } else {
                        store.devices(&user)?
                    };
                    all.push((user, devices, rows));
                }
                Ok(all)
            })
            .await?;
        for (user, devices, rows) in loaded {
            for (device, enrolment) in &devices {
                self.devices.entry(device.clone()).or_insert_with(|| DeviceFan::of(*enrolment));
            }
            self.users.insert(user, devices.into_iter().map(|(device, _)| device).collect());
            for (device, chat, row) in rows {
                if !self.owns(&chat) {
                    continue;
                }
                // What is known already is newer than the store.
                if let Some(fan) = self.devices.get_mut(&device)
                    && fan.track(&chat).is_none()
                    && fan.link.is_none()
                {
                    fan.set(&chat, Some(Track::behind(row.from)));
                }
            }
        }
        Ok(())
    }

    /// Finds rows that other relays began for devices that are connected, in chats that this one owns.
    pub(super) async fn look_for_rows(&mut self) {
        let (due, wait) = self.rows_due;
        if !self.store.is_shared() || self.ticks < due {
            return;
        }
        self.rows_due = (self.ticks + wait, (2 * wait).min(ROWS_TICKS_MOST));
        let connected = self.devices.iter().filter(|(_, state)| state.link.is_some());
        let users: BTreeSet<UserId> = connected.map(|(device, _)| device.user()).collect();
        for user in users {
            let id = user.clone();
            let Ok(rows) = self.store.read(move |store| store.inbox_of_user(&id, Freshness::Lately)).await else {
                continue;
            };
            for (device, chat, row) in rows {
                // One that is known, or is on its way to be changed, is newer here.
                let is_known = self.moves.contains_key(&(device.clone(), chat.clone())) || !self.saves.is_idle();
                if is_known || !self.owns(&chat) {
                    continue;
                }
                if let Some(state) = self.devices.get_mut(&device).filter(|state| state.track(&chat).is_none()) {
                    state.set(&chat, Some(Track::behind(row.from)));
                    self.drain(&device);
                }
            }
        }
    }

    pub(super) async fn enrolled(&mut self, device: DeviceId, enrolment: u32) {
        if enrolment > 1 {
            let at = self.clock.now();
            let before = enrolment - 1;
            self.shut_out(&Revocation { device: device.clone(), enrolment: before, why: Code::Superseded, at });
        }
        // The device may have connected before this news of it was taken up.
        let link = self.devices.get(&device).and_then(|state| state.link.clone());
        self.forget(&device);
        // Read anew: its inbox rows begin with the enrolment.
        self.users.remove(&device.user());
        if let Some(link) = link.filter(|link| link.enrolment >= enrolment) {
            self.attach(link).await;
        }
    }

    /// Ends the device's connection, here or elsewhere, and tells all relays.
    pub(super) fn shut_out(&self, revocation: &Revocation) {
        let Revocation { device, enrolment, why, .. } = revocation;
        self.registry.shut_out(device, *enrolment, &(*why).into());
        let link = self.devices.get(device).and_then(|state| state.link.as_ref());
        if let Some(link) = link.filter(|link| link.enrolment <= *enrolment) {
            link.close(&(*why).into());
        }
        if let Some(cluster) = &self.cluster {
            cluster.shut_out(revocation);
        }
    }

    pub(super) fn revoked(&mut self, revocation: &Revocation) {
        self.shut_out(revocation);
        self.forget(&revocation.device);
    }

    /// Drops all that is known of a device; no chat waits for it.
    pub(super) fn forget(&mut self, device: &DeviceId) {
        if let Some(devices) = self.users.get_mut(&device.user()) {
            devices.retain(|known| known != device);
        }
        if let Some(state) = self.devices.remove(device) {
            for (chat, _) in state.tracks() {
                if let Some(fan) = self.chats.get_mut(chat) {
                    fan.waiting.remove(device);
                }
                self.moves.remove(&(device.clone(), chat.clone()));
            }
        }
    }

    /// Users without a connected device leave memory when there are many; the store has their inboxes.
    pub(super) fn forget_idle_users(&mut self) {
        if self.users.len() <= IDLE_USERS || !self.rows.is_empty() || !self.saves.is_idle() {
            return;
        }
        let idle: Vec<UserId> = self
            .users
            .iter()
            .filter(|(_, devices)| {
                devices.iter().all(|device| self.devices.get(device).is_none_or(|device| device.link.is_none()))
            })
            .take(self.users.len() - IDLE_USERS / 2)
            .map(|(user, _)| user.clone())
            .collect();
        for user in idle {
            for device in self.users.remove(&user).unwrap_or_default() {
                self.devices.remove(&device);
            }
        }
    }
}
