//! The bytes of every frame, both ways, and what arbitrary bytes do.

use crate::blob::{BlobHash, BlobRef, Manifest};
use crate::code::{Code, Refusal};
use crate::codec::{self, Decoded, Frame, FrameReader};
use crate::entry::{Change, ChatKind, Content, EntryBody, Known, LogEntry, Member, Role, Title};
use crate::frame::*;
use crate::id::{ChatId, MessageId, RelayId, Seq, UserId};
use crate::{UnixMillis, limits};
use bytes::Bytes;
use proptest::prelude::*;
use std::fmt::{Debug, Write};
use std::time::Duration;
use uuid::Uuid;

fn chat() -> ChatId {
    "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap()
}

fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

fn stamp() -> Stamp {
    Stamp {
        chat: chat(),
        n: 300,
        oldest: 299,
        id: MessageId(Uuid::from_u128(7)),
        previous: Some(MessageId(Uuid::from_u128(6))),
    }
}

fn member(user: &str, role: Role) -> Member {
    Member { user: user.parse().unwrap(), role }
}

fn entry(body: EntryBody) -> LogEntry {
    LogEntry {
        seq: seq(200),
        at: UnixMillis(1_764_000_000_000),
        from: "alice@eu/phone".parse().unwrap(),
        id: MessageId(Uuid::from_u128(7)),
        body: Known::Yes(body),
    }
}

fn bodies() -> Vec<EntryBody> {
    vec![
        EntryBody::Message {
            content: Content(Bytes::from_static(b"hi")),
            blobs: vec![BlobRef { hash: BlobHash([9; 32]), size_bytes: 1 << 20 }],
        },
        EntryBody::Created {
            kind: ChatKind::Group,
            title: Title::parse("walks").unwrap(),
            participants: vec![member("alice@eu", Role::Owner), member("bob@us", Role::Member)],
        },
        EntryBody::Updated(Change::Leave),
        EntryBody::Redaction { of: seq(5) },
        EntryBody::Erased { by: seq(6) },
    ]
}

fn changes() -> Vec<Change> {
    vec![
        Change::Title(Title::parse("hills").unwrap()),
        Change::Add(vec![member("carol@eu", Role::Admin)]),
        Change::Remove("bob@us".parse().unwrap()),
        Change::Role(member("bob@us", Role::Admin)),
        Change::Leave,
    ]
}

fn requests() -> Vec<Request> {
    let options = Options::default();
    let mut all = vec![
        Request::Hello(Hello { client: "godwit-chat 0.1.0".into(), options: options.clone() }),
        Request::CreateChat(CreateChat {
            stamp: stamp(),
            kind: ChatKind::Direct,
            title: Title::default(),
            participants: vec![member("bob@us", Role::Member)],
            options: options.clone(),
        }),
    ];
    all.extend(
        changes()
            .into_iter()
            .map(|change| Request::UpdateChat(UpdateChat { stamp: stamp(), change, options: options.clone() })),
    );
    all.extend([
        Request::SendMessage(SendMessage {
            stamp: stamp(),
            content: Content(Bytes::from_static(b"hi")),
            blobs: vec![],
            options: options.clone(),
        }),
        Request::Redact(Redact { stamp: stamp(), of: seq(5), options }),
        Request::Ack(vec![Ack { chat: chat(), up_to: seq(7) }]),
        Request::ListChats(ListChats { after: Some(chat()), limit: 100 }),
        Request::GetChat { chat: chat() },
        Request::History(History { chat: chat(), range: Range::Before(Some(seq(9))), limit: 50 }),
        Request::History(History { chat: chat(), range: Range::From(seq(9)), limit: 50 }),
        Request::MarkRead { chat: chat(), up_to: seq(7) },
        Request::Renew { csr: Bytes::from_static(b"csr") },
        Request::BeginBlob { chat: chat(), blob: Manifest { size_bytes: 1 << 20, digests: vec![[9; 32]] } },
        Request::PutPart { chat: chat(), hash: BlobHash([9; 32]), part: 3, from: 4096 },
        Request::FetchBlob {
            chat: chat(),
            seq: seq(9),
            hash: BlobHash([9; 32]),
            from: 65_552,
            len: 1 << 20,
            url: true,
        },
        Request::GetManifest { chat: chat(), seq: seq(9), hash: BlobHash([9; 32]) },
        Request::CopyBlob {
            chat: chat(),
            seq: seq(9),
            hash: BlobHash([9; 32]),
            to: ChatId::direct(&"alice@eu".parse().unwrap(), &"bob@us".parse().unwrap()),
        },
        Request::PartUrl { chat: chat(), hash: BlobHash([9; 32]), part: 3 },
    ]);
    all
}

fn summary() -> ChatSummary {
    ChatSummary {
        chat: chat(),
        kind: ChatKind::Group,
        title: Title::parse("walks").unwrap(),
        role: Some(Role::Owner),
        head: seq(9),
        next: seq(8),
        receipt: Receipt { delivered: Some(seq(4)), read: None },
    }
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Welcome(Welcome {
            relay: RelayId::parse("eu/eu-1").unwrap(),
            now: UnixMillis(1_764_000_000_000),
            store_generation: 3,
            certificate_expires: UnixMillis(1_764_600_000_000),
            relays: vec![Address("relay.example:4433".into())],
        }),
        Reply::Sent { seq: seq(1), at: UnixMillis(1_764_000_000_000) },
        Reply::Queued,
        Reply::Refused(Refusal::retry(Code::RateLimited, Duration::from_millis(1500))),
        Reply::Refused(Refusal::with_next(Code::OutOfOrder, 4)),
        Reply::Done,
        Reply::ChatList(ChatList { chats: vec![summary()], more: true }),
        Reply::ChatInfo(ChatInfo { summary: summary(), participants: vec![member("bob@us", Role::Member)] }),
        Reply::HistoryPage(HistoryPage {
            entries: bodies().into_iter().map(entry).collect(),
            hidden: vec![SeqRange { from: seq(1), to: seq(3) }],
            head: seq(200),
        }),
        Reply::Certificate(vec![Credential(Bytes::from_static(b"leaf"))]),
        Reply::Unsupported { variant: 77 },
        Reply::Elsewhere {
            reason: Refusal::retry(Code::Busy, Duration::from_secs(1)),
            relays: vec![Address("relay.example:4433".into())],
        },
        Reply::BlobState(BlobState::Stored),
        Reply::BlobState(BlobState::Missing(vec![
            MissingPart { part: 0, has: 0 },
            MissingPart { part: 300, has: 4096 },
        ])),
        Reply::BlobBytes { len: 1 << 20 },
        Reply::BlobManifest(Manifest { size_bytes: 1 << 20, digests: vec![[9; 32]] }),
        Reply::BlobUrl(BlobUrl {
            url: "https://blobs.example/9".into(),
            headers: vec![Header { name: "content-length".into(), value: "5".into() }],
            expires: UnixMillis(1_764_000_000_000),
        }),
    ]
}

fn events() -> Vec<Event> {
    let range = SeqRange { from: seq(1), to: seq(3) };
    let mut all: Vec<_> = bodies().into_iter().map(|b| Event::Entry { chat: chat(), entry: entry(b) }).collect();
    all.extend([
        Event::Hidden { chat: chat(), range },
        Event::Gap { chat: chat(), range },
        Event::Receipt { chat: chat(), receipt: Receipt { delivered: Some(seq(4)), read: Some(seq(3)) } },
        Event::GoAway {
            reason: Refusal::because(Code::ShuttingDown, "restart"),
            relays: vec![Address("relay.example:4433".into())],
        },
        Event::Resumed,
    ]);
    all
}

fn numbered(frame: &impl Frame) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode_numbered(5, frame, &mut out).unwrap();
    out
}

fn event_bytes(event: &Event) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode_event(event, &mut out).unwrap();
    out
}

/// Every frame's first word in its `Debug` form is its kind.
fn lines<T: Debug>(all: &[T], bytes: impl Fn(&T) -> Vec<u8>, out: &mut String) {
    for frame in all {
        let text = format!("{frame:?}");
        let kind = text.split(|c: char| !c.is_alphanumeric()).next().unwrap();
        let hex = bytes(frame).iter().fold(String::new(), |mut hex, b| {
            write!(hex, "{b:02x}").unwrap();
            hex
        });
        writeln!(out, "{kind} {hex}").unwrap();
    }
}

fn kinds<T: Debug>(all: &[T]) -> u32 {
    let kinds: std::collections::HashSet<_> = all.iter().map(std::mem::discriminant).collect();
    u32::try_from(kinds.len()).unwrap()
}

/// Old clients work as long as these bytes stay. A new frame adds a line; no line ever changes.
#[test]
fn every_frame_keeps_its_bytes() {
    assert_eq!(kinds(&requests()), Request::VARIANTS);
    assert_eq!(kinds(&replies()), Reply::VARIANTS);
    assert_eq!(kinds(&events()), Event::VARIANTS);
    assert_eq!(kinds(&bodies()), crate::entry::ENTRY_KINDS);
    let enrol = [EnrolRequest::Enrol { token: "jwt".into(), csr: Bytes::from_static(b"csr") }];
    assert_eq!(kinds(&enrol), EnrolRequest::VARIANTS);
    let mut actual = String::new();
    lines(&requests(), numbered, &mut actual);
    lines(&replies(), numbered, &mut actual);
    lines(&events(), event_bytes, &mut actual);
    lines(&enrol, numbered, &mut actual);
    assert_eq!(actual, include_str!("golden.txt"), "actual:\n{actual}");
}

#[test]
fn every_frame_comes_back() {
    for request in requests() {
        assert_eq!(codec::decode_numbered(&numbered(&request)[4..]), Ok((5, Decoded::Frame(request))));
    }
    for reply in replies() {
        assert_eq!(codec::decode_numbered(&numbered(&reply)[4..]), Ok((5, Decoded::Frame(reply))));
    }
    for event in events() {
        assert_eq!(codec::decode_event(&event_bytes(&event)[4..]), Ok(Decoded::Frame(event)));
    }
}

#[test]
fn an_unknown_kind_is_named_with_its_request() {
    let unknown = [5, 99, 1, 2, 3];
    assert_eq!(codec::decode_numbered::<Request>(&unknown), Ok((5, Decoded::Unknown { variant: 99 })));
    assert_eq!(codec::decode_event(&[99]), Ok(Decoded::Unknown { variant: 99 }));
}

#[test]
fn an_entry_of_an_unknown_kind_is_kept_whole() {
    let mut newer = entry(EntryBody::Redaction { of: seq(1) });
    newer.body = Known::No(Bytes::from_static(&[42, 1, 2]));
    let event = Event::Entry { chat: chat(), entry: newer };
    assert_eq!(codec::decode_event(&event_bytes(&event)[4..]), Ok(Decoded::Frame(event)));
}

#[test]
fn a_length_over_the_limit_is_refused_before_the_body_comes() {
    let mut reader = FrameReader::default();
    reader.push(&(u32::try_from(limits::FRAME_BYTES).unwrap() + 1).to_le_bytes());
    assert_eq!(
        reader.next_frame(),
        Err(codec::CodecError::TooLarge { len: limits::FRAME_BYTES + 1, max: limits::FRAME_BYTES })
    );
    let mut out = vec![1, 2, 3];
    let huge = Request::Renew { csr: Bytes::from(vec![0; limits::FRAME_BYTES]) };
    assert!(codec::encode_numbered(1, &huge, &mut out).is_err());
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn lists_stop_at_their_limit() {
    let acks = |n| Request::Ack(vec![Ack { chat: chat(), up_to: seq(1) }; n]);
    assert!(codec::decode_numbered::<Request>(&numbered(&acks(limits::ACKS))[4..]).is_ok());
    assert!(codec::decode_numbered::<Request>(&numbered(&acks(limits::ACKS + 1))[4..]).is_err());
}

fn any_seq() -> impl Strategy<Value = Seq> {
    (1..=Seq::MAX.get()).prop_map(seq)
}

fn any_user() -> impl Strategy<Value = UserId> {
    "[a-z0-9][a-z0-9._-]{0,20}@[a-z][a-z0-9-]{0,10}".prop_map(|text| text.parse().unwrap())
}

fn any_send() -> impl Strategy<Value = Request> {
    (any_user(), any::<u64>(), any::<u64>(), any::<u128>(), prop::collection::vec(any::<u8>(), 0..2000)).prop_map(
        |(user, n, oldest, id, content)| {
            let chat = ChatId::direct(&user, &"bob@us".parse().unwrap());
            Request::SendMessage(SendMessage {
                stamp: Stamp { chat, n, oldest, id: MessageId(Uuid::from_u128(id)), previous: None },
                content: Content(content.into()),
                blobs: vec![],
                options: Options::default(),
            })
        },
    )
}

proptest! {
    #[test]
    fn any_send_comes_back(request in any_send(), number in any::<u32>()) {
        let mut out = Vec::new();
        codec::encode_numbered(number, &request, &mut out).unwrap();
        prop_assert_eq!(codec::decode_numbered(&out[4..]), Ok((number, Decoded::Frame(request))));
    }

    #[test]
    fn any_entry_comes_back(from in any_seq(), at in any::<u64>(), user in any_user(), kind in 0usize..5) {
        let mut value = entry(bodies().swap_remove(kind));
        value.seq = from;
        value.at = UnixMillis(at);
        value.from = user.device("d").unwrap();
        let event = Event::Entry { chat: chat(), entry: value };
        prop_assert_eq!(codec::decode_event(&event_bytes(&event)[4..]), Ok(Decoded::Frame(event)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        crate::check_arbitrary(&bytes);
    }

    /// Bytes near real frames reach deeper than random ones.
    #[test]
    fn damaged_frames_never_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut all: Vec<_> = requests().iter().map(numbered).collect();
        all.extend(replies().iter().map(numbered));
        all.extend(events().iter().map(event_bytes));
        let mut bytes = which.get(&all).clone();
        let at = at.index(bytes.len());
        bytes[at] = with;
        crate::check_arbitrary(&bytes);
        crate::check_arbitrary(&bytes[4..]);
    }

    #[test]
    fn frames_survive_any_cutting(request in any_send(), cuts in prop::collection::vec(1usize..50, 1..20)) {
        let bytes = [numbered(&request), numbered(&request)].concat();
        let (mut reader, mut rest, mut got) = (FrameReader::default(), &bytes[..], 0);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            reader.push(now);
            rest = later;
            while let Some(frame) = reader.next_frame().unwrap() {
                prop_assert_eq!(codec::decode_numbered(&frame), Ok((5, Decoded::Frame(request.clone()))));
                got += 1;
            }
        }
        prop_assert_eq!(got, 2);
        prop_assert!(reader.is_empty());
    }
}
