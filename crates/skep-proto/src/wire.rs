//! The messages of the WebSocket protocol (NIP-01, 42, 45, 77). Decoding never panics; it is fuzzed.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::event::Field;
use crate::skip::Skip;
use crate::{EventId, EventRef, Filter, Prefix, RawEvent, Refusal, limits};

/// A message from a client.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientMsg {
    Event(Box<RawEvent>),
    Req { sub: SubId, filters: Vec<Filter> },
    Count { sub: SubId, filters: Vec<Filter> },
    Close { sub: SubId },
    Auth(Box<RawEvent>),
    NegOpen { sub: SubId, filter: Box<Filter>, message: String },
    NegMsg { sub: SubId, message: String },
    NegClose { sub: SubId },
}

/// A client's name for a subscription: 1 to [`limits::SUB_ID_CHARS_MAX`] characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubId(Box<str>);

impl SubId {
    pub fn new(text: &str) -> Option<Self> {
        let length = text.chars().take(limits::SUB_ID_CHARS_MAX + 1).count();
        (1..=limits::SUB_ID_CHARS_MAX).contains(&length).then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SubId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).ok_or_else(|| serde::de::Error::custom("a subscription id has 1 to 64 characters"))
    }
}

/// What a malformed message was about, as far as it could be read: the answer goes there.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Event(String),
    Sub(SubId),
    Neg(SubId),
    Nothing,
}

/// A message that could not be understood.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeError {
    pub target: Target,
    pub refusal: Refusal,
}

/// Reads one text frame.
pub fn decode(text: &str) -> Result<ClientMsg, DecodeError> {
    match serde_json::from_str::<Known>(text) {
        Ok(Known(Some(message))) => Ok(message),
        Ok(Known(None)) => {
            Err(explain(text, "unknown message type; known: EVENT REQ CLOSE AUTH COUNT NEG-OPEN NEG-MSG NEG-CLOSE"))
        }
        Err(error) => Err(explain(text, &error.to_string())),
    }
}

/// The slow path of a bad message: find out whom to answer.
fn explain(text: &str, error: &str) -> DecodeError {
    let mut target = Target::Nothing;
    // What it returns says nothing: the message is bad, and it is read only until its target is known.
    let _ = serde_json::Deserializer::from_str(text).deserialize_seq(Aim(&mut target));
    let short: String = error.chars().take(200).collect();
    DecodeError { target, refusal: Prefix::Invalid.because(short) }
}

/// Finds the target of a message: its verb, and what comes next.
struct Aim<'t>(&'t mut Target);

impl<'de> Visitor<'de> for Aim<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let verb: Cow<'de, str> = need(&mut seq, "a message type")?;
        match verb.as_ref() {
            "EVENT" | "AUTH" => drop(seq.next_element_seed(AimOfEvent(self.0))?),
            "REQ" | "COUNT" => *self.0 = Target::Sub(need(&mut seq, "a subscription id")?),
            "NEG-OPEN" | "NEG-MSG" => *self.0 = Target::Neg(need(&mut seq, "a subscription id")?),
            _ => {}
        }
        Ok(())
    }
}

/// The same in an event: its id, whatever that is.
struct AimOfEvent<'t>(&'t mut Target);

impl<'de> DeserializeSeed<'de> for AimOfEvent<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AimOfEvent<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut skip = Skip::default();
        while let Some(field) = map.next_key()? {
            match field {
                Field::Id => {
                    let id: Cow<'de, str> = map.next_value()?;
                    *self.0 = Target::Event(id.chars().take(64).collect());
                    return Ok(());
                }
                Field::Tags => drop(map.next_value::<IgnoredAny>()?),
                _ => map.next_value_seed(&mut skip)?,
            }
        }
        Ok(())
    }
}

/// What the visitor makes: `None` for a message type that we do not know.
struct Known(Option<ClientMsg>);

impl<'de> Deserialize<'de> for Known {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_seq(Message).map(Known)
    }
}

struct Message;

impl<'de> Visitor<'de> for Message {
    type Value = Option<ClientMsg>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array that begins with a message type")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut skip = Skip::default();
        let verb: Cow<'de, str> = need(&mut seq, "a message type")?;
        let message = match verb.as_ref() {
            "EVENT" => ClientMsg::Event(Box::new(need(&mut seq, "an event")?)),
            "AUTH" => ClientMsg::Auth(Box::new(need(&mut seq, "a signed AUTH event")?)),
            "REQ" => {
                let sub = need(&mut seq, "a subscription id")?;
                ClientMsg::Req { sub, filters: filters(&mut seq)? }
            }
            "COUNT" => {
                let sub = need(&mut seq, "a query id")?;
                ClientMsg::Count { sub, filters: filters(&mut seq)? }
            }
            "CLOSE" => ClientMsg::Close { sub: need(&mut seq, "a subscription id")? },
            "NEG-OPEN" => ClientMsg::NegOpen {
                sub: need(&mut seq, "a subscription id")?,
                filter: Box::new(need(&mut seq, "a filter")?),
                message: need(&mut seq, "a hex message")?,
            },
            "NEG-MSG" => ClientMsg::NegMsg {
                sub: need(&mut seq, "a subscription id")?,
                message: need(&mut seq, "a hex message")?,
            },
            "NEG-CLOSE" => ClientMsg::NegClose { sub: need(&mut seq, "a subscription id")? },
            _ => {
                while seq.next_element_seed(&mut skip)?.is_some() {}
                return Ok(None);
            }
        };
        // Elements after the known ones are ignored, so that a NIP may add some.
        while seq.next_element_seed(&mut skip)?.is_some() {}
        Ok(Some(message))
    }
}

fn need<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(seq: &mut A, what: &'static str) -> Result<T, A::Error> {
    seq.next_element()?.ok_or_else(|| serde::de::Error::custom(format_args!("the message lacks {what}")))
}

fn filters<'de, A: SeqAccess<'de>>(seq: &mut A) -> Result<Vec<Filter>, A::Error> {
    let mut all = Vec::with_capacity(1);
    while let Some(filter) = seq.next_element()? {
        all.push(filter);
        if all.len() > limits::FILTERS_HARD_MAX {
            return Err(serde::de::Error::custom("too many filters"));
        }
    }
    if all.is_empty() {
        return Err(serde::de::Error::custom("the message lacks a filter"));
    }
    Ok(all)
}

/// JSON text of a string, with quotes.
pub fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("invariant: a string serializes")
}

/// `["OK", id, accepted, message]`. `id` may be a text that is no id, when that is what the client sent.
pub fn ok(id: &str, result: Result<&str, &Refusal>) -> String {
    let (accepted, message) = match result {
        Ok(message) => (true, Cow::Borrowed(message)),
        Err(refusal) => (false, Cow::Owned(refusal.to_string())),
    };
    format!(r#"["OK",{},{accepted},{}]"#, quote(id), quote(&message))
}

/// The usual case of [`ok`]: accepted, with nothing more to say.
pub fn ok_plain(id: &EventId) -> String {
    format!(r#"["OK","{id}",true,""]"#)
}

/// `["EVENT", sub, event]` around an event that is JSON already.
pub fn event(quoted_sub: &str, event: EventRef<'_>) -> String {
    let mut out = String::with_capacity(12 + quoted_sub.len() + event.json_len_max());
    out.push_str(r#"["EVENT","#);
    out.push_str(quoted_sub);
    out.push(',');
    event.write_json(&mut out);
    out.push(']');
    out
}

pub fn eose(quoted_sub: &str) -> String {
    format!(r#"["EOSE",{quoted_sub}]"#)
}

pub fn closed(sub: &SubId, refusal: &Refusal) -> String {
    format!(r#"["CLOSED",{},{}]"#, quote(sub.as_str()), quote(&refusal.to_string()))
}

pub fn notice(text: &str) -> String {
    format!(r#"["NOTICE",{}]"#, quote(text))
}

pub fn auth(challenge: &str) -> String {
    format!(r#"["AUTH",{}]"#, quote(challenge))
}

/// `["COUNT", id, {"count": n}]`, with the registers of a HyperLogLog in hex where NIP-45 defines one.
pub fn count(sub: &SubId, count: u64, hll: Option<&str>) -> String {
    match hll {
        Some(hll) => format!(r#"["COUNT",{},{{"count":{count},"hll":"{hll}"}}]"#, quote(sub.as_str())),
        None => format!(r#"["COUNT",{},{{"count":{count}}}]"#, quote(sub.as_str())),
    }
}

pub fn neg_msg(sub: &SubId, hex: &str) -> String {
    format!(r#"["NEG-MSG",{},"{hex}"]"#, quote(sub.as_str()))
}

/// NIP-77 has its own prefixes here, `blocked` and `closed`; the rest are ours.
pub fn neg_err(sub: &SubId, refusal: &Refusal) -> String {
    format!(r#"["NEG-ERR",{},{}]"#, quote(sub.as_str()), quote(&refusal.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        decode(text).expect_err("a bad message").target
    }

    #[test]
    fn a_bad_message_is_answered_where_it_came_from() {
        let sub = SubId::new("s").expect("a valid id");
        assert_eq!(target(r#"["EVENT",{"id":"abc","kind":"x"}]"#), Target::Event("abc".into()));
        assert_eq!(target(r#"["EVENT",7]"#), Target::Nothing);
        assert_eq!(target(r#"["REQ","s",{"kinds":"x"}]"#), Target::Sub(sub.clone()));
        assert_eq!(target(r#"["REQ","s"]"#), Target::Sub(sub.clone()));
        assert_eq!(target(r#"["NEG-OPEN","s",7,""]"#), Target::Neg(sub));
        for nothing in ["", "{}", "[]", "[1]", r#"["WHAT",1]"#, "\u{0}", r#"["REQ",{}]"#, r#"["REQ","",{}]"#] {
            assert_eq!(target(nothing), Target::Nothing, "{nothing:?}");
        }
    }

    #[test]
    fn a_subscription_id_has_1_to_64_characters() {
        assert!(SubId::new(&"é".repeat(64)).is_some());
        assert!(SubId::new(&"é".repeat(65)).is_none());
        assert!(SubId::new("").is_none());
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = "[".repeat(1_000_000);
        assert!(decode(&deep).is_err());
        assert!(decode(&format!(r#"["REQ","s",{{"x":{deep}"#)).is_err());
        assert!(decode(&format!(r#"["WHAT",{deep}"#)).is_err());
    }

    #[test]
    fn what_nobody_knows_is_read_over_up_to_a_bound() {
        let long = |n| vec!["0"; n].join(",");
        let nested = |n| format!("[{}]", vec![r#"{"a":[]}"#; n].join(","));
        let (few, many) = (limits::SKIPPED_VALUES_MAX - 1, limits::SKIPPED_VALUES_MAX);
        assert!(decode(&format!(r#"["REQ","s",{{"x":[{}]}}]"#, long(few))).is_ok());
        assert!(decode(&format!(r#"["REQ","s",{{"x":[{}]}}]"#, long(many))).is_err());
        assert!(decode(&format!(r#"["REQ","s",{{"x":{0},"y":{0}}}]"#, nested(few / 4))).is_ok());
        assert!(decode(&format!(r#"["REQ","s",{{"x":{0},"y":{0}}}]"#, nested(few / 3))).is_err());
        assert!(decode(&format!(r#"["CLOSE","s",{}]"#, long(many))).is_ok());
        assert!(decode(&format!(r#"["CLOSE","s",{},1]"#, long(many))).is_err());
        let keys = secp256k1::Keypair::from_seckey_slice(secp256k1::SECP256K1, &[7; 32]).expect("a valid secret");
        let raw = crate::Draft::new(crate::Kind(1), 5, "x").sign(&keys, &[0; 32]).raw().to_json();
        let with = |field: &str| format!(r#"["EVENT",{},{field}}}]"#, raw.trim_end_matches('}'));
        assert!(decode(&with(r#""ots":{"x":null},"seen":[1.5,true,"y"]"#)).is_ok());
        let too_much = decode(&with(&format!(r#""x":[{}]"#, long(many)))).expect_err("too much");
        assert!(too_much.refusal.to_string().contains("too much"), "{}", too_much.refusal);
        assert!(matches!(too_much.target, Target::Event(_)), "the id came first");
    }

    #[test]
    fn a_field_twice_or_not_at_all_is_told() {
        let told = |text: &str| decode(text).expect_err("a bad event").refusal.to_string();
        assert!(told(r#"["EVENT",{"kind":1,"kind":1}]"#).contains("duplicate field `kind`"));
        assert!(told(r#"["EVENT",{"kind":1}]"#).contains("missing field `id`"));
        assert!(told(r#"["EVENT",[]]"#).contains("an event object"));
    }

    #[test]
    fn every_answer_is_frozen() {
        let sub = SubId::new("a\"b").expect("a valid id");
        let refusal = Prefix::AuthRequired.because("sign in");
        assert_eq!(ok("ab", Err(&refusal)), r#"["OK","ab",false,"auth-required: sign in"]"#);
        assert_eq!(ok_plain(&EventId([0xab; 32])), format!(r#"["OK","{}",true,""]"#, "ab".repeat(32)));
        let keys = secp256k1::Keypair::from_seckey_slice(secp256k1::SECP256K1, &[7; 32]).expect("a valid secret");
        let stored = crate::Draft::new(crate::Kind(1), 5, "x").sign(&keys, &[0; 32]);
        let wanted = format!(r#"["EVENT","s",{}]"#, stored.raw().to_json());
        assert_eq!(event(&quote("s"), stored.record().as_ref()), wanted);
        assert_eq!(eose(&quote(sub.as_str())), r#"["EOSE","a\"b"]"#);
        assert_eq!(closed(&sub, &refusal), r#"["CLOSED","a\"b","auth-required: sign in"]"#);
        assert_eq!(notice("x"), r#"["NOTICE","x"]"#);
        assert_eq!(auth("c"), r#"["AUTH","c"]"#);
        assert_eq!(count(&sub, 3, None), r#"["COUNT","a\"b",{"count":3}]"#);
        assert_eq!(count(&sub, 3, Some("00")), r#"["COUNT","a\"b",{"count":3,"hll":"00"}]"#);
        assert_eq!(neg_msg(&sub, "61"), r#"["NEG-MSG","a\"b","61"]"#);
        assert_eq!(neg_err(&sub, &refusal), r#"["NEG-ERR","a\"b","auth-required: sign in"]"#);
    }
}
