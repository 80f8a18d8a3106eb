//! The files of the tree, and what must stand in none of them: names of this machine, or of a package registry.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Findings;

/// Never ours, or made by a tool.
const SKIPPED: [&str; 9] = [
    ".git",
    "target",
    "node_modules",
    "__pycache__",
    "proptest-regressions",
    "corpus",
    "artifacts",
    "coverage",
    ".venv",
];

/// Written by a program or taken over whole: their length is not ours to choose.
const NOT_READ: [&str; 9] = [
    "docs/kinds.md",
    "docs/limits.md",
    "docs/config.md",
    "docs/cli.md",
    "docs/metrics.md",
    "docs/benchmarks.md",
    "LICENSE-APACHE",
    "Cargo.lock",
    "package-lock.json",
];

/// Directories that belong to one person or one machine.
const PRIVATE_PLACES: [&str; 4] = ["/home/", "/root/", "/Users/", "/builds/"];

/// Directories that any machine has; a text may name what lies in them.
const COMMON_PLACES: [&str; 16] =
    ["tmp", "usr", "var", "etc", "opt", "srv", "run", "dev", "proc", "sys", "bin", "lib", "mnt", "src", "app", "data"];

/// Settings that point a package manager elsewhere. Which registry is used is for the machine to say.
const REGISTRY_SETTINGS: [&str; 6] =
    ["index-url", "registry=", "registry =", "replace-with", "\"resolved\":", "[source."];

/// Variables by which a machine names its registries; their hosts must not get into the tree.
const REGISTRY_VARIABLES: [&str; 5] = [
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "CARGO_REGISTRIES_DEFAULT_INDEX",
];

/// One text file.
pub struct File {
    /// From the root, with slashes.
    pub path: String,
    pub text: String,
}

impl File {
    pub fn extension(&self) -> &str {
        self.path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map_or("", |(_, extension)| extension)
    }

    /// Whether a person reads and writes it.
    pub fn is_ours_to_read(&self) -> bool {
        !NOT_READ.iter().any(|name| self.path.ends_with(name)) && !self.path.contains("/vectors/")
    }
}

/// All text files below `root`, in order.
pub fn read(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    walk(root, root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<File>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let name = entry.file_name();
        let is_skipped = SKIPPED.iter().any(|skipped| name == *skipped);
        if kind.is_dir() && !is_skipped {
            walk(root, &path, files)?;
        } else if kind.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            let path = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
            files.push(File { path, text });
        }
    }
    Ok(())
}

pub fn check(root: &Path, file: &File, found: &mut Findings) {
    // This module lists what it looks for.
    if file.path == "xtask/src/tidy/tree.rs" {
        return;
    }
    let own_places = own_places(root);
    let hosts = registry_hosts();
    for (number, line) in file.text.lines().enumerate() {
        let number = number + 1;
        let private = PRIVATE_PLACES.iter().copied().chain(own_places.iter().map(String::as_str));
        for place in private.filter(|place| names_path(line, place)) {
            found.error(&file.path, number, format_args!("names {place}, a path of one machine; make it relative"));
        }
        if is_registry_config(&file.path) && REGISTRY_SETTINGS.iter().any(|setting| line.contains(setting)) {
            found.error(&file.path, number, "names a package registry; leave that to the machine");
        }
        if hosts.iter().any(|host| line.contains(host.as_str())) {
            found.error(&file.path, number, "names this machine's package registry; remove it");
        }
    }
    if file.path.ends_with("Cargo.lock") {
        check_lock(file, found);
    }
}

/// Everything is taken from the one public index: no fork by git, no other registry.
fn check_lock(file: &File, found: &mut Findings) {
    for (number, line) in file.text.lines().enumerate() {
        if let Some(source) = line.strip_prefix("source = ")
            && !source.ends_with("crates.io-index\"")
        {
            found.error(&file.path, number + 1, format_args!("takes a crate from {source}; use a released version"));
        }
    }
}

fn is_registry_config(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_lock = matches!(name, "package-lock.json" | "yarn.lock" | "pnpm-lock.yaml");
    is_lock
        || matches!(name, ".npmrc" | "pip.conf" | "requirements.txt" | "config.toml" | "Cargo.toml" | "pyproject.toml")
}

/// Where this checkout lies, and the directory around it unless every machine has one of that name.
fn own_places(root: &Path) -> Vec<String> {
    let mut places = Vec::new();
    for dir in root.ancestors() {
        let names: Vec<_> = dir.components().skip(1).collect();
        let is_common = match names.first() {
            Some(first) => names.len() == 1 && COMMON_PLACES.iter().any(|place| first.as_os_str() == *place),
            None => true,
        };
        if !is_common {
            places.push(format!("{}/", dir.display()));
        }
    }
    places
}

/// Whether `line` has this path at the beginning of a word: `docs/home/x` is no `/home/`.
fn names_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '~' | '}' | '>' | '*')))
    })
}

fn registry_hosts() -> Vec<String> {
    let values = REGISTRY_VARIABLES.iter().filter_map(|name| env::var(name).ok());
    let host = |url: String| {
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        rest.split(['/', ':']).next().unwrap_or("").rsplit('@').next().unwrap_or("").to_owned()
    };
    values.map(host).filter(|host| host.len() > 3 && host != "localhost" && !host.starts_with("127.")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_counts_only_where_it_begins() {
        assert!(names_path("cd /home/bee", "/home/"));
        assert!(names_path("\"/home/bee\"", "/home/"));
        assert!(!names_path("docs/home/bee", "/home/"));
        assert!(!names_path("${PREFIX}/home/bee", "/home/"));
    }

    #[test]
    fn the_place_of_a_checkout_is_private_unless_every_machine_has_it() {
        assert_eq!(own_places(Path::new("/tmp")), Vec::<String>::new());
        assert_eq!(own_places(Path::new("/tmp/a")), ["/tmp/a/"]);
        assert_eq!(own_places(Path::new("/hive/a")), ["/hive/a/", "/hive/"]);
    }
}
