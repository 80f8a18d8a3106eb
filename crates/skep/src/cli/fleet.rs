//! The verbs of whoever has agents on this machine.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use skep_proto::limits;

use super::SettingsArgs;
use super::owner::OwnerArgs;

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Show what Skep does with three agents that need no model, in a home of their own.
    #[arg(long, conflicts_with_all = ["config", "data"])]
    pub demo: bool,
}

/// One agent, by its name.
#[derive(Debug, Args)]
pub struct AgentArg {
    /// Its name, with or without an @.
    #[arg(value_name = "NAME", value_parser = without_at)]
    pub name: String,
    /// A TOML file; without it: config.toml in the home directory.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Agents: @name, npub or hex; none: all of yours, on the relays that this home knows.
    #[arg(value_name = "NAME", value_parser = without_at)]
    pub names: Vec<String>,
    /// Why, for whoever looks later. Whoever reads the relay can read it.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = reason)]
    pub reason: String,
    /// Only in this home: agents elsewhere hear nothing of it.
    #[arg(long)]
    pub here: bool,
    #[command(flatten)]
    pub who: OwnerArgs,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Agents: @name, npub or hex; none: all of yours, on the relays that this home knows.
    #[arg(value_name = "NAME", value_parser = without_at)]
    pub names: Vec<String>,
    /// Lift only what was paused in this home, or there by a provider.
    #[arg(long)]
    pub here: bool,
    #[command(flatten)]
    pub who: OwnerArgs,
}

#[derive(Debug, Args)]
pub struct InboxArgs {
    /// One agent, with or without an @; without it: all of this home.
    #[arg(value_name = "NAME", value_parser = without_at)]
    pub name: Option<String>,
    /// Only messages in this state: stored, queued, prompted, answered, refused, expired or dead.
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    pub state: Option<String>,
    /// Messages of each agent, the newest.
    #[arg(long, short, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: u32,
    /// A TOML file; without it: config.toml in the home directory.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

const STATES: [&str; 7] = ["stored", "queued", "prompted", "answered", "refused", "expired", "dead"];

#[derive(Debug, Args)]
pub struct TreesArgs {
    /// Agents, with or without an @; none: all of this home.
    #[arg(value_name = "NAME", value_parser = without_at)]
    pub names: Vec<String>,
    /// Remove those with which nothing is lost, and their branches.
    #[arg(long)]
    pub prune: bool,
    /// A TOML file; without it: config.toml in the home directory.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RetryArgs {
    #[command(flatten)]
    pub agent: AgentArg,
    /// The message: the beginning of its id, as skep inbox shows it; without it: all that are dead.
    #[arg(value_name = "MESSAGE")]
    pub message: Option<String>,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A TOML file; without it: config.toml in the home directory.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("runs").required(true).args(["preset", "command", "base_url"]))]
pub struct NewArgs {
    /// a-z 0-9 - _, beginning with a letter or digit: what it is mentioned by.
    #[arg(value_name = "NAME", value_parser = without_at)]
    pub name: String,
    /// A known program: claude, codex, gemini, goose, opencode, qwen, kimi, vibe, or demo, which is built in.
    #[arg(long, value_name = "PRESET")]
    pub preset: Option<String>,
    /// Any program that speaks ACP; its arguments come last, after --.
    #[arg(long, value_name = "PROGRAM")]
    pub command: Option<String>,
    /// Arguments of --command.
    #[arg(last = true, value_name = "ARGUMENT", requires = "command")]
    pub args: Vec<String>,
    /// An OpenAI-compatible model server, like http://127.0.0.1:11434/v1.
    #[arg(long, value_name = "URL", requires = "model")]
    pub base_url: Option<String>,
    /// The server's model.
    #[arg(long, value_name = "MODEL", requires = "base_url")]
    pub model: Option<String>,
    /// Who owns it and signs for it; without it: the key owner, or default, or a new key owner.
    #[arg(long, value_name = "KEY")]
    pub owner: Option<String>,
    /// A relay to listen on, the first one its home; without it: the relay of this machine.
    #[arg(long, value_name = "URL")]
    pub relay: Vec<String>,
    /// The TOML file to add it to; without it: config.toml in the home directory, made when it is not there.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
}

/// What is done with agents of this home.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Add an agent: a key, its owner's attestation, and its place in the configuration.
    #[command(after_help = NEW_HELP)]
    New(NewArgs),
    /// List the agents of this home: name, key, owner, backend, state.
    #[command(after_help = "Example: skep agent list --json")]
    List(StatusArgs),
    /// Make the instance of this machine lead, when nobody who is alive does.
    #[command(after_help = CLAIM_HELP)]
    Claim(AgentArg),
    /// Make the instance of this machine lead, whoever does: the other's turn is cancelled and billed.
    #[command(after_help = CLAIM_HELP)]
    Steal(AgentArg),
    /// Begin no new turns of an agent, on the relays known here; its messages wait.
    #[command(after_help = PAUSE_HELP)]
    Pause(PauseArgs),
    /// Go on after a pause.
    #[command(after_help = PAUSE_HELP)]
    Resume(ResumeArgs),
    /// Try a message again, or all that are dead.
    #[command(after_help = RETRY_HELP)]
    Retry(RetryArgs),
    /// List the git worktrees of the agents' conversations, and clear up.
    #[command(after_help = TREES_HELP)]
    Trees(TreesArgs),
}

/// `@name` or `name`.
fn without_at(text: &str) -> Result<String, String> {
    let name = text.strip_prefix('@').unwrap_or(text);
    if name.is_empty() { Err("a name is missing after the @".into()) } else { Ok(name.to_owned()) }
}

fn reason(text: &str) -> Result<String, String> {
    let most = limits::CONTROL_REASON_BYTES_MAX;
    if text.len() > most { Err(format!("a reason has at most {most} bytes")) } else { Ok(text.to_owned()) }
}

pub const UP_HELP: &str = "\
Examples:
  skep up                 at first: makes an owner, an agent for each program found, and config.toml
  skep up --demo          all of it at work in ten seconds, without a model
  skep up --config team.toml

It runs a relay and the agents of the configuration until SIGTERM or Ctrl-C, and stops within ten
seconds; a second Ctrl-C ends it at once. What it makes at the first start it never overwrites.";

pub const STATUS_HELP: &str = "\
Examples:
  skep status
  skep status --json | jq .agents

Asks every process that runs agents of this home; of those that do not run it shows what their
records say, with its age. Exit code 1 when nothing runs.";

pub const INBOX_HELP: &str = "\
Examples:
  skep inbox
  skep inbox @scout --state dead
  skep inbox --json

States: stored, queued, prompted, answered, refused, expired, dead. Also while nothing runs.";

pub const PAUSE_HELP: &str = "\
Examples:
  skep pause --reason 'over the weekend'      all your agents, on the relays known here
  skep pause --relay wss://relay.example.com  the same, and those on a relay that is not
  skep agent pause scout                      one of them
  skep agent resume scout
  skep resume
  skep pause --here                           this home only

It is said with your key (--key, else owner, else default) on the relays that this home knows,
those of its agents, and on --relay, and to the processes here: each instance that listens there
obeys when it hears it, within a second where it is connected, and one that starts or comes back
later does too. Agents on other relays hear nothing of it. Without an owner's key here it is for
this home only. A turn that runs goes on; no new one begins, also after a restart, until it is
resumed. Each pause is lifted by itself: skep resume lifts what was said to all, and says what
still holds; skep agent resume what was said to that one, and in this home whatever else holds it,
but for what was said to all; --here what was said in this home, and a provider's refusal here.";

const NEW_HELP: &str = "\
Examples:
  skep agent new rita --preset claude
  skep agent new local --base-url http://127.0.0.1:11434/v1 --model qwen3
  skep agent new mine --command my-agent -- --acp --verbose

A node that runs (skep up) starts it at once.";

const CLAIM_HELP: &str = "\
Examples:
  skep agent claim scout
  skep agent steal scout

Exit code 1 when another leads, or when this machine does not get the lead.";

const RETRY_HELP: &str = "\
Examples:
  skep agent retry scout              all that are dead
  skep agent retry scout 1f3a9c02     one, by the beginning of its id";

const TREES_HELP: &str = "\
Examples:
  skep agent trees
  skep agent trees scout --json
  skep agent trees --prune

An agent with `repo` works in a worktree for each conversation. --prune removes those with which
nothing is lost; ignored files go with them. One stays that
  is in use, or locked (git worktree lock);
  has submodules, in which Skep does not look;
  is in the middle of a rebase, merge, cherry-pick, revert or bisect;
  has changes that are not committed;
  has commits that are on no other branch;
  cannot be told about: git does not answer or will not remove it, the agent has no `repo` now, or
    it is half made or no worktree of that repository.";
