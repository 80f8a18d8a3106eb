//! What a relay says, read by its first bytes: an event is never parsed on the hot path.
//!
//! Must not: believe anything. An `OK` is a success only with `true`, and a `duplicate:` is not a new event.

/// One message of a relay. Texts are as they stand in the JSON, with their escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    Event,
    Eose,
    Ok {
        id: &'a str,
        accepted: bool,
        message: &'a str,
    },
    Closed {
        message: &'a str,
    },
    Notice {
        message: &'a str,
    },
    Count(u64),
    NegMsg {
        hex: &'a str,
    },
    NegErr {
        message: &'a str,
    },
    /// AUTH challenges, and whatever else.
    Other,
}

impl<'a> Answer<'a> {
    pub fn read(text: &'a str) -> Self {
        // What there is most of comes first.
        if text.starts_with(r#"["EVENT""#) {
            return Self::Event;
        }
        Self::parse(text).unwrap_or(Self::Other)
    }

    fn parse(text: &'a str) -> Option<Self> {
        let (verb, rest) = string(text.trim_start().strip_prefix('[')?)?;
        Some(match verb {
            "EVENT" => Self::Event,
            "EOSE" => Self::Eose,
            "OK" => {
                let (id, rest) = string(rest)?;
                let rest = value(rest)?;
                let accepted = rest.starts_with("true");
                let message = rest.split_once(',').and_then(|(_, rest)| string(rest)).map_or("", |found| found.0);
                Self::Ok { id, accepted, message }
            }
            "CLOSED" => Self::Closed { message: string(string(rest)?.1).map_or("", |found| found.0) },
            "NOTICE" => Self::Notice { message: string(rest)?.0 },
            "COUNT" => Self::Count(number_after(string(rest)?.1, r#""count""#)?),
            "NEG-MSG" => Self::NegMsg { hex: string(string(rest)?.1)?.0 },
            "NEG-ERR" => Self::NegErr { message: string(string(rest)?.1).map_or("", |found| found.0) },
            _ => Self::Other,
        })
    }
}

/// Skips a comma and space before a value.
fn value(text: &str) -> Option<&str> {
    let text = text.trim_start();
    Some(text.strip_prefix(',').unwrap_or(text).trim_start())
}

/// The string that comes next, without its quotes, and what follows it.
fn string(text: &str) -> Option<(&str, &str)> {
    let text = value(text)?.strip_prefix('"')?;
    let mut end = 0;
    loop {
        end += text.as_bytes()[end..].iter().position(|&byte| byte == b'"' || byte == b'\\')?;
        if text.as_bytes()[end] == b'"' {
            return Some((&text[..end], &text[end + 1..]));
        }
        end += 2;
        if end >= text.len() {
            return None;
        }
    }
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = text.split_once(key)?.1.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_and_spaced_answers_read_the_same() {
        for text in [r#"["OK","ab",true,"x \"y\""]"#, r#"[ "OK", "ab" , true, "x \"y\""]"#] {
            assert_eq!(Answer::read(text), Answer::Ok { id: "ab", accepted: true, message: r#"x \"y\""# }, "{text}");
        }
        assert_eq!(
            Answer::read(r#"["OK","ab",false,"blocked: no"]"#),
            Answer::Ok { id: "ab", accepted: false, message: "blocked: no" }
        );
        assert_eq!(Answer::read(r#"["EVENT","s",{}]"#), Answer::Event);
        assert_eq!(Answer::read(r#"["EOSE","s"]"#), Answer::Eose);
        assert_eq!(Answer::read(r#"["COUNT", "s", {"count": 12, "hll": "0"}]"#), Answer::Count(12));
        assert_eq!(Answer::read(r#"["COUNT","s",{"approximate":false,"count":7}]"#), Answer::Count(7));
        assert_eq!(Answer::read(r#"["CLOSED","s","error: x"]"#), Answer::Closed { message: "error: x" });
        assert_eq!(Answer::read(r#"["NEG-MSG","s","61"]"#), Answer::NegMsg { hex: "61" });
        assert_eq!(Answer::read(r#"["NEG-ERR","s","blocked"]"#), Answer::NegErr { message: "blocked" });
    }

    #[test]
    fn broken_answers_are_other_and_never_a_panic() {
        for text in [
            "",
            "[",
            "[\"",
            "[\"OK",
            "[\"OK\"",
            "[\"OK\",\"a",
            "[\"OK\",\"a\\",
            "{}",
            "[\"COUNT\",\"s\",{}]",
            "[\"é\\\"]",
        ] {
            assert_eq!(Answer::read(text), Answer::Other, "{text}");
        }
    }

    #[test]
    fn an_ok_without_true_is_no_success() {
        for text in [r#"["OK","ab"]"#, r#"["OK","ab",null]"#, r#"["OK","ab","true"]"#] {
            assert!(!matches!(Answer::read(text), Answer::Ok { accepted: true, .. }), "{text}");
        }
    }
}
