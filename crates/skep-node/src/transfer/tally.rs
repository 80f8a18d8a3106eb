//! What became of the events of one transfer.

use std::collections::BTreeMap;

use serde::Serialize;

/// Bad lines that are reported in full; the rest are counted.
const BAD_LINES_MAX: usize = 10;

/// Different reasons that are told apart. They may come from a relay, so there must be an end to them.
const REASONS_MAX: usize = 50;

const OTHER_REASONS: &str = "other reasons";

/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 200;

/// A line that holds no valid event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// From 1.
    pub line: u64,
    pub why: String,
}

/// Counts of one transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// New, and committed.
    pub imported: u64,
    /// They were there already.
    pub duplicates: u64,
    /// A newer version of the same replaceable event was there; nothing is missing.
    pub superseded: u64,
    /// How many were refused, by reason. Reasons of a relay are untrusted text.
    pub refused: BTreeMap<String, u64>,
    /// Lines that hold no valid event.
    pub bad: u64,
    /// The first of them.
    pub bad_lines: Vec<BadLine>,
    /// Agents whose owner was learned from their profiles.
    pub owners_learned: u64,
}

impl Tally {
    pub fn refuse(&mut self, reason: &str) {
        let short: String = reason.chars().take(REASON_CHARS_MAX).collect();
        let key = if self.refused.len() < REASONS_MAX || self.refused.contains_key(&short) {
            short
        } else {
            OTHER_REASONS.into()
        };
        *self.refused.entry(key).or_default() += 1;
    }

    pub fn bad(&mut self, line: u64, why: String) {
        self.bad += 1;
        if self.bad_lines.len() < BAD_LINES_MAX {
            self.bad_lines.push(BadLine { line, why });
        }
    }

    /// Takes a relay's answer to an EVENT.
    pub fn verdict(&mut self, accepted: bool, message: &str) {
        let is_duplicate = message.starts_with("duplicate:");
        match (accepted, is_duplicate) {
            (true, false) => self.imported += 1,
            (true, true) => self.duplicates += 1,
            (false, true) => self.superseded += 1,
            (false, false) => self.refuse(message),
        }
    }

    /// Takes over the counts of a part.
    pub fn add(&mut self, part: Self) {
        self.imported += part.imported;
        self.duplicates += part.duplicates;
        self.superseded += part.superseded;
        self.owners_learned += part.owners_learned;
        self.bad += part.bad;
        let room = BAD_LINES_MAX.saturating_sub(self.bad_lines.len());
        self.bad_lines.extend(part.bad_lines.into_iter().take(room));
        for (reason, count) in part.refused {
            let is_known = self.refused.contains_key(&reason) || self.refused.len() < REASONS_MAX;
            *self.refused.entry(if is_known { reason } else { OTHER_REASONS.into() }).or_default() += count;
        }
    }

    pub fn refused_in_all(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Whether everything is where it should be.
    pub fn is_clean(&self) -> bool {
        self.bad == 0 && self.refused.is_empty()
    }

    /// Everything that was looked at.
    pub fn seen(&self) -> u64 {
        self.imported + self.duplicates + self.superseded + self.refused_in_all() + self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_answers_are_counted_by_what_they_mean() {
        let mut tally = Tally::default();
        tally.verdict(true, "");
        tally.verdict(true, "duplicate: already have this event");
        tally.verdict(false, "duplicate: a newer version of this event is stored");
        tally.verdict(false, "blocked: no");
        tally.verdict(false, "blocked: no");
        assert_eq!((tally.imported, tally.duplicates, tally.superseded), (1, 1, 1));
        assert_eq!(tally.refused, BTreeMap::from([("blocked: no".to_owned(), 2)]));
        assert!(!tally.is_clean() && tally.seen() == 5);
    }

    #[test]
    fn hostile_reasons_have_an_end() {
        let mut tally = Tally::default();
        (0..1_000).for_each(|i| tally.refuse(&format!("{i} {}", "x".repeat(1_000))));
        assert_eq!((tally.refused.len(), tally.refused_in_all()), (REASONS_MAX + 1, 1_000));
        assert!(tally.refused.keys().all(|reason| reason.chars().count() <= REASON_CHARS_MAX));
    }
}
