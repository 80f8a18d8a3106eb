//! What the owner says to agents about beginning turns, on every relay where they listen, and to those here.
//!
//! It is said at once, dated by what is known here. Each relay is told by itself, and asked then what it has: where that
//! is newer, whatever our clock says, all is said again, dated later. Those here are told as soon as one relay took it, or
//! after a second: a pause waits for no relay. Must not: believe a relay about what the owner said, date a word so far
//! ahead that a relay refuses it, give those here a word that relays refuse for its date, or take one relay's silence for
//! all.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use skep_proto::pause::{Pause, Reach};
use skep_proto::{Filter, Kind, RawEvent, Timestamp, limits::Limits, order};
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::{Client, ClientError, Options};
use crate::keys::Keys;

/// How long a pause waits for a relay's word before those here are told, and how long a relay is asked what it has.
const SOON: Duration = Duration::from_secs(1);

/// How often it is said: two who say otherwise at one time would go on for ever.
const ROUNDS_MAX: u32 = 3;

/// What came of it.
#[derive(Debug)]
pub struct Said<T> {
    pub words: Vec<Spoken>,
    /// What those here made of it; `None`: they were told nothing.
    pub told: Option<T>,
    /// It stands behind a word that no newer one can replace.
    pub ahead: Option<Ahead>,
}

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
    pub said: Verdict,
}

type Verdict = Result<String, Unheard>;

/// Why a relay does not have the word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    #[error("{0}")]
    Unreachable(String),
    #[error("it refused: {0}")]
    Refused(String),
}

impl Unheard {
    /// Whether our clock is wrong, or the relay's.
    pub fn is_of_clock(&self) -> bool {
        let Self::Refused(why) = self else { return false };
        let why = why.to_lowercase();
        ["created_at", "future", "too late", "timestamp"].iter().any(|word| why.contains(word))
    }
}

/// The word that is to be replaced is dated so far ahead of our clock that no relay would take a newer one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what was said before is dated {secs} s ahead of this machine's clock")]
pub struct Ahead {
    pub secs: u64,
}

/// What those here are told of one reach; `None`: that it holds in this home, without a word.
pub type Tell = (Reach, Option<RawEvent>);

/// Says it to each of `reaches`, each with the date of the newest word that is known of here. `tell` gives it to those
/// here, and may be called again, with what is said last. Where relays refuse a pause for its date and none takes it, or
/// it cannot be dated late enough, it is for this home.
pub async fn speak<T>(
    keys: &Keys,
    options: &Options,
    relays: &[String],
    reaches: &[(Reach, Timestamp)],
    said: &Pause,
    now: Timestamp,
    tell: impl AsyncFn(Vec<Tell>) -> T,
) -> Said<T> {
    let here = || reaches.iter().map(|(reach, _)| (*reach, None)).collect::<Vec<Tell>>();
    let mut known: Vec<Timestamp> = reaches.iter().map(|(_, known)| *known).collect();
    let date = |known: &[Timestamp]| -> Result<Vec<RawEvent>, Ahead> {
        let each = reaches.iter().zip(known).map(|((reach, _), known)| {
            let at = now.max(known.saturating_add(1));
            let is_ahead = at > now.saturating_add(Limits::default().created_at_ahead_secs);
            let sign = || keys.sign(said.draft(reach, at)).raw().clone();
            if is_ahead { Err(Ahead { secs: known.saturating_sub(now) }) } else { Ok(sign()) }
        });
        each.collect()
    };
    let mut words = match date(&known) {
        Ok(words) => words,
        Err(ahead) => {
            let told = if said.paused { Some(tell(here()).await) } else { None };
            return Said { words: Vec::new(), told, ahead: Some(ahead) };
        }
    };
    let (mut round, mut ahead) = (1, None);
    let mut lines: Vec<Line> = relays.iter().map(|_| Line::new()).collect();
    let mut running: FuturesUnordered<LocalBoxFuture<'_, Step<T>>> = FuturesUnordered::new();
    let (soon, mut is_soon) = (Instant::now() + SOON, true);
    // What those here are told: the round, or 0 for this home.
    let (mut told, mut telling, mut told_as) = (None, false, None);
    loop {
        for (n, line) in lines.iter_mut().enumerate().filter(|(_, line)| line.is_behind(round)) {
            line.runs = true;
            let (relay, client, words) = (&relays[n], line.client.take(), words.clone());
            let work = async move { Step::Relay(n, round, Box::new(say(relay, client, keys, options, words).await)) };
            running.push(Box::pin(work));
        }
        let verdicts = || lines.iter().flat_map(|line| &line.verdicts);
        let is_taken = verdicts().any(Result::is_ok);
        let is_of_clock = verdicts().any(|verdict| verdict.as_ref().is_err_and(Unheard::is_of_clock));
        let is_time = !is_soon || lines.iter().all(|line| !line.runs);
        let wanted = match (is_taken || (is_time && !is_of_clock), is_time && said.paused) {
            (true, _) => Some(round),
            (false, true) => Some(0),
            (false, false) => None,
        };
        if !telling && wanted.is_some_and(|wanted| told_as.is_none_or(|before| before < wanted)) {
            (telling, told_as) = (true, wanted);
            let events = reaches.iter().zip(&words).map(|((reach, _), word)| (*reach, Some(word.clone())));
            let what = if wanted == Some(0) { here() } else { events.collect() };
            let telling = tell(what);
            running.push(Box::pin(async move { Step::Told(telling.await) }));
        }
        if running.is_empty() {
            break;
        }
        let step = tokio::select! {
            Some(step) = running.next() => step,
            () = sleep_until(soon), if is_soon && said.paused => {
                is_soon = false;
                continue;
            }
        };
        match step {
            Step::Told(what) => (told, telling) = (Some(what), false),
            Step::Relay(n, of, heard) => {
                lines[n] = Line { verdicts: heard.verdicts, client: heard.client, round: of, runs: false };
                let is_newer = |known: &mut Timestamp, word: &RawEvent, reach: &Reach| {
                    let others = heard.found.iter().filter(|(of, event)| of == reach && event.id != word.id);
                    let newer = others.filter(|(_, event)| {
                        order::replaces((event.created_at, &event.id), (word.created_at, &word.id))
                    });
                    let newest = newer.map(|(_, event)| event.created_at).max();
                    *known = newest.unwrap_or(word.created_at - 1).max(word.created_at - 1);
                    newest.is_some()
                };
                let each = known.iter_mut().zip(&words).zip(reaches);
                let is_behind = each.fold(false, |is, ((known, word), (reach, _))| is_newer(known, word, reach) | is);
                if is_behind && round < ROUNDS_MAX {
                    match date(&known) {
                        Ok(later) => (words, round) = (later, round + 1),
                        Err(why) => ahead = Some(why),
                    }
                }
            }
        }
    }
    if ahead.is_some() && said.paused {
        told = Some(tell(here()).await);
    }
    let spoken = reaches.iter().zip(words).enumerate().map(|(n, ((reach, _), event))| {
        let said = relays
            .iter()
            .zip(&lines)
            .map(|(relay, line)| Heard { relay: relay.clone(), said: line.verdicts[n].clone() });
        Spoken { reach: *reach, event, relays: said.collect() }
    });
    Said { words: spoken.collect(), told, ahead }
}

/// How far one relay is.
struct Line {
    client: Option<Client>,
    verdicts: Vec<Verdict>,
    /// The round that it was told last; 0: none.
    round: u32,
    runs: bool,
}

impl Line {
    fn new() -> Self {
        Self { client: None, verdicts: Vec::new(), round: 0, runs: false }
    }

    /// One whose connection is gone is not asked again: it said why.
    fn is_behind(&self, round: u32) -> bool {
        !self.runs && (self.round == 0 || (self.client.is_some() && self.round < round))
    }
}

/// What a relay made of one round.
struct Round {
    client: Option<Client>,
    verdicts: Vec<Verdict>,
    /// What the owner said, as it has it.
    found: Vec<(Reach, RawEvent)>,
}

enum Step<T> {
    Relay(usize, u32, Box<Round>),
    Told(T),
}

async fn say(relay: &str, client: Option<Client>, keys: &Keys, options: &Options, words: Vec<RawEvent>) -> Round {
    let unreachable = |error: &ClientError| Unheard::Unreachable(error.to_string());
    let connected = match client {
        Some(client) => Ok(client),
        None => Client::connect(relay, options.clone()).await,
    };
    let mut client = match connected {
        Ok(client) => client,
        Err(error) => {
            let verdicts = words.iter().map(|_| Err(unreachable(&error))).collect();
            return Round { client: None, verdicts, found: Vec::new() };
        }
    };
    let mut verdicts: Vec<Verdict> = Vec::new();
    for word in &words {
        let verdict = match verdicts.last() {
            Some(Err(Unheard::Unreachable(why))) => Err(Unheard::Unreachable(why.clone())),
            // One that sends other things meanwhile gives no answer either.
            _ => match timeout(options.timeout, client.publish(word)).await {
                Ok(Ok(verdict)) if verdict.accepted => Ok(verdict.message),
                Ok(Ok(verdict)) => Err(Unheard::Refused(verdict.message)),
                Ok(Err(error)) => Err(unreachable(&error)),
                Err(_) => Err(Unheard::Unreachable(format!("{relay} gives no answer"))),
            },
        };
        verdicts.push(verdict);
    }
    if matches!(verdicts.last(), Some(Err(Unheard::Unreachable(_)))) {
        return Round { client: None, verdicts, found: Vec::new() };
    }
    let found = timeout(SOON, look(&mut client, keys, &words)).await.ok().and_then(Result::ok).unwrap_or_default();
    Round { client: Some(client), verdicts, found }
}

/// What the owner said last, as a relay has it; whatever else it sends is left out.
async fn look(client: &mut Client, keys: &Keys, words: &[RawEvent]) -> Result<Vec<(Reach, RawEvent)>, ClientError> {
    let identifiers = words.iter().map(|word| word.tags.identifier().to_owned()).collect();
    let (kinds, authors) = (Some(vec![Kind::APP_DATA]), Some(vec![keys.pubkey()]));
    let found = client.query(vec![Filter { kinds, authors, tags: vec![(b'd', identifiers)], ..Filter::new() }]).await?;
    let of_owner = found.iter().filter(|event| event.pubkey == keys.pubkey());
    Ok(of_owner.filter_map(|event| Some((Pause::from_event(event)?.0, event.raw().clone()))).collect())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::{Arc, Mutex};

    use futures_util::SinkExt;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    const NOW: Timestamp = 1_700_000_000;
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The dates of what relays were told, in order.
    type Dates = Arc<Mutex<Vec<Timestamp>>>;

    /// A relay that takes or refuses, and has these events whatever it is asked for.
    async fn relay(refuses: Option<&'static str>, has: Vec<RawEvent>) -> (String, Dates) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (url, dates) = (format!("ws://{}", listener.local_addr().expect("an address")), Dates::default());
        let seen = Arc::clone(&dates);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a handshake");
                while let Some(Ok(Message::Text(text))) = socket.next().await {
                    let message: Value = serde_json::from_str(&text).expect("JSON");
                    let answers = match message[0].as_str() {
                        Some("EVENT") => {
                            seen.lock().expect("a lock").extend(message[1]["created_at"].as_u64());
                            vec![json!(["OK", message[1]["id"], refuses.is_none(), refuses.unwrap_or_default()])]
                        }
                        Some("REQ") => {
                            let events = has.iter().map(|event| json!(["EVENT", message[1], event]));
                            events.chain([json!(["EOSE", message[1]])]).collect()
                        }
                        _ => Vec::new(),
                    };
                    for answer in answers {
                        drop(socket.send(Message::text(answer.to_string())).await);
                    }
                }
            }
        });
        (url, dates)
    }

    /// One that takes connections, and says nothing on them.
    async fn silent() -> (String, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        (format!("ws://{}", listener.local_addr().expect("an address")), listener)
    }

    fn pause(paused: bool) -> Pause {
        Pause { paused, reason: String::new() }
    }

    /// The dates that those here were told, in order; `None`: for this home.
    type Told = Vec<Option<Timestamp>>;

    async fn say_to(keys: &Keys, relays: &[String], known: Timestamp, said: &Pause) -> (Said<()>, Told) {
        let told = RefCell::new(Vec::new());
        let tell = async |what: Vec<Tell>| {
            told.borrow_mut().extend(what.iter().map(|(_, word)| word.as_ref().map(|word| word.created_at)));
        };
        let reaches = [(Reach::Fleet, known)];
        let said = speak(keys, &Options::default(), relays, &reaches, said, NOW, tell).await;
        (said, told.into_inner())
    }

    fn keys() -> Keys {
        Keys::generate().expect("randomness")
    }

    #[tokio::test]
    async fn a_word_is_newer_than_the_one_before_whatever_the_clock_says_and_never_too_far_ahead() {
        for (known, at) in [(0, NOW), (NOW, NOW + 1), (NOW + 899, NOW + 900)] {
            let (said, told) = say_to(&keys(), &[], known, &pause(true)).await;
            assert_eq!((said.words[0].event.created_at, told, said.ahead), (at, vec![Some(at)], None));
        }
        for (known, secs) in [(NOW + 900, 900), (u64::MAX, u64::MAX - NOW)] {
            let (said, told) = say_to(&keys(), &[], known, &pause(true)).await;
            assert_eq!((said.ahead, said.words.len(), told), (Some(Ahead { secs }), 0, vec![None]), "in this home");
            let (said, told) = say_to(&keys(), &[], known, &pause(false)).await;
            assert_eq!((said.ahead, told), (Some(Ahead { secs }), vec![]));
        }
    }

    #[tokio::test]
    async fn a_relay_that_says_nothing_holds_up_neither_those_here_nor_another_relay() {
        let (silent, _listener) = silent().await;
        let (good, dates) = relay(None, Vec::new()).await;
        let options = Options { timeout: PATIENCE * 60, ..Options::default() };
        for relays in [vec![silent.clone()], vec![silent, good]] {
            let (told, is_told) = tokio::sync::oneshot::channel();
            let told = RefCell::new(Some(told));
            let tell = async |_: Vec<Tell>| {
                told.borrow_mut().take().expect("once").send(()).expect("it is waited for");
            };
            let (keys, said) = (keys(), pause(true));
            let reaches = [(Reach::Fleet, 0)];
            tokio::select! {
                _ = speak(&keys, &options, &relays, &reaches, &said, NOW, tell) => panic!("the relay is silent"),
                told = is_told => told.expect("those here are told"),
                () = tokio::time::sleep(PATIENCE) => panic!("those here wait for the relay"),
            }
        }
        assert_eq!(*dates.lock().expect("a lock"), [NOW]);
    }

    #[tokio::test]
    async fn what_a_relay_gives_of_others_is_not_the_owners_word() {
        let owner = keys();
        let strange = keys().sign(pause(false).draft(&Reach::Fleet, NOW + 900)).raw().clone();
        let (url, dates) = relay(None, vec![strange]).await;
        let (said, told) = say_to(&owner, &[url], 0, &pause(true)).await;
        assert_eq!((said.ahead, told), (None, vec![Some(NOW)]));
        assert_eq!(*dates.lock().expect("a lock"), [NOW]);
    }

    #[tokio::test]
    async fn where_a_relay_has_a_newer_word_it_is_said_again_to_all_dated_later() {
        let owner = keys();
        let newer = owner.sign(pause(false).draft(&Reach::Fleet, NOW + 7)).raw().clone();
        let (first, of_first) = relay(None, Vec::new()).await;
        let (second, of_second) = relay(None, vec![newer]).await;
        let (said, told) = say_to(&owner, &[first, second], 0, &pause(true)).await;
        for dates in [of_first, of_second] {
            assert_eq!(*dates.lock().expect("a lock"), [NOW, NOW + 8]);
        }
        assert_eq!((said.words[0].event.created_at, told.last()), (NOW + 8, Some(&Some(NOW + 8))));
        assert!(said.words[0].relays.iter().all(|heard| heard.said.is_ok()));
        // What cannot be dated later is for this home.
        let newest = owner.sign(pause(false).draft(&Reach::Fleet, NOW + 900)).raw().clone();
        let (url, _) = relay(None, vec![newest]).await;
        let (said, told) = say_to(&owner, &[url], 0, &pause(true)).await;
        assert_eq!((said.ahead, told.last()), (Some(Ahead { secs: 900 }), Some(&None)));
    }

    #[tokio::test]
    async fn those_here_are_not_told_a_word_that_relays_refuse_for_its_date() {
        let why = Some("invalid: created_at is more than 900 s ahead");
        let (url, _) = relay(why, Vec::new()).await;
        let (said, told) = say_to(&keys(), std::slice::from_ref(&url), 0, &pause(false)).await;
        assert!(said.told.is_none() && told.is_empty());
        assert!(said.words[0].relays[0].said.as_ref().is_err_and(Unheard::is_of_clock));
        let (_, told) = say_to(&keys(), std::slice::from_ref(&url), 0, &pause(true)).await;
        assert_eq!(told, [None], "a pause holds in this home");
        let (good, _) = relay(None, Vec::new()).await;
        let (_, told) = say_to(&keys(), &[url, good], 0, &pause(false)).await;
        assert_eq!(told, [Some(NOW)], "one relay alone stops nothing");
        let (blocks, _) = relay(Some("blocked: no"), Vec::new()).await;
        let (_, told) = say_to(&keys(), &[blocks], 0, &pause(true)).await;
        assert_eq!(told, [Some(NOW)]);
    }
}
