//! What others' clocks say about ours. A clock that is wrong makes signatures that relays refuse and leases that end at
//! the wrong time, and nothing else says so in words.

use skep_proto::Timestamp;

/// Seconds that clocks may differ: a slow answer and a lazy NTP are not worth a word. Relays refuse AUTH from 120 s on
/// ([`skep_proto::limits::AUTH_FRESH_SECS`]); half of that leaves time to mend it.
pub const SKEW_SECS_MAX: u64 = 60;

/// What was seen of another time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// A relay's clock, in its answer over HTTP just now.
    Relay { url: String, at: Timestamp },
    /// The newest time that this machine's own clock gave to its records.
    Records { at: Timestamp },
}

/// Our clock is wrong, or theirs is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skew {
    #[error("this machine's clock is {secs} s behind that of {url}")]
    Behind { url: String, secs: u64 },
    #[error("this machine's clock is {secs} s ahead of that of {url}")]
    Ahead { url: String, secs: u64 },
    #[error("this machine's clock was set back: its own records are {secs} s ahead of it")]
    SetBack { secs: u64 },
}

/// What the witnesses say against our clock, the largest difference first.
pub fn skews(now: Timestamp, witnesses: &[Witness]) -> Vec<Skew> {
    let mut found: Vec<(u64, Skew)> = witnesses.iter().filter_map(|witness| skew(now, witness)).collect();
    found.sort_by_key(|(secs, _)| std::cmp::Reverse(*secs));
    found.into_iter().map(|(_, skew)| skew).collect()
}

fn skew(now: Timestamp, witness: &Witness) -> Option<(u64, Skew)> {
    let (Witness::Relay { at, .. } | Witness::Records { at }) = witness;
    let secs = at.abs_diff(now);
    let skew = match witness {
        _ if secs <= SKEW_SECS_MAX => return None,
        Witness::Relay { url, at } if *at > now => Skew::Behind { url: url.clone(), secs },
        Witness::Relay { url, .. } => Skew::Ahead { url: url.clone(), secs },
        Witness::Records { at } if *at > now => Skew::SetBack { secs },
        // Old records say nothing: nobody wrote since.
        Witness::Records { .. } => return None,
    };
    Some((secs, skew))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_an_hour_off_is_told_and_a_minute_is_not() {
        let now = 1_700_000_000;
        let relay = |at| Witness::Relay { url: "wss://r".into(), at };
        let one = |witness: Witness| skews(now, &[witness]).first().map(ToString::to_string);
        assert_eq!(one(relay(now + 60)), None);
        assert_eq!(one(relay(now - 60)), None);
        assert_eq!(one(relay(now + 3_600)).as_deref(), Some("this machine's clock is 3600 s behind that of wss://r"));
        assert_eq!(one(relay(now - 3_600)).as_deref(), Some("this machine's clock is 3600 s ahead of that of wss://r"));
        assert_eq!(one(Witness::Records { at: now - 9_999_999 }), None, "nobody wrote since");
        let set_back = one(Witness::Records { at: now + 3_600 }).expect("a skew");
        assert!(set_back.contains("set back"), "{set_back}");
    }

    #[test]
    fn the_largest_difference_comes_first() {
        let all = [Witness::Records { at: 1_100 }, Witness::Relay { url: "b".into(), at: 9_000 }];
        assert_eq!(skews(1_000, &all), [Skew::Behind { url: "b".into(), secs: 8_000 }, Skew::SetBack { secs: 100 }]);
        assert_eq!(skews(u64::MAX, &[Witness::Records { at: 0 }]), []);
    }
}
