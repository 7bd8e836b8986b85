//! Deliberate faults, each breaking one promise, for tests of what must notice them. Without the feature `sabotage` there
//! are none.

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// `sent` is told before the fsync.
    EarlySent,
    /// A number that was decided is decided once more.
    NoDedup,
    /// A number that means another message is answered as if it meant this one: a past of its own is not fenced off.
    TakenNumber,
    /// What waits for a device is forgotten when it comes back.
    DropRows,
    /// What was sent to the relay that claims a device counts as taken.
    TrustedClaim,
    /// The owner of a chat writes its log whatever another has written there.
    Unfenced,
}

impl Sabotage {
    pub const ALL: [Self; 6] =
        [Self::EarlySent, Self::NoDedup, Self::TakenNumber, Self::DropRows, Self::TrustedClaim, Self::Unfenced];

    pub const fn name(self) -> &'static str {
        match self {
            Self::EarlySent => "early-sent",
            Self::NoDedup => "no-dedup",
            Self::TakenNumber => "taken-number",
            Self::DropRows => "drop-rows",
            Self::TrustedClaim => "trusted-claim",
            Self::Unfenced => "unfenced",
        }
    }
}

#[cfg(feature = "sabotage")]
thread_local! {
    static ON: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread has the fault.
#[cfg(feature = "sabotage")]
pub fn set(fault: Option<Sabotage>) {
    ON.set(fault);
}

/// Whether this thread has the fault.
#[cfg(feature = "sabotage")]
pub fn is(fault: Sabotage) -> bool {
    ON.get() == Some(fault)
}

#[cfg(not(feature = "sabotage"))]
#[inline]
pub const fn is(_fault: Sabotage) -> bool {
    false
}
