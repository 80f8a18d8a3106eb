//! Git worktrees of an agent's conversations: what they are called, and which of them may go.
//!
//! Must not: let a word of a conversation become a path, a branch or an argument. Names are digests.

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};
use skep_proto::name::AgentName;

/// Bytes of a digest that are a name: 2^64 tries to meet somebody else's tree on purpose.
const NAME_BYTES: usize = 8;

/// Before what is hashed, so that no other digest of ours is the same.
const DOMAIN: &str = "skep tree";

/// Name of one conversation's tree: 16 hex digits, of the conversation, the repository, and the place where the trees
/// of this agent are. So it is the same after a restart, and no other home's, though both work in one repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TreeName(String);

impl TreeName {
    pub const CHARS: usize = 2 * NAME_BYTES;

    pub fn of(repo: &str, root: &str, conversation: &str) -> Self {
        let mut digest = Sha256::new();
        for part in [DOMAIN, repo, root, conversation] {
            // With its length, so that no two lists of parts are one text.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        Self(digest.finalize()[..NAME_BYTES].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// A name that was found, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == Self::CHARS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch that the tree begins on.
    pub fn branch(&self, agent: &AgentName) -> String {
        format!("skep/{agent}/{self}")
    }
}

impl fmt::Display for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a setting may be given to git as a revision: nothing that begins as an option does, nor what git gives a
/// meaning of its own in the middle of one.
pub fn is_revision(text: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '#');
    !text.is_empty() && !text.starts_with('-') && !text.contains("..") && text.chars().all(is_plain)
}

/// What the file `.git` of a linked worktree names: where git keeps what belongs to it.
pub fn linked(text: &str) -> Option<&str> {
    text.strip_prefix("gitdir: ").map(|path| path.trim_end_matches(['\n', '\r'])).filter(|path| !path.is_empty())
}

/// What holds a tree whatever is committed in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// Somebody said so: `git worktree lock`.
    Locked,
    /// Of what is in them git is not asked here: they have configurations of their own.
    Submodules,
    /// Git is in the middle of this, and keeps there what is nowhere else: commits, a stash.
    Unfinished(&'static str),
}

/// What says so where git keeps what belongs to a worktree, by its presence (gitrepository-layout(5)).
pub const BARS: [(&str, Bar); 10] = [
    ("locked", Bar::Locked),
    ("modules", Bar::Submodules),
    ("rebase-merge", Bar::Unfinished("rebase")),
    ("rebase-apply", Bar::Unfinished("rebase")),
    ("MERGE_HEAD", Bar::Unfinished("merge")),
    ("MERGE_AUTOSTASH", Bar::Unfinished("merge")),
    ("CHERRY_PICK_HEAD", Bar::Unfinished("cherry-pick")),
    ("REVERT_HEAD", Bar::Unfinished("revert")),
    ("sequencer", Bar::Unfinished("cherry-pick or revert")),
    ("BISECT_LOG", Bar::Unfinished("bisect")),
];

/// What is known of a tree when it is asked whether it may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// A backend works in it.
    pub is_used: bool,
    pub barred: Option<Bar>,
    /// Something in it is not committed.
    pub is_dirty: bool,
    /// Commits of it that are on no other branch.
    pub only_here: u64,
}

/// Why a tree stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    Used,
    Barred(Bar),
    Dirty,
    OnlyHere(u64),
    /// Git would not say, or would not do it.
    Unknown(String),
}

impl Standing {
    /// `None`: nothing is lost with it.
    pub fn kept(&self) -> Option<Kept> {
        match *self {
            Self { is_used: true, .. } => Some(Kept::Used),
            Self { barred: Some(bar), .. } => Some(Kept::Barred(bar)),
            Self { is_dirty: true, .. } => Some(Kept::Dirty),
            Self { only_here: 1.., .. } => Some(Kept::OnlyHere(self.only_here)),
            _ => None,
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Used => f.write_str("in use"),
            Self::Barred(Bar::Locked) => f.write_str("is locked (git worktree lock)"),
            Self::Barred(Bar::Submodules) => f.write_str("has submodules, in which Skep does not look"),
            Self::Barred(Bar::Unfinished(what)) => write!(f, "is in the middle of a {what}"),
            Self::Dirty => f.write_str("has changes that are not committed"),
            Self::OnlyHere(1) => f.write_str("has a commit that is on no other branch"),
            Self::OnlyHere(n) => write!(f, "has {n} commits that are on no other branch"),
            Self::Unknown(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_again_and_differs_with_each_part() {
        let name = |repo, root, conversation| TreeName::of(repo, root, conversation);
        let one = name("/repo", "/skep/trees", "h:team");
        assert_eq!(one, name("/repo", "/skep/trees", "h:team"));
        assert_eq!(one.as_str(), "e3f0e96a95bb737d", "as it is on disks");
        for other in [
            name("/repo2", "/skep/trees", "h:team"),
            name("/repo", "/skep2/trees", "h:team"),
            name("/repo", "/skep/trees", "h:other"),
            // What is moved from one part to the next is another list.
            name("/repo/skep/trees", "", "h:team"),
            name("/repo", "/skep/treesh", ":team"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn whatever_a_conversation_is_called_its_tree_and_branch_are_plain() {
        let agent: AgentName = "scout".parse().expect("a name");
        for text in ["", "../../etc", "--upload-pack=x", "h:a b\n;rm -rf /", "\0", "h:ü\u{202e}"] {
            let name = TreeName::of("/repo", "/root", text);
            assert_eq!(TreeName::parse(name.as_str()), Some(name.clone()), "{text:?}");
            assert_eq!(name.branch(&agent), format!("skep/scout/{name}"));
        }
        for text in ["", "..", "7c5cda4f7ab66ca", "7c5cda4f7ab66ca1.lock", "7C5CDA4F7AB66CA1", "7c5cda4f7ab66c/1"] {
            assert_eq!(TreeName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_base_is_a_branch_tag_or_commit_and_no_option() {
        for good in ["main", "origin/main", "v1.2", "release/2026-11", "feature_#7", "HEAD"] {
            assert!(is_revision(good), "{good}");
        }
        for bad in ["", "-f", "--all", "a..b", "main^{tree}", "a b", "HEAD@{1}", "x:y", "a\nb", "~", "*"] {
            assert!(!is_revision(bad), "{bad}");
        }
    }

    #[test]
    fn a_tree_goes_only_when_nothing_is_lost_with_it() {
        let merged = Standing { is_used: false, barred: None, is_dirty: false, only_here: 0 };
        assert_eq!(merged.kept(), None);
        assert_eq!(Standing { is_used: true, ..merged }.kept(), Some(Kept::Used));
        for (mark, bar) in BARS {
            assert_eq!(Standing { barred: Some(bar), ..merged }.kept(), Some(Kept::Barred(bar)), "{mark}");
        }
        let rebase = Kept::Barred(Bar::Unfinished("rebase"));
        assert_eq!(rebase.to_string(), "is in the middle of a rebase");
        assert_eq!(Standing { is_dirty: true, ..merged }.kept(), Some(Kept::Dirty));
        assert_eq!(Standing { only_here: 2, ..merged }.kept(), Some(Kept::OnlyHere(2)));
        assert_eq!(Kept::OnlyHere(1).to_string(), "has a commit that is on no other branch");
    }

    #[test]
    fn the_file_of_a_linked_worktree_names_one_place() {
        assert_eq!(linked("gitdir: /r/.git/worktrees/x\n"), Some("/r/.git/worktrees/x"));
        assert_eq!(linked("gitdir: /a b/.git/worktrees/x y\n"), Some("/a b/.git/worktrees/x y"));
        for text in ["", "gitdir: \n", "/r/.git"] {
            assert_eq!(linked(text), None);
        }
    }
}
