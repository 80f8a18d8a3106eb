//! Rules about Rust files: heads, markers of unfinished work, and the one kind table.

use skep_proto::kind::TABLE;

use super::Findings;
use super::source::{code_only, numbers, without_tests};
use super::tree::File;

/// Code that does not land, and what to do instead. Written in two halves: this file is checked too.
const FORBIDDEN: [(&str, &str); 8] = [
    (concat!("#[all", "ow("), "use #[expect(lint, reason)]: it says when it is no longer needed"),
    (concat!("#![all", "ow("), "use #![expect(lint, reason)]: it says when it is no longer needed"),
    (concat!("to", "do!("), "finish it, or leave it out and say so"),
    (concat!("unimpl", "emented!("), "finish it, or leave it out and say so"),
    (concat!("db", "g!("), "use tracing, or remove it"),
    (concat!("#[ign", "ore"), "a test runs, or it is not there; heavy ones read SKEP_CASES"),
    (concat!("FIX", "ME"), "repair it, or open an issue and say why it may stay"),
    (concat!("XX", "X "), "repair it, or open an issue and say why it may stay"),
];

/// Names that say nothing.
const NAMELESS: [&str; 9] = ["util", "utils", "common", "helpers", "misc", "manager", "data", "info", "types"];

/// The one place where kinds have numbers.
const KIND_TABLE: &str = "crates/skep-proto/src/kind.rs";

/// The load tool publishes what it likes to any relay; no rule of ours depends on its choice.
const KIND_FREE: &str = "crates/skep-bench/";

/// Kinds below this are numbers like any other; they are looked for only where a kind is made or compared.
const KIND_NUMBER_MIN: u16 = 1_000;

/// Marks a number that happens to be a kind's.
const NOT_A_KIND: &str = "not a kind";

/// Crates that are told what they need: only the node and the binary read the environment.
const BLIND: [&str; 7] = ["skep-proto", "skep-core", "skep-store", "skep-relay", "skep-agent", "skep-mesh", "skep-ui"];

const ENVIRONMENT: [&str; 3] = ["std::env", "env::var", "home_dir("];

pub fn check(file: &File, found: &mut Findings) {
    check_forbidden(file, found);
    let Some((name, rest)) = file.path.strip_prefix("crates/").and_then(|path| path.split_once('/')) else { return };
    if !rest.starts_with("src/") {
        return;
    }
    check_head(file, found);
    let code = without_tests(&code_only(&file.text));
    if file.path != KIND_TABLE && !file.path.starts_with(KIND_FREE) {
        check_kinds(file, &code, found);
    }
    if BLIND.contains(&name) {
        check_environment(file, &code, found);
    }
}

fn check_forbidden(file: &File, found: &mut Findings) {
    for (number, line) in file.text.lines().enumerate() {
        for (text, instead) in FORBIDDEN {
            if line.contains(text) {
                found.error(&file.path, number + 1, format_args!("`{}` does not land; {instead}", text.trim()));
            }
        }
    }
}

fn check_head(file: &File, found: &mut Findings) {
    if !file.text.starts_with("//!") {
        found.error(&file.path, 1, "has no head; begin with `//!` and what this module is for");
    }
    let stem = file.path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).unwrap_or_default();
    if NAMELESS.contains(&stem) {
        found.error(&file.path, 1, format_args!("`{stem}` says nothing; name the module after what it does"));
    }
}

fn check_kinds(file: &File, code: &str, found: &mut Findings) {
    for (number, (line, written)) in code.lines().zip(file.text.lines()).enumerate() {
        if written.contains(NOT_A_KIND) {
            continue;
        }
        let of_a_kind = numbers(line).into_iter().find(|(at, value)| is_in_table(*value) || is_kind_at(line, *at));
        if let Some((_, value)) = of_a_kind {
            let what = format_args!(
                "kind {value} has its number in {KIND_TABLE} only; use a constant of Kind or a rule of the table \
                 (or say `// {NOT_A_KIND}`)"
            );
            found.error(&file.path, number + 1, what);
        }
    }
}

fn is_in_table(value: u64) -> bool {
    let Ok(value) = u16::try_from(value) else { return false };
    value >= KIND_NUMBER_MIN && TABLE.iter().any(|row| (row.first..=row.last).contains(&value))
}

/// Whether the number at this place makes a kind, or is compared with one: `Kind(6)`, `kind.0 == 6`,
/// `matches!(event.kind.0, 6 | 16)`.
fn is_kind_at(line: &str, at: usize) -> bool {
    let before = line[..at].trim_end();
    let compared = before.trim_end_matches(['=', '!', '<', '>', ',', '(']).trim_end();
    before.ends_with("Kind(")
        || (compared != before && (compared.ends_with("kind.0") || compared.ends_with("kind().0")))
}

fn check_environment(file: &File, code: &str, found: &mut Findings) {
    for (number, line) in code.lines().enumerate() {
        if ENVIRONMENT.iter().any(|text| line.contains(text)) {
            found.error(&file.path, number + 1, "reads the environment; skep-node does that and passes a value");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds_in(text: &str) -> usize {
        let file = File { path: "crates/skep-core/src/x.rs".into(), text: text.into() };
        let mut found = Findings::default();
        check_kinds(&file, &without_tests(&code_only(text)), &mut found);
        found.errors.len()
    }

    #[test]
    fn a_kind_outside_the_table_is_found() {
        for bad in [
            "let k = 44_200;",
            "if n == 1632 {}",
            "Kind(1)",
            "event.kind == Kind(0)",
            "matches!(event.kind.0, 6 | 16)",
            "event.kind().0 == 7",
        ] {
            assert_eq!(kinds_in(bad), 1, "{bad}");
        }
    }

    #[test]
    fn other_numbers_texts_and_tests_are_not() {
        for good in [
            "let n = 1_024;",
            "// 44200 is a metric",
            "\"kind 44200\"",
            "let ms = 8_000; // not a kind",
            "Kind(number)",
            "#[cfg(test)]\nmod tests { const K: Kind = Kind(1); }",
            "kind.0 == other.kind.0",
        ] {
            assert_eq!(kinds_in(good), 0, "{good}");
        }
    }
}
