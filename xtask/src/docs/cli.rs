//! The command line's own help, of every command, as the built program prints it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::page::head;

/// Columns of the help texts. Fixed, so that a page does not depend on who made it.
const COLUMNS: &str = "100";

pub fn help(root: &Path) -> Result<String> {
    let program = program(root)?;
    let intro = "\
`skep <command> --help` prints these. Answers go to stdout, everything else to stderr; with `--json` an answer is one
JSON value a line.";
    let mut out = head("Command line", "the help of `skep`", intro);
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let text = help_of(&program, &path)?;
        let mut below: Vec<Vec<String>> =
            commands(&text).into_iter().map(|name| path.iter().cloned().chain([name]).collect()).collect();
        below.reverse();
        waiting.append(&mut below);
        let title = ["skep"].into_iter().chain(path.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        out.push_str(&format!("## `{title}`\n\n```text\n{text}\n```\n\n"));
    }
    Ok(out.trim_end().to_owned() + "\n")
}

/// The program in `SKEP_BIN`, else one that is built now.
fn program(root: &Path) -> Result<PathBuf> {
    if let Some(path) = env::var_os("SKEP_BIN") {
        return PathBuf::from(path).canonicalize().context("SKEP_BIN is not a program");
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "skep"])
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "skep does not build");
    // This program lies beside it.
    let own = env::current_exe().context("cannot find this program")?;
    let path = own.with_file_name("skep");
    ensure!(path.exists(), "{} is not there; set SKEP_BIN", path.display());
    Ok(path)
}

fn help_of(program: &Path, path: &[String]) -> Result<String> {
    let output = Command::new(program)
        .args(path)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", COLUMNS)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "`skep {} --help` failed", path.join(" "));
    let text = String::from_utf8(output.stdout).context("help is text")?;
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim().to_owned())
}

/// The names under `Commands:`.
fn commands(help: &str) -> Vec<String> {
    let below = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let rows = below.take_while(|line| !line.is_empty());
    // A row that goes on is indented further.
    let names = rows.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_from_help() {
        let help = "Does it.\n\nUsage: x <COMMAND>\n\nCommands:\n  one    First\n           and more\n  two    Second\n  help   No\n\nOptions:\n  -h";
        assert_eq!(commands(help), ["one", "two"]);
        assert!(commands("Options:\n  -h").is_empty());
    }
}
