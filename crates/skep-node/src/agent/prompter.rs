//! The relay's lease `prompter:<agent>`, as this instance knows it: what to ask next, and what the answers say.
//!
//! Must not: take a lease for held longer than its time counted from when it was asked for, by the wall clock and by
//! the one that only counts while the machine is awake; the shorter is true.

use std::time::Duration;

use skep_core::door::Accepted;
use skep_core::leader::RelayLease;
use skep_proto::lease::{Conflict, Epoch};
use skep_proto::limits::{LEADER_REFRESH_MS, LEASE_TTL_SECS_DEFAULT};
use skep_proto::time::UnixMs;
use skep_proto::{Draft, Kind, Prefix, RawEvent, Refusal};
use tokio::time::Instant;

use super::locks::is_same_machine;
use crate::client::Credentials;

/// Between two questions after one that failed or was refused.
const AGAIN: Duration = Duration::from_secs(1);

/// Wall clock and the clock that does not jump.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub wall: UnixMs,
    pub steady: Instant,
}

/// The lease, seen from one instance.
#[derive(Debug)]
pub struct Prompter {
    resource: String,
    instance: String,
    credentials: Credentials,
    held: Option<Mine>,
    /// Who has it, when it is not ours: its instance, and until when by the relay's clock.
    other: Option<(String, UnixMs)>,
    /// A question is on its way.
    is_asking: bool,
    /// No question before this.
    quiet_until: Option<Instant>,
    /// News says that ours was taken.
    is_doubted: bool,
    may_steal: bool,
    /// A person wants this instance to lead: the lease is taken over, wherever its holder is. Until it is ours.
    is_claimed: bool,
    grants: Grants,
    /// What the relay said last, when it was not a lease.
    said: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Mine {
    epoch: Epoch,
    /// When it was asked for last.
    since: Now,
}

/// Whether the relay knows leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grants {
    Yes,
    No,
    Unknown,
}

/// A request on its way.
#[derive(Debug)]
pub struct Question {
    pub event: RawEvent,
    is_steal: bool,
    asked: Now,
}

const TTL_MS: UnixMs = LEASE_TTL_SECS_DEFAULT * 1_000;

impl Mine {
    fn is_held(&self, now: Now) -> bool {
        let awake = now.steady.saturating_duration_since(self.since.steady).as_millis();
        // A wall clock that was set back tells nothing; the other one does.
        now.wall.saturating_sub(self.since.wall) < TTL_MS && awake < u128::from(TTL_MS)
    }
}

impl Prompter {
    pub fn new(instance: String, credentials: Credentials) -> Self {
        let may_steal = credentials.attestation.is_some();
        Self {
            resource: format!("prompter:{}", credentials.keys.pubkey()),
            instance,
            credentials,
            held: None,
            other: None,
            is_asking: false,
            quiet_until: None,
            is_doubted: false,
            may_steal,
            is_claimed: false,
            grants: Grants::Unknown,
            said: None,
        }
    }

    pub fn lease(&self, now: Now) -> RelayLease {
        match (&self.held, &self.other) {
            _ if self.grants == Grants::No => RelayLease::None,
            (Some(mine), _) if mine.is_held(now) => RelayLease::Held(mine.epoch),
            // What ran out is nobody's, as far as is known: the stored state of a lease outlives it.
            (_, Some((_, until))) if *until > now.wall => RelayLease::Others,
            _ => RelayLease::Unknown,
        }
    }

    /// What the relay said, when there is no lease.
    pub fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// When something changes by time alone: ours or the other's runs out, or a question is due.
    pub fn wake(&self, now: Now) -> Option<Duration> {
        let ours = self
            .held
            .filter(|mine| mine.is_held(now))
            .map(|mine| TTL_MS.saturating_sub(now.wall.saturating_sub(mine.since.wall)));
        let other = self.other.as_ref().and_then(|(_, until)| until.checked_sub(now.wall));
        let quiet = self.quiet_until.and_then(|until| until.checked_duration_since(now.steady));
        let times = ours.into_iter().chain(other).map(|ms| Duration::from_millis(ms + 1)).chain(quiet);
        times.filter(|wait| !wait.is_zero()).min()
    }

    /// The next question, if it is time for one. `has_hold`: no other instance of this machine leads.
    pub fn ask(&mut self, now: Now, has_hold: bool) -> Option<Question> {
        if self.is_asking || self.quiet_until.is_some_and(|until| now.steady < until) {
            return None;
        }
        let held = self.held.filter(|mine| mine.is_held(now));
        if let Some(mine) = held {
            let age = now.wall.saturating_sub(mine.since.wall);
            // Ticks come from many causes; the lease needs one question in five seconds.
            if age < LEADER_REFRESH_MS / 2 && !std::mem::take(&mut self.is_doubted) {
                return None;
            }
            return Some(self.question(now, "renew", Some(mine.epoch)));
        }
        let is_of_here = self.other.as_ref().is_some_and(|(other, _)| is_same_machine(other, &self.instance));
        let is_to_steal = self.is_claimed || (is_of_here && has_hold);
        let op = if is_to_steal && self.may_steal { "steal" } else { "acquire" };
        Some(self.question(now, op, None))
    }

    /// A person wants this instance to lead, whoever does.
    pub fn claim(&mut self) {
        if self.held.is_none() {
            (self.is_claimed, self.quiet_until) = (true, None);
        }
    }

    /// There is a connection again: what was said without one need not be waited for.
    pub fn connected(&mut self) {
        self.quiet_until = None;
    }

    /// Gives the lease back, when it is ours.
    pub fn release(&mut self, now: Now) -> Option<RawEvent> {
        let mine = self.held.take().filter(|mine| mine.is_held(now))?;
        let question = self.question(now, "release", Some(mine.epoch));
        self.is_asking = false;
        Some(question.event)
    }

    fn question(&mut self, now: Now, op: &'static str, epoch: Option<Epoch>) -> Question {
        let mut draft = Draft::new(Kind::LEASE_REQUEST, now.wall / 1_000, "")
            .tag(["resource", &self.resource])
            .tag(["op", op])
            .tag(["instance", &self.instance])
            .tag(["ttl", &LEASE_TTL_SECS_DEFAULT.to_string()]);
        if let Some(epoch) = epoch {
            draft = draft.tag(["epoch", &epoch.to_string()]);
        }
        if let Some(attestation) = &self.credentials.attestation {
            draft = draft.tag(attestation);
        }
        self.is_asking = true;
        Question { event: self.credentials.keys.sign(draft).raw().clone(), is_steal: op == "steal", asked: now }
    }

    /// The relay's answer to a question.
    pub fn answered(&mut self, question: &Question, answer: Result<Accepted, Refusal>, now: Now) {
        self.is_asking = false;
        self.quiet_until = None;
        match answer {
            Ok(Accepted::Answered(text)) if let Some(epoch) = number(&text, "epoch") => {
                self.held = Some(Mine { epoch, since: question.asked });
                self.is_claimed = false;
                (self.other, self.said, self.grants) = (None, None, Grants::Yes);
            }
            Ok(_) => self.grants_none("it took a lease request for a note"),
            Err(refusal) => self.refused(question, refusal, now),
        }
    }

    fn refused(&mut self, question: &Question, refusal: Refusal, now: Now) {
        let said = refusal.to_string();
        match refusal.prefix {
            Prefix::Conflict => {
                self.grants = Grants::Yes;
                self.held = None;
                self.conflict(&refusal, now);
            }
            Prefix::Unsupported | Prefix::Blocked if self.grants != Grants::Yes => self.grants_none(&said),
            _ => {
                self.may_steal &= !question.is_steal || refusal.prefix == Prefix::Error;
                self.quiet_until = Some(now.steady + AGAIN);
            }
        }
        self.said = Some(said);
    }

    /// Held by another, or free.
    fn conflict(&mut self, refusal: &Refusal, now: Now) {
        let before = self.other.take();
        let Some(Conflict::Held { instance, expires_at, .. }) = Conflict::read(refusal) else { return };
        let is_news = before.as_ref().is_none_or(|(known, _)| *known != instance);
        let may_steal = self.may_steal && is_same_machine(&instance, &self.instance);
        self.other = Some((instance, expires_at.saturating_mul(1_000)));
        // The next question may be another one; the same again waits.
        if !(is_news && may_steal) {
            self.quiet_until = Some(now.steady + AGAIN);
        }
    }

    fn grants_none(&mut self, why: &str) {
        (self.grants, self.held, self.other) = (Grants::No, None, None);
        self.said = Some(why.to_owned());
    }

    /// A state event (kind 30480) of the relay. Whether anything may follow from it.
    pub fn noted(&mut self, event: &RawEvent, now: Now) -> bool {
        let tag = |name| event.tags.single(name);
        let (Some(resource), Some(instance)) = (tag("d"), tag("instance")) else { return false };
        let (Some(epoch), Some(expires)) = (number_of(tag("epoch")), number_of(tag("expires"))) else { return false };
        if resource != self.resource || instance == self.instance {
            return false;
        }
        if let Some(mine) = self.held {
            // Ours until the relay itself says otherwise: elsewhere anybody may write such an event. It is asked at once.
            self.is_doubted |= mine.epoch < epoch;
            return true;
        }
        let until = expires.saturating_mul(1_000);
        if until <= now.wall {
            // It was given back: who waited between two questions need not.
            self.quiet_until = None;
        }
        self.other = Some((instance.to_owned(), until));
        true
    }
}

fn number_of(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}

/// The number after `name=`.
fn number(text: &str, name: &str) -> Option<u64> {
    text.split(' ').filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;

    fn prompter(instance: &str) -> Prompter {
        let keys = Keys::generate().expect("randomness");
        let owner = "0".repeat(64);
        let attestation = Some(["auth".into(), owner, String::new(), "0".repeat(128)]);
        Prompter::new(instance.into(), Credentials { keys, attestation })
    }

    fn op(question: &Question) -> &str {
        question.event.tags.single("op").expect("an op")
    }

    fn granted(epoch: u64) -> Result<Accepted, Refusal> {
        Ok(Accepted::Answered(format!("lease: epoch={epoch} expires=9999999999")))
    }

    struct Clock(Now);

    impl Clock {
        fn start() -> Self {
            Self(Now { wall: 1_000_000_000, steady: Instant::now() })
        }

        fn after(&mut self, ms: u64) -> Now {
            self.0 = Now { wall: self.0.wall + ms, steady: self.0.steady + Duration::from_millis(ms) };
            self.0
        }
    }

    #[test]
    fn a_lease_is_renewed_and_ends_by_its_own_clock() {
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("nothing is known");
        assert_eq!(op(&question), "acquire");
        assert!(lease.ask(clock.0, true).is_none(), "one question at a time");
        lease.answered(&question, granted(7), clock.after(100));
        assert_eq!(lease.lease(clock.0), RelayLease::Held(7));
        assert!(lease.ask(clock.after(1_000), true).is_none(), "it is young");
        let question = lease.ask(clock.after(4_000), true).expect("it is time");
        assert_eq!((op(&question), question.event.tags.single("epoch")), ("renew", Some("7")));
        lease.answered(&question, Err(Prefix::Error.because("no connection")), clock.0);
        assert_eq!(lease.lease(clock.after(9_000)), RelayLease::Held(7), "14.1 s after it was asked for");
        assert_eq!(lease.lease(clock.after(900)), RelayLease::Unknown, "counted from the question, not the answer");
    }

    #[test]
    fn who_sleeps_longer_than_the_lease_wakes_up_without_it() {
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("a question");
        lease.answered(&question, granted(1), clock.0);
        clock.0.wall += TTL_MS;
        assert_eq!(lease.lease(clock.0), RelayLease::Unknown, "the steady clock stood still meanwhile");
        clock.0.wall = 5;
        assert_eq!(lease.lease(clock.0), RelayLease::Held(1), "set back");
        clock.0.steady += Duration::from_millis(TTL_MS);
        assert_eq!(lease.lease(clock.0), RelayLease::Unknown);
    }

    #[test]
    fn only_the_lease_of_this_machine_is_stolen_and_only_with_the_hold() {
        let held_by = |other: &str| Err(Prefix::Conflict.because(format!("held by {other} epoch=3 expires=1000099")));
        for (other, has_hold, next) in [("m/0", true, "steal"), ("m/0", false, "acquire"), ("n/0", true, "acquire")] {
            let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
            let question = lease.ask(clock.0, has_hold).expect("a question");
            lease.answered(&question, held_by(other), clock.0);
            assert_eq!(lease.lease(clock.0), RelayLease::Others);
            let at_once = lease.ask(clock.0, has_hold);
            assert_eq!(at_once.is_some(), other == "m/0", "{other}");
            let question = at_once.or_else(|| lease.ask(clock.after(1_001), has_hold)).expect("asked again");
            assert_eq!(op(&question), next, "{other} {has_hold}");
        }
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("a question");
        lease.answered(&question, held_by("m/0"), clock.0);
        let question = lease.ask(clock.0, true).expect("to steal");
        lease.answered(&question, Err(Prefix::Restricted.because("no owner")), clock.0);
        let question = lease.ask(clock.after(1_001), true).expect("asked again");
        assert_eq!(op(&question), "acquire", "without the owner's consent it waits");
    }

    #[test]
    fn a_claim_takes_the_lease_over_from_another_machine_once() {
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let held = || Err(Prefix::Conflict.because("held by n/0 epoch=3 expires=1000099"));
        let question = lease.ask(clock.0, true).expect("a question");
        lease.answered(&question, held(), clock.0);
        lease.claim();
        let question = lease.ask(clock.0, true).expect("at once");
        assert_eq!(op(&question), "steal");
        lease.answered(&question, granted(4), clock.0);
        // Lost again, it is not taken back: that was one claim.
        let question = lease.ask(clock.after(5_000), true).expect("it is renewed");
        lease.answered(&question, held(), clock.0);
        let question = lease.ask(clock.after(1_001), true).expect("asked again");
        assert_eq!(op(&question), "acquire");
    }

    #[test]
    fn a_relay_without_leases_leaves_the_guarantee_to_the_machine() {
        for answer in
            [Ok(Accepted::Duplicate), Err(Prefix::Blocked.because("kind")), Err(Prefix::Unsupported.because("x"))]
        {
            let (mut lease, clock) = (prompter("m/1"), Clock::start());
            let question = lease.ask(clock.0, true).expect("a question");
            lease.answered(&question, answer, clock.0);
            assert_eq!(lease.lease(clock.0), RelayLease::None);
        }
        let (mut lease, clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("a question");
        lease.answered(&question, Err(Prefix::Invalid.because("too old")), clock.0);
        assert_eq!(lease.lease(clock.0), RelayLease::Unknown, "a clock that is wrong is no word about leases");
    }

    #[test]
    fn a_lease_that_was_given_back_is_asked_for_at_once_and_so_is_any_after_a_connection() {
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("a question");
        let held = Prefix::Conflict.because("held by n/9 epoch=3 expires=1000015");
        lease.answered(&question, Err(held), clock.0);
        assert!(lease.ask(clock.after(10), true).is_none(), "it was asked just now");
        for (expires, is_asked) in [(clock.0.wall / 1_000 + 15, false), (clock.0.wall / 1_000, true)] {
            let news = Draft::new(Kind::LEASE_STATE, 1, "").tag(["d", &lease.resource]).tag(["instance", "n/9"]);
            let news = news.tag(["epoch", "3"]).tag(["expires", &expires.to_string()]);
            let news = lease.credentials.keys.sign(news);
            assert!(lease.noted(news.raw(), clock.0));
            assert_eq!(lease.ask(clock.0, true).is_some(), is_asked, "{expires}");
        }
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("a question");
        lease.answered(&question, Err(Prefix::Error.because("no connection")), clock.0);
        assert!(lease.ask(clock.after(10), true).is_none());
        lease.connected();
        assert!(lease.ask(clock.0, true).is_some(), "there is one now");
    }

    #[test]
    fn a_stored_state_that_ran_out_is_nobodys_lease() {
        let (mut lease, mut clock) = (prompter("m/1"), Clock::start());
        let resource = lease.resource.clone();
        let state = Draft::new(Kind::LEASE_STATE, 1, "").tag(["d", &resource]).tag(["instance", "n/9"]);
        let state = lease.credentials.keys.sign(state.tag(["epoch", "2"]).tag(["expires", "1000001"]));
        lease.noted(state.raw(), clock.0);
        assert_eq!(lease.lease(clock.0), RelayLease::Others);
        assert_eq!(lease.lease(clock.after(1_000)), RelayLease::Unknown, "and the relay is asked");
    }

    #[test]
    fn news_that_ours_was_taken_is_checked_and_not_believed() {
        let (mut lease, clock) = (prompter("m/1"), Clock::start());
        let question = lease.ask(clock.0, true).expect("a question");
        lease.answered(&question, granted(1), clock.0);
        let resource = lease.resource.clone();
        let news = Draft::new(Kind::LEASE_STATE, 1, "").tag(["d", &resource]).tag(["instance", "n/9"]);
        let news = news.tag(["epoch", "2"]).tag(["expires", "1000099"]);
        let news = lease.credentials.keys.sign(news);
        assert!(lease.noted(news.raw(), clock.0));
        assert_eq!(lease.lease(clock.0), RelayLease::Held(1));
        assert_eq!(op(&lease.ask(clock.0, true).expect("at once")), "renew");
    }
}
