//! Permission cards: what a program needs to answer one is on it, and one that nobody answers is a no.

use super::*;
use skep_proto::agent::permission::CardTag;

#[tokio::test]
async fn a_card_that_nobody_answers_is_rejected_and_closed_with_its_turn() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let times = turn::Times { turn_ms_max: 2_000, ..turn::Times::default() };
    let instance = prompter(Setup { times, ..setup(dir.path(), "a", demo()) }, &relay).await;
    let began = now();
    instance.event(&mention(OWNER, "write late.txt")).await;
    let card = relay.wait_for(Kind::NOTE, 1).await.remove(0);
    let tag = CardTag::from_event(&card).expect("a card for programs, too");
    assert_eq!((tag.allow.as_str(), tag.reject.as_str()), ("allow", "reject"));
    assert_eq!(tag.channel, format!("notes:{}", pubkey(OWNER)));
    assert!((began..=began + 4).contains(&tag.expires_at), "not after its turn: {}", tag.expires_at);
    let closed = relay.wait_for(Kind::REACTION, 2).await.pop().unwrap();
    assert_eq!((closed.content.as_str(), e_tag(&closed)), ("⌛", card.id.to_hex()));
    assert!(!dir.path().join("late.txt").exists());
    let decide = Command::Decide { nonce: tag.nonce, option: tag.allow, by: pubkey(OWNER) };
    let said = command(&instance, decide).await.unwrap_err();
    assert!(["it ran out", "its turn ended"].iter().any(|how| said.starts_with(how)), "{said}");
    let thumb = Draft::new(Kind::REACTION, now(), "👍").tag(["e", &card.id.to_hex()]);
    instance.event(thumb.sign(&keys(OWNER), &[0; 32]).raw()).await;
    let mut told = None;
    for count in 2.. {
        let notes = relay.wait_for(Kind::NOTE, count).await;
        told = notes.into_iter().find(|note| note.content.starts_with("Too late"));
        if told.is_some() {
            break;
        }
    }
    let told = told.unwrap();
    assert_eq!(told.content, format!("Too late: {said}."), "and nothing of an answer, as there was none");
    assert!(!dir.path().join("late.txt").exists(), "a late yes is none");
}
