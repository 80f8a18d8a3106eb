//! Tags in one flat buffer: three allocations for an event, however many tags it has.

use std::fmt;

use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An event's tags, in order, untouched: `[["e", "…"], ["p", "…", "wss://…"]]` (NIP-01).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tags {
    text: String,
    /// End of each element in `text`.
    element_ends: Vec<u32>,
    /// End of each tag in `element_ends`.
    tag_ends: Vec<u32>,
}

/// One tag: a name and values.
#[derive(Clone, Copy)]
pub struct Tag<'a> {
    tags: &'a Tags,
    first: usize,
    end: usize,
}

impl Tags {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.tag_ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tag_ends.is_empty()
    }

    pub fn push<S: AsRef<str>>(&mut self, elements: impl IntoIterator<Item = S>) {
        for element in elements {
            self.text.push_str(element.as_ref());
            self.element_ends.push(self.text.len() as u32);
        }
        self.tag_ends.push(self.element_ends.len() as u32);
    }

    pub fn iter(&self) -> impl Iterator<Item = Tag<'_>> {
        (0..self.tag_ends.len()).map(|i| Tag {
            tags: self,
            first: if i == 0 { 0 } else { self.tag_ends[i - 1] as usize },
            end: self.tag_ends[i] as usize,
        })
    }

    /// Every tag of this name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Tag<'a>> {
        self.iter().filter(move |tag| tag.name() == name)
    }

    /// The first value of each tag of this name that has one.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.named(name).filter_map(|tag| tag.value())
    }

    /// The value of the only tag of this name; `None` when there is none, several, or no value.
    pub fn single<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let mut found = self.named(name);
        let tag = found.next()?;
        if found.next().is_some() { None } else { tag.value() }
    }

    /// The identifier of an addressable event: the first `d` tag's value, `""` without one (NIP-01).
    pub fn identifier(&self) -> &str {
        self.named("d").next().and_then(|tag| tag.value()).unwrap_or("")
    }

    fn element(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.element_ends[i - 1] as usize };
        &self.text[start..self.element_ends[i] as usize]
    }
}

impl<'a> Tag<'a> {
    pub fn len(&self) -> usize {
        self.end - self.first
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, i: usize) -> Option<&'a str> {
        (i < self.len()).then(|| self.tags.element(self.first + i))
    }

    /// `""` for an empty tag.
    pub fn name(&self) -> &'a str {
        self.get(0).unwrap_or("")
    }

    pub fn value(&self) -> Option<&'a str> {
        self.get(1)
    }

    pub fn elements(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let tags = self.tags;
        (self.first..self.end).map(move |i| tags.element(i))
    }

    /// The name as an indexable single letter, `a-z` or `A-Z` (NIP-01).
    pub fn letter(&self) -> Option<u8> {
        match self.name().as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some(*letter),
            _ => None,
        }
    }
}

impl fmt::Debug for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|tag| tag.elements().collect::<Vec<_>>())).finish()
    }
}

impl<S: AsRef<str>, T: IntoIterator<Item = S>> FromIterator<T> for Tags {
    fn from_iter<I: IntoIterator<Item = T>>(tags: I) -> Self {
        let mut all = Self::new();
        tags.into_iter().for_each(|tag| all.push(tag));
        all
    }
}

impl Serialize for Tags {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        struct One<'a>(Tag<'a>);
        impl Serialize for One<'_> {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_seq(self.0.elements())
            }
        }
        let mut seq = s.serialize_seq(Some(self.len()))?;
        for tag in self.iter() {
            seq.serialize_element(&One(tag))?;
        }
        seq.end()
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Tags;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of arrays of strings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tags, A::Error> {
                let mut tags = Tags::new();
                while seq.next_element_seed(OneTag(&mut tags))?.is_some() {}
                Ok(tags)
            }
        }
        d.deserialize_seq(All)
    }
}

struct OneTag<'t>(&'t mut Tags);

impl<'de> DeserializeSeed<'de> for OneTag<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for OneTag<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Element(self.0))?.is_some() {}
        self.0.tag_ends.push(self.0.element_ends.len() as u32);
        Ok(())
    }
}

struct Element<'t>(&'t mut Tags);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Element<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }
    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.text.push_str(text);
        self.0.element_ends.push(self.0.text.len() as u32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_tags_survives_a_round_trip() {
        for json in [r#"[]"#, r#"[[]]"#, r#"[[],["e"],[""],["p","",""]]"#, r#"[["e","x","wss://a","root"],["-"]]"#] {
            let tags: Tags = serde_json::from_str(json).expect("valid tags");
            assert_eq!(serde_json::to_string(&tags).expect("tags serialize"), json);
        }
    }

    #[test]
    fn a_tag_that_is_not_an_array_of_strings_is_refused() {
        for json in [r#"{}"#, r#"["e"]"#, r#"[["e",1]]"#, r#"[["e",["x"]]]"#, r#"[[null]]"#] {
            assert!(serde_json::from_str::<Tags>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn single_refuses_two_tags_of_one_name() {
        let tags = Tags::from_iter([["p", "a"], ["p", "b"], ["agent", "c"]]);
        assert_eq!(tags.single("p"), None);
        assert_eq!(tags.single("agent"), Some("c"));
        assert_eq!(tags.identifier(), "");
    }
}
