//! Which crate may depend on which: arrows point down only. Read from the manifests, development dependencies aside.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Findings;
use super::tree::File;

/// Every crate of ours, and what it may know. A new crate is added here by an ADR.
const ARROWS: [(&str, &[&str]); 12] = [
    ("skep-proto", &[]),
    ("skep-core", &["skep-proto"]),
    ("skep-store", &["skep-proto"]),
    ("skep-relay", &["skep-core", "skep-store", "skep-proto"]),
    ("skep-agent", &["skep-core", "skep-store", "skep-proto"]),
    ("skep-mesh", &["skep-core", "skep-store", "skep-proto"]),
    ("skep-node", &["skep-relay", "skep-agent", "skep-mesh", "skep-store", "skep-core", "skep-proto"]),
    ("skep-ui", &["skep-proto"]),
    ("skep", &["skep-node", "skep-ui", "skep-proto"]),
    ("skep-sim", &["skep-core", "skep-store", "skep-proto"]),
    ("skep-bench", &["skep-proto"]),
    ("xtask", &["skep-node", "skep-relay", "skep-proto"]),
];

/// Crates that decide and do nothing, and what would let them do something.
const PURE: [&str; 2] = ["skep-proto", "skep-core"];
const IMPURE: [&str; 15] = [
    "tokio",
    "tokio-util",
    "tokio-tungstenite",
    "mio",
    "socket2",
    "hyper",
    "hyper-util",
    "axum",
    "heed",
    "rusqlite",
    "rustix",
    "libc",
    "getrandom",
    "rand",
    "reqwest",
];

pub fn check(files: &[File], found: &mut Findings) -> Result<()> {
    for file in files {
        let is_ours = file.path.starts_with("crates/") || file.path.starts_with("xtask/");
        if is_ours && file.path.ends_with("/Cargo.toml") {
            let manifest: Table = file.text.parse().with_context(|| file.path.clone())?;
            check_manifest(&file.path, &manifest, found);
        }
    }
    Ok(())
}

fn check_manifest(path: &str, manifest: &Table, found: &mut Findings) {
    let name =
        manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str).unwrap_or_default();
    let Some((_, may_know)) = ARROWS.iter().find(|(known, _)| *known == name) else {
        return found.error(path, 1, format_args!("{name} is not in the list of crates; see xtask/src/tidy/arrows.rs"));
    };
    for dependency in dependencies(manifest) {
        let is_ours = ARROWS.iter().any(|(known, _)| *known == dependency);
        if is_ours && !may_know.contains(&dependency.as_str()) {
            found.error(path, 1, format_args!("{name} must not depend on {dependency}; see ARCHITECTURE.md"));
        }
        if PURE.contains(&name) && IMPURE.contains(&dependency.as_str()) {
            found.error(path, 1, format_args!("{name} decides and does no I/O; {dependency} belongs in a shell"));
        }
    }
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
    if inherits != Some(true) {
        found.error(path, 1, "does not inherit the workspace's lints; add [lints] workspace = true");
    }
}

/// The names of all dependencies that end up in the crate, on any target.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |table: &Table| {
        for section in ["dependencies", "build-dependencies"] {
            let Some(section) = table.get(section).and_then(Value::as_table) else { continue };
            for (name, value) in section {
                let renamed = value.get("package").and_then(Value::as_str);
                names.push(renamed.unwrap_or(name).to_owned());
            }
        }
    };
    add(manifest);
    let targets = manifest.get("target").and_then(Value::as_table);
    targets.into_iter().flat_map(Table::values).filter_map(Value::as_table).for_each(add);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(manifest: &str) -> usize {
        let mut found = Findings::default();
        let manifest = format!("{manifest}\n[lints]\nworkspace = true");
        check_manifest("Cargo.toml", &manifest.parse().expect("a valid manifest"), &mut found);
        found.errors.len()
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        assert_eq!(problems("[package]\nname='skep-core'\n[dependencies]\nskep-proto={}"), 0);
        assert_eq!(problems("[package]\nname='skep-core'\n[dependencies]\nskep-store={}"), 1);
        assert_eq!(problems("[package]\nname='skep-core'\n[target.x.dependencies]\ny={package='skep-node'}"), 1);
        assert_eq!(problems("[package]\nname='skep-proto'\n[dependencies]\ntokio={}"), 1);
        assert_eq!(problems("[package]\nname='skep-core'\n[dev-dependencies]\nskep-store={}"), 0);
        assert_eq!(problems("[package]\nname='skep-what'"), 1);
    }
}
