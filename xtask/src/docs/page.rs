//! Markdown, written so that it reads well as text too: columns as wide as their widest cell.

/// The head of a generated page.
pub fn head(title: &str, source: &str, intro: &str) -> String {
    format!(
        "# {title}\n\n<!-- Written by `cargo xtask docs` from {source}. Do not edit: change the code. -->\n\n{intro}\n\n"
    )
}

/// A table. A `|` in a cell is escaped, a line end becomes a space.
pub fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|text| cell(text))).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count(), 3]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(text, width)| format!(" {text:width$} ")).collect();
        format!("|{}|\n", padded.join("|"))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let mut out = line(titles);
    out.push_str(&format!("|{}|\n", rule.join("|")));
    rows.iter().for_each(|row| out.push_str(&line(row.each_ref().map(String::as_str))));
    out.push('\n');
    out
}

/// As code, unless it is empty.
pub fn code(text: impl AsRef<str>) -> String {
    let text = text.as_ref();
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_it_needs_to_be() {
        let text = table(["a", "long title"], &[["x|y".into(), code("z")]]);
        assert_eq!(text, "| a    | long title |\n|------|------------|\n| x\\|y | `z`        |\n\n");
    }
}
