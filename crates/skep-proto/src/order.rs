//! The one order of events (NIP-01): newest first, ties by lowest id.

use std::cmp::Ordering;

use crate::{EventId, Timestamp};

/// `Less` when `a` is served before `b`.
pub fn serve_order(a: (Timestamp, &EventId), b: (Timestamp, &EventId)) -> Ordering {
    b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1))
}

/// Whether `new` takes the place of `old` at one replaceable or addressable coordinate:
/// the newest wins, and of two with the same time the lowest id.
pub fn replaces(new: (Timestamp, &EventId), old: (Timestamp, &EventId)) -> bool {
    serve_order(new, old) == Ordering::Less
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_wins_and_ties_go_to_the_lowest_id() {
        let (low, high) = (EventId([1; 32]), EventId([2; 32]));
        assert!(replaces((11, &high), (10, &low)));
        assert!(replaces((10, &low), (10, &high)));
        assert!(!replaces((10, &high), (10, &low)));
        assert!(!replaces((10, &low), (10, &low)), "an event does not replace itself");
    }
}
