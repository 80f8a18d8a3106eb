//! Filters (NIP-01, NIP-50): what a REQ, COUNT or NEG-OPEN asks for.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::skip::Skip;
use crate::{EventId, EventRef, Kind, PubKey, Timestamp};

/// One filter. Its conditions are joined by AND, the values of one by OR; an empty list matches nothing.
///
/// Lists are kept sorted and without repeats, so that matching is a binary search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub ids: Option<Vec<EventId>>,
    pub authors: Option<Vec<PubKey>>,
    pub kinds: Option<Vec<Kind>>,
    /// `#x` conditions by letter, at most one each.
    pub tags: Vec<(u8, Vec<String>)>,
    /// Inclusive.
    pub since: Option<Timestamp>,
    /// Inclusive.
    pub until: Option<Timestamp>,
    /// Most stored events to serve; live events do not count.
    pub limit: Option<u64>,
    /// Words that must all occur (NIP-50).
    pub search: Option<String>,
    /// The first element that we do not know. Leaving it out would widen the answer, so it is refused.
    pub unknown: Option<String>,
}

impl Filter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `event` meets every condition but `limit` and expiry. Search compares words.
    pub fn matches(&self, event: EventRef<'_>) -> bool {
        self.matches_head(event)
            && self.tags.iter().all(|(letter, wanted)| {
                event
                    .tag_values(*letter)
                    .any(|value| wanted.binary_search_by(|candidate| candidate.as_bytes().cmp(value)).is_ok())
            })
            && self.search.as_ref().is_none_or(|text| matches_search(text, event))
    }

    fn matches_head(&self, event: EventRef<'_>) -> bool {
        let at = event.created_at();
        self.since.is_none_or(|since| since <= at)
            && self.until.is_none_or(|until| at <= until)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.binary_search(&event.kind()).is_ok())
            && self.authors.as_ref().is_none_or(|authors| authors.binary_search(&event.pubkey()).is_ok())
            && self.ids.as_ref().is_none_or(|ids| ids.binary_search(&event.id()).is_ok())
    }

    /// Whether some condition is an empty list, or the time window is empty.
    pub fn matches_nothing(&self) -> bool {
        self.ids.as_ref().is_some_and(Vec::is_empty)
            || self.authors.as_ref().is_some_and(Vec::is_empty)
            || self.kinds.as_ref().is_some_and(Vec::is_empty)
            || self.tags.iter().any(|(_, values)| values.is_empty())
            || matches!((self.since, self.until), (Some(since), Some(until)) if since > until)
    }

    /// How many values it lists in all: the measure of its cost.
    pub fn values(&self) -> usize {
        let heads = [
            self.ids.as_ref().map_or(0, Vec::len),
            self.authors.as_ref().map_or(0, Vec::len),
            self.kinds.as_ref().map_or(0, Vec::len),
        ];
        heads.iter().sum::<usize>() + self.tags.iter().map(|(_, values)| values.len()).sum::<usize>()
    }

    /// Sorts the lists. Called by the parser; call it after building a filter by hand.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        fn tidy<T: Ord>(list: &mut Vec<T>) {
            list.sort_unstable();
            list.dedup();
        }
        self.ids.iter_mut().for_each(tidy);
        self.authors.iter_mut().for_each(tidy);
        self.kinds.iter_mut().for_each(tidy);
        self.tags.iter_mut().for_each(|(_, values)| tidy(values));
        self.tags.sort_by_key(|(letter, _)| *letter);
        self
    }
}

/// The words of a text as search sees them: lowercase, alphanumeric, in order, each at most 32 characters.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| word.chars().take(32).flat_map(char::to_lowercase).collect())
}

/// The words of a search that count: `key:value` extensions are left out, as NIP-50 allows.
pub fn search_words(search: &str) -> Vec<String> {
    let mut found: Vec<String> =
        search.split_whitespace().filter(|token| !token.contains(':')).flat_map(words).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn matches_search(search: &str, event: EventRef<'_>) -> bool {
    if !crate::kind::rule(event.kind()).search {
        return false;
    }
    let Some(content) = content_of(event) else { return false };
    let have: std::collections::HashSet<String> = words(&content).collect();
    search_words(search).iter().all(|word| have.contains(word))
}

/// The content of a stored event.
pub fn content_of(event: EventRef<'_>) -> Option<String> {
    serde_json::from_slice(event.content_json()).ok()
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        macro_rules! entry {
            ($($field:ident)*) => {$(
                if let Some(value) = &self.$field {
                    map.serialize_entry(stringify!($field), value)?;
                }
            )*};
        }
        entry!(ids authors kinds);
        for (letter, values) in &self.tags {
            map.serialize_entry(&format!("#{}", *letter as char), values)?;
        }
        entry!(since until limit search);
        map.end()
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Filter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a filter object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Filter, A::Error> {
                let mut filter = Filter::default();
                let mut skip = Skip::default();
                while let Some(key) = map.next_key::<String>()? {
                    read_field(&mut filter, key, &mut map, &mut skip)?;
                }
                Ok(filter.normalized())
            }
        }
        d.deserialize_map(Fields)
    }
}

fn read_field<'de, A: MapAccess<'de>>(
    filter: &mut Filter,
    key: String,
    map: &mut A,
    skip: &mut Skip,
) -> Result<(), A::Error> {
    use serde::de::Error;
    macro_rules! once {
        ($field:ident) => {{
            if filter.$field.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom(concat!("two `", stringify!($field), "` in one filter")));
            }
        }};
    }
    match key.as_bytes() {
        b"ids" => once!(ids),
        b"authors" => once!(authors),
        b"kinds" => once!(kinds),
        b"since" => once!(since),
        b"until" => once!(until),
        b"limit" => once!(limit),
        b"search" => once!(search),
        [b'#', letter] if letter.is_ascii_alphabetic() => {
            if filter.tags.iter().any(|(seen, _)| seen == letter) {
                return Err(A::Error::custom("two conditions on one tag in one filter"));
            }
            filter.tags.push((*letter, map.next_value()?));
        }
        _ => {
            map.next_value_seed(skip)?;
            filter.unknown.get_or_insert_with(|| key.chars().take(40).collect());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Draft;
    use secp256k1::{Keypair, SECP256K1};

    fn filter(json: &str) -> Filter {
        serde_json::from_str(json).expect("a valid filter")
    }

    fn event() -> crate::VerifiedEvent {
        let keys = Keypair::from_seckey_slice(SECP256K1, &[9; 32]).expect("a valid secret");
        Draft::new(Kind(1), 100, "The Bees, in: Skep").tag(["t", "bee"]).tag(["t", ""]).sign(&keys, &[0; 32])
    }

    #[test]
    fn conditions_are_joined_by_and_and_values_by_or() {
        let event = event();
        let view = event.record().as_ref();
        for yes in [
            "{}",
            r#"{"kinds":[7,1]}"#,
            r##"{"#t":["x","bee"],"since":100,"until":100}"##,
            r##"{"#t":[""]}"##,
            r#"{"search":"skep BEES language:en"}"#,
            r#"{"limit":0}"#,
        ] {
            assert!(filter(yes).matches(view), "{yes}");
        }
        for no in [
            r#"{"kinds":[]}"#,
            r#"{"ids":[]}"#,
            r##"{"#t":[]}"##,
            r##"{"#e":["bee"]}"##,
            r##"{"kinds":[1],"#t":["wasp"]}"##,
            r#"{"since":101}"#,
            r#"{"until":99}"#,
            r#"{"search":"bee"}"#,
        ] {
            assert!(!filter(no).matches(view), "{no}");
        }
    }

    #[test]
    fn an_unknown_element_is_remembered_and_a_wrong_type_refused() {
        assert_eq!(filter(r#"{"kinds":[1],"&t":["x"]}"#).unknown.as_deref(), Some("&t"));
        assert_eq!(filter(r##"{"#tt":["x"]}"##).unknown.as_deref(), Some("#tt"));
        for bad in
            [r#"{"kinds":1}"#, r#"{"ids":["ab"]}"#, r#"{"limit":-1}"#, r#"{"kinds":[70000]}"#, "[]", r#"{"since":1.5}"#]
        {
            assert!(serde_json::from_str::<Filter>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_wire_form_is_frozen() {
        let text = r##"{"ids":[],"kinds":[1,7],"#d":[""],"#t":["a","b"],"since":1,"until":2,"limit":3,"search":"x"}"##;
        assert_eq!(serde_json::to_string(&filter(text)).expect("filters serialize"), text);
    }
}
