//! Where in a file a setting stands, so that a mistake can be found by its line.

use std::ops::Range;

use toml_edit::{ImDocument, Item, TableLike};

/// Line and column, from 1, and what is wrong there.
#[derive(Debug)]
pub struct Mistake {
    pub place: (usize, usize),
    pub what: String,
}

/// Whether a text is TOML at all.
pub fn syntax(text: &str) -> Result<(), Mistake> {
    let Err(error) = ImDocument::parse(text) else { return Ok(()) };
    let place = error.span().map_or((1, 1), |span| line_and_column(text, span.start));
    let what = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    Err(Mistake { place, what })
}

/// The place of a setting, or of the table that it should be in. Tables of a list are named by their number.
pub fn of_setting(text: &str, path: &[String]) -> Option<(usize, usize)> {
    let document = ImDocument::parse(text).ok()?;
    let span = in_table(document.as_table(), path)?;
    Some(line_and_column(text, span.start))
}

fn in_table(table: &dyn TableLike, path: &[String]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, item) = table.get_key_value(first)?;
    in_item(item, rest).or_else(|| key.span()).or_else(|| item.span())
}

fn in_item(item: &Item, path: &[String]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    if let Some(tables) = item.as_array_of_tables() {
        let table = tables.get(first.parse().ok()?)?;
        return in_table(table, rest).or_else(|| table.span());
    }
    if let Some(array) = item.as_array() {
        return array.get(first.parse().ok()?)?.span();
    }
    in_table(item.as_table_like()?, path)
}

fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# é\n[relay]\nlisten = \"x\"\nlimits = { results = 1 }\n\n[[agent]]\nname = \"a\"\n\n\
        [[agent]]\nname = \"b\"\nrelays = [\"ws://x\"]\n";

    #[test]
    fn a_setting_is_found_by_its_path() {
        let find = |path: &str| of_setting(TEXT, &path.split('.').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(find("relay.listen"), Some((3, 1)));
        assert_eq!(find("relay.limits.results"), Some((4, 12)));
        assert_eq!(find("agent.1.name"), Some((10, 1)));
        assert_eq!(find("agent.1.paralel"), Some((9, 1)), "the table it should be in");
        assert_eq!(find("relay.nothing").map(|(line, _)| line), Some(2));
        assert_eq!(find("nothing"), None);
    }

    #[test]
    fn a_text_that_is_no_toml_says_where() {
        assert!(syntax(TEXT).is_ok());
        let mistake = syntax("[relay]\nlisten = 127.0.0.1\n").expect_err("no TOML");
        assert_eq!(mistake.place.0, 2, "{}", mistake.what);
        assert!(!mistake.what.contains('\n'));
    }
}
