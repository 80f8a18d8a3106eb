//! Rust source with its comments and the contents of its strings blanked, so that a search finds code only.

/// The same text, every character of a comment or inside a literal replaced by a space. Lines stay where they are.
pub fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => block_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if is_raw_string(&chars, at) => raw_end(&chars, at),
            '\'' => char_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn line_end(chars: &[char], from: usize) -> usize {
    chars[from..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| from + length)
}

fn block_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn is_raw_string(chars: &[char], at: usize) -> bool {
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let is_start = match at.checked_sub(1).map(|before| &chars[before]) {
        Some('b' | 'c') => at < 2 || !is_word(&chars[at - 2]),
        Some(before) => !is_word(before),
        None => true,
    };
    is_start && chars[at + 1..].iter().find(|c| **c != '#') == Some(&'"')
}

fn raw_end(chars: &[char], from: usize) -> usize {
    let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
    let mut at = from + hashes + 2;
    while at < chars.len() {
        if chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    chars.len()
}

/// The end of a character literal; `from` itself for a lifetime.
fn char_end(chars: &[char], from: usize) -> usize {
    match chars.get(from + 1) {
        Some('\\') => {
            let body = &chars[(from + 3).min(chars.len())..];
            body.iter().take(10).position(|c| *c == '\'').map_or(from, |length| from + 4 + length)
        }
        Some(_) if chars.get(from + 2) == Some(&'\'') => from + 3,
        _ => from,
    }
}

/// Blanks each item under `#[cfg(test)]`. Takes what [`code_only`] gives.
pub fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(from) = out.find("#[cfg(test)]") {
        let end = item_end(&out, from + "#[cfg(test)]".len());
        let blank: String = out[from..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(from..end, &blank);
    }
    out
}

/// After the first `;`, or after the braces that open before one.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0usize;
    for (at, c) in code[from..].char_indices() {
        match c {
            ';' if depth == 0 => return from + at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return from + at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Types that a number may end in.
const SUFFIXES: [&str; 6] = ["u16", "u32", "u64", "i32", "i64", "usize"];

/// The decimal whole numbers of a line of code, with where they begin.
pub fn numbers(line: &str) -> Vec<(usize, u64)> {
    let bytes = line.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !is_word(bytes[at]) {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|b| is_word(**b)).count();
        let word = line[at..end].replace('_', "");
        let digits = SUFFIXES.iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(&word);
        if bytes[at].is_ascii_digit()
            && let Ok(number) = digits.parse()
        {
            found.push((at, number));
        }
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_kept() {
        let code = code_only("a /* x /* y */ z */ b // c\n\"s\\\"t\" r#\"u\"v\"# 'w' '\\n' &'static d");
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "&'static", "d"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn tests_are_left_out() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { { } } }\nfn c() {}\n#[cfg(test)]\nuse d;\nfn e() {}";
        let rest = without_tests(code);
        assert!(rest.contains("fn a") && rest.contains("fn c") && rest.contains("fn e"));
        assert!(!rest.contains("fn b") && !rest.contains("use d"));
    }

    #[test]
    fn numbers_are_read_as_rust_writes_them() {
        let read = |line: &str| numbers(line).into_iter().map(|(_, number)| number).collect::<Vec<_>>();
        assert_eq!(read("a1 + 44_200 + 7u16, [x; 3]"), [44_200, 7, 3]);
        assert_eq!(read("0xff b2"), Vec::<u64>::new());
    }
}
