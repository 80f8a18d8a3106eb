//! Filters and tags as arguments.

use skep_node::clock::unix_now;
use skep_node::keys::{Keyring, event_id, parse_nip19, pubkey};
use skep_proto::{Filter, Kind as EventKind};

use super::input;
use crate::cli::FilterArgs;
use crate::error::{CliError, Kind};

/// The filters that the arguments ask for: those given as JSON, or one made of the flags.
pub fn filters(args: &FilterArgs) -> Result<Vec<Filter>, CliError> {
    if args.filters.is_empty() {
        return from_flags(args).map(|filter| vec![filter]);
    }
    let mut all = Vec::new();
    for text in &args.filters {
        if text == "-" {
            for value in input::stdin() {
                let (number, value) = value?;
                all.push(from_json(value.get(), &format!("filter {number} of stdin"))?);
            }
        } else {
            all.push(from_json(text, "the filter")?);
        }
    }
    if all.is_empty() {
        return Err(CliError::new(Kind::Input, "stdin holds no filter").hint("{} matches everything"));
    }
    Ok(all)
}

pub fn from_json(text: &str, what: &str) -> Result<Filter, CliError> {
    let hint = r#"a filter is a JSON object such as {"kinds":[1],"limit":10}"#;
    let filter: Filter = serde_json::from_str(text)
        .map_err(|error| CliError::new(Kind::Input, format!("{what} is invalid: {error}")).hint(hint))?;
    match &filter.unknown {
        Some(name) => Err(CliError::new(Kind::Input, format!("{what} has an unknown element {name:?}"))
            .hint("known: ids authors kinds since until limit search, and # with one letter")),
        None => Ok(filter),
    }
}

fn from_flags(args: &FilterArgs) -> Result<Filter, CliError> {
    let now = unix_now();
    let time = |text: &Option<String>| text.as_deref().map(|text| input::time(text, now)).transpose();
    let mut filter = Filter {
        since: time(&args.since)?,
        until: time(&args.until)?,
        limit: args.limit,
        search: args.search.clone(),
        ..Filter::new()
    };
    if !args.id.is_empty() {
        filter.ids = Some(args.id.iter().map(|text| event_id(text)).collect::<Result<_, _>>()?);
    }
    if !args.author.is_empty() {
        filter.authors = Some(authors(&args.author)?);
    }
    if !args.kind.is_empty() {
        filter.kinds = Some(args.kind.iter().copied().map(EventKind).collect());
    }
    for text in &args.tag {
        let elements = tag(text)?;
        let (name, values) = elements.split_first().map_or(("", &[][..]), |(name, values)| (name.as_str(), values));
        let &[letter] = name.as_bytes() else { return Err(not_a_letter(name)) };
        if !letter.is_ascii_alphabetic() {
            return Err(not_a_letter(name));
        }
        match filter.tags.iter_mut().find(|(seen, _)| *seen == letter) {
            Some((_, all)) => all.extend_from_slice(values),
            None => filter.tags.push((letter, values.to_vec())),
        }
    }
    Ok(filter.normalized())
}

fn authors(texts: &[String]) -> Result<Vec<skep_proto::PubKey>, CliError> {
    // The home is looked for only when a text may be the name of a key.
    let mut ring: Option<Keyring> = None;
    let mut found = Vec::with_capacity(texts.len());
    for text in texts {
        found.push(match pubkey(text) {
            Ok(key) => key,
            Err(_) => {
                let ring = match &ring {
                    Some(ring) => ring,
                    None => ring.insert(super::keyring()?),
                };
                ring.pubkey(text)?
            }
        });
    }
    Ok(found)
}

fn not_a_letter(name: &str) -> CliError {
    CliError::new(Kind::Input, format!("a filter cannot ask for the tag {name:?}"))
        .hint("only tags named by one letter are indexed: --tag t=value")
}

/// Reads `name=value[,value]` or a JSON array of strings. Values that are npub, note and the like become hex.
pub fn tag(text: &str) -> Result<Vec<String>, CliError> {
    let hint = r#"write name=value[,value], or a JSON array as ["name","value, with a comma"]"#;
    let bad = || CliError::new(Kind::Input, format!("{text:?} is not a tag")).hint(hint);
    if text.starts_with('[') {
        let elements: Vec<String> = serde_json::from_str(text).map_err(|_| bad())?;
        return if elements.is_empty() { Err(bad()) } else { Ok(elements) };
    }
    let (name, values) = match text.split_once('=') {
        Some((name, values)) => (name, Some(values)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(bad());
    }
    let mut elements = vec![name.to_owned()];
    elements.extend(values.into_iter().flat_map(|values| values.split(',')).map(as_hex));
    Ok(elements)
}

/// Tags hold hex (NIP-01), people hold npubs.
fn as_hex(value: &str) -> String {
    if parse_nip19(value).is_none() {
        return value.to_owned();
    }
    let key = pubkey(value).map(|key| key.to_hex());
    key.or_else(|_| event_id(value).map(|id| id.to_hex())).unwrap_or_else(|_| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    const HEX: &str = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";

    #[test]
    fn a_tag_is_read_in_both_forms() {
        let all: [(&str, &[&str]); 6] = [
            ("t=bee", &["t", "bee"]),
            ("e=a,wss://x,root", &["e", "a", "wss://x", "root"]),
            ("-", &["-"]),
            ("d=", &["d", ""]),
            (r#"["title","a, b"]"#, &["title", "a, b"]),
            ("p=npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg", &["p", HEX]),
        ];
        for (text, expected) in all {
            assert_eq!(tag(text).expect(text), expected);
        }
        for bad in ["", "=x", "[]", "[1]", "[\"a\""] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_and_json_make_the_same_filter() {
        let args = FilterArgs {
            filters: vec![],
            id: vec![],
            author: vec![NPUB.into()],
            kind: vec![7, 1],
            tag: vec!["t=b,a".into(), "t=c".into()],
            since: Some("5".into()),
            until: None,
            limit: Some(3),
            search: Some("x".into()),
        };
        let json =
            format!(r##"{{"authors":["{HEX}"],"kinds":[1,7],"#t":["a","b","c"],"since":5,"limit":3,"search":"x"}}"##);
        assert_eq!(filters(&args).expect("flags"), [from_json(&json, "x").expect("json")]);
    }

    #[test]
    fn an_invalid_filter_says_what_is_wrong() {
        for (bad, word) in [("{", "EOF"), (r#"{"kinds":"x"}"#, "string"), (r#"{"kind":[1]}"#, "kind"), ("[]", "object")]
        {
            let error = from_json(bad, "the filter").expect_err("invalid");
            assert!(error.kind == Kind::Input && error.cause.contains(word) && error.hint.is_some(), "{}", error.cause);
        }
    }
}
