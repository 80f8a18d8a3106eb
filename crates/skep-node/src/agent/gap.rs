//! All that a relay has of a stretch of time, oldest first, in pieces that fit in memory.
//!
//! A stretch with too many events is halved; a second that cannot be halved comes in the relay's own order. What is
//! given is complete, as far as the relay has a way to tell (see [`crate::transfer::Pages`]).

use skep_proto::{Filter, Timestamp, VerifiedEvent};

use crate::client::Client;
use crate::clock::unix_now;
use crate::transfer::{Pages, TransferError, fetch};

/// Events, and bytes of their texts, that are held to be put in order.
pub const HELD_MAX: usize = 2_000;
pub const HELD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A stretch of time, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    since: Timestamp,
    /// `None`: without end.
    until: Option<Timestamp>,
}

/// A walk over what a relay has of some filters since a time.
pub struct Gap<'c> {
    client: &'c mut Client,
    filters: Vec<Filter>,
    /// What is left, the oldest last.
    left: Vec<Window>,
}

/// One piece of a gap.
pub struct Piece {
    /// Oldest first; in a second, in the order of the filters.
    pub events: Vec<VerifiedEvent>,
    /// The piece is complete up to this second, included. `None`: nothing is left.
    pub through: Option<Timestamp>,
}

/// What a window holds.
enum Held {
    All(Vec<VerifiedEvent>),
    TooMuch,
}

impl<'c> Gap<'c> {
    pub fn new(client: &'c mut Client, filters: impl Into<Vec<Filter>>, since: Timestamp) -> Self {
        Self { client, filters: filters.into(), left: vec![Window { since, until: None }] }
    }

    /// The next piece; `None` when the gap is closed.
    pub async fn next(&mut self) -> Result<Option<Piece>, TransferError> {
        while let Some(window) = self.left.pop() {
            let halves = window.halves(unix_now());
            let most = if halves.is_some() { HELD_MAX } else { usize::MAX };
            match self.list(window, most).await {
                Ok(Held::All(events)) => return Ok(Some(Piece { events, through: window.until })),
                Ok(Held::TooMuch) => self.left.extend(halves.into_iter().flatten().rev()),
                Err(TransferError::Crowded { second, .. }) if !window.is(second) => {
                    self.left.extend(window.around(second).into_iter().rev());
                }
                Err(TransferError::Crowded { url, second, said }) => {
                    tracing::warn!(relay = url, second, said, "more in one second than this relay can be asked for");
                    return Ok(Some(Piece { events: self.some(window).await?, through: window.until }));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn list(&mut self, window: Window, most: usize) -> Result<Held, TransferError> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        for (place, filter) in self.filters.iter().enumerate() {
            let mut pages = Pages::new(window.of(filter));
            while pages.peek(self.client).await?.is_some() {
                let Some(event) = pages.take() else { break };
                bytes += event.content.len();
                events.push((place, event));
                if most != usize::MAX && (events.len() > most || bytes > HELD_BYTES_MAX) {
                    return Ok(Held::TooMuch);
                }
            }
        }
        events.sort_by_key(|(place, event)| (event.created_at, *place, event.id));
        Ok(Held::All(events.into_iter().map(|(_, event)| event).collect()))
    }

    /// What one request gives of a window.
    async fn some(&mut self, window: Window) -> Result<Vec<VerifiedEvent>, TransferError> {
        let (mut events, mut forged) = (Vec::new(), 0);
        for filter in &self.filters {
            events.extend(fetch(self.client, window.of(filter), &mut forged).await?.into_values());
        }
        Ok(events)
    }
}

impl Window {
    fn of(self, filter: &Filter) -> Filter {
        Filter { since: Some(self.since), until: self.until, limit: None, ..filter.clone() }
    }

    fn is(self, second: Timestamp) -> bool {
        self.since == second && self.until == Some(second)
    }

    /// Two windows that make up this one, the older first.
    fn halves(self, now: Timestamp) -> Option<[Self; 2]> {
        // What is ahead of the clock is not taken apart: relays take little of it.
        let to = self.until.unwrap_or(now);
        let middle = self.since + to.checked_sub(self.since).filter(|length| *length > 0)? / 2;
        Some([Self { until: Some(middle), ..self }, Self { since: middle + 1, ..self }])
    }

    /// Windows that make up this one, with a second for itself, the oldest first.
    fn around(self, second: Timestamp) -> Vec<Self> {
        let before = second.checked_sub(1).filter(|end| *end >= self.since);
        let after = self.until.is_none_or(|until| second < until);
        let mut out = Vec::new();
        out.extend(before.map(|end| Self { until: Some(end), ..self }));
        out.push(Self { since: second, until: Some(second) });
        out.extend(after.then(|| Self { since: second + 1, ..self }));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn window(since: Timestamp, until: Option<Timestamp>) -> Window {
        Window { since, until }
    }

    #[test]
    fn parts_cover_a_window_without_overlap() {
        assert_eq!(window(0, Some(9)).halves(99), Some([window(0, Some(4)), window(5, Some(9))]));
        assert_eq!(window(90, None).halves(99), Some([window(90, Some(94)), window(95, None)]));
        assert_eq!(window(9, Some(9)).halves(99), None);
        assert_eq!(window(99, None).halves(99), None);
        let parts = [window(0, Some(4)), window(5, Some(5)), window(6, None)];
        assert_eq!(window(0, None).around(5), parts);
        assert_eq!(window(5, Some(6)).around(5), [window(5, Some(5)), window(6, Some(6))]);
        assert_eq!(window(0, Some(5)).around(5), [window(0, Some(4)), window(5, Some(5))]);
    }
}
