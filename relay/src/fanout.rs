//! Serves every recipient of every entry.
//!
//! One task hears what was committed, in order. A device that is connected is pushed the entry and has
//! [`FanoutConfig::ack_timeout`] to acknowledge it; for one that is not connected, does not keep up or does not
//! acknowledge, an inbox row says from where it is behind, and its entries are read from the log when it is back. An
//! entry is settled once every device of every recipient has taken it or has a row; how far that got is saved now and
//! then, and a restart goes on from there. Repeating a little is harmless: devices drop doubles by (chat, seq).
//!
//! Capacity: entries between commit and here are bounded by the store's memory in flight; a device has at most
//! [`FanoutConfig::window`] entries on its way, and what comes then waits in the log.
//!
//! - [`handle`]: what sessions and links tell it
//! - [`users`]: whom it serves
//! - [`acks`]: what devices have taken
//! - [`chat`]: how far one chat got
//! - [`device`]: what one device has to take
//! - [`drain`]: reading the log for devices that are behind
//! - [`pushes`]: one frame for all devices of another relay
//! - [`region`]: other regions, which take their users' entries as a device takes its own
//! - [`recover`]: going on after a crash
//! - [`save`]: writing inbox rows and progress, in order

mod acks;
mod chat;
mod device;
mod drain;
mod handle;
mod pushes;
mod recover;
mod region;
mod save;
#[cfg(test)]
mod tests;
mod users;

pub(crate) use handle::Fanout;

use crate::cluster::Cluster;
use crate::edge::{Link, Registry};
use crate::metrics::Metrics;
use crate::router::chat_key;
use crate::store::{Committed, InboxChange, InboxWrite, RegionRun, Store, Unsettled, Watermark};
use bytes::Bytes;
use chat::{ChatFan, Floors, Loaded};
use device::{DeviceFan, Offer};
use drain::{Page, PageRead};
use godwit_core::Entry;
use godwit_core::inbox::{Row, Track};
use godwit_core::sabotage::{self, Sabotage};
use godwit_wire::entry::{Change, EntryBody};
use godwit_wire::frame::{Ack, Event, SeqRange};
use godwit_wire::{ChatId, Clock, Code, DeviceId, RegionId, Seq, UserId, codec};
use handle::Input;
use pushes::Pushes;
use region::Told;
use save::{Save, Saved};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

/// Committed entries taken up at a time.
const TAKE: usize = 1024;
/// How often receipts are told, time-outs looked for and progress saved.
const TICK: Duration = Duration::from_millis(100);
/// Devices that are behind are looked at again after so many ticks: delivery must not rest on a wake-up alone.
const RESCAN_TICKS: u64 = 10;
/// And who is connected is compared with the registry.
const RECONCILE_TICKS: u64 = 300;
/// On a shared store, another relay may begin a row for a device that is connected here: the rows of all of them are read
/// after so many ticks since the owners changed, and then after twice as many each time, up to a limit.
const ROWS_TICKS: u64 = 600;
const ROWS_TICKS_MOST: u64 = 36_000;
/// Chats of which it is known that rows are there; above this many, they are found again.
const FOUND_CHATS: usize = 65_536;
/// A chat of which nothing is open leaves memory after this, and how far it got is saved.
const IDLE_MILLIS: u64 = 1_000;
/// On a shared store, where each row that is saved costs as much as a message.
const SHARED_IDLE_MILLIS: u64 = 2_000;
/// Progress of a busy chat is saved when it is this many entries behind.
const SAVE_LAG: u64 = 256;
/// How often a store that is being opened anew is asked again.
const STORE_POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct FanoutConfig {
    /// How long a device may take to acknowledge before an inbox row is begun for it.
    pub ack_timeout: Duration,
    /// Entries on their way to one device.
    pub window: u64,
    /// Backlogs older than this are not pushed: the device hears of a gap, and pages history if it wants.
    pub inbox_max_age: Duration,
    /// Backlogs of one chat larger than this, in bytes of content, likewise.
    pub inbox_max_bytes: u64,
}

impl Default for FanoutConfig {
    fn default() -> Self {
        Self {
            ack_timeout: Duration::from_secs(5),
            window: 4096,
            inbox_max_age: Duration::from_hours(30 * 24),
            inbox_max_bytes: 64 << 20,
        }
    }
}

/// What fan-out's own errands bring back.
#[derive(Debug)]
enum Report {
    Page(PageRead<Page>),
    Region(PageRead<RegionRun>),
    Told(Told),
    /// What a region that went away had not taken of a chat, if it could be read.
    Untaken(Option<Unsettled>),
    Loaded {
        chat: ChatId,
        head: Option<Seq>,
        watermarks: BTreeMap<UserId, Watermark>,
        floors: Floors,
    },
    LoadFailed {
        chat: ChatId,
    },
    Saved(Saved),
}

/// An acknowledgement that waits for its chat's head.
#[derive(Debug)]
struct Deferred {
    user: UserId,
    link: Option<Arc<Link>>,
    up_to: Seq,
    read: bool,
}

/// The task. It ends when every [`Fanout`] is dropped, after saving how far it got.
pub(crate) struct Worker {
    config: FanoutConfig,
    region: RegionId,
    /// None in a relay that stands alone.
    cluster: Option<Arc<Cluster>>,
    store: Store,
    registry: Arc<Registry>,
    metrics: Metrics,
    clock: Clock,
    started: Instant,
    ticks: u64,
    inputs: mpsc::Receiver<Input>,
    results: mpsc::UnboundedReceiver<Report>,
    report: mpsc::UnboundedSender<Report>,
    saves: Save,
    users: HashMap<UserId, Vec<DeviceId>>,
    devices: HashMap<DeviceId, DeviceFan>,
    chats: HashMap<ChatId, ChatFan>,
    /// Acknowledgements for chats whose head is not known yet.
    deferred: HashMap<ChatId, Vec<Deferred>>,
    /// Chats that regions which went away had not taken, from where: the first is being read.
    untaken: VecDeque<(ChatId, Seq)>,
    /// Regions that know what this store has, if it was restored.
    met: HashSet<RegionId>,
    rows: Vec<InboxWrite>,
    /// Chats with rows being written, by ticket.
    begun: VecDeque<(u64, ChatId)>,
    moves: HashMap<(DeviceId, ChatId), InboxChange>,
    /// Regions whose rows could not be read when they were linked.
    unattached: Vec<Arc<Link>>,
    /// When inbox rows are read again, and after how many ticks then.
    rows_due: (u64, u64),
    /// Devices with rows that were found to be there, or begun, since the chat was taken up: nobody else removes them.
    found: HashMap<ChatId, HashSet<DeviceId>>,
    /// Chats of a shared store whose logs could not be read: what comes of them meanwhile is read with the rest.
    not_taken_up: BTreeSet<ChatId>,
}

impl Worker {
    pub(crate) fn new(
        config: FanoutConfig,
        region: RegionId,
        store: Store,
        registry: Arc<Registry>,
        clock: Clock,
        metrics: Metrics,
    ) -> (Self, Fanout) {
        let (fanout, inputs) = Fanout::new();
        // Bounded by what is asked for: a page a device, a load a chat, one save and one untaken chat at a time.
        let (report, results) = mpsc::unbounded_channel();
        let saves = Save::start(store.clone(), {
            let report = report.clone();
            move |saved| drop(report.send(Report::Saved(saved)))
        });
        let worker = Self {
            config,
            region,
            cluster: None,
            store,
            registry,
            metrics,
            clock,
            started: Instant::now(),
            ticks: 0,
            inputs,
            results,
            report,
            saves,
            users: HashMap::new(),
            devices: HashMap::new(),
            chats: HashMap::new(),
            deferred: HashMap::new(),
            untaken: VecDeque::new(),
            met: HashSet::new(),
            rows: Vec::new(),
            begun: VecDeque::new(),
            moves: HashMap::new(),
            unattached: Vec::new(),
            rows_due: (ROWS_TICKS, ROWS_TICKS),
            found: HashMap::new(),
            not_taken_up: BTreeSet::new(),
        };
        (worker, fanout)
    }

    /// Delivers beyond this relay from now on.
    pub(crate) fn join(&mut self, cluster: Arc<Cluster>) {
        self.cluster = Some(cluster);
    }

    /// Whether this relay owns a chat, or its copy: of a store that is shared, others own others.
    fn owns(&self, chat: &ChatId) -> bool {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.store.is_shared()) else { return true };
        if *chat.home() == self.region { cluster.is_owner(&chat_key(chat)) } else { cluster.is_owner(&[]) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) async fn run(mut self, mut committed: mpsc::UnboundedReceiver<Committed>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut batch, mut inputs) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => self.tick().await,
                Some(result) = self.results.recv() => self.result(result),
                count = self.inputs.recv_many(&mut inputs, TAKE) => {
                    if count == 0 {
                        break;
                    }
                    for input in inputs.drain(..) {
                        self.input(input).await;
                    }
                }
                count = committed.recv_many(&mut batch, TAKE), if self.saves.has_room() => {
                    if count == 0 {
                        break;
                    }
                    self.committed(std::mem::take(&mut batch)).await;
                }
            }
            self.flush_rows();
        }
        self.stop(&mut committed).await;
    }

    /// The last sessions and writes are gone: take up what is left, and save.
    async fn stop(mut self, committed: &mut mpsc::UnboundedReceiver<Committed>) {
        let mut batch = Vec::new();
        while let Ok(event) = committed.try_recv() {
            batch.push(event);
        }
        self.committed(batch).await;
        let devices: Vec<DeviceId> = self.devices.keys().cloned().collect();
        for device in devices {
            self.detach(&device);
        }
        self.flush_rows();
        self.flush_moves();
        self.save_progress(|_| true);
        self.saves.finish().await;
    }

    async fn committed(&mut self, batch: Vec<Committed>) {
        let mut events = batch.into_iter();
        self.meet(events.as_slice()).await;
        while let Some(event) = events.next() {
            self.metrics.fanout_backlog.dec();
            match event {
                Committed::Entry { chat, .. } if self.not_taken_up.contains(&chat) => {}
                Committed::Entry { chat, entry, recipients, .. } => self.entry(&chat, &entry, &recipients),
                Committed::Revoked { revocation } => self.revoked(&revocation),
                Committed::Dropped { chats } => self.dropped(&chats),
                // These forget users; entries of theirs may follow.
                Committed::Enrolled { device, enrolment } => {
                    self.metrics.enrolments.inc();
                    self.enrolled(device, enrolment).await;
                    self.meet(events.as_slice()).await;
                }
                Committed::Reopened => {
                    self.reopened().await;
                    self.meet(events.as_slice()).await;
                }
                Committed::TakenUp { chat, dirty } => {
                    self.found.remove(&chat);
                    if dirty {
                        self.taken_up(chat).await;
                    }
                }
            }
        }
    }

    fn entry(&mut self, chat: &ChatId, entry: &Entry, recipients: &[UserId]) {
        let now = self.now();
        let seq = entry.seq;
        let fan = self.chats.entry(chat.clone()).or_default();
        if fan.fanned.is_some_and(|fanned| seq <= fanned) {
            return;
        }
        fan.fanned = Some(seq);
        fan.active_millis = now;
        fan.author(entry.from.user(), seq);
        if matches!(entry.body, EntryBody::Updated(_)) && fan.loaded == Loaded::Yes {
            // Who takes part changed; the next acknowledgement asks again.
            fan.loaded = Loaded::No;
        }
        // Encoded once, shared by all who get it.
        let (event, record) = (OnceCell::new(), OnceCell::new());
        let event = || event.get_or_init(|| event_frame(&entry_event(chat, entry))).clone();
        let abroad = region::abroad(&self.region, chat, recipients);
        let served = region::served(&self.region, recipients, &abroad);
        let (mut behind, mut begin, mut pushes) = (Vec::new(), Vec::new(), Pushes::default());
        // Of a shared store, another relay may have removed a row before the chat was taken up: whoever counts on one begins
        // it again, once.
        let mut found = self.store.is_shared().then(|| self.found.entry(chat.clone()).or_default());
        let mut is_uncertain = |device: &DeviceId| found.as_mut().is_some_and(|found| found.insert(device.clone()));
        for device in served.filter_map(|user| self.users.get(user)).flatten() {
            let Some(state) = self.devices.get_mut(device).filter(|_| *device != entry.from) else { continue };
            let frame = || {
                if device.is_region() { record.get_or_init(|| region::record(entry)).clone() } else { event() }
            };
            // A region that takes part anew needs more than the entry.
            let live = !(device.is_region() && may_join(&entry.body));
            match state.offer(chat, seq, live.then_some(frame), &mut pushes, (self.config.window, now)) {
                Offer::Pushed { first } => {
                    self.metrics.pushes.inc();
                    let remote = || state.link.as_ref().is_some_and(|link| link.remote_epoch().is_some());
                    if sabotage::is(Sabotage::TrustedClaim) && remote() {
                        state.set(chat, None);
                    } else if first {
                        fan.waiting.insert(device.clone());
                    } else if let Some(Track::Live { open, row: Row::Written }) = state.track(chat)
                        && is_uncertain(device)
                    {
                        begin.push((device.clone(), open.first));
                    }
                }
                Offer::Behind { begin: from } => {
                    let is_uncertain = is_uncertain(device);
                    let counted_on = state.track(chat).map(Track::first).filter(|_| is_uncertain);
                    begin.extend(from.or(counted_on).map(|from| (device.clone(), from)));
                    if state.wants_drain() {
                        behind.push(device.clone());
                    }
                }
            }
        }
        pushes.send(chat, event, &self.metrics);
        for (device, from) in begin {
            self.begin_row(&device, chat, from);
        }
        for device in behind {
            self.drain(&device);
        }
        self.push_directly(chat, entry, recipients, &abroad, event);
    }

    async fn input(&mut self, input: Input) {
        match input {
            Input::Attached(link) => self.attach(link).await,
            Input::Detached(link) => {
                let current = self.devices.get(&link.device).and_then(|device| device.link.as_ref());
                // The late end of an old connection removes nothing of a new one.
                if current.is_some_and(|current| current.epoch == link.epoch) {
                    tracing::debug!(device = %link.device, epoch = link.epoch, "detached");
                    if link.device.is_region() {
                        self.serve_users_of(&link.device);
                    }
                    self.detach(&link.device);
                }
            }
            Input::Acks { link, acks } => {
                let user = link.device.user();
                for Ack { chat, up_to } in acks {
                    if link.device.is_region() {
                        self.taken(&link, &chat, up_to);
                    } else {
                        self.reached(&user, Some(&link), chat, up_to, false);
                    }
                }
                self.drain(&link.device);
            }
            Input::Read { user, chat, up_to } => self.reached(&user, None, chat, up_to, true),
            Input::Lacks { region, chat, have } => self.lacks(&region, &chat, have),
            Input::Restored => self.ask_to_compare(),
            Input::Owners => self.owners_changed().await,
            Input::Enrolled { device, enrolment, taken_up } => {
                self.enrolled(device, enrolment).await;
                // Whoever waits may have given up.
                let _ = taken_up.send(());
            }
            Input::Met(region) => drop(self.met.insert(region)),
            Input::Reached { region, chat, marks } => self.reached_elsewhere(&region, &chat, marks),
            Input::Floors { chat, floors } => self.floors(&chat, floors),
        }
    }

    async fn attach(&mut self, link: Arc<Link>) {
        let device = link.device.clone();
        if let Err(error) = self.load_users(std::iter::once(device.user())).await {
            tracing::warn!(%error, %device, "fan-out cannot read the device's inbox");
            if device.is_region() {
                // Nobody would come again: the link to its relay stays.
                self.unattached.push(link);
            } else {
                link.close(&error.refusal());
            }
            return;
        }
        if self.devices.get(&device).is_none_or(|known| known.enrolment < link.enrolment) {
            // Enrolled a moment ago, with the news of it still on its way; or by way of another relay.
            self.forget(&device);
            self.users.remove(&device.user());
            if self.load_users(std::iter::once(device.user())).await.is_err() {
                return;
            }
        }
        if link.is_closed() {
            // Its end may have been heard of before, and something newer may be attached already.
            return;
        }
        if let Some(current) = self.devices.get(&device).and_then(|state| state.link.as_ref())
            && current.epoch != link.epoch
        {
            if link.again && !current.is_closed() {
                // The device has moved on; its old edge does not know yet.
                link.close(&Code::Replaced.into());
                return;
            }
            current.close(&Code::Replaced.into());
        }
        self.detach(&device);
        if sabotage::is(Sabotage::DropRows) {
            self.drop_rows(&device);
        }
        tracing::debug!(%device, epoch = link.epoch, known = self.devices.contains_key(&device), "attached");
        if let Some(state) = self.devices.get_mut(&device) {
            state.link = Some(link);
        }
        self.drain(&device);
    }

    /// Sabotage: what waits for a device is forgotten.
    fn drop_rows(&mut self, device: &DeviceId) {
        let Some(state) = self.devices.get_mut(device) else { return };
        let chats: Vec<(ChatId, Track)> = state.tracks().map(|(chat, track)| (chat.clone(), *track)).collect();
        for (chat, track) in chats {
            state.set(&chat, None);
            let (from, to) = (track.first(), track.latest().unwrap_or(track.first()));
            self.moves.insert((device.clone(), chat), InboxChange::TookAll(SeqRange { from, to }));
        }
    }

    fn detach(&mut self, device: &DeviceId) {
        let Some(state) = self.devices.get_mut(device) else { return };
        if state.link.is_none() {
            return;
        }
        for (chat, from) in state.detach(self.store.is_shared()) {
            self.begin_row(device, &chat, from);
        }
    }

    /// Begins an inbox row; the chat does not wait for the device any more.
    fn begin_row(&mut self, device: &DeviceId, chat: &ChatId, from: Seq) {
        tracing::trace!(%device, %chat, %from, "an inbox row begins");
        let ticket = self.saves.next_ticket();
        if let Some(fan) = self.chats.get_mut(chat) {
            fan.waiting.remove(device);
            fan.begun.push((ticket, from));
            self.begun.push_back((ticket, chat.clone()));
        }
        let key = (device.clone(), chat.clone());
        // What waits to be changed of an earlier row comes first, or the new one would go with it.
        if let Some(change) = self.moves.remove(&key) {
            self.rows.push(self.inbox_write(key.clone(), change));
        }
        self.rows.push(self.inbox_write(key, InboxChange::Begin(from)));
    }

    fn inbox_write(&self, (device, chat): (DeviceId, ChatId), change: InboxChange) -> InboxWrite {
        let enrolment = self.devices.get(&device).map_or(0, |state| state.enrolment);
        InboxWrite { device, enrolment, chat, change }
    }

    fn result(&mut self, result: Report) {
        match result {
            Report::Page(page) => self.page(page),
            Report::Region(read) => self.region_page(read),
            Report::Told(told) => self.told(told),
            Report::Untaken(untaken) => self.push_untaken(untaken),
            Report::Loaded { chat, head, watermarks, floors } => {
                let copy = (*chat.home() != self.region).then_some(floors);
                if let Some(fan) = self.chats.get_mut(&chat) {
                    fan.load(&self.region, head, watermarks, copy);
                }
                // Without a head there is no such chat, and nothing to take of it.
                let deferred = self.deferred.remove(&chat).unwrap_or_default();
                for Deferred { user, link, up_to, read } in deferred.into_iter().filter(|_| head.is_some()) {
                    let head = self.chats.get(&chat).and_then(ChatFan::known_head);
                    self.reached_of(head, &user, link.as_ref(), chat.clone(), up_to, read);
                }
            }
            Report::LoadFailed { chat } => {
                self.deferred.remove(&chat);
                if let Some(fan) = self.chats.get_mut(&chat) {
                    fan.loaded = Loaded::No;
                }
            }
            Report::Saved(Saved { ticket, left }) => {
                for (device, chat, from) in left {
                    self.row_stays(&device, &chat, from);
                }
                while let Some((_, chat)) = self.begun.pop_front_if(|(begun, _)| *begun <= ticket) {
                    if let Some(fan) = self.chats.get_mut(&chat) {
                        fan.begun.retain(|(begun, _)| *begun > ticket);
                    }
                }
            }
        }
    }

    async fn tick(&mut self) {
        let now = self.now();
        self.time_out(now);
        let mut receipts = Vec::new();
        for (chat, fan) in &mut self.chats {
            receipts.extend(fan.receipts().into_iter().map(|(user, receipt)| (chat.clone(), user, receipt)));
        }
        for (chat, user, receipt) in receipts {
            let frame = event_frame(&Event::Receipt { chat: chat.clone(), receipt });
            for device in self.users.get(&user).into_iter().flatten() {
                if let Some(link) = self.devices.get(device).and_then(|d| d.link.as_ref()) {
                    // One that does not fit is told when the device asks for the chat.
                    link.push(&chat, None, frame.clone());
                }
            }
        }
        self.tell_regions();
        self.ticks += 1;
        if self.ticks.is_multiple_of(RECONCILE_TICKS) {
            let mut links = self.registry.links_now();
            links.retain(|link| link.device.home() == self.region);
            links.append(&mut self.unattached);
            for link in links {
                let known = self.devices.get(&link.device).and_then(|state| state.link.as_ref());
                if known.is_none_or(|known| known.epoch < link.epoch) {
                    self.attach(link).await;
                }
            }
        }
        if self.ticks.is_multiple_of(RESCAN_TICKS) {
            let waiting = self.devices.iter().filter(|(_, state)| state.wants_drain());
            for device in waiting.map(|(device, _)| device.clone()).collect::<Vec<_>>() {
                self.drain(&device);
            }
            self.send_again(now);
        }
        self.take_up_the_rest().await;
        self.look_for_rows().await;
        self.flush_moves();
        let idle = if self.store.is_shared() { SHARED_IDLE_MILLIS } else { IDLE_MILLIS };
        self.save_progress(|fan| {
            fan.lag() >= SAVE_LAG || (fan.is_settled() && now.saturating_sub(fan.active_millis) >= idle)
        });
        self.chats.retain(|_, fan| {
            fan.loaded == Loaded::Asked
                || fan.is_owed()
                || !fan.is_settled()
                || now.saturating_sub(fan.active_millis) < 2 * idle
                || fan.lag() > 0
        });
        self.forget_idle_users();
        if self.found.len() > FOUND_CHATS {
            self.found.clear();
        }
    }

    fn save_progress(&mut self, due: impl Fn(&ChatFan) -> bool) {
        let mut all = Vec::new();
        for (chat, fan) in &mut self.chats {
            if !due(fan) {
                continue;
            }
            let open = fan.waiting.iter().filter_map(|device| match self.devices.get(device)?.track(chat)? {
                Track::Live { open, .. } => Some(open.first),
                Track::Behind { .. } => None,
            });
            let first_open = open.min();
            all.extend(fan.progress(chat, first_open));
        }
        if !all.is_empty() {
            self.saves.progress(all);
        }
    }

    fn flush_rows(&mut self) {
        if !self.rows.is_empty() {
            self.saves.rows(std::mem::take(&mut self.rows));
        }
    }

    fn flush_moves(&mut self) {
        if self.moves.is_empty() {
            return;
        }
        let moves = std::mem::take(&mut self.moves);
        self.saves.rows(moves.into_iter().map(|(key, change)| self.inbox_write(key, change)).collect());
    }
}

/// Whether a region may take part from this entry on that did not before.
fn may_join(body: &EntryBody) -> bool {
    matches!(body, EntryBody::Created { .. } | EntryBody::Updated(Change::Add(_)))
}

fn entry_event(chat: &ChatId, entry: &Entry) -> Event {
    Event::Entry { chat: chat.clone(), entry: entry.to_wire() }
}

fn event_frame(event: &Event) -> Bytes {
    let mut frame = Vec::with_capacity(512);
    codec::encode_event(event, &mut frame).expect("an event is smaller than a frame: its parts are bounded");
    frame.into()
}
