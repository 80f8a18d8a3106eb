//! What lies where a tree should be.
//!
//! Must not: believe what an agent wrote there. A file `.git` may name any directory, and git runs what the
//! configuration in that directory says; so only a worktree of the agent's repository counts, which names this place
//! itself. And a file may be a pipe, a device or a link: none of them is read.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use skep_core::tree::linked;
use skep_proto::limits::TREE_TEXT_BYTES_MAX;

use super::{TreeError, blocking};

/// What git writes into `locked` while it makes a tree, and takes away when it is whole.
const MAKING: &str = "initializing";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// Git was killed while it made it: nobody worked there yet.
    HalfMade,
    /// With the place where git keeps what belongs to it. Canonical.
    Whole(PathBuf),
    Other,
}

/// Looks at a place. `common` is where the repository keeps what all its trees have in common, canonical.
pub async fn look(path: &Path, common: &Path) -> Result<Found, TreeError> {
    let (place, common) = (path.to_owned(), common.to_owned());
    blocking(move || look_now(&place, &common)).await.map_err(TreeError::files("look at", path))
}

fn look_now(path: &Path, common: &Path) -> io::Result<Found> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Ok(Found::Other),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    }
    let Some(text) = text(&path.join(".git")) else {
        let is_empty = std::fs::read_dir(path)?.next().is_none();
        // Git begins with an empty directory; it takes no other.
        return Ok(if is_empty && std::fs::remove_dir(path).is_ok() { Found::Nothing } else { Found::Other });
    };
    if text.is_empty() {
        return Ok(if is_begun(path, common)? { Found::HalfMade } else { Found::Other });
    }
    let Some(gitdir) = linked(&text).and_then(|gitdir| its_own(path, &path.join(gitdir), common)) else {
        return Ok(Found::Other);
    };
    Ok(if is_making(&gitdir) { Found::HalfMade } else { Found::Whole(gitdir) })
}

/// Whether git has not yet made all of a tree.
pub fn is_making(gitdir: &Path) -> bool {
    text(&gitdir.join("locked")).is_some_and(|locked| locked.trim() == MAKING)
}

/// Whether git was stopped between making the file `.git` and writing into it, which it does before it puts anything
/// beside that: then there is nothing else, and no worktree that was whole has its place here. One may have commits
/// that are on no branch.
fn is_begun(path: &Path, common: &Path) -> io::Result<bool> {
    if std::fs::read_dir(path)?.nth(1).is_some() {
        return Ok(false);
    }
    let known = match std::fs::read_dir(common.join("worktrees")) {
        Ok(known) => known,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let place = path.canonicalize()?;
    for gitdir in known {
        let gitdir = gitdir?.path();
        if place_of(&gitdir).is_some_and(|of| of == place) && !is_making(&gitdir) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The place where the repository keeps a worktree, if it is one of its own and says that it is this one's.
fn its_own(path: &Path, gitdir: &Path, common: &Path) -> Option<PathBuf> {
    let gitdir = gitdir.canonicalize().ok()?;
    let is_own =
        gitdir.parent() == Some(&common.join("worktrees")) && place_of(&gitdir)? == path.canonicalize().ok()?;
    is_own.then_some(gitdir)
}

/// The place that is a worktree's by what the repository keeps of it. Canonical.
fn place_of(gitdir: &Path) -> Option<PathBuf> {
    let back = gitdir.join(text(&gitdir.join("gitdir"))?.trim_end_matches(['\n', '\r']));
    let is_file = back.file_name()? == ".git";
    is_file.then(|| back.parent()?.canonicalize().ok())?
}

/// The branch that is checked out in a tree.
pub async fn head(gitdir: PathBuf) -> Option<String> {
    let head = blocking(move || Ok(text(&gitdir.join("HEAD")))).await.ok()??;
    head.trim_end().strip_prefix("ref: refs/heads/").map(str::to_owned)
}

/// What a short file says. `None`: it cannot be read, is no file, or no text. Follows no link and waits for nobody.
fn text(path: &Path) -> Option<String> {
    let file = open_as(path, OFlags::NOFOLLOW | OFlags::NONBLOCK).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(TREE_TEXT_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A directory, and nothing that is in its place.
pub fn open_directory(path: &Path) -> io::Result<File> {
    open_as(path, OFlags::NOFOLLOW | OFlags::DIRECTORY)
}

fn open_as(path: &Path, how: OFlags) -> io::Result<File> {
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC | how, Mode::empty())?.into())
}
