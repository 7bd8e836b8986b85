//! The rules against a home in memory: who may do what, and the numbering rule under loss, repetition, reordering,
//! refusal and restored backups.

use crate::blob::{Blob, BlobState};
use crate::number::{Link, Mark, Void};
use crate::{Action, Chat, Command, Decided, Decision, Entry, Outcome, Sender, View, decide};
use godwit_wire::blob::{BlobHash, BlobRef};
use godwit_wire::entry::{Change, ChatKind, Content, EntryBody, Member, Role, Title};
use godwit_wire::frame::Stamp;
use godwit_wire::{ChatId, Code, MessageId, Seq, UnixMillis, UserId, limits};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use uuid::Uuid;

/// One chat's home, with everything in memory.
#[derive(Clone, Debug, Default)]
struct Home {
    chat: Option<Chat>,
    log: Vec<Entry>,
    marks: HashMap<Sender, Mark>,
    voids: HashMap<(Sender, u64), Void>,
    /// Numbers of what was sent under another enrolment.
    known: HashMap<(Sender, u64), (MessageId, Seq, UnixMillis)>,
    blobs: HashMap<BlobHash, Blob>,
    /// Who may refer to which.
    held: HashSet<(BlobHash, UserId)>,
    clock: u64,
}

struct HomeView<'a> {
    home: &'a Home,
    sender: &'a Sender,
    mark: Mark,
}

impl View for HomeView<'_> {
    type Fault = Infallible;

    fn chat(&self) -> Option<&Chat> {
        self.home.chat.as_ref()
    }

    fn mark(&self) -> &Mark {
        &self.mark
    }

    fn decided(&self, n: u64) -> Result<Option<Decided>, Infallible> {
        if let Some(void) = self.home.voids.get(&(self.sender.clone(), n)) {
            return Ok(Some(Decided { id: void.id, outcome: Outcome::Refused(void.refusal.clone()) }));
        }
        if let Some((id, seq, at)) = self.home.known.get(&(self.sender.clone(), n)).copied() {
            return Ok(Some(Decided { id, outcome: Outcome::Sent { seq, at } }));
        }
        let entry = self
            .home
            .log
            .iter()
            .find(|e| e.n == n && e.from == self.sender.device && e.enrolment == self.sender.enrolment);
        Ok(entry.map(|e| Decided { id: e.id, outcome: Outcome::Sent { seq: e.seq, at: e.at } }))
    }

    fn sent_before(&self, id: MessageId) -> Result<Option<(Seq, UnixMillis)>, Infallible> {
        let same = |e: &&Entry| e.id == id && e.from == self.sender.device && e.enrolment != self.sender.enrolment;
        Ok(self.home.log.iter().find(same).map(|e| (e.seq, e.at)))
    }

    fn entry(&self, seq: Seq) -> Result<Option<Entry>, Infallible> {
        Ok(self.home.log.get(usize::try_from(seq.get() - 1).unwrap()).cloned())
    }

    fn blob(&self, named: &BlobRef) -> Result<(Option<Blob>, bool), Infallible> {
        let is_held = self.home.held.contains(&(named.hash, self.sender.device.user()));
        Ok((self.home.blobs.get(&named.hash).cloned(), is_held))
    }

    fn user_exists(&self, user: &UserId) -> Result<bool, Infallible> {
        Ok(!user.as_str().starts_with("nobody"))
    }
}

impl Home {
    fn run(&mut self, command: &Command) -> Outcome {
        self.clock += 1;
        let mark = self.marks.get(&command.sender).copied().unwrap_or_default();
        let view = HomeView { home: self, sender: &command.sender, mark };
        let Ok(decision) = decide(command, &view, UnixMillis(self.clock));
        let id = Some(command.stamp.id);
        match decision {
            Decision::Answer(outcome) => outcome,
            Decision::Known { seq, at } => {
                self.marks.insert(command.sender.clone(), Mark { n: command.stamp.n, id, last: mark.last });
                self.known.insert((command.sender.clone(), command.stamp.n), (command.stamp.id, seq, at));
                Outcome::Sent { seq, at }
            }
            Decision::Void(refusal) => {
                self.marks.insert(command.sender.clone(), Mark { n: command.stamp.n, id, last: mark.last });
                let void = Void { id: command.stamp.id, refusal: refusal.clone() };
                self.voids.insert((command.sender.clone(), command.stamp.n), void);
                Outcome::Refused(refusal)
            }
            Decision::Append(entry) => {
                match &mut self.chat {
                    Some(chat) => drop(chat.apply(&entry)),
                    None => self.chat = Chat::created(command.stamp.chat.clone(), &entry).map(|(chat, _)| chat),
                }
                let last = Some(Link { n: entry.n, seq: entry.seq });
                self.marks.insert(command.sender.clone(), Mark { n: entry.n, id, last });
                let outcome = Outcome::Sent { seq: entry.seq, at: entry.at };
                self.log.push(*entry);
                outcome
            }
        }
    }
}

fn user(name: &str) -> UserId {
    format!("{name}@eu").parse().unwrap()
}

fn sender(name: &str) -> Sender {
    Sender { device: user(name).device("phone").unwrap(), enrolment: 1 }
}

fn group() -> ChatId {
    "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
}

fn members(all: &[(&str, Role)]) -> Vec<Member> {
    all.iter().map(|(name, role)| Member { user: user(name), role: *role }).collect()
}

/// A home with one chat, and devices that count their numbers.
struct Scene {
    home: Home,
    next: HashMap<String, u64>,
}

impl Scene {
    /// alice owns it, andy is an admin, bob and carol are members.
    fn group() -> Self {
        let mut scene = Self { home: Home::default(), next: HashMap::new() };
        let participants = members(&[("andy", Role::Admin), ("bob", Role::Member), ("carol", Role::Member)]);
        let create = Action::Create { kind: ChatKind::Group, title: Title::default(), participants };
        assert!(matches!(scene.act("alice", create), Outcome::Sent { .. }));
        scene
    }

    fn act(&mut self, name: &str, action: Action) -> Outcome {
        self.act_in(name, group(), action)
    }

    fn act_in(&mut self, name: &str, chat: ChatId, action: Action) -> Outcome {
        let n = self.next.entry(name.to_owned()).or_insert(1);
        let id = MessageId(Uuid::from_u128(u128::from(*n) << 64 | name.len() as u128));
        let stamp = Stamp { chat, n: *n, oldest: *n, id, previous: None };
        *n += 1;
        self.home.run(&Command { sender: sender(name), stamp, action })
    }

    fn change(&mut self, name: &str, change: Change) -> Result<Seq, Code> {
        code(self.act(name, Action::Update(change)))
    }

    fn say(&mut self, name: &str) -> Result<Seq, Code> {
        code(self.act(name, send("hello")))
    }
}

fn send(text: &'static str) -> Action {
    Action::Send { content: Content(text.into()), blobs: Vec::new() }
}

fn code(outcome: Outcome) -> Result<Seq, Code> {
    match outcome {
        Outcome::Sent { seq, .. } => Ok(seq),
        Outcome::Refused(refusal) => Err(refusal.code),
    }
}

fn add(name: &str) -> Change {
    Change::Add(members(&[(name, Role::Member)]))
}

fn role(name: &str, role: Role) -> Change {
    Change::Role(Member { user: user(name), role })
}

#[test]
fn who_may_do_what_in_a_group() {
    let no = Err(Code::NotAllowed);
    for (name, title, add_member, remove_member, remove_admin, give_role) in [
        ("alice", true, true, true, true, true),
        ("andy", true, true, true, false, false),
        ("bob", false, false, false, false, false),
    ] {
        let allowed = |change: Change, yes: bool| {
            let mut scene = Scene::group();
            scene.change("alice", Change::Add(members(&[("dora", Role::Admin)]))).unwrap();
            let got = scene.change(name, change.clone());
            assert_eq!(got.is_ok(), yes, "{name}: {change:?}: {got:?}");
            assert!(yes || got == no, "{name}: {change:?}: {got:?}");
        };
        allowed(Change::Title(Title::parse("x").unwrap()), title);
        allowed(add("emil"), add_member);
        allowed(Change::Remove(user("carol")), remove_member);
        allowed(Change::Remove(user("dora")), remove_admin);
        allowed(role("carol", Role::Admin), give_role);
        allowed(Change::Add(members(&[("emil", Role::Admin)])), give_role);
    }
}

#[test]
fn a_chat_keeps_an_owner() {
    let mut scene = Scene::group();
    assert_eq!(scene.change("alice", Change::Leave), Err(Code::Conflict));
    assert_eq!(scene.change("alice", role("alice", Role::Member)), Err(Code::Conflict));
    scene.change("alice", role("bob", Role::Owner)).unwrap();
    assert_eq!(scene.change("bob", Change::Remove(user("alice"))), Err(Code::NotAllowed));
    assert_eq!(scene.change("bob", role("alice", Role::Member)), Err(Code::NotAllowed));
    scene.change("alice", Change::Leave).unwrap();
    assert_eq!(scene.say("alice"), Err(Code::NotParticipant));
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    let mut scene = Scene::group();
    for change in [
        add("bob"),
        Change::Remove(user("emil")),
        Change::Remove(user("alice")),
        role("bob", Role::Member),
        role("emil", Role::Admin),
        Change::Add([members(&[("emil", Role::Member)]), members(&[("emil", Role::Member)])].concat()),
    ] {
        assert_eq!(scene.change("alice", change.clone()), Err(Code::Conflict), "{change:?}");
    }
    assert_eq!(scene.change("alice", Change::Add(vec![])), Err(Code::Invalid));
    assert_eq!(scene.change("alice", add("nobody")), Err(Code::NoSuchUser));
    let crowd = (0..limits::PARTICIPANTS).map(|i| Member { user: user(&format!("u{i}")), role: Role::Member });
    assert_eq!(scene.change("alice", Change::Add(crowd.collect())), Err(Code::TooLarge));
}

#[test]
fn recipients_are_those_at_the_entry() {
    let mut scene = Scene::group();
    scene.say("alice").unwrap();
    let removal = scene.change("alice", Change::Remove(user("bob"))).unwrap();
    let without = scene.say("alice").unwrap();
    let addition = scene.change("alice", add("bob")).unwrap();
    let chat = scene.home.chat.as_ref().unwrap();
    let gets = |seq| chat.recipients_at(seq).contains(&user("bob"));
    assert!(gets(Seq::FIRST) && gets(removal) && !gets(without) && gets(addition));
}

#[test]
fn a_removed_participant_is_refused_and_the_number_is_void() {
    let mut scene = Scene::group();
    scene.change("alice", Change::Remove(user("bob"))).unwrap();
    assert_eq!(scene.say("bob"), Err(Code::NotParticipant));
    scene.change("alice", add("bob")).unwrap();
    // The same request again is answered as it was, though bob may send now.
    scene.next.insert("bob".into(), 1);
    assert_eq!(scene.say("bob"), Err(Code::NotParticipant));
    assert!(scene.say("bob").is_ok());
}

#[test]
fn a_stranger_leaves_no_trace() {
    let mut scene = Scene::group();
    assert_eq!(scene.say("eve"), Err(Code::NotParticipant));
    assert!(scene.home.marks.keys().all(|sender| sender.device.user() != user("eve")));
    let participants = members(&[("bob", Role::Member)]);
    let create = Action::Create { kind: ChatKind::Group, title: Title::default(), participants };
    assert_eq!(code(scene.act("eve", create)), Err(Code::NotParticipant), "nor learns that the chat exists");
}

#[test]
fn redaction_is_the_authors_and_the_admins() {
    let mut scene = Scene::group();
    let bobs = scene.say("bob").unwrap();
    let mut redact = |name: &str, of: Seq| code(scene.act(name, Action::Redact { of }));
    assert_eq!(redact("carol", bobs), Err(Code::NotAllowed));
    assert_eq!(redact("bob", Seq::FIRST), Err(Code::NoSuchMessage), "not a message");
    assert_eq!(redact("bob", Seq::new(99).unwrap()), Err(Code::NoSuchMessage), "not there");
    assert!(redact("andy", bobs).is_ok() && redact("bob", bobs).is_ok());
}

#[test]
fn a_message_refers_to_blobs_that_are_stored_and_its_senders() {
    let mut scene = Scene::group();
    let hash = BlobHash([7; 32]);
    let with = |blobs: &[BlobRef]| Action::Send { content: Content("a walk".into()), blobs: blobs.to_vec() };
    let blob = BlobRef { hash, size_bytes: 100 };
    let refused = |scene: &mut Scene, blobs: &[BlobRef]| code(scene.act("bob", with(blobs)));

    assert_eq!(refused(&mut scene, &[blob]), Err(Code::NoSuchBlob), "nobody has it");
    let has = |state| Blob { size_bytes: 100, by: user("bob"), since: UnixMillis(0), state };
    scene.home.held.insert((hash, user("bob")));
    for state in [BlobState::Uploading { upload: None }, BlobState::Going { upload: None }] {
        scene.home.blobs.insert(hash, has(state));
        assert_eq!(refused(&mut scene, &[blob]), Err(Code::NoSuchBlob));
    }
    scene.home.blobs.insert(hash, has(BlobState::Stored));
    assert_eq!(refused(&mut scene, &[BlobRef { size_bytes: 99, ..blob }]), Err(Code::NoSuchBlob), "another size");
    assert_eq!(
        refused(&mut scene, &[blob, BlobRef { hash: BlobHash([8; 32]), ..blob }]),
        Err(Code::NoSuchBlob),
        "one of two"
    );
    assert_eq!(code(scene.act("carol", with(&[blob]))), Err(Code::NoSuchBlob), "not hers");
    let seq = code(scene.act("bob", with(&[blob]))).unwrap();
    let entry = scene.home.log.iter().find(|entry| entry.seq == seq).unwrap();
    assert_eq!(entry.body, EntryBody::Message { content: Content("a walk".into()), blobs: vec![blob] });
}

#[test]
fn a_direct_chat_is_derived_and_fixed() {
    let chat = ChatId::direct(&user("alice"), &user("bob"));
    let create = |other: &str, title: &str| Action::Create {
        kind: ChatKind::Direct,
        title: Title::parse(title).unwrap(),
        participants: members(&[(other, Role::Member)]),
    };
    let mut scene = Scene { home: Home::default(), next: HashMap::new() };
    assert_eq!(code(scene.act_in("alice", chat.clone(), create("carol", ""))), Err(Code::Invalid));
    assert_eq!(code(scene.act_in("alice", chat.clone(), create("bob", "x"))), Err(Code::Invalid));
    assert_eq!(code(scene.act_in("alice", group(), create("bob", ""))), Err(Code::Invalid));
    scene.next.clear();
    assert!(code(scene.act_in("alice", chat.clone(), create("bob", ""))).is_ok());
    assert_eq!(code(scene.act_in("bob", chat.clone(), create("alice", ""))), Err(Code::AlreadyExists));
    assert!(code(scene.act_in("bob", chat.clone(), send("hi"))).is_ok());
    for change in [Change::Leave, add("carol"), Change::Title(Title::default())] {
        assert_eq!(code(scene.act_in("alice", chat.clone(), Action::Update(change))), Err(Code::Conflict));
    }
}

#[test]
fn time_never_goes_back_in_a_chat() {
    let mut scene = Scene::group();
    scene.home.clock = 1_000;
    scene.say("alice").unwrap();
    scene.home.clock = 5;
    scene.say("alice").unwrap();
    assert!(scene.home.log.windows(2).all(|pair| pair[0].at <= pair[1].at));
}

/// A device that follows the rule: it keeps a message until it hears its outcome, and sends again what it keeps.
#[derive(Clone, Debug, Default)]
struct Phone {
    kept: Vec<(u64, MessageId)>,
    next: u64,
    /// Ids by number, as far as it remembers.
    ids: HashMap<u64, MessageId>,
    /// The lowest number that was taken, and the first free one.
    renumber: Option<(u64, u64)>,
    in_flight: std::collections::BTreeSet<u64>,
    /// All it remembers to have written, in order.
    written: Vec<MessageId>,
}

impl Phone {
    fn write(&mut self, id: MessageId) {
        self.written.push(id);
        self.next += 1;
        self.in_flight.insert(self.next);
        self.kept.push((self.next, id));
        self.ids.insert(self.next, id);
    }

    fn sends(&self) -> Vec<Stamp> {
        let oldest = self.kept.first().map_or(0, |(n, _)| *n);
        let previous = |n: &u64| self.ids.get(&(n - 1)).copied();
        let stamps =
            self.kept.iter().map(|(n, id)| Stamp { chat: group(), n: *n, oldest, id: *id, previous: previous(n) });
        stamps.collect()
    }

    /// Once everything on its way is answered: from the lowest number that was taken on, other numbers. What is below
    /// has heard, or will hear, its own outcome.
    fn renumber(&mut self) -> bool {
        let Some((from, next)) = self.renumber.filter(|_| self.in_flight.is_empty()) else { return false };
        self.renumber = None;
        let taken = self.kept.iter_mut().filter(|(n, _)| *n >= from);
        for (i, kept) in (0..).zip(taken) {
            self.ids.remove(&kept.0);
            kept.0 = next + i;
            self.next = kept.0;
        }
        for (n, id) in &self.kept {
            self.ids.insert(*n, *id);
        }
        true
    }

    fn resend(&mut self) -> Vec<Stamp> {
        self.in_flight = self.kept.iter().map(|(n, _)| *n).collect();
        self.sends()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write,
    Reconnect,
    /// The home takes one of the requests on their way; the copy may stay on its way, the answer may be lost.
    Arrive {
        which: usize,
        stays: bool,
        answer_lost: bool,
    },
    Membership(bool),
    Backup,
    Restore,
}

/// What happens to any phone.
fn common() -> impl Strategy<Value = Step> + Clone {
    prop_oneof![
        4 => Just(Step::Write),
        3 => Just(Step::Reconnect),
        12 => (any::<usize>(), prop::bool::weighted(0.2), prop::bool::weighted(0.3))
            .prop_map(|(which, stays, answer_lost)| Step::Arrive { which, stays, answer_lost }),
        2 => any::<bool>().prop_map(Step::Membership),
    ]
}

/// And to one that is restored from backups.
fn with_restores() -> impl Strategy<Value = Step> {
    prop_oneof![21 => common(), 1 => Just(Step::Backup), 1 => Just(Step::Restore)]
}

/// One run of the rule: a phone, its home, and a network that reorders, repeats and loses.
struct Run {
    scene: Scene,
    phone: Phone,
    backup: Phone,
    wire: Vec<Stamp>,
    written: Vec<MessageId>,
    told: HashMap<MessageId, Vec<Result<Seq, Code>>>,
    /// Messages that a restore forgot: nobody waits for them.
    forgotten: Vec<MessageId>,
    member: bool,
    broken: bool,
    /// A connection's requests run before the next connection is let in, as one relay sees to.
    strict: bool,
}

impl Run {
    fn new(strict: bool) -> Self {
        Self {
            scene: Scene::group(),
            phone: Phone::default(),
            backup: Phone::default(),
            wire: Vec::new(),
            written: Vec::new(),
            told: HashMap::new(),
            forgotten: Vec::new(),
            member: true,
            broken: false,
            strict,
        }
    }

    /// Checks after every step, and that it settles in the end.
    fn all(mut self, steps: Vec<Step>) -> Result<(), TestCaseError> {
        for step in steps {
            self.step(step);
            self.check()?;
        }
        self.settle()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write => {
                let id = MessageId(Uuid::from_u128(1000 + self.written.len() as u128));
                self.written.push(id);
                self.phone.write(id);
                let sends = self.phone.sends();
                self.wire.extend(sends.last().cloned());
            }
            Step::Reconnect => {
                self.phone.renumber = None;
                self.broken = false;
                if self.strict {
                    self.wire.clear();
                }
                self.wire.extend(self.phone.resend());
            }
            Step::Arrive { which, stays, answer_lost } => {
                if self.wire.is_empty() {
                    return;
                }
                // A connection keeps the order of its requests and of its answers, up to where it breaks.
                let (which, stays) = if self.strict { (0, false) } else { (which % self.wire.len(), stays) };
                self.broken |= self.strict && answer_lost;
                let answer_lost = answer_lost || self.broken;
                let stamp = if stays { self.wire[which].clone() } else { self.wire.remove(which) };
                self.arrive(stamp, answer_lost);
            }
            Step::Membership(member) => {
                if member != self.member {
                    let change = if member { add("bob") } else { Change::Remove(user("bob")) };
                    self.scene.change("alice", change).unwrap();
                    self.member = member;
                }
            }
            Step::Backup => self.backup = self.phone.clone(),
            Step::Restore => {
                let lost = self.phone.kept.iter().map(|(_, id)| *id);
                let kept: Vec<_> = self.backup.kept.iter().map(|(_, id)| *id).collect();
                self.forgotten.extend(lost.filter(|id| !kept.contains(id)));
                self.phone = self.backup.clone();
                self.phone.renumber = None;
                self.phone.in_flight.clear();
                // A relay lets a device in only after its older connection's requests have run, and a client compares
                // the log with what it keeps before it sends.
                self.wire.clear();
                self.broken = false;
                let log: Vec<_> = self.scene.home.log.iter().map(|e| (e.id, e.seq)).collect();
                let known = |id: &MessageId| log.iter().find(|(logged, _)| logged == id).map(|(_, seq)| *seq);
                for (_, id) in &self.phone.kept {
                    // What it had been refused it does not know any more, and may send anew.
                    let told = self.told.entry(*id).or_default();
                    told.retain(Result::is_ok);
                    told.extend(known(id).map(Ok));
                }
                self.phone.kept.retain(|(_, id)| known(id).is_none());
                let sends = self.phone.resend();
                self.wire.extend(sends);
            }
        }
    }

    fn arrive(&mut self, stamp: Stamp, answer_lost: bool) {
        let (n, id) = (stamp.n, stamp.id);
        let outcome = self.scene.home.run(&Command { sender: sender("bob"), stamp, action: send("x") });
        if answer_lost {
            return;
        }
        let Some(at) = self.phone.kept.iter().position(|kept| *kept == (n, id)) else { return };
        self.phone.in_flight.remove(&n);
        match outcome {
            Outcome::Refused(refusal) if refusal.code == Code::NumberTaken => {
                let next = refusal.next.unwrap();
                let (from, before) = self.phone.renumber.unwrap_or((n, next));
                self.phone.renumber = Some((from.min(n), before.max(next)));
            }
            Outcome::Refused(refusal) if refusal.code.is_passing() => {}
            lasting => {
                self.phone.kept.remove(at);
                self.told.entry(id).or_default().push(code(lasting));
            }
        }
        if self.phone.renumber() {
            let sends = self.phone.resend();
            self.wire.extend(sends);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let log: Vec<MessageId> =
            self.scene.home.log.iter().filter(|e| e.from.user() == user("bob")).map(|e| e.id).collect();
        let mut seen = std::collections::HashSet::new();
        for id in &log {
            prop_assert!(seen.insert(*id), "{id} is in the log twice");
        }
        for (id, outcomes) in &self.told {
            for outcome in outcomes {
                prop_assert_eq!(log.contains(id), outcome.is_ok(), "{} was told {:?}", id, outcome);
            }
        }
        // Of what the phone remembers; what it wrote in a future that a restore took from it stands where it stands. So
        // does what was refused in such a future, and is sent anew by a phone that does not know of it.
        let refused: Vec<MessageId> = self.scene.home.voids.values().map(|void| void.id).collect();
        let place = |id: &MessageId| self.phone.written.iter().position(|written| written == id);
        let places: Vec<usize> = log.iter().filter(|id| !refused.contains(id)).filter_map(place).collect();
        prop_assert!(places.is_sorted(), "out of the order of writing: {log:?}");
        Ok(())
    }

    /// The network heals: everything that is kept is decided in a few rounds.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..8 {
            self.wire.clear();
            self.phone.renumber = None;
            for stamp in self.phone.resend() {
                self.arrive(stamp, false);
            }
            self.check()?;
        }
        prop_assert!(self.phone.kept.is_empty(), "stuck: {:?}", self.phone.kept);
        let log: Vec<MessageId> = self.scene.home.log.iter().map(|e| e.id).collect();
        for id in &self.written {
            let told = self.told.get(id).is_some_and(|outcomes| !outcomes.is_empty());
            prop_assert!(told || log.contains(id) || self.forgotten.contains(id), "{id} is lost");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_number_means_one_message(steps in prop::collection::vec(common(), 0..80)) {
        Run::new(false).all(steps)?;
    }

    /// A phone that is restored from a backup: nothing twice, nothing stuck, nothing told that is not so, and what it
    /// writes stays in order.
    #[test]
    fn a_restored_phone_renumbers(steps in prop::collection::vec(with_restores(), 0..80)) {
        Run::new(true).all(steps)?;
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut home = Scene::group().home;
    for (n, oldest) in [(0, 0), (0, 1), (1, 0), (1, 2), (u64::MAX, u64::MAX)] {
        let stamp = Stamp { chat: group(), n, oldest, id: MessageId(Uuid::nil()), previous: None };
        let outcome = home.run(&Command { sender: sender("bob"), stamp, action: send("x") });
        assert_eq!(code(outcome), Err(Code::Invalid), "n {n}, oldest {oldest}");
    }
}

#[test]
fn an_entry_is_kept_as_bytes_and_comes_back() {
    let mut scene = Scene::group();
    scene.say("bob").unwrap();
    for entry in &scene.home.log {
        let bytes = crate::entry::encode_record(entry);
        assert_eq!(crate::entry::decode_record::<Entry>(&bytes).as_ref(), Ok(entry));
        let newer = [&[9], &bytes[1..]].concat();
        assert_eq!(crate::entry::decode_record::<Entry>(&newer), Err(crate::entry::RecordError::Newer(9)));
    }
    assert!(matches!(scene.home.log[1].body, EntryBody::Message { .. }));
}
