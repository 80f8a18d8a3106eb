//! What was said before a message, where it was said: what to ask a relay for, and what of the answer is shown.

use std::collections::BTreeSet;

use skep_proto::{EventId, Filter, Kind, RawEvent, limits, thread};

/// The words of a conversation. Reactions, cards of other programs and the like are none.
const WORDS: [Kind; 4] = [Kind::NOTE, Kind::CHAT, Kind::CHANNEL_MESSAGE, Kind::COMMENT];

/// What to ask a relay for. Nothing, for a message that begins a conversation, or a sealed one: a relay knows nothing
/// of those. One more is asked for than is shown: the message itself is among them.
pub fn filters(message: &RawEvent) -> Vec<Filter> {
    let before = Filter {
        kinds: Some(WORDS.to_vec()),
        until: Some(message.created_at),
        limit: Some(limits::HISTORY_MESSAGES_MAX as u64 + 1),
        ..Filter::new()
    };
    let tagged = |name: u8, value: String| Filter { tags: vec![(name, vec![value])], ..before.clone() }.normalized();
    if matches!(message.kind, Kind::DIRECT_MESSAGE | Kind::PRIVATE_MESSAGE) {
        return Vec::new();
    }
    if let Some(group) = message.tags.values("h").next() {
        return vec![tagged(b'h', group.to_owned())];
    }
    let root = match message.kind {
        Kind::COMMENT => message.tags.values("E").next().and_then(|id| id.parse().ok()),
        _ => thread::root_of(message),
    };
    let Some(root) = root.filter(|root| *root != message.id) else { return Vec::new() };
    let mut out = vec![tagged(b'e', root.to_hex())];
    if message.kind == Kind::COMMENT {
        out.push(tagged(b'E', root.to_hex()));
    }
    if message.kind != Kind::CHANNEL_MESSAGE {
        out.push(Filter { ids: Some(vec![root]), kinds: Some(WORDS.to_vec()), ..Filter::new() });
    }
    out
}

/// What is shown of what a relay gave: in order, each once, before the message, and not what was shown already.
pub fn choose(message: &RawEvent, found: Vec<RawEvent>, seen: &BTreeSet<EventId>) -> Vec<RawEvent> {
    let is_shown = |event: &RawEvent| {
        let is_before = event.created_at <= message.created_at && event.id != message.id;
        is_before && WORDS.contains(&event.kind) && !seen.contains(&event.id)
    };
    let mut shown: Vec<RawEvent> = found.into_iter().filter(is_shown).collect();
    shown.sort_by_key(|event| (event.created_at, event.id));
    shown.dedup_by_key(|event| event.id);
    let most = shown.len().saturating_sub(limits::HISTORY_MESSAGES_MAX);
    shown.split_off(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::{PubKey, Sig, Tags, Timestamp};

    fn event(n: u8, kind: Kind, at: Timestamp, tags: &[&[&str]]) -> RawEvent {
        RawEvent {
            id: EventId([n; 32]),
            pubkey: PubKey([2; 32]),
            created_at: at,
            kind,
            tags: tags.iter().map(|tag| tag.iter()).collect::<Tags>(),
            content: String::new(),
            sig: Sig([0; 64]),
        }
    }

    #[test]
    fn a_message_in_a_place_asks_for_that_place_and_others_for_nothing() {
        let root = "03".repeat(32);
        let root = root.as_str();
        let asked = |kind, tags: &[&[&str]]| -> Vec<String> {
            let json = |filter: &Filter| serde_json::to_string(filter).expect("a filter");
            filters(&event(1, kind, 9, tags)).iter().map(json).collect()
        };
        let words = r#""kinds":[1,9,42,1111]"#;
        let found = asked(Kind::CHAT, &[&["h", "bees"], &["e", root]]);
        assert!(found.len() == 1 && found[0].contains(r##""#h":["bees"]"##) && found[0].contains(words), "{found:?}");
        assert!(found[0].contains(r#""until":9"#) && found[0].contains(r#""limit":51"#), "{found:?}");
        let found = asked(Kind::NOTE, &[&["e", root, "", "root"]]);
        assert!(found.len() == 2 && found[0].contains("#e") && found[1].contains("ids"), "{found:?}");
        assert_eq!(asked(Kind::CHANNEL_MESSAGE, &[&["e", root, "", "root"]]).len(), 1, "a channel is no message");
        assert_eq!(asked(Kind::COMMENT, &[&["E", root], &["e", root]]).len(), 3);
        assert_eq!(asked(Kind::NOTE, &[&["p", root]]), Vec::<String>::new());
        for sealed in [Kind::DIRECT_MESSAGE, Kind::PRIVATE_MESSAGE] {
            assert_eq!(asked(sealed, &[&["e", root], &["h", "bees"]]), Vec::<String>::new(), "in clear it would tell");
        }
    }

    #[test]
    fn what_is_shown_is_before_the_message_in_order_and_new() {
        let message = event(9, Kind::NOTE, 100, &[]);
        let found = vec![
            event(3, Kind::NOTE, 50, &[]),
            event(1, Kind::NOTE, 60, &[]),
            event(3, Kind::NOTE, 50, &[]),
            event(4, Kind::NOTE, 101, &[]),
            event(5, Kind::REACTION, 40, &[]),
            event(6, Kind::CHAT, 30, &[]),
            message.clone(),
        ];
        let ids = |found: Vec<RawEvent>| found.iter().map(|event| event.id.0[0]).collect::<Vec<_>>();
        assert_eq!(ids(choose(&message, found.clone(), &BTreeSet::new())), [6, 3, 1]);
        assert_eq!(ids(choose(&message, found, &BTreeSet::from([EventId([3; 32])]))), [6, 1]);
        let many = (0..limits::HISTORY_MESSAGES_MAX as u8 + 2).map(|n| event(n, Kind::NOTE, n.into(), &[])).collect();
        let kept = choose(&event(255, Kind::NOTE, 999, &[]), many, &BTreeSet::new());
        assert_eq!((kept.len(), kept[0].id.0[0]), (limits::HISTORY_MESSAGES_MAX, 2), "the newest");
    }
}
