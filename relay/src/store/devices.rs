//! Devices: enrolment, renewal, revocation.

use super::chats::last_entry;
use super::keys::{Key, Parts, Span};
use super::rows::{Records, RecordsMut, RowsMut};
use super::shared::Topic;
use super::tables::{DEVICES, INBOX, PARTICIPANTS, REVOCATIONS, Record, TOKENS, Table, USER_CHATS};
use super::writer::{Batch, Fence, Write};
use super::{Committed, StoreError};
use crate::revocations::forgotten_before;
use godwit_core::device::{Revocation, next_enrolment};
use godwit_core::inbox::InboxRow;
use godwit_core::{Device, Participant};
use godwit_wire::{Code, DeviceId, Refusal, UnixMillis};
use std::fmt;

/// What is too old to matter is forgotten with each write of the kind, at most so much.
const FORGET: usize = 64;

/// What a certificate authority returns for a device: its chain, DER, and the leaf's SHA-256.
#[derive(Clone, Debug)]
pub struct Issued {
    pub enrolment: u32,
    pub chain: Vec<bytes::Bytes>,
    pub fingerprint: [u8; 32],
}

type Issue = Box<dyn Fn(u32) -> Result<Issued, Refusal> + Send>;

/// Uses up a token and gives its device a new enrolment.
pub(super) struct Enrol {
    pub(super) device: DeviceId,
    pub(super) jti: String,
    pub(super) forget_at: UnixMillis,
    pub(super) issue: Issue,
}

impl fmt::Debug for Enrol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Enrol({})", self.device)
    }
}

impl Write for Enrol {
    type Output = Result<Issued, Refusal>;

    fn topic(&self) -> Topic {
        Topic::User(self.device.user())
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<Self::Output, StoreError> {
        let token = Key::new().number(self.forget_at.0).text(&self.jti).bytes();
        if batch.rows.has(TOKENS, &token)? {
            return Ok(Err(Code::TokenUsed.into()));
        }
        let key = Key::new().device(&self.device).bytes();
        let existing = batch.rows.get(DEVICES, &key)?;
        let enrolment = next_enrolment(existing.as_ref());
        let issued = match (self.issue)(enrolment) {
            Ok(issued) => issued,
            Err(refusal) => return Ok(Err(refusal)),
        };
        batch.rows.put(TOKENS, &token, &())?;
        let now = batch.now;
        let record =
            Device { enrolment, fingerprint: issued.fingerprint, enrolled_at: now, last_seen: now, revoked: false };
        batch.rows.put(DEVICES, &key, &record)?;
        remove_inbox(&self.device, batch)?;
        begin_at_heads(&self.device, batch)?;
        forget(batch.rows, TOKENS, now)?;
        if enrolment > 1 {
            let device = self.device.clone();
            shut_out(batch, &Revocation { device, enrolment: enrolment - 1, why: Code::Superseded, at: now })?;
        }
        batch.committed.push(Committed::Enrolled { device: self.device.clone(), enrolment });
        Ok(Ok(issued))
    }
}

/// The device has everything to come from now on: one inbox row a chat, from after its head. What lies before is
/// history. An entry that is committed later has the device among its recipients, so nothing falls between.
fn begin_at_heads(device: &DeviceId, batch: &mut Batch<'_>) -> Result<(), StoreError> {
    let user = device.user();
    let span = Key::new().user(&user).prefix();
    for (key, ()) in batch.rows.all(USER_CHATS, &span)? {
        let chat = Parts(&key[span.start.len()..]).chat()?;
        let row = batch.rows.get(PARTICIPANTS, &Key::new().chat(&chat).user(&user).bytes())?;
        if !row.as_ref().is_some_and(Participant::is_present) {
            continue;
        }
        let last = last_entry(batch.rows, &chat)?.ok_or(StoreError::Inconsistent("a chat without a log"))?;
        let row = InboxRow { from: last.seq.next(), since: batch.now };
        batch.rows.put(INBOX, &Key::new().device(device).chat(&chat).bytes(), &row)?;
    }
    Ok(())
}

fn remove_inbox(device: &DeviceId, batch: &mut Batch<'_>) -> Result<(), StoreError> {
    batch.rows.clear(INBOX, &Key::new().device(device).prefix())
}

/// Forgets rows of a table whose keys begin with a time, up to `end`.
fn forget<R: Record>(rows: &mut dyn RowsMut, table: Table<R>, end: UnixMillis) -> Result<(), StoreError> {
    let old = rows.first(table, &Span::up_to(Key::new().number(end.0).bytes()), FORGET)?;
    old.iter().try_for_each(|(key, _)| rows.delete(table, key))
}

/// A renewed certificate of the same enrolment.
#[derive(Debug)]
pub(super) struct Renewed {
    pub(super) device: DeviceId,
    pub(super) enrolment: u32,
    pub(super) fingerprint: [u8; 32],
}

impl Write for Renewed {
    /// Whether the device still has this enrolment.
    type Output = bool;

    fn topic(&self) -> Topic {
        Topic::User(self.device.user())
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<bool, StoreError> {
        let key = Key::new().device(&self.device).bytes();
        let Some(mut record) = batch.rows.get(DEVICES, &key)? else { return Ok(false) };
        if record.enrolment != self.enrolment || record.revoked {
            return Ok(false);
        }
        record.fingerprint = self.fingerprint;
        batch.rows.put(DEVICES, &key, &record)?;
        Ok(true)
    }
}

/// Shuts a device out: at once where it is connected, and at every later connection.
#[derive(Debug)]
pub(super) struct Revoke {
    pub(super) device: DeviceId,
}

impl Write for Revoke {
    /// Whether there is such a device.
    type Output = bool;
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        Topic::User(self.device.user())
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<bool, StoreError> {
        let key = Key::new().device(&self.device).bytes();
        let Some(mut record) = batch.rows.get(DEVICES, &key)? else { return Ok(false) };
        record.revoked = true;
        batch.rows.put(DEVICES, &key, &record)?;
        remove_inbox(&self.device, batch)?;
        let (enrolment, at) = (record.enrolment, batch.now);
        let revocation = Revocation { device: self.device.clone(), enrolment, why: Code::Revoked, at };
        shut_out(batch, &revocation)?;
        batch.committed.push(Committed::Revoked { revocation });
        Ok(true)
    }
}

/// Notes a revocation, and forgets some that are too old to matter.
fn shut_out(batch: &mut Batch<'_>, revocation: &Revocation) -> Result<(), StoreError> {
    let key = Key::new().number(revocation.at.0).device(&revocation.device).bytes();
    batch.rows.put(REVOCATIONS, &key, revocation)?;
    forget(batch.rows, REVOCATIONS, forgotten_before(batch.now))
}

/// What other regions told of devices of theirs.
#[derive(Debug)]
pub(super) struct NoteRevocations(pub(super) Vec<Revocation>);

impl Write for NoteRevocations {
    type Output = ();
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        Topic::Region
    }

    fn fence(&self) -> Fence {
        Fence::Loose
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        self.0.iter().try_for_each(|revocation| shut_out(batch, revocation))
    }
}

/// When a device was connected last.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) device: DeviceId,
}

impl Write for Seen {
    type Output = ();
    const NEEDS_SPACE: bool = false;

    fn topic(&self) -> Topic {
        Topic::User(self.device.user())
    }

    fn fence(&self) -> Fence {
        Fence::Loose
    }

    fn apply(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        let key = Key::new().device(&self.device).bytes();
        if let Some(mut record) = batch.rows.get(DEVICES, &key)? {
            record.last_seen = batch.now;
            batch.rows.put(DEVICES, &key, &record)?;
        }
        Ok(())
    }
}
