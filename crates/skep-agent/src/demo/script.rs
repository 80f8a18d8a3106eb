//! What the demo does for a prompt. The last line of a prompt that it knows decides.
//!
//! | in the prompt | it |
//! |---|---|
//! | `write NAME` | asks for permission and writes a file of that name |
//! | `count to N` | counts, five numbers a second: a turn that takes a while |
//! | `wait` | goes on for ten minutes, to be cancelled |
//! | `fail` | answers with an error |
//! | `crash` | ends without a word |
//! | anything else | greets and repeats the last line |

use std::time::Duration;

/// Between two pieces of text.
pub const PAUSE: Duration = Duration::from_millis(10);

/// Between two numbers.
const COUNT_PAUSE: Duration = Duration::from_millis(200);

/// The largest number that it counts to: a minute's work.
const COUNT_MAX: u32 = 300;

const WAIT: Duration = Duration::from_secs(600);

/// Characters of a line that it repeats.
const REPEATED_CHARS_MAX: usize = 200;

#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    Say(String),
    Think(String),
    Write { name: String, text: String },
    Wait(Duration),
    Fail,
    Crash,
}

pub fn acts(prompt: &str) -> Vec<Act> {
    match prompt.lines().rev().find_map(known) {
        Some(acts) => acts,
        None => greet(prompt),
    }
}

fn known(line: &str) -> Option<Vec<Act>> {
    let words: Vec<_> = line.split_whitespace().map(bare).collect();
    match words.as_slice() {
        ["wait"] => Some(vec![Act::Say("I wait.".to_owned()), Act::Wait(WAIT)]),
        [.., count, "to", to] if count.eq_ignore_ascii_case("count") => {
            let to = to.parse::<u32>().ok()?.min(COUNT_MAX);
            let number = |n: u32| [Act::Say(format!("{n} ")), Act::Wait(COUNT_PAUSE)];
            Some((1..=to).flat_map(number).collect())
        }
        ["fail"] => Some(vec![Act::Fail]),
        ["crash"] => Some(vec![Act::Crash]),
        _ => {
            let at = words.iter().position(|word| word.eq_ignore_ascii_case("write"))?;
            let name = words[at + 1..].iter().find(|word| is_file_name(word))?;
            let text = "Written by Skep's demo agent.\n".to_owned();
            Some(vec![Act::Think("A file is wanted.".to_owned()), Act::Write { name: (*name).to_owned(), text }])
        }
    }
}

/// A word without the marks around it.
fn bare(word: &str) -> &str {
    word.trim_end_matches(['.', ',', ':', '!']).trim_matches(['"', '\'', '`'])
}

/// A name with an extension, and no way out of the directory.
fn is_file_name(word: &str) -> bool {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    is_plain && !word.starts_with('.') && word.contains('.') && word.len() <= 64
}

fn greet(prompt: &str) -> Vec<Act> {
    // Lines in brackets are the harness's.
    let is_said = |line: &&str| !line.is_empty() && !line.starts_with('[');
    let last = prompt.lines().map(str::trim).rfind(is_said).unwrap_or_default();
    let repeated: String = last.chars().take(REPEATED_CHARS_MAX).collect();
    let text = format!("Hello! I am Skep's demo agent. You said: {repeated}");
    let mut acts = vec![Act::Think("A greeting is polite.".to_owned())];
    acts.extend(text.split_inclusive(' ').map(|word| Act::Say(word.to_owned())));
    acts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_only_by_a_plain_name() {
        let named = |prompt: &str| {
            acts(prompt).into_iter().find_map(|act| match act {
                Act::Write { name, .. } => Some(name),
                _ => None,
            })
        };
        assert_eq!(named("Please write `notes.txt`."), Some("notes.txt".into()));
        assert_eq!(named("write ../etc/passwd.txt"), None);
        assert_eq!(named("write .bashrc"), None);
    }

    #[test]
    fn it_counts_as_far_as_it_is_told() {
        let said = |prompt: &str| acts(prompt).iter().filter(|act| matches!(act, Act::Say(_))).count();
        assert_eq!(said("@scout please count to 12."), 12);
        assert_eq!(said("count to 4000000000"), 300);
        assert!(acts("count to ten").iter().any(|act| matches!(act, Act::Think(_))), "that is a greeting");
    }

    #[test]
    fn it_repeats_the_last_line() {
        let said: String = acts("a\nhi there\n")
            .iter()
            .filter_map(|act| match act {
                Act::Say(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert!(said.ends_with("You said: hi there"), "{said}");
    }
}
