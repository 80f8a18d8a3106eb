//! Two agents that answer each other stop, until their owner lets them go on.

use skep_proto::limits::PAIR_TURNS_PER_HOUR_MAX;

use super::*;
use crate::leading::until_is;

#[tokio::test]
async fn a_pair_goes_on_when_the_owner_retries_what_was_refused_and_is_told_of_again_when_it_stops_again() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let audience = Audience { respond_to: RespondTo::Siblings, owner: Some(pubkey(OWNER)), allowlist: Vec::new() };
    let setup = Setup { audience, ..setup(dir.path(), "a", script("cat >/dev/null; echo done")) };
    let instance = prompter(setup, &relay).await;
    let conditions = "".parse().unwrap();
    let consent = attestation::attest(&keys(OWNER), &pubkey(STRANGER), &conditions, &[0; 32]);
    let said = |n: usize| {
        let draft = Draft::new(Kind::NOTE, now(), format!("job {n}")).tag(["p", &pubkey(AGENT).to_hex()]).tag(&consent);
        draft.sign(&keys(STRANGER), &[0; 32]).raw().clone()
    };
    let told = || relay.accepted(Kind::NOTE).iter().filter(|note| note.content.contains("only you can")).count();
    let mut count = 0;
    for stop in 1..=2 {
        let asked: Vec<RawEvent> = (0..PAIR_TURNS_PER_HOUR_MAX + 2).map(|n| said(count + n)).collect();
        count += asked.len();
        for event in &asked {
            instance.event(event).await;
        }
        let (turns, refused) = asked.split_at(PAIR_TURNS_PER_HOUR_MAX);
        for event in turns {
            until_is(&instance.store, &event.id, "answered").await;
        }
        for event in refused {
            until_is(&instance.store, &event.id, "refused").await;
        }
        assert!(command(&instance, Command::Retry(refused[0].id)).await.is_ok());
        until_is(&instance.store, &refused[0].id, "answered").await;
        // An answer to each turn and to what was retried, and the word to the owner.
        relay.wait_for(Kind::NOTE, stop * (PAIR_TURNS_PER_HOUR_MAX + 2)).await;
        assert_eq!(told(), stop, "once for both");
    }
}
