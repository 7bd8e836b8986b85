//! Keys of the store's tables as bytes, so that one prefix is one range.
//!
//! Every part but the last carries its length or has a fixed one: no key is a prefix of another by accident.

use super::StoreError;
use godwit_core::Sender;
use godwit_wire::blob::BlobHash;
use godwit_wire::frame::SeqRange;
use godwit_wire::{ChatId, DeviceId, RegionId, Seq, UserId};
use std::ops::Bound;

/// Builds a key part by part.
#[derive(Debug, Default)]
pub(super) struct Key(Vec<u8>);

impl Key {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(64))
    }

    pub(super) fn text(mut self, text: &str) -> Self {
        self.0.push(u8::try_from(text.len()).expect("ids have at most 64 bytes"));
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// The first part of the key of every chat of a region.
    pub(super) fn home(self, region: &RegionId) -> Self {
        self.text(region.as_str())
    }

    pub(super) fn chat(self, chat: &ChatId) -> Self {
        let mut key = self.home(chat.home());
        key.0.extend_from_slice(chat.uuid().as_bytes());
        key
    }

    pub(super) fn user(self, user: &UserId) -> Self {
        self.text(user.as_str())
    }

    pub(super) fn device(self, device: &DeviceId) -> Self {
        self.text(device.user_str()).text(device.name())
    }

    pub(super) fn sender(self, sender: &Sender) -> Self {
        let mut key = self.device(&sender.device);
        key.0.extend_from_slice(&sender.enrolment.to_be_bytes());
        key
    }

    pub(super) fn number(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub(super) fn seq(self, seq: Seq) -> Self {
        self.number(seq.get())
    }

    pub(super) fn blob(mut self, hash: BlobHash) -> Self {
        self.0.extend_from_slice(&hash.0);
        self
    }

    pub(super) fn part(mut self, part: u32) -> Self {
        self.0.extend_from_slice(&part.to_be_bytes());
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }

    /// The keys that start with this one.
    pub(super) fn prefix(self) -> Span {
        Span::starting_with(&self.0)
    }

    /// The keys from this one on that share its first `len` bytes.
    fn within(self, len: usize) -> Span {
        Span { end: Span::starting_with(&self.0[..len]).end, start: self.0 }
    }
}

/// Keys from a start, inclusive, to an end, exclusive. An empty end is that of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: Vec<u8>,
    pub(super) end: Vec<u8>,
}

impl Span {
    pub(super) const ALL: Self = Self { start: Vec::new(), end: Vec::new() };

    pub(super) fn starting_with(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.last_mut() {
            if let Some(next) = last.checked_add(1) {
                *last = next;
                break;
            }
            end.pop();
        }
        Self { start: prefix.to_vec(), end }
    }

    /// What of it comes after `key`.
    pub(super) fn after(self, key: Vec<u8>) -> Self {
        let mut start = key;
        start.push(0);
        Self { start, ..self }
    }

    /// What of it comes after all keys that start with `prefix`.
    pub(super) fn behind(self, prefix: &[u8]) -> Self {
        Self { start: Self::starting_with(prefix).end, ..self }
    }

    /// Ends after all keys that start with `prefix`.
    pub(super) fn through(self, prefix: &[u8]) -> Self {
        Self { end: Self::starting_with(prefix).end, ..self }
    }

    /// From `start` to the end of the table.
    pub(super) fn from(start: Vec<u8>) -> Self {
        Self { start, ..Self::ALL }
    }

    /// From the start of the table up to `end`, exclusive.
    pub(super) fn up_to(end: Vec<u8>) -> Self {
        Self { end, ..Self::ALL }
    }

    pub(super) fn holds(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && (self.end.is_empty() || key < self.end.as_slice())
    }

    pub(super) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = if self.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(self.end.as_slice()) };
        (Bound::Included(self.start.as_slice()), end)
    }
}

pub(super) fn log(chat: &ChatId, seq: Seq) -> Vec<u8> {
    Key::new().chat(chat).seq(seq).bytes()
}

/// A chat's log.
pub(super) fn whole_log(chat: &ChatId) -> Span {
    Key::new().chat(chat).prefix()
}

/// A chat's log from an entry on.
pub(super) fn log_from(chat: &ChatId, from: Seq) -> Span {
    let chat = Key::new().chat(chat);
    let len = chat.0.len();
    chat.seq(from).within(len)
}

/// Entries of a chat's log, the last included.
pub(super) fn log_span(chat: &ChatId, part: SeqRange) -> Span {
    log_from(chat, part.from).through(&log(chat, part.to))
}

/// The numbers of a sender in a chat.
pub(super) fn numbers(chat: &ChatId, sender: &Sender) -> Span {
    Key::new().chat(chat).sender(sender).prefix()
}

/// The numbers of a sender in a chat from `n` on.
pub(super) fn numbers_from(chat: &ChatId, sender: &Sender, n: u64) -> Span {
    let sender = Key::new().chat(chat).sender(sender);
    let len = sender.0.len();
    sender.number(n).within(len)
}

/// The number that a key ends with.
pub(super) fn number_of(key: &[u8]) -> Result<u64, StoreError> {
    let at = key.len().checked_sub(8).ok_or(StoreError::BadKey)?;
    Parts(&key[at..]).number()
}

/// Takes a key apart, in the order it was built.
#[derive(Debug)]
pub(super) struct Parts<'a>(pub(super) &'a [u8]);

impl<'a> Parts<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], StoreError> {
        let (part, rest) = self.0.split_at_checked(len).ok_or(StoreError::BadKey)?;
        self.0 = rest;
        Ok(part)
    }

    fn text(&mut self) -> Result<&'a str, StoreError> {
        let len = self.take(1)?[0];
        std::str::from_utf8(self.take(usize::from(len))?).map_err(|_| StoreError::BadKey)
    }

    pub(super) fn chat(&mut self) -> Result<ChatId, StoreError> {
        let home: RegionId = self.text()?.parse().map_err(|_| StoreError::BadKey)?;
        let uuid = uuid::Uuid::from_slice(self.take(16)?).map_err(|_| StoreError::BadKey)?;
        ChatId::from_parts(home, uuid).map_err(|_| StoreError::BadKey)
    }

    pub(super) fn user(&mut self) -> Result<UserId, StoreError> {
        self.text()?.parse().map_err(|_| StoreError::BadKey)
    }

    pub(super) fn device(&mut self) -> Result<DeviceId, StoreError> {
        let user = self.user()?;
        user.device(self.text()?).map_err(|_| StoreError::BadKey)
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().expect("eight bytes were taken")))
    }

    pub(super) fn seq(&mut self) -> Result<Seq, StoreError> {
        Seq::new(self.number()?).map_err(|_| StoreError::BadKey)
    }

    pub(super) fn blob(&mut self) -> Result<BlobHash, StoreError> {
        Ok(BlobHash(self.take(32)?.try_into().expect("32 bytes were taken")))
    }

    pub(super) fn part(&mut self) -> Result<u32, StoreError> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes were taken")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_its_keys_and_no_others() {
        let (a, ab): (UserId, UserId) = ("a@eu".parse().unwrap(), "ab@eu".parse().unwrap());
        let span = Key::new().user(&a).prefix();
        let inside = |key: &[u8]| span.start.as_slice() <= key && key < span.end.as_slice();
        assert!(inside(&Key::new().user(&a).number(u64::MAX).bytes()));
        assert!(!inside(&Key::new().user(&ab).bytes()));
        assert_eq!(Span::starting_with(&[1, 255, 255]).end, [2]);
    }

    #[test]
    fn parts_come_back() {
        let chat: ChatId = "eu:01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let device: DeviceId = "alice@eu/phone".parse().unwrap();
        let key = Key::new().device(&device).chat(&chat).seq(Seq::FIRST).bytes();
        let mut parts = Parts(&key);
        assert_eq!(parts.device().unwrap(), device);
        assert_eq!(parts.chat().unwrap(), chat);
        assert_eq!(parts.seq().unwrap(), Seq::FIRST);
        assert!(parts.number().is_err());
    }
}
