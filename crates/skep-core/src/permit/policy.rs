//! What is allowed, rejected or asked, by tool kind and path.

use serde::{Deserialize, Serialize};

use crate::backend::{ToolCall, ToolKind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stance {
    #[default]
    Ask,
    Reject,
    Allow,
}

/// A stance for some calls. The first rule that fits stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Empty: any.
    #[serde(default)]
    pub tools: Vec<ToolKind>,
    /// An absolute directory or file, without `..`. Without it: any call.
    #[serde(default)]
    pub path: Option<String>,
    pub policy: Stance,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub policy: Stance,
    pub rules: Vec<Rule>,
}

impl Policy {
    pub fn stance(&self, call: &ToolCall) -> Stance {
        self.rules.iter().find(|rule| rule.fits(call)).map_or(self.policy, |rule| rule.policy)
    }
}

impl Rule {
    /// To allow, every path of the call must be below the rule's; to ask or reject, one is enough.
    fn fits(&self, call: &ToolCall) -> bool {
        let is_tool = self.tools.is_empty() || self.tools.contains(&call.kind);
        let Some(root) = &self.path else { return is_tool };
        let is_below = |path: &String| is_below(path, root);
        is_tool
            && match self.policy {
                Stance::Allow => !call.paths.is_empty() && call.paths.iter().all(is_below),
                // A path that cannot be read as one could be anywhere.
                Stance::Ask | Stance::Reject => call.paths.iter().any(|path| is_below(path) || parts(path).is_none()),
            }
    }
}

/// By whole names: `/work` is not above `/workshop`.
fn is_below(path: &str, root: &str) -> bool {
    match (parts(path), parts(root)) {
        (Some(path), Some(root)) => path.starts_with(&root),
        _ => false,
    }
}

/// The names of an absolute path. `None` for a relative one, and for one that goes back: it may lead anywhere.
fn parts(path: &str) -> Option<Vec<&str>> {
    let rest = path.strip_prefix('/')?;
    let names: Vec<_> = rest.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    (!names.contains(&"..") && !path.contains('\0')).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ToolStatus;

    fn call(kind: ToolKind, paths: &[&str]) -> ToolCall {
        ToolCall {
            id: "1".into(),
            title: String::new(),
            kind,
            status: ToolStatus::Pending,
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
        }
    }

    fn policy() -> Policy {
        let rule = |tools: &[ToolKind], path: Option<&str>, policy| Rule {
            tools: tools.to_vec(),
            path: path.map(str::to_owned),
            policy,
        };
        Policy {
            policy: Stance::Ask,
            rules: vec![
                rule(&[], Some("/code/.git"), Stance::Reject),
                rule(&[ToolKind::Read, ToolKind::Edit], Some("/code"), Stance::Allow),
                rule(&[ToolKind::Delete], None, Stance::Reject),
            ],
        }
    }

    #[test]
    fn the_first_rule_that_fits_stands() {
        for (call, stance) in [
            (call(ToolKind::Edit, &["/code/a"]), Stance::Allow),
            (call(ToolKind::Edit, &["/code/./a", "/code//b"]), Stance::Allow),
            (call(ToolKind::Edit, &["/code/a", "/etc/passwd"]), Stance::Ask),
            (call(ToolKind::Edit, &["/code/a", "/code/.git/config"]), Stance::Reject),
            (call(ToolKind::Edit, &["/codex/a"]), Stance::Ask),
            (call(ToolKind::Edit, &[]), Stance::Ask),
            (call(ToolKind::Execute, &["/code/a"]), Stance::Ask),
            (call(ToolKind::Delete, &["/tmp/x"]), Stance::Reject),
        ] {
            assert_eq!(policy().stance(&call), stance, "{call:?}");
        }
    }

    #[test]
    fn a_path_that_goes_back_or_is_relative_is_never_allowed() {
        for path in ["/code/../etc/passwd", "code/a", "", "~/a", "/code/\0"] {
            assert_ne!(policy().stance(&call(ToolKind::Edit, &[path])), Stance::Allow, "{path}");
        }
    }

    #[test]
    fn a_policy_is_written_as_in_the_configuration() {
        let json = r#"{"policy":"reject","rules":[{"tools":["read"],"path":"/a","policy":"allow"}]}"#;
        let policy: Policy = serde_json::from_str(json).expect("it is a policy");
        assert_eq!(policy.stance(&call(ToolKind::Read, &["/a/b"])), Stance::Allow);
        assert_eq!(policy.stance(&call(ToolKind::Read, &["/b"])), Stance::Reject);
        assert_eq!(Policy::default().policy, Stance::Ask);
    }
}
