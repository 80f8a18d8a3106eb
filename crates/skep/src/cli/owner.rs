//! What an owner says to agents, and asks about them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use skep_proto::{limits, thread};

/// Who asks, and where.
#[derive(Debug, Args)]
pub struct OwnerArgs {
    /// Who you are: a key name, a path with a slash, env:VARIABLE or prompt:. Default: the key named owner if there is
    /// one, else default.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// The relay. Default: the agents' own by the configuration, else this machine's.
    #[arg(long, value_name = "URL", env = "SKEP_RELAY")]
    pub relay: Option<String>,
    /// A TOML file; without it: config.toml in the home directory, if it is there.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

/// What is said, to whom and in which form.
#[derive(Debug, Args)]
pub struct SayArgs {
    /// The agents (@name, npub or hex), then the text. Without a text it is read from stdin.
    #[arg(required = true, value_name = "@AGENT… TEXT")]
    pub words: Vec<String>,
    /// In this group (the value of its h tag), as a chat message (kind 9).
    #[arg(long, value_name = "GROUP")]
    pub channel: Option<String>,
    /// As a direct message that only the agent can read (NIP-17).
    #[arg(long, conflicts_with = "channel")]
    pub dm: bool,
    /// The task that this is about: its budget pays, and skep usage --by task counts it. Answers carry it on.
    #[arg(long, value_name = "TASK", value_parser = task)]
    pub task: Option<String>,
    #[command(flatten)]
    pub who: OwnerArgs,
}

fn task(text: &str) -> Result<String, String> {
    match thread::is_task(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("a task is 1 to {} bytes without spaces", limits::TASK_BYTES_MAX)),
    }
}

#[derive(Debug, Args)]
pub struct AskArgs {
    #[command(flatten)]
    pub say: SayArgs,
    /// How long to wait for the answer.
    #[arg(long, value_name = "TIME", default_value = "30m")]
    pub timeout: humantime::Duration,
    /// Only the answer: do not show how it comes about.
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only these agents: @name, npub or hex.
    #[arg(value_name = "@AGENT")]
    pub agents: Vec<String>,
    /// Show every frame between harness and program as it is.
    #[arg(long)]
    pub raw: bool,
    /// Also what was told since then; relays keep it for five minutes.
    #[arg(long, value_name = "TIME", default_value = "now")]
    pub since: String,
    #[command(flatten)]
    pub who: OwnerArgs,
}

#[derive(Debug, Args)]
pub struct DecideArgs {
    /// Which requests, by the beginning of their names; none: list those that are open.
    #[arg(value_name = "REQUEST", conflicts_with = "all")]
    pub requests: Vec<String>,
    /// All that are open.
    #[arg(long)]
    pub all: bool,
    /// Seconds to wait for the agent's word.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub timeout: u16,
    #[command(flatten)]
    pub who: OwnerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UsageBy {
    Agent,
    Model,
    Day,
    Channel,
    Task,
}

#[derive(Debug, Args)]
pub struct UsageArgs {
    /// What one line is about; a turn without a task is counted by its thread, which is the message that began it.
    #[arg(long, value_enum, default_value_t = UsageBy::Agent)]
    pub by: UsageBy,
    /// Turns that ended since then: unix seconds, or a time ago as 7d.
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// As comma-separated values.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Who you are: a key name, a path with a slash, env:VARIABLE or prompt:. Default: the key named owner if there is
    /// one, else default.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A relay; may be given several times. Default: those of the agents by the configuration, else this machine's.
    #[arg(long, value_name = "URL", env = "SKEP_RELAY")]
    pub relay: Vec<String>,
    /// A TOML file; without it: config.toml in the home directory, if it is there.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

pub const ASK_HELP: &str = "\
Examples:
  skep ask @scout 'what changed in the last release?'
  git diff | skep ask @scout @critic --channel team
  skep ask @scout --dm 'between us: is the release ready?'
  skep ask @scout 'write notes.txt' --timeout 5m > answer.txt

The answer goes to stdout, whole; how it comes about goes to stderr. When the agent asks for a
permission, answer y or n on the terminal, or with skep approve from anywhere.

Exit code 1: refused; 7: no answer in time; 8: the agent is paused; 9: it gave up.";

pub const SAY_HELP: &str = "\
Examples:
  skep say @scout 'look at this when you have time'
  skep say @scout @critic 'stand-up in ten minutes' --channel team

Prints the id of the message that was published.";

pub const WATCH_HELP: &str = "\
Examples:
  skep watch                      every agent of yours that this relay knows
  skep watch @scout --since 5m
  skep watch --raw                frames as they are
  skep watch --json | jq .kind

What agents tell is sealed for you (NIP-AO): nobody else can read it, the relay neither.";

pub const APPROVE_HELP: &str = "\
Examples:
  skep approve                    list what is open
  skep approve 3f2a               allow one, by the beginning of its name
  skep approve --all

A reaction to the card in any Nostr client does the same: 👍 allows, 👎 rejects. Exit code 1 when
it was decided already or is over.";

pub const DENY_HELP: &str = "\
Examples:
  skep deny                       list what is open
  skep deny 3f2a
  skep deny --all";

pub const USAGE_HELP: &str = "\
Examples:
  skep usage --since 7d
  skep usage --by model --since 2026-11-01T00:00:00Z
  skep usage --by day --csv > days.csv

Tokens and costs are as reported by providers; what is not known is not counted as nothing, but
marked. Days are in UTC.";
