//! How a command fails: one line that says what, one that says what to try, and an exit code that says which kind.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind as ClapKind};
use skep_node::agent::trees::TreesError;
use skep_node::client::ClientError;
use skep_node::config::ConfigError;
use skep_node::control::ControlError;
use skep_node::home::HomeError;
use skep_node::keys::KeyError;
use skep_node::node::NodeError;
use skep_node::relay::UpError;
use skep_node::setup::SetupError;
use skep_node::transfer::TransferError;

use crate::screen::escape;

/// The kinds of failure. Each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Refused,
    Usage,
    Input,
    Network,
    Permission,
    Internal,
    /// Nobody answered in the time that was given.
    NoAnswer,
    /// The agent begins no turns until somebody resumes it.
    Paused,
    /// The agent gave up, or its time ran out.
    GaveUp,
    /// Whoever read our output has gone. Nothing is wrong, nothing is printed.
    ClosedPipe,
}

/// Exit codes and what they mean; help is made from this.
pub const EXIT_CODES: [(u8, &str); 10] = [
    (0, "done"),
    (1, "refused, or the answer is no"),
    (2, "wrong usage: an unknown flag, a missing argument"),
    (3, "bad input: a file, key, filter, event or URL"),
    (4, "network: unreachable, timed out, connection lost"),
    (5, "permission: a file too open or not ours"),
    (6, "store or internal failure, disk full"),
    (7, "no answer in time; the message stays where it is"),
    (8, "the agent is paused; the message waits"),
    (9, "the agent gave up, or the message expired"),
];

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::ClosedPipe => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Input => 3,
            Self::Network => 4,
            Self::Permission => 5,
            Self::Internal => 6,
            Self::NoAnswer => 7,
            Self::Paused => 8,
            Self::GaveUp => 9,
        }
    }
}

/// A failed command.
#[derive(Debug)]
pub struct CliError {
    pub kind: Kind,
    pub cause: String,
    pub hint: Option<String>,
}

impl CliError {
    pub fn new(kind: Kind, cause: impl fmt::Display) -> Self {
        Self { kind, cause: cause.to_string(), hint: None }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the error, and a hint where there is one. Causes may quote a relay: they are escaped.
    pub fn report(&self) -> ExitCode {
        if self.kind != Kind::ClosedPipe {
            let mut text = format!("error: {}\n", escape(&self.cause));
            if let Some(hint) = &self.hint {
                text.push_str(&format!("hint: {}\n", escape(hint)));
            }
            // With stderr closed there is nobody left to tell.
            let _ = io::stderr().write_all(text.as_bytes());
        }
        ExitCode::from(self.kind.exit_code())
    }
}

impl From<KeyError> for CliError {
    fn from(error: KeyError) -> Self {
        let kind = match &error {
            KeyError::File(error) => home_kind(error),
            KeyError::Name { .. } | KeyError::OnCommandLine | KeyError::NoTerminal { .. } => Kind::Usage,
            KeyError::Random(_) => Kind::Internal,
            _ => Kind::Input,
        };
        Self { kind, cause: error.to_string(), hint: error.hint() }
    }
}

impl From<HomeError> for CliError {
    fn from(error: HomeError) -> Self {
        Self { kind: home_kind(&error), cause: error.to_string(), hint: error.hint() }
    }
}

fn home_kind(error: &HomeError) -> Kind {
    match error {
        HomeError::TooOpen { .. } => Kind::Permission,
        HomeError::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Kind::Input,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Permission,
            _ => Kind::Internal,
        },
        _ => Kind::Input,
    }
}

impl From<UpError> for CliError {
    fn from(error: UpError) -> Self {
        let (cause, hint) = (error.to_string(), error.hint());
        let kind = match error {
            UpError::Config(_) => Kind::Input,
            UpError::Home(error) => home_kind(&error),
            UpError::Key(error) => Self::from(error).kind,
            UpError::Listen { .. } => Kind::Network,
            UpError::Start(_) => Kind::Internal,
        };
        Self { kind, cause, hint }
    }
}

impl From<NodeError> for CliError {
    fn from(error: NodeError) -> Self {
        let (cause, hint) = (error.to_string(), error.hint());
        let kind = match error {
            NodeError::Running { .. } => Kind::Refused,
            NodeError::Taken { .. } => Kind::Network,
            NodeError::Up(error) => Self::from(error).kind,
            NodeError::Control(error) => Self::from(error).kind,
            NodeError::Key(error) => Self::from(error).kind,
        };
        Self { kind, cause, hint }
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        let (cause, hint) = (error.to_string(), error.hint());
        let kind = match &error {
            ControlError::Home(error) => home_kind(error),
            ControlError::Serve { .. } => Kind::Internal,
            ControlError::Silent { .. } => Kind::Network,
        };
        Self { kind, cause, hint }
    }
}

impl From<SetupError> for CliError {
    fn from(error: SetupError) -> Self {
        let (cause, hint) = (error.to_string(), error.hint());
        let kind = match error {
            SetupError::Home(error) => home_kind(&error),
            SetupError::Key(error) => Self::from(error).kind,
            _ => Kind::Input,
        };
        Self { kind, cause, hint }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        UpError::from(error).into()
    }
}

impl From<TreesError> for CliError {
    fn from(error: TreesError) -> Self {
        match error {
            TreesError::Config(error) => error.into(),
            TreesError::Tree { .. } => Self::new(Kind::Input, error).hint("skep doctor looks at each repository"),
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::BadUrl { .. } => Kind::Input,
            ClientError::Refused { .. } => Kind::Refused,
            _ => Kind::Network,
        };
        Self { kind, cause: error.to_string(), hint: error.hint() }
    }
}

impl From<TransferError> for CliError {
    fn from(error: TransferError) -> Self {
        let (cause, hint) = (error.to_string(), error.hint());
        let kind = match error {
            TransferError::Client(error) => return error.into(),
            TransferError::Key(error) => return error.into(),
            TransferError::Home(error) => home_kind(&error),
            TransferError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Kind::ClosedPipe,
            TransferError::File { cause, .. } if is_mistake(&cause) => Kind::Input,
            TransferError::File { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => Kind::Permission,
            TransferError::Config(_) | TransferError::NoStore { .. } | TransferError::Input(_) => Kind::Input,
            TransferError::BadLine { .. } | TransferError::Crowded { .. } | TransferError::NoReconciliation { .. } => {
                Kind::Refused
            }
            TransferError::Reconciliation { .. } => Kind::Network,
            _ => Kind::Internal,
        };
        Self { kind, cause, hint }
    }
}

/// Whether a path was named that is not what it should be.
fn is_mistake(cause: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(cause.kind(), NotFound | NotADirectory | IsADirectory)
}

/// From writing our own output.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Kind::ClosedPipe, "closed pipe"),
            _ => Self::new(Kind::Internal, format!("cannot write the output: {error}")),
        }
    }
}

/// What clap says, as one line and a hint. Help and version are not errors.
pub fn usage(error: clap::Error) -> Result<(), CliError> {
    if matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
        return error.print().map_err(CliError::from);
    }
    if error.kind() == ClapKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Err(CliError::new(Kind::Usage, "a command is missing").hint("skep --help lists them"));
    }
    let rendered = error.to_string();
    let paragraph = rendered.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
    let cause = lines.join(" ");
    let cause = cause.strip_prefix("error: ").unwrap_or(&cause).to_owned();
    Err(CliError::new(Kind::Usage, cause).hint(suggestion(&error, &rendered)))
}

fn suggestion(error: &clap::Error, rendered: &str) -> String {
    for kind in [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue] {
        match error.get(kind) {
            Some(clap::error::ContextValue::String(text)) => return format!("did you mean {text}?"),
            Some(clap::error::ContextValue::Strings(all)) if !all.is_empty() => {
                return format!("did you mean {}?", all.join(" or "));
            }
            _ => {}
        }
    }
    let usage = rendered.lines().find_map(|line| line.strip_prefix("Usage: "));
    match usage {
        Some(usage) => format!("usage: {}; see --help", usage.trim()),
        None => "see --help".into(),
    }
}

/// The table of exit codes, for the end of help.
pub fn exit_code_help() -> String {
    let rows: Vec<String> = EXIT_CODES.iter().map(|(code, meaning)| format!("  {code}  {meaning}")).collect();
    format!("Exit codes:\n{}", rows.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_documented_code_of_its_own() {
        use Kind::{GaveUp, Input, Internal, Network, NoAnswer, Paused, Permission, Refused, Usage};
        let kinds = [Refused, Usage, Input, Network, Permission, Internal, NoAnswer, Paused, GaveUp];
        let codes: Vec<u8> = kinds.iter().map(|kind| kind.exit_code()).collect();
        let documented: Vec<u8> = EXIT_CODES.iter().map(|(code, _)| *code).filter(|code| *code != 0).collect();
        assert_eq!(codes, documented);
    }
}
