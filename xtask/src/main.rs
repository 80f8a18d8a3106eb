//! Chores of this workspace, for people and for CI.
//!
//! ```text
//! cargo xtask tidy            rules that neither the compiler nor clippy checks
//! cargo xtask docs            writes docs/{kinds,limits,config,cli,metrics}.md from the code
//! cargo xtask docs --check    fails when a page differs from the code
//! ```
//!
//! Must not: change anything but the generated pages, or reach the network.

#[cfg(feature = "docs")]
mod docs;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask tidy | docs [--check]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    let root = root()?;
    match args {
        ["tidy"] => tidy::run(&root),
        #[cfg(feature = "docs")]
        ["docs"] => docs::write(&root),
        #[cfg(feature = "docs")]
        ["docs", "--check"] => docs::check(&root),
        _ => bail!(USAGE),
    }
}

/// The workspace's directory: the parent of this crate's.
fn root() -> Result<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(own.parent().context("xtask has a parent directory")?.to_path_buf())
}
