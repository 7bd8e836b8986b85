//! What goes wrong with relays and devices, and how they come back.

use super::Player;
use crate::disk::Unsynced;
use crate::plan::{DeviceFault, RelayFault};
use anyhow::Result;
use godwit_checker::Heads;
use godwit_checker::app::LOOK;
use godwit_wire::RelayId;
use std::rc::Rc;
use std::time::Duration;

/// A drain takes so long at most.
const DRAIN: Duration = Duration::from_secs(20);

impl Player {
    pub(super) async fn relay_fault(self: &Rc<Self>, relay: &str, fault: &RelayFault, lasts: Duration) -> Result<()> {
        let sim = &self.sim;
        match fault {
            RelayFault::Crash { unsynced, syncs } => {
                match syncs {
                    Some(syncs) => sim.crash_in_write(relay, *syncs, *unsynced, lasts).await?,
                    None => sim.crash(relay, *unsynced)?,
                }
                self.lasts(lasts).await;
                sim.start(relay).await
            }
            RelayFault::Stop => {
                sim.stop(relay).await?;
                self.lasts(lasts).await;
                sim.start(relay).await
            }
            RelayFault::Drain => {
                sim.drain(relay, DRAIN).await?;
                self.lasts(lasts).await;
                sim.start(relay).await
            }
            RelayFault::Freeze => {
                sim.freeze(relay, true)?;
                self.lasts(lasts).await;
                sim.freeze(relay, false)
            }
            RelayFault::FailSync => {
                sim.fail_sync(relay, true)?;
                self.lasts(lasts).await;
                sim.fail_sync(relay, false)
            }
            RelayFault::FullDisk => {
                sim.fill_disk(relay, true)?;
                self.lasts(lasts).await;
                sim.fill_disk(relay, false)
            }
            RelayFault::SlowDisk { sync_millis } => {
                sim.slow_disk(relay, Duration::from_millis(*sync_millis))?;
                self.lasts(lasts).await;
                sim.slow_disk(relay, crate::disk::SYNC)
            }
            RelayFault::BackUp => {
                let heads = sim.checker().heads(relay.parse::<RelayId>()?.region().as_str());
                match sim.back_up(relay).await {
                    Ok(store) => drop(self.stores.borrow_mut().insert(relay.to_owned(), (store, heads))),
                    Err(error) => sim.world().note(&format!("{relay} is not backed up: {error}")),
                }
                Ok(())
            }
            RelayFault::Restore => {
                let Some((store, heads)) = self.stores.borrow().get(relay).cloned() else { return Ok(()) };
                sim.crash(relay, Unsynced::Lost)?;
                self.lasts(lasts).await;
                sim.restore(relay, store)?;
                self.come_back(relay, &heads).await
            }
            RelayFault::Lose => {
                sim.crash(relay, Unsynced::Lost)?;
                self.lasts(lasts).await;
                sim.wipe(relay)?;
                if sim.holds_store(relay)? {
                    self.come_back(relay, &Heads::default()).await
                } else {
                    sim.start(relay).await
                }
            }
            RelayFault::Clock { millis } => {
                sim.set_clock(relay, *millis)?;
                self.lasts(lasts).await;
                sim.set_clock(relay, 0)
            }
        }
    }

    /// Starts a relay whose store went back in time. Its operator does over what it forgot.
    async fn come_back(self: &Rc<Self>, relay: &str, heads: &Heads) -> Result<()> {
        let region = relay.parse::<RelayId>()?.region();
        let checker = self.sim.checker();
        let (enrolled, revoked) = checker.changed_since(region.as_str(), heads);
        checker.store_restored(region.as_str(), heads);
        self.sim.start(relay).await?;
        for device in revoked {
            self.sim.revoke(device.as_str()).await?;
        }
        for device in enrolled {
            while !self.busy.borrow_mut().insert(device.to_string()) {
                self.sim.sleep(LOOK).await;
            }
            self.renew(device.as_str(), Duration::ZERO).await?;
            self.free(device.as_str());
        }
        Ok(())
    }

    async fn renew(self: &Rc<Self>, id: &str, out: Duration) -> Result<()> {
        self.sim.kill(id).await?;
        self.lasts(out).await;
        self.sim.enrol(id).await?;
        self.sim.checker().renewed(&id.parse()?);
        self.begin(id, false)
    }

    pub(super) async fn device_fault(self: &Rc<Self>, id: &str, fault: &DeviceFault, lasts: Duration) -> Result<()> {
        let (sim, device) = (&self.sim, id.parse()?);
        match fault {
            DeviceFault::Kill { commits } => {
                match commits {
                    Some(commits) => sim.kill_at_commit(id, *commits, lasts).await?,
                    None => sim.kill(id).await?,
                }
                self.lasts(lasts).await;
                self.open(id)
            }
            DeviceFault::Close => {
                sim.close(id).await?;
                self.lasts(lasts).await;
                self.open(id)
            }
            DeviceFault::Offline => {
                sim.set_offline(id, true)?;
                self.lasts(lasts).await;
                sim.set_offline(id, false)
            }
            DeviceFault::Access { access: name } => {
                sim.set_access(id, Some(self.access(name)?))?;
                self.lasts(lasts).await;
                sim.set_access(id, None)
            }
            DeviceFault::Roam { access: name, told } => sim.roam(id, self.access(name)?, *told).await,
            DeviceFault::Rebind => sim.rebind(id),
            DeviceFault::BackUp => {
                sim.checker().backed_up(&device);
                sim.back_up_device(id)
            }
            DeviceFault::Restore => {
                if !sim.checker().has_backup(&device) {
                    return Ok(());
                }
                sim.kill(id).await?;
                self.lasts(lasts).await;
                sim.restore_device(id)?;
                sim.checker().restored(&device);
                self.open(id)
            }
            DeviceFault::Lose => {
                sim.kill(id).await?;
                self.lasts(lasts).await;
                sim.lose_device(id)?;
                sim.checker().lost(&device);
                sim.enrol(id).await?;
                self.begin(id, true)
            }
            DeviceFault::Renew => self.renew(id, lasts).await,
            DeviceFault::Revoke => {
                if sim.revoke(id).await? {
                    sim.checker().revoked(&device);
                }
                Ok(())
            }
            DeviceFault::Clock { millis } => {
                sim.set_clock(id, *millis)?;
                self.lasts(lasts).await;
                sim.set_clock(id, 0)
            }
        }
    }
}
