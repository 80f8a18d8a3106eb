//! Unix time: whole seconds, as Nostr writes it (NIP-01), and milliseconds, as agents write it (RFC 3339).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Seconds since 1970-01-01T00:00:00Z.
pub type Timestamp = u64;

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type UnixMs = u64;

/// A point in time that is written as RFC 3339 in UTC with milliseconds: `2026-07-01T20:11:03.213Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub UnixMs);

/// The last moment of the year 9999: RFC 3339 has no longer years.
const MOMENT_MAX: UnixMs = 253_402_300_799_999;
const DAY_MS: u64 = 86_400_000;

impl Moment {
    pub fn from_secs(secs: Timestamp) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// Truncated.
    pub fn secs(self) -> Timestamp {
        self.0 / 1_000
    }

    /// Any RFC 3339 time from 1970 on, with any offset; below a millisecond it is truncated.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let [year, month, day] = numbers(date, b'-', [4, 2, 2])?;
        let rest = rest.strip_prefix(['T', 't', ' '])?;
        let (clock, rest) = rest.split_at_checked(8)?;
        let [hour, minute, second] = numbers(clock, b':', [2, 2, 2])?;
        let (ms, rest) = fraction(rest)?;
        let offset_minutes = offset(rest)?;
        // 60 is a leap second; it is read as the first second of the next minute.
        let is_time = hour < 24 && minute < 60 && second <= 60;
        if !is_time || !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) {
            return None;
        }
        let secs = days_before(year, month, day) * 86_400 + (hour * 60 + minute - offset_minutes) * 60 + second;
        u64::try_from(secs).ok().map(|secs| Self(secs * 1_000 + ms))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.min(MOMENT_MAX);
        let (year, month, day) = date_of((ms / DAY_MS) as i64);
        let (secs, ms) = (ms % DAY_MS / 1_000, ms % 1_000);
        let (hour, minute, second) = (secs / 3_600, secs / 60 % 60, secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("expected an RFC 3339 time"))
    }
}

/// `count` fields of fixed width, between separators.
fn numbers(text: &str, separator: u8, widths: [usize; 3]) -> Option<[i64; 3]> {
    let mut out = [0; 3];
    let mut parts = text.split(char::from(separator));
    for (number, width) in out.iter_mut().zip(widths) {
        *number = digits(parts.next().filter(|part| part.len() == width)?)?;
    }
    parts.next().is_none().then_some(out)
}

fn digits(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Milliseconds of `.213…`, and what follows.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, rest) = rest.split_at(end);
    let padded = format!("{:0<3}", fraction.get(..3).unwrap_or(fraction));
    digits(fraction)?;
    Some((padded.parse().ok()?, rest))
}

/// Minutes east of UTC.
fn offset(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2)?;
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

fn days_in(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_before`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_and_read() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_782_936_663_213, "2026-07-01T20:11:03.213Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (MOMENT_MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Moment(ms).to_string(), text);
            assert_eq!(Moment::parse(text), Some(Moment(ms)), "{text}");
        }
        assert_eq!(Moment(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn other_forms_of_rfc_3339_are_read() {
        let at = Moment::parse("2026-07-01T20:11:03Z");
        assert!(at.is_some());
        for same in ["2026-07-01t20:11:03z", "2026-07-01 22:11:03+02:00", "2026-07-01T20:11:03.000999Z"] {
            assert_eq!(Moment::parse(same), at, "{same}");
        }
        assert_eq!(Moment::parse("2026-07-01T20:11:03.5Z").map(|m| m.0 % 1_000), Some(500));
        for bad in [
            "",
            "2026-07-01",
            "2026-07-01T20:11:03",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-07-01T24:00:00Z",
            "2026-07-01T20:11:03.Z",
            "2026-07-01T20:11:03+2:00",
            "1969-12-31T23:59:59Z",
            "+026-07-01T20:11:03Z",
            "2026-07-01T20:11:03Z ",
            "2026-07-0\u{e9}T20:11:03Z",
        ] {
            assert_eq!(Moment::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_survives_its_text(ms in 0..=MOMENT_MAX) {
            prop_assert_eq!(Moment::parse(&Moment(ms).to_string()), Some(Moment(ms)));
        }

        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,40}") {
            let _ = Moment::parse(&text);
        }
    }
}
