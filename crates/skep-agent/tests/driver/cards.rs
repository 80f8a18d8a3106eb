//! Permission cards: what a program needs to answer one is on it, and one that nobody answers is a no.

use super::*;
use skep_proto::agent::permission::CardTag;

#[tokio::test]
async fn a_card_that_nobody_answers_is_rejected_and_closed_with_its_turn() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let times = turn::Times { turn_ms_max: 2_000, ..turn::Times::default() };
    let instance = Instance::start(Setup { times, ..setup(dir.path(), "a", demo()) }, &relay);
    instance.tell(PROMPTER).await;
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
    assert_eq!(command(&instance, decide).await, Err("it was decided already".into()));
    assert!(!dir.path().join("late.txt").exists(), "a late yes is none");
}
