//! What a relay sends, read leniently: a message that we cannot read is skipped, not fatal.

use serde::Deserialize;
use serde_json::value::RawValue;
use skep_proto::RawEvent;

use super::Counted;

/// A message from a relay (NIP-01, 42, 45, 77). Every text in it is untrusted.
#[derive(Debug, Clone, PartialEq)]
pub enum RelayMsg {
    Event {
        sub: String,
        event: Box<RawEvent>,
    },
    Ok {
        id: String,
        accepted: bool,
        message: String,
    },
    Eose {
        sub: String,
    },
    Closed {
        sub: String,
        message: String,
    },
    Notice(String),
    Auth(String),
    Count {
        sub: String,
        counted: Counted,
    },
    NegMsg {
        sub: String,
        message: String,
    },
    NegErr {
        sub: String,
        reason: String,
    },
    /// A WebSocket pong: the relay is there.
    Pong,
}

impl RelayMsg {
    /// `None` for a message that we do not know or that is malformed.
    pub fn decode(text: &str) -> Option<Self> {
        let parts: Vec<&RawValue> = serde_json::from_str(text).ok()?;
        let string = |i: usize| read::<String>(&parts, i);
        Some(match string(0)?.as_str() {
            "EVENT" => Self::Event { sub: string(1)?, event: Box::new(read(&parts, 2)?) },
            // Some relays leave the last element out when it would be empty.
            "OK" => Self::Ok { id: string(1)?, accepted: read(&parts, 2)?, message: string(3).unwrap_or_default() },
            "EOSE" => Self::Eose { sub: string(1)? },
            "CLOSED" => Self::Closed { sub: string(1)?, message: string(2).unwrap_or_default() },
            "NOTICE" => Self::Notice(string(1)?),
            "AUTH" => Self::Auth(string(1)?),
            "COUNT" => {
                let Count { count, approximate, hll } = read(&parts, 2)?;
                Self::Count { sub: string(1)?, counted: Counted { count, approximate, hll } }
            }
            "NEG-MSG" => Self::NegMsg { sub: string(1)?, message: string(2)? },
            "NEG-ERR" => Self::NegErr { sub: string(1)?, reason: string(2).unwrap_or_default() },
            _ => return None,
        })
    }
}

#[derive(Deserialize)]
struct Count {
    count: u64,
    #[serde(default)]
    approximate: bool,
    #[serde(default)]
    hll: Option<String>,
}

fn read<'de, T: Deserialize<'de>>(parts: &[&'de RawValue], i: usize) -> Option<T> {
    serde_json::from_str(parts.get(i)?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_of_a_relay_is_read() {
        let id = "ab".repeat(32);
        let ok = |message: &str| RelayMsg::Ok { id: id.clone(), accepted: true, message: message.into() };
        assert_eq!(RelayMsg::decode(&format!(r#"["OK","{id}",true,"x\n"]"#)), Some(ok("x\n")));
        assert_eq!(RelayMsg::decode(&format!(r#"["OK","{id}",true]"#)), Some(ok("")));
        assert_eq!(RelayMsg::decode(r#"["EOSE","q1"]"#), Some(RelayMsg::Eose { sub: "q1".into() }));
        assert_eq!(RelayMsg::decode(r#" ["AUTH" , "c"]"#), Some(RelayMsg::Auth("c".into())));
        let counted = Counted { count: 3, approximate: true, hll: None };
        let count = RelayMsg::decode(r#"["COUNT","q",{"count":3,"approximate":true}]"#);
        assert_eq!(count, Some(RelayMsg::Count { sub: "q".into(), counted }));
    }

    #[test]
    fn what_is_malformed_or_unknown_is_skipped() {
        for bad in ["", "[]", "{}", r#"["EVENT","q",{}]"#, r#"["OK",1,true]"#, r#"["WHAT"]"#, r#"["COUNT","q",{}]"#] {
            assert_eq!(RelayMsg::decode(bad), None, "{bad}");
        }
    }
}
