//! A message as it was written, however it came: in clear, encrypted as old clients do (NIP-04), or in a gift wrap
//! (NIP-17). What is said under it goes in the same form, so no word of a sealed conversation is ever in clear. The old
//! form shows to all who speaks with whom, and under which message; a wrap shows nothing.

use secp256k1::Keypair;
use skep_proto::{EventId, Kind, RawEvent, seal, wrap};

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Open,
    /// NIP-04.
    Old,
    /// NIP-17.
    Wrapped,
}

#[derive(Debug, Clone)]
pub(super) struct Letter {
    /// The event that brought it: what the inbox, its turn and its lease call it.
    pub carrier: EventId,
    pub form: Form,
    /// What was written, and by whom. One that was wrapped has no signature of its own.
    pub said: RawEvent,
}

impl Letter {
    /// `None`: it is not for us, or not what it says.
    pub(super) fn read(keys: &Keypair, event: &RawEvent) -> Option<Self> {
        let (form, said) = match event.kind {
            Kind::GIFT_WRAP => (Form::Wrapped, wrap::unwrap(keys, event).ok()?),
            Kind::DIRECT_MESSAGE => {
                let content = seal::open_old(keys, &event.pubkey, &event.content).ok()?;
                (Form::Old, RawEvent { content, ..event.clone() })
            }
            _ => (Form::Open, event.clone()),
        };
        Some(Self { carrier: event.id, form, said })
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.form != Form::Open
    }

    /// The first moment at which either of its dates has passed, in seconds.
    pub(super) fn expiration(&self, carrier: &RawEvent) -> Option<u64> {
        [self.said.expiration(), carrier.expiration()].into_iter().flatten().min()
    }
}

impl std::ops::Deref for Letter {
    type Target = RawEvent;
    fn deref(&self) -> &RawEvent {
        &self.said
    }
}
