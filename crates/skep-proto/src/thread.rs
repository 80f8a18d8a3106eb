//! Where a reply belongs: the tags that put it under what it answers (NIP-10, NIP-22, NIP-28, NIP-C7), in the same
//! channel (NIP-29), under the same lease, one hop further.

use crate::lease::Claim;
use crate::tag::Tag;
use crate::{Draft, EventId, Kind, PubKey, RawEvent, Timestamp, limits};

/// The tag that counts how many agents answered each other: `["hop", n]`. Without it, none did.
const HOP: &str = "hop";

/// The tag of a task.
pub const TASK: &str = "task";

/// The tag on each part of a reply that needs several events: `["part", which from 1, of how many]`.
const PART: &str = "part";

/// Which part of how many an event is; one that does not say is the only one.
pub fn part(event: &RawEvent) -> (u32, u32) {
    let tag = event.tags.named(PART).next();
    let number = |i| tag.and_then(|tag| tag.get(i)?.parse().ok());
    match (number(1), number(2)) {
        (Some(which), Some(of)) if (1..=of).contains(&which) => (which, of),
        _ => (1, 1),
    }
}

/// What an event's hop tag says. A tag that is no number is as high as can be: who writes that wants to be let through.
pub fn hop(event: &RawEvent) -> u32 {
    let highest = event.tags.named(HOP).map(|tag| tag.value().and_then(|n| n.parse().ok()).unwrap_or(u32::MAX)).max();
    highest.unwrap_or(0)
}

/// The task that a message says it is about, `["task", name]`: bounded and printable, or none. Whether its author may say
/// so is not told here.
pub fn task(event: &RawEvent) -> Option<&str> {
    event.tags.single(TASK).filter(|task| is_task(task))
}

/// Whether a text can name a task.
pub fn is_task(text: &str) -> bool {
    (1..=limits::TASK_BYTES_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_graphic() || c.is_alphanumeric())
}

/// Everything about a reply but its text.
#[derive(Debug, Clone)]
pub struct Reply<'a> {
    pub parent: &'a RawEvent,
    /// A relay where the parent can be found; `""` for none.
    pub relay: &'a str,
    pub now: Timestamp,
    /// The number of the hop tag; 0 for none.
    pub hop: u32,
    /// The task of the parent, where its author may say so.
    pub task: Option<&'a str>,
    /// The turn's lease. Its last part carries `final` when the claim does.
    pub claim: Option<Claim>,
}

impl Reply<'_> {
    /// The text in as many events as it needs, a second apart, so that they stay in order.
    pub fn drafts(&self, text: &str) -> Vec<Draft> {
        let parts = split(text, self.part_bytes_max());
        let count = parts.len();
        let part = |(i, text): (usize, &&str)| {
            let draft = self.draft(text, i as u64, i + 1 == count);
            if count == 1 { draft } else { draft.tag([PART, &(i + 1).to_string(), &count.to_string()]) }
        };
        parts.iter().enumerate().map(part).collect()
    }

    fn part_bytes_max(&self) -> usize {
        match self.parent.kind {
            Kind::DIRECT_MESSAGE | Kind::PRIVATE_MESSAGE => limits::DIRECT_PART_BYTES_MAX,
            _ => limits::REPLY_PART_BYTES_MAX,
        }
    }

    fn draft(&self, text: &str, after_secs: u64, is_last: bool) -> Draft {
        let at = self.now.max(self.parent.created_at).saturating_add(after_secs);
        let mut draft = self.threaded(text, at);
        for channel in self.parent.tags.named("h") {
            draft = draft.tag(channel.elements());
        }
        if self.hop > 0 {
            draft = draft.tag([HOP, &self.hop.to_string()]);
        }
        if let Some(task) = self.task {
            draft = draft.tag([TASK, task]);
        }
        match &self.claim {
            Some(claim) => draft.tag(Claim { is_final: claim.is_final && is_last, ..claim.clone() }.tag()),
            None => draft,
        }
    }

    /// Of the kind that answers the parent's kind, with that kind's thread tags.
    fn threaded(&self, text: &str, at: Timestamp) -> Draft {
        match self.parent.kind {
            Kind::NOTE => self.note(text, at),
            Kind::CHAT => self.chat(text, at),
            Kind::CHANNEL_MESSAGE => self.channel_message(text, at),
            Kind::DIRECT_MESSAGE | Kind::PRIVATE_MESSAGE => self.direct(text, at),
            _ => self.comment(text, at),
        }
    }

    /// NIP-10, marked. Only the one who is answered is tagged: a `p` tag is a word to somebody, and agents take it so.
    fn note(&self, text: &str, at: Timestamp) -> Draft {
        let draft = Draft::new(Kind::NOTE, at, text);
        let parent = self.parent.id;
        let draft = match root_of(self.parent) {
            Some(root) if root != parent => draft.tag(["e", &root.to_hex(), self.relay, "root"]).tag([
                "e",
                &parent.to_hex(),
                self.relay,
                "reply",
                &self.author(),
            ]),
            _ => draft.tag(["e", &parent.to_hex(), self.relay, "root", &self.author()]),
        };
        draft.tag(["p", &self.author()])
    }

    /// NIP-C7 quotes with `q`; group clients that thread look for a marked `e`.
    fn chat(&self, text: &str, at: Timestamp) -> Draft {
        let parent = self.parent.id.to_hex();
        Draft::new(Kind::CHAT, at, text)
            .tag(["q", &parent, self.relay, &self.author()])
            .tag(["e", &parent, self.relay, "reply", &self.author()])
            .tag(["p", &self.author()])
    }

    /// NIP-28: the channel is the root.
    fn channel_message(&self, text: &str, at: Timestamp) -> Draft {
        let mut draft = Draft::new(Kind::CHANNEL_MESSAGE, at, text);
        if let Some(channel) = root_of(self.parent) {
            draft = draft.tag(["e", &channel.to_hex(), self.relay, "root"]);
        }
        draft.tag(["e", &self.parent.id.to_hex(), self.relay, "reply", &self.author()]).tag(["p", &self.author()])
    }

    /// NIP-04 and NIP-17, in the same form as it came; the caller seals.
    fn direct(&self, text: &str, at: Timestamp) -> Draft {
        Draft::new(self.parent.kind, at, text).tag(["p", &self.author()]).tag([
            "e",
            &self.parent.id.to_hex(),
            self.relay,
        ])
    }

    /// NIP-22: capital letters for the root, small ones for the parent.
    fn comment(&self, text: &str, at: Timestamp) -> Draft {
        let parent = self.parent;
        let kind = parent.kind.to_string();
        let mut draft = Draft::new(Kind::COMMENT, at, text);
        if parent.kind == Kind::COMMENT {
            for tag in parent.tags.iter().filter(is_root_scope) {
                draft = draft.tag(tag.elements());
            }
        } else {
            if let Some(address) = address(parent) {
                draft = draft.tag(["A", &address, self.relay, &self.author()]);
            } else {
                draft = draft.tag(["E", &parent.id.to_hex(), self.relay, &self.author()]);
            }
            draft = draft.tag(["K", &kind]).tag(["P", &self.author()]);
        }
        if let Some(address) = address(parent) {
            draft = draft.tag(["a", &address, self.relay, &self.author()]);
        }
        draft.tag(["e", &parent.id.to_hex(), self.relay, &self.author()]).tag(["k", &kind]).tag(["p", &self.author()])
    }

    fn author(&self) -> String {
        self.parent.pubkey.to_hex()
    }
}

/// The root that an event names: marked (NIP-10), or the first of its unmarked `e` tags, as it was written before.
pub fn root_of(event: &RawEvent) -> Option<EventId> {
    let id = |tag: Tag<'_>| tag.value().and_then(|text| text.parse().ok());
    let marked = event.tags.named("e").find(|tag| tag.get(3) == Some("root"));
    let unmarked = || event.tags.named("e").find(|tag| tag.get(3).is_none_or(str::is_empty));
    let replied = || event.tags.named("e").find(|tag| tag.get(3) == Some("reply"));
    marked.or_else(unmarked).or_else(replied).and_then(id)
}

/// `kind:author:d` of an addressable or replaceable event (NIP-01).
fn address(event: &RawEvent) -> Option<String> {
    use crate::kind::Class;
    let of = |pubkey: PubKey, d: &str| format!("{}:{pubkey}:{d}", event.kind);
    match event.kind.class() {
        Class::Addressable => Some(of(event.pubkey, event.tags.identifier())),
        Class::Replaceable => Some(of(event.pubkey, "")),
        Class::Regular | Class::Ephemeral => None,
    }
}

fn is_root_scope(tag: &Tag<'_>) -> bool {
    matches!(tag.name(), "A" | "E" | "I" | "K" | "P")
}

/// Cuts a text into pieces of at most `bytes_max` bytes: after a paragraph, else a line, else a word, else a character,
/// in the second half of a piece. Together they are the text; a text without content is one empty piece.
pub fn split(text: &str, bytes_max: usize) -> Vec<&str> {
    // A piece holds a character at least.
    let bytes_max = bytes_max.max(4);
    let mut out = Vec::new();
    let mut rest = text;
    while rest.len() > bytes_max {
        let end = rest.floor_char_boundary(bytes_max);
        let head = &rest[..end];
        let cut = ["\n\n", "\n", " "]
            .into_iter()
            .find_map(|mark| head.rfind(mark).map(|at| at + mark.len()).filter(|at| *at > end / 2));
        let (piece, tail) = rest.split_at(cut.unwrap_or(end));
        out.push(piece);
        rest = tail;
    }
    if !rest.is_empty() || out.is_empty() {
        out.push(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Resource;
    use crate::{Sig, Tags};
    use proptest::prelude::*;

    fn event(kind: u16, tags: &[&[&str]]) -> RawEvent {
        RawEvent {
            id: EventId([1; 32]),
            pubkey: PubKey([2; 32]),
            created_at: 100,
            kind: Kind(kind),
            tags: tags.iter().map(|tag| tag.iter()).collect::<Tags>(),
            content: String::new(),
            sig: Sig([0; 64]),
        }
    }

    fn reply(parent: &RawEvent) -> Reply<'_> {
        Reply { parent, relay: "", now: 200, hop: 0, task: None, claim: None }
    }

    /// The reply's kind and tags, with the parent's id and key and the root's id shortened.
    fn tags(parent: &RawEvent) -> String {
        let drafts = reply(parent).drafts("hi");
        assert_eq!(drafts.len(), 1);
        let tags = serde_json::to_string(&drafts[0].tags).expect("tags");
        let tags = tags.replace(&"01".repeat(32), "PARENT").replace(&"02".repeat(32), "AUTHOR");
        format!("{} {}", drafts[0].kind, tags.replace(&"03".repeat(32), "ROOT"))
    }

    #[test]
    fn the_tags_of_each_kind_of_reply_are_frozen() {
        let root = "03".repeat(32);
        let root = root.as_str();
        for (parent, expected) in [
            (event(1, &[]), r#"1 [["e","PARENT","","root","AUTHOR"],["p","AUTHOR"]]"#),
            (
                event(1, &[&["e", root, "", "root"], &["p", "x"]]),
                r#"1 [["e","ROOT","","root"],["e","PARENT","","reply","AUTHOR"],["p","AUTHOR"]]"#,
            ),
            (
                event(1, &[&["e", root], &["e", &"04".repeat(32)]]),
                r#"1 [["e","ROOT","","root"],["e","PARENT","","reply","AUTHOR"],["p","AUTHOR"]]"#,
            ),
            (
                event(9, &[&["h", "group", "wss://r"]]),
                concat!(
                    r#"9 [["q","PARENT","","AUTHOR"],["e","PARENT","","reply","AUTHOR"],["p","AUTHOR"],"#,
                    r#"["h","group","wss://r"]]"#
                ),
            ),
            (
                event(42, &[&["e", root, "", "root"]]),
                r#"42 [["e","ROOT","","root"],["e","PARENT","","reply","AUTHOR"],["p","AUTHOR"]]"#,
            ),
            (event(4, &[]), r#"4 [["p","AUTHOR"],["e","PARENT",""]]"#),
            (
                event(1621, &[]),
                concat!(
                    r#"1111 [["E","PARENT","","AUTHOR"],["K","1621"],["P","AUTHOR"],"#,
                    r#"["e","PARENT","","AUTHOR"],["k","1621"],["p","AUTHOR"]]"#
                ),
            ),
            (
                event(1111, &[&["E", root, "", "z"], &["K", "1621"], &["P", "z"], &["e", "y"], &["h", "g"]]),
                concat!(
                    r#"1111 [["E","ROOT","","z"],["K","1621"],["P","z"],["e","PARENT","","AUTHOR"],["k","1111"],"#,
                    r#"["p","AUTHOR"],["h","g"]]"#
                ),
            ),
            (
                event(30079, &[&["d", "cmd-1"]]),
                concat!(
                    r#"1111 [["A","30079:AUTHOR:cmd-1","","AUTHOR"],["K","30079"],["P","AUTHOR"],"#,
                    r#"["a","30079:AUTHOR:cmd-1","","AUTHOR"],["e","PARENT","","AUTHOR"],["k","30079"],["p","AUTHOR"]]"#
                ),
            ),
        ] {
            assert_eq!(tags(&parent), expected);
        }
    }

    #[test]
    fn hop_and_lease_are_on_every_part_and_final_on_the_last() {
        let parent = event(1, &[]);
        let resource = Resource::new("turn:a:b").expect("a resource");
        let claim = Claim { resource, epoch: 3, is_final: true };
        let reply = Reply { hop: 2, claim: Some(claim), now: 50, ..reply(&parent) };
        let drafts = reply.drafts(&"x".repeat(limits::REPLY_PART_BYTES_MAX + 1));
        let lease = |draft: &Draft| draft.tags.named("lease").map(|tag| tag.len()).collect::<Vec<_>>();
        assert_eq!(drafts.iter().map(lease).collect::<Vec<_>>(), [[3], [4]]);
        assert_eq!(drafts.iter().map(|draft| draft.created_at).collect::<Vec<_>>(), [100, 101], "after the parent");
        assert!(drafts.iter().all(|draft| draft.tags.single("hop") == Some("2")));
        let tags = |draft: &Draft| {
            draft.tags.named("part").map(|tag| tag.elements().collect::<Vec<_>>().join(" ")).collect::<String>()
        };
        assert_eq!(drafts.iter().map(tags).collect::<Vec<_>>(), ["part 1 2", "part 2 2"]);
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let resource = Resource::new("turn:a:b").expect("a resource");
        for is_final in [false, true] {
            let claim = Claim { resource: resource.clone(), epoch: 3, is_final };
            let tag = claim.tag();
            let tag: Vec<&str> = tag.iter().map(String::as_str).collect();
            assert_eq!(Claim::from_event(&event(1, &[&tag])), Some(Ok(claim)));
        }
    }

    #[test]
    fn an_event_that_does_not_say_which_part_it_is_is_the_only_one() {
        assert_eq!(part(&event(1, &[&["part", "2", "3"]])), (2, 3));
        for bad in [&[][..], &["part"], &["part", "4", "3"], &["part", "0", "3"], &["part", "1", "x"]] {
            assert_eq!(part(&event(1, &[bad])), (1, 1), "{bad:?}");
        }
    }

    #[test]
    fn a_hop_tag_that_is_no_number_is_as_high_as_can_be() {
        assert_eq!(hop(&event(1, &[])), 0);
        assert_eq!(hop(&event(1, &[&["hop", "4"], &["hop", "2"]])), 4);
        for bad in ["", "-1", "x", "99999999999"] {
            assert_eq!(hop(&event(1, &[&["hop", bad]])), u32::MAX, "{bad}");
        }
    }

    #[test]
    fn a_text_is_cut_after_paragraphs_then_lines_then_words_then_characters() {
        assert_eq!(split("aaaa\n\nbb\ncc", 8), ["aaaa\n\n", "bb\ncc"]);
        assert_eq!(split("aaaa\nbb ccc", 8), ["aaaa\n", "bb ccc"]);
        assert_eq!(split("aaaa bb ccc", 9), ["aaaa bb ", "ccc"]);
        assert_eq!(split("éééé", 5), ["éé", "éé"]);
        assert_eq!(split("", 5), [""]);
        assert_eq!(split("a bbbbbbbb", 8), ["a bbbbbb", "bb"], "no short pieces");
    }

    proptest! {
        #[test]
        fn the_parts_of_a_text_are_the_text(text in "(\\PC|\n| ){0,200}", bytes_max in 4usize..40) {
            let parts = split(&text, bytes_max);
            prop_assert_eq!(parts.concat(), text.clone());
            prop_assert!(parts.iter().all(|part| part.len() <= bytes_max && (!part.is_empty() || text.is_empty())));
        }
    }
}
