//! `docs`: the pages that are made from the code, so that they cannot disagree with it.

mod cli;
mod page;
mod tables;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One generated page.
struct Page {
    /// Below `docs/`.
    name: &'static str,
    text: String,
}

pub fn write(root: &Path) -> Result<()> {
    for Page { name, text } in pages(root)? {
        let path = root.join("docs").join(name);
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote docs/{name}");
        }
    }
    Ok(())
}

pub fn check(root: &Path) -> Result<()> {
    let mut stale = 0;
    let pages = pages(root)?;
    for Page { name, text } in &pages {
        let found = fs::read_to_string(root.join("docs").join(name)).unwrap_or_default();
        if let Some(line) = first_difference(&found, text) {
            stale += 1;
            eprintln!("error: docs/{name}:{line}: differs from the code; run `cargo xtask docs`");
        }
    }
    if stale > 0 {
        bail!("docs: {stale} of {} generated pages are out of date", pages.len());
    }
    println!("docs: {} generated pages agree with the code", pages.len());
    Ok(())
}

fn pages(root: &Path) -> Result<Vec<Page>> {
    let mut pages = vec![
        Page { name: "kinds.md", text: tables::kinds() },
        Page { name: "limits.md", text: tables::limits(root)? },
        Page { name: "config.md", text: tables::config() },
        Page { name: "metrics.md", text: tables::metrics() },
        Page { name: "cli.md", text: cli::help(root)? },
    ];
    pages.iter_mut().for_each(|page| page.text.truncate(page.text.trim_end().len() + 1));
    Ok(pages)
}

/// The first line, from 1, in which two texts differ.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    if a == b {
        return None;
    }
    let same = a.lines().zip(b.lines()).take_while(|(a, b)| a == b).count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_where_it_begins() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("", "a\n"), Some(1));
        assert_eq!(first_difference("a\n", "a"), Some(2));
    }
}
