//! Plays a plan: people act, things go wrong, then everything heals, and all must have arrived.
//!
//! - [`people`]: what they do, [`files`] with files; [`faults`]: what goes wrong

mod faults;
mod files;
mod people;

use crate::membership;
use crate::plan::{Cut, Plan, Step, What};
use crate::report::{Recorder, Waiting};
use crate::sim::{Options, Ran, Sim};
use crate::world::places::Access;
use anyhow::{Context, Result};
use files::Files;
use godwit_checker::app::{self, LOOK};
use godwit_checker::{Heads, Past};
use godwit_client::{ChatId, ConnectionState, DeviceId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// An app takes so long, at most, between an event and its acknowledgement.
const SLOWEST_APP: Duration = Duration::from_millis(30);
/// After this, clients have compared what they have with a store that was restored.
const COMPARED: Duration = Duration::from_mins(2);
/// A chat's whole past, read in one.
const ALL: usize = 100_000;
/// How often it is looked whether all has arrived.
const SETTLING: Duration = Duration::from_secs(1);
/// How often a report looks at what waits, over the time line.
const SAMPLES: u32 = 240;

struct Player {
    sim: Sim,
    plan: Plan,
    chats: RefCell<BTreeMap<String, ChatId>>,
    messages: Cell<u64>,
    files: RefCell<Files>,
    /// Copies of stores, by relay.
    stores: RefCell<BTreeMap<String, (Vec<u8>, Heads)>>,
    /// Hosts to which something happens now.
    busy: RefCell<BTreeSet<String>>,
    /// All that went wrong ends.
    healed: CancellationToken,
}

/// Plays `plan` with the seed in `options`.
///
/// # Errors
/// The promises that were broken; that the plan cannot be played.
pub fn play(plan: &Plan, options: &Options) -> Result<Ran> {
    if let Some(network) = plan.gossip {
        return membership::play(plan, network, options);
    }
    let plan = plan.clone();
    let ((), ran) = Sim::run(options, async move |sim| {
        let player = Rc::new(Player {
            sim,
            plan,
            chats: RefCell::default(),
            messages: Cell::new(0),
            files: RefCell::default(),
            stores: RefCell::default(),
            busy: RefCell::default(),
            healed: CancellationToken::new(),
        });
        player.play().await
    })?;
    Ok(ran)
}

impl Player {
    async fn play(self: &Rc<Self>) -> Result<()> {
        let plan = &self.plan;
        for relay in &plan.relays {
            let settings = relay.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let files = plan.has_files().then_some(("attachments.store", "files"));
            let settings: Vec<(&str, &str)> = files.into_iter().chain(settings).collect();
            self.sim.relay(&relay.id, &settings).await?;
        }
        let mut enrolling = JoinSet::new();
        for device in &plan.devices {
            let (player, id, access) = (self.clone(), device.id.clone(), self.access(&device.access)?);
            enrolling.spawn_local(async move {
                player.sim.device(&id, access).await?;
                player.begin(&id, true)
            });
        }
        if !self.end(enrolling, "not all devices are enrolled").await? {
            return Ok(());
        }
        let begun = self.sim.now();
        if let Some(recorder) = self.sim.recorder() {
            recorder.begin(begun);
            tokio::task::spawn_local(self.clone().record(recorder.clone(), plan.heals / SAMPLES));
        }
        let mut tasks = JoinSet::new();
        for step in &plan.steps {
            self.sim.sleep((begun + step.at).saturating_sub(self.sim.now())).await;
            let (player, step) = (self.clone(), step.clone());
            tasks.spawn_local(async move { player.step(&step).await });
            while let Some(ended) = tasks.try_join_next() {
                ended??;
            }
        }
        self.sim.sleep((begun + plan.heals).saturating_sub(self.sim.now())).await;
        self.sim.world().note("all heals");
        self.healed.cancel();
        if !self.end(tasks, "not all is mended").await? {
            return Ok(());
        }
        self.heal().await?;
        self.settle().await
    }

    /// Waits until all tasks have ended. False, and `what` is a broken promise, if that takes too long.
    async fn end(&self, mut tasks: JoinSet<Result<()>>, what: &str) -> Result<bool> {
        let within = self.plan.settles;
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            Ok(())
        };
        if let Ok(ended) = tokio::time::timeout(within, all).await {
            return ended.map(|()| true);
        }
        self.sim.checker().broken(format!("liveness: {what} after {within:?}"));
        Ok(false)
    }

    fn access(&self, name: &str) -> Result<Access> {
        self.plan.access(name).with_context(|| format!("no access network {name:?}"))
    }

    /// Notes now and then what waits, for as long as the run lasts.
    async fn record(self: Rc<Self>, recorder: Recorder, every: Duration) {
        loop {
            let relays = self.sim.relays();
            let relays_down = relays.iter().filter(|relay| !self.sim.is_up(relay)).count();
            let outboxes = relays.iter().map(|relay| self.sim.outbox_depth(relay)).sum();
            let (unsent, undelivered) = self.sim.checker().waiting();
            recorder.waits(Waiting { at: self.sim.now(), unsent, outboxes, undelivered, relays_down });
            tokio::time::sleep(every.max(LOOK)).await;
        }
    }

    /// Everything works, and everybody is there.
    async fn heal(self: &Rc<Self>) -> Result<()> {
        self.sim.world().heal();
        for relay in self.sim.relays() {
            if !self.sim.is_up(&relay) {
                self.sim.start(&relay).await?;
            }
        }
        for device in self.sim.devices() {
            self.sim.set_access(device.as_str(), Some(Access::WIFI))?;
            if self.sim.client(device.as_str()).is_none() {
                self.open(device.as_str())?;
            }
        }
        Ok(())
    }

    async fn settle(&self) -> Result<()> {
        let plan = &self.plan;
        let deadline = self.sim.now() + plan.settles;
        let doubtful = self.sim.checker().doubtful_chats();
        if !doubtful.is_empty() {
            self.sim.sleep(COMPARED).await;
            self.sim.checker().compared(&self.pasts(&doubtful).await);
        }
        loop {
            let mut waits = self.sim.checker().unsettled();
            for device in self.sim.checker().all_revoked() {
                if !self.is_out(&device) {
                    waits.push(format!("rights: {device} was revoked, and is let in"));
                }
            }
            for relay in self.sim.relays() {
                match self.sim.waiting(&relay).await {
                    Ok(waiting) => waits.extend(waiting.into_iter().map(|what| format!("liveness: at {relay} {what}"))),
                    Err(error) => waits.push(format!("liveness: {relay}: {error}")),
                }
            }
            if waits.is_empty() {
                break;
            }
            if self.sim.now() >= deadline || self.sim.checker().verdict().is_err() {
                waits.into_iter().take(3).for_each(|what| self.sim.checker().broken(what));
                return Ok(());
            }
            self.sim.sleep(SETTLING).await;
        }
        self.have_files().await?;
        self.sim.world().note("all is settled");
        self.sim.checker().settle();
        let told = self.sim.checker().count();
        if told < plan.events {
            let least = plan.events;
            self.sim.checker().broken(format!("expected: apps are told at least {least} events, and were told {told}"));
        }
        Ok(())
    }

    fn is_out(&self, device: &DeviceId) -> bool {
        let client = self.sim.client(device.as_str());
        let state = client.map(|client| client.connection_state());
        // A store that was lost knows nothing of it.
        matches!(state, Some(ConnectionState::Refused(_)))
    }

    /// What each device says of chats, as far as it has a part in them.
    async fn pasts(&self, chats: &[ChatId]) -> Vec<Past> {
        let mut pasts = Vec::new();
        // Who was shut out compares nothing any more.
        let out = self.sim.checker().all_revoked();
        for device in self.sim.devices().into_iter().filter(|device| !out.contains(device)) {
            let Some(client) = self.sim.client(device.as_str()) else { continue };
            for chat in chats {
                match client.history(chat, None, ALL).await {
                    Ok(entries) => pasts.push((device.clone(), chat.clone(), entries)),
                    Err(error) => self.sim.world().note(&format!("{device} cannot read {chat}: {error}")),
                }
            }
        }
        pasts
    }

    async fn step(self: &Rc<Self>, step: &Step) -> Result<()> {
        match &step.what {
            What::Do { device, action } => {
                let Some(client) = self.sim.client(device) else { return Ok(()) };
                match self.act(device, &client, action).await {
                    Ok(()) => {}
                    // The person may have been removed, or the app been killed under their fingers.
                    Err(error) => self.sim.world().note(&format!("{device} cannot: {error}")),
                }
            }
            What::Device { device, fault } => {
                if self.take(device, step) {
                    self.device_fault(device, fault, step.lasts).await?;
                    self.free(device);
                }
            }
            What::Relay { relay, fault } => {
                if self.take(relay, step) {
                    self.relay_fault(relay, fault, step.lasts).await?;
                    self.free(relay);
                }
            }
            What::Cut(Cut { from, to, both }) => {
                let each = |act: &dyn Fn(&str, &str)| {
                    for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
                        act(from, to);
                        if *both {
                            act(to, from);
                        }
                    }
                };
                each(&|from, to| self.sim.cut(from, to));
                self.lasts(step.lasts).await;
                each(&|from, to| self.sim.mend(from, to));
            }
            What::Link(link) => {
                self.sim.change_link(link, true);
                self.lasts(step.lasts).await;
                self.sim.change_link(link, false);
            }
        }
        Ok(())
    }

    /// Whether nothing happens to a host now; from now on something does. If not, the step is left out.
    fn take(&self, host: &str, step: &Step) -> bool {
        let is_free = self.busy.borrow_mut().insert(host.to_owned());
        if !is_free {
            self.sim.world().note(&format!("left out, since something happens to {host} already: {step}"));
        }
        is_free
    }

    fn free(&self, host: &str) {
        self.busy.borrow_mut().remove(host);
    }

    /// Waits until a fault ends.
    async fn lasts(&self, time: Duration) {
        tokio::select! {
            biased;
            () = self.healed.cancelled() => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    /// Begins a device's app after it was enrolled, on a home without a past or not.
    fn begin(self: &Rc<Self>, id: &str, fresh: bool) -> Result<()> {
        if fresh {
            self.sim.checker().enrolled(&id.parse()?);
        }
        self.open(id)
    }

    fn open(self: &Rc<Self>, id: &str) -> Result<()> {
        let client = match self.sim.client(id) {
            Some(client) => client,
            None => self.sim.open(id)?,
        };
        let events = client.events()?;
        let (player, id) = (self.clone(), id.to_owned());
        let app = {
            let id = id.clone();
            async move {
                let mut rng = player.sim.rng(&format!("app of {id} at {:?}", player.sim.now()));
                let pause = || if rng.u8(..) < 64 { SLOWEST_APP.mul_f64(rng.f64()) } else { Duration::ZERO };
                if let Err(error) = app::run(player.sim.checker(), &client, events, pause).await {
                    player.sim.world().note(&format!("{id}: its app ends: {error}"));
                }
            }
        };
        self.sim.run_app(&id, app)
    }
}
