//! What the owner says to agents about beginning turns, on every relay where they listen.
//!
//! Each relay is asked first for the word that the new one replaces: it must be newer by its date, whatever our clock
//! says. Must not: date a word so far ahead that a relay refuses it, or take one relay's silence for all.

use futures_util::future::join_all;
use skep_proto::pause::{Pause, Reach};
use skep_proto::{Filter, Kind, RawEvent, Timestamp, limits::Limits};

use crate::client::{Client, ClientError, Options};
use crate::keys::Keys;

/// One word, signed, and what each relay made of it.
#[derive(Debug)]
pub struct Spoken {
    pub reach: Reach,
    pub event: RawEvent,
    pub relays: Vec<Heard>,
}

/// One relay's part.
#[derive(Debug)]
pub struct Heard {
    pub relay: String,
    /// The relay's remark.
    pub said: Result<String, Unheard>,
}

/// Why a relay does not have the word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    #[error("{0}")]
    Unreachable(String),
    #[error("it refused: {0}")]
    Refused(String),
}

/// The word that is to be replaced is dated so far ahead of our clock that no relay would take a newer one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what was said before is dated {secs} s ahead of this machine's clock")]
pub struct Ahead {
    pub secs: u64,
}

/// Says it to each of `reaches`, each with the date of the newest word that is known of here.
pub async fn speak(
    keys: &Keys,
    options: &Options,
    relays: &[String],
    reaches: &[(Reach, Timestamp)],
    said: &Pause,
    now: Timestamp,
) -> Result<Vec<Spoken>, Ahead> {
    let looks = relays.iter().map(|relay| look(relay, keys, options, reaches));
    let mut found: Vec<_> = join_all(looks).await;
    let mut spoken = Vec::new();
    for (reach, known) in reaches {
        let before = found.iter().flatten().flat_map(|(_, words)| words);
        let of_reach = before.filter(|event| Pause::from_event(event).is_some_and(|(of, _)| of == *reach));
        let newest = of_reach.map(|event| event.created_at).fold(*known, u64::max);
        let at = now.max(newest.saturating_add(1));
        if at > now.saturating_add(Limits::default().created_at_ahead_secs) {
            return Err(Ahead { secs: newest.saturating_sub(now) });
        }
        let event = keys.sign(said.draft(reach, at)).raw().clone();
        let tell = found.iter_mut().map(|found| publish(found, &event));
        let told = join_all(tell).await.into_iter();
        let relays = relays.iter().cloned().zip(told).map(|(relay, said)| Heard { relay, said }).collect();
        spoken.push(Spoken { reach: *reach, event, relays });
    }
    Ok(spoken)
}

/// A connection, and what was said before.
type Found = Result<(Client, Vec<RawEvent>), ClientError>;

async fn look(relay: &str, keys: &Keys, options: &Options, reaches: &[(Reach, Timestamp)]) -> Found {
    let mut client = Client::connect(relay, options.clone()).await?;
    let identifiers = reaches.iter().map(|(reach, _)| reach.identifier()).collect();
    let (kinds, authors) = (Some(vec![Kind::APP_DATA]), Some(vec![keys.pubkey()]));
    let before =
        client.query(vec![Filter { kinds, authors, tags: vec![(b'd', identifiers)], ..Filter::new() }]).await?;
    Ok((client, before.iter().map(|event| event.raw().clone()).collect()))
}

async fn publish(found: &mut Found, event: &RawEvent) -> Result<String, Unheard> {
    let unreachable = |error: &ClientError| Unheard::Unreachable(error.to_string());
    let (client, _) = found.as_mut().map_err(|error| unreachable(error))?;
    let verdict = client.publish(event).await.map_err(|error| unreachable(&error))?;
    if verdict.accepted { Ok(verdict.message) } else { Err(Unheard::Refused(verdict.message)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = 1_700_000_000;

    async fn say(known: Timestamp) -> Result<Timestamp, Ahead> {
        let (keys, said) = (Keys::generate().expect("randomness"), Pause { paused: true, reason: String::new() });
        let spoken = speak(&keys, &Options::default(), &[], &[(Reach::Fleet, known)], &said, NOW).await?;
        Ok(spoken[0].event.created_at)
    }

    #[tokio::test]
    async fn a_word_is_newer_than_the_one_before_whatever_the_clock_says_and_never_too_far_ahead() {
        assert_eq!(say(0).await, Ok(NOW));
        assert_eq!(say(NOW).await, Ok(NOW + 1));
        assert_eq!(say(NOW + 899).await, Ok(NOW + 900));
        assert_eq!(say(NOW + 900).await, Err(Ahead { secs: 900 }));
        assert_eq!(say(u64::MAX).await, Err(Ahead { secs: u64::MAX - NOW }));
    }
}
