//! The command line, as clap reads it. Each verb has its module in [`crate::command`].

mod fleet;
mod operate;
mod owner;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::error::exit_code_help;

pub use fleet::{FleetCommand, InboxArgs, NewArgs, PauseArgs, ResumeArgs, RetryArgs, StatusArgs, TreesArgs, UpArgs};
use fleet::{INBOX_HELP, PAUSE_HELP, STATUS_HELP, UP_HELP};
use operate::{CHANNELS_HELP, DOCTOR_HELP, EXPORT_HELP, IMPORT_HELP};
pub use operate::{ChannelsArgs, Dir, ExportArgs, ImportArgs, NameCommand, RelayCommand, SyncArgs};
use owner::{APPROVE_HELP, ASK_HELP, DENY_HELP, SAY_HELP, USAGE_HELP, WATCH_HELP};
pub use owner::{AskArgs, DecideArgs, OwnerArgs, SayArgs, UsageArgs, UsageBy, WatchArgs};

/// The relay that commands speak to when none is named.
pub const RELAY_DEFAULT: &str = "ws://127.0.0.1:7777";

#[derive(Debug, Parser)]
#[command(name = "skep", version, about = "A Nostr relay, and a fleet of AI agents that behaves like a team.")]
#[command(after_help = exit_code_help(), arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Answer in JSON, one value a line.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine: a relay, and the agents that are found here.
    #[command(after_help = UP_HELP)]
    Up(UpArgs),
    /// Show what runs here: the relay, each agent, who leads, what waits.
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Show what was said to the agents, and what became of it.
    #[command(after_help = INBOX_HELP)]
    Inbox(InboxArgs),
    /// Begin no new turns, of any agent of yours, on the relays known here.
    #[command(after_help = PAUSE_HELP)]
    Pause(PauseArgs),
    /// Go on after a pause.
    #[command(after_help = PAUSE_HELP)]
    Resume(ResumeArgs),
    /// Make, keep and show private keys.
    #[command(subcommand, after_help = KEY_HELP)]
    Key(KeyCommand),
    /// Publish, query, count and verify events on any relay.
    #[command(subcommand, after_help = EVENT_HELP)]
    Event(EventCommand),
    /// Add agents, see to them, and say whose they are.
    #[command(subcommand, after_help = AGENT_HELP)]
    Agent(AgentCommand),
    /// Ask agents something, watch them work, and print what they answer.
    #[command(after_help = ASK_HELP)]
    Ask(AskArgs),
    /// Tell agents something, and do not wait.
    #[command(after_help = SAY_HELP)]
    Say(SayArgs),
    /// See what your agents are doing, live.
    #[command(after_help = WATCH_HELP)]
    Watch(WatchArgs),
    /// Allow what an agent asks for; without a name: list what is open.
    #[command(after_help = APPROVE_HELP)]
    Approve(DecideArgs),
    /// Reject what an agent asks for; without a name: list what is open.
    #[command(after_help = DENY_HELP)]
    Deny(DecideArgs),
    /// See what your agents used, by their encrypted bills.
    #[command(after_help = USAGE_HELP)]
    Usage(UsageArgs),
    /// Run a relay on this machine.
    #[command(after_help = RELAY_HELP, args_conflicts_with_subcommands = true)]
    Relay(RelayRun),
    /// Lead an agent's program to the tools that Skep has for it (MCP). Programs start it; people need not.
    #[command(after_help = MCP_HELP)]
    Mcp(McpArgs),
    /// Take in events from JSONL.
    #[command(after_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Write events as JSONL.
    #[command(after_help = EXPORT_HELP)]
    Export(ExportArgs),
    /// List the channels that have a rule, and the rule.
    #[command(after_help = CHANNELS_HELP)]
    Channels(ChannelsArgs),
    /// See whether everything is in order, and how to mend what is not.
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

const MCP_HELP: &str = "\
Example, as a program is told to start it:
  skep mcp --socket ~/.skep/run/tools/4711-90ab12cd34ef5678.sock

It copies bytes between its stdin and stdout and the socket of one session, on which the harness
speaks MCP. It holds no key. Which tools an agent has: `tools` in its [[agent]] table.";

#[derive(Debug, Args)]
pub struct McpArgs {
    /// The socket of the session.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

const RELAY_HELP: &str = "\
Examples:
  skep relay                                   on ws://127.0.0.1:7777, events in ~/.skep/relay
  skep relay --listen 0.0.0.0:7777 --config skep.toml
  skep relay compact                           while the relay is down
  skep relay sync wss://relay.example          exchange what either lacks
  skep relay name add alice npub1…             a local name (NIP-05), while it runs

It prints one line when it serves. SIGTERM or Ctrl-C stops it within 10 seconds; nothing
acknowledged is lost, whatever stops it.";

#[derive(Debug, Args)]
pub struct RelayRun {
    #[command(subcommand)]
    pub command: Option<RelayCommand>,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Address and port to serve on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

/// Where the configuration and the events are.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// A TOML file; without it: config.toml in the home directory, if it is there.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Where events are kept.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

const KEY_HELP: &str = "\
Examples:
  skep key generate                     a key named default
  skep key generate claude --encrypt    asks for a passphrase
  skep key import alice < nsec.txt
  skep key export alice --encrypt --output alice.ncryptsec

Keys are in $SKEP_HOME/keys (~/.skep/keys), mode 0600. A private key is never an argument.
Encrypted keys (NIP-49) ask for a passphrase; without a terminal set SKEP_PASSPHRASE.";

const EVENT_HELP: &str = "\
Examples:
  skep event publish --content 'hello'
  skep event query --kind 1 --limit 10
  skep event query --author alice --since 2h --follow
  skep event count '{\"kinds\":[7]}'
  skep event query --json | skep event verify";

const AGENT_HELP: &str = "\
Examples:
  skep agent new rita --preset claude
  skep agent list
  skep agent pause rita --reason 'out of budget'
  skep agent attest claude --owner alice
  skep agent assign claude --owner alice --key admin
  skep agent revoke claude --key alice";

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a new key.
    #[command(after_help = "Example: skep key generate claude --json")]
    Generate {
        #[command(flatten)]
        name: KeyNameArg,
        /// Keep it as ncryptsec, under a passphrase.
        #[arg(long)]
        encrypt: bool,
    },
    /// Take in a key: nsec, hex or ncryptsec, from stdin, a file, the environment or a prompt.
    #[command(after_help = KEY_IMPORT_HELP)]
    Import {
        #[command(flatten)]
        name: KeyNameArg,
        /// A file path with a slash, env:VARIABLE or prompt:. Without it: stdin, or a prompt on a terminal.
        #[arg(long, value_name = "SOURCE")]
        from: Option<String>,
        /// Keep it as ncryptsec, under a passphrase.
        #[arg(long)]
        encrypt: bool,
    },
    /// Show what is public of a key.
    #[command(after_help = "Example: skep key show alice --json")]
    Show {
        #[command(flatten)]
        name: KeyNameArg,
    },
    /// Write a private key to a file, or to stdout with --reveal.
    #[command(after_help = KEY_EXPORT_HELP)]
    Export {
        #[command(flatten)]
        name: KeyNameArg,
        /// As ncryptsec, under a new passphrase.
        #[arg(long)]
        encrypt: bool,
        /// Print it, for whoever sees this terminal.
        #[arg(long, conflicts_with = "output", required_unless_present = "output")]
        reveal: bool,
        /// A new file, made with mode 0600.
        #[arg(long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Replace a key by a new one; the old one is kept as NAME-retired-TIME.
    #[command(after_help = KEY_ROTATE_HELP)]
    Rotate {
        #[command(flatten)]
        name: KeyNameArg,
        /// The owner of this agent, who signs for the new key.
        #[arg(long, value_name = "KEY")]
        owner: Option<String>,
        /// A relay to tell; may be given several times.
        #[arg(long, value_name = "URL", requires = "owner")]
        relay: Vec<String>,
    },
    /// Put a key that is stored in the open under a passphrase.
    #[command(after_help = "Example: skep key encrypt alice")]
    Encrypt {
        #[command(flatten)]
        name: KeyNameArg,
    },
    /// List the keys of this home.
    #[command(after_help = "Example: skep key list --json")]
    List,
}

#[derive(Debug, Args)]
pub struct KeyNameArg {
    /// Name of the key: a-z 0-9 - _.
    #[arg(default_value = "default", value_name = "NAME")]
    pub name: String,
}

#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// Sign and publish an event, or publish what comes on stdin.
    #[command(after_help = PUBLISH_HELP)]
    Publish(PublishArgs),
    /// Show the events that match.
    #[command(after_help = QUERY_HELP)]
    Query(QueryArgs),
    /// Count the events that match (NIP-45).
    #[command(after_help = COUNT_HELP)]
    Count(CountArgs),
    /// Check ids and signatures of the events on stdin.
    #[command(after_help = "Example: skep event verify < events.jsonl\n\nExit code 1 when one does not verify.")]
    Verify {
        /// Say nothing of the events that are good.
        #[arg(long, short)]
        quiet: bool,
    },
}

#[derive(Debug, Args)]
pub struct RelayArgs {
    /// The relay.
    #[arg(long, value_name = "URL", env = "SKEP_RELAY", default_value = RELAY_DEFAULT)]
    pub relay: String,
    /// Seconds that each step may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    pub timeout: u16,
}

#[derive(Debug, Args)]
pub struct PublishArgs {
    #[command(flatten)]
    pub relay: RelayArgs,
    /// Kind, 1 when content or a tag is given.
    #[arg(long, short)]
    pub kind: Option<u16>,
    /// Content.
    #[arg(long, short, allow_hyphen_values = true)]
    pub content: Option<String>,
    /// A tag: name=value[,value], or a JSON array of strings. May be given several times.
    #[arg(long, short, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Unix seconds, or a time ago as 2h. Now by default.
    #[arg(long, value_name = "TIME")]
    pub created_at: Option<String>,
    /// Who signs: a key name, a path with a slash, env:VARIABLE or prompt:. Default: the key named default.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

#[derive(Debug, Args)]
pub struct FilterArgs {
    /// Filters as JSON; - reads them from stdin.
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Event ids: hex, note or nevent.
    #[arg(long, value_delimiter = ',', conflicts_with = "filters")]
    pub id: Vec<String>,
    /// Authors: npub, hex or the name of a key.
    #[arg(long, short, value_delimiter = ',', conflicts_with = "filters")]
    pub author: Vec<String>,
    /// Kinds.
    #[arg(long, short, value_delimiter = ',', conflicts_with = "filters")]
    pub kind: Vec<u16>,
    /// A tag: letter=value[,value]. May be given several times.
    #[arg(long, short, value_name = "TAG", conflicts_with = "filters")]
    pub tag: Vec<String>,
    /// Not older than: unix seconds, or a time ago as 2h.
    #[arg(long, value_name = "TIME", conflicts_with = "filters")]
    pub since: Option<String>,
    /// Not newer than: unix seconds, or a time ago as 2h.
    #[arg(long, value_name = "TIME", conflicts_with = "filters")]
    pub until: Option<String>,
    /// At most so many stored events.
    #[arg(long, short, conflicts_with = "filters")]
    pub limit: Option<u64>,
    /// Words that must occur (NIP-50).
    #[arg(long, conflicts_with = "filters")]
    pub search: Option<String>,
}

#[derive(Debug, Args)]
pub struct QueryArgs {
    #[command(flatten)]
    pub relay: RelayArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Then go on with new events as they come.
    #[arg(long, short)]
    pub follow: bool,
    /// Authenticate as this key, to read what only it may.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

#[derive(Debug, Args)]
pub struct CountArgs {
    #[command(flatten)]
    pub relay: RelayArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Authenticate as this key, to count what only it may read.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    #[command(flatten)]
    Fleet(FleetCommand),
    /// Run instances of agents of the configuration, until told to stop.
    ///
    /// Each mention of an agent is prompted once and answered once, however many instances run under its key.
    #[command(after_help = "\
Examples:
  skep agent run                  # all [[agent]] tables of the configuration
  skep agent run scout --config skep.toml")]
    Run {
        /// Their names; none: all.
        names: Vec<String>,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Be an agent program to try Skep with: ACP on stdin and stdout, no network, no model.
    #[command(after_help = "Example, in an [[agent]] table: command = \"skep\", args = [\"agent\", \"demo\"]")]
    Demo,
    /// Print the owner's attestation of an agent, a tag (NIP-OA).
    #[command(after_help = ATTEST_HELP)]
    Attest {
        /// The agent: npub, hex or the name of a key.
        agent: String,
        /// Who owns it and signs: a key name, a path with a slash, env:VARIABLE or prompt:.
        #[arg(long, value_name = "KEY", default_value = "default")]
        owner: String,
        /// Only for these kinds.
        #[arg(long, value_delimiter = ',')]
        kind: Vec<u16>,
        /// Only for events created before this time, in unix seconds.
        #[arg(long, value_name = "TIME")]
        before: Option<u64>,
        /// Only for events created after this time, in unix seconds.
        #[arg(long, value_name = "TIME")]
        after: Option<u64>,
    },
    /// Tell a relay that an agent has no owner any more. It takes effect at once, on open connections too.
    #[command(after_help = "Example: skep agent revoke claude --key alice --relay ws://127.0.0.1:7777")]
    Revoke {
        /// The agent: npub, hex or the name of a key.
        agent: String,
        #[command(flatten)]
        call: ManagementArgs,
    },
    /// Tell a relay who owns an agent.
    #[command(after_help = "Example: skep agent assign claude --owner alice --key admin")]
    Assign {
        /// The agent: npub, hex or the name of a key.
        agent: String,
        /// The owner: npub, hex or the name of a key.
        #[arg(long, value_name = "OWNER")]
        owner: String,
        #[command(flatten)]
        call: ManagementArgs,
    },
}

#[derive(Debug, Args)]
pub struct ManagementArgs {
    /// The relay.
    #[arg(long, value_name = "URL", env = "SKEP_RELAY", default_value = RELAY_DEFAULT)]
    pub relay: String,
    /// Who asks, an admin of the relay or the owner: a key name, a path with a slash, env:VARIABLE or prompt:.
    #[arg(long, value_name = "KEY", default_value = "default")]
    pub key: String,
}

const KEY_IMPORT_HELP: &str = "\
Examples:
  skep key import alice < nsec.txt
  skep key import alice --from env:ALICE_NSEC
  skep key import alice --from prompt:";

const KEY_EXPORT_HELP: &str = "\
Examples:
  skep key export alice --encrypt --output ./alice.ncryptsec
  skep key export alice --reveal";

const KEY_ROTATE_HELP: &str = "\
Examples:
  skep key rotate claude
  skep key rotate claude --owner alice --relay ws://127.0.0.1:7777

With --owner it prints the owner's attestation of the new key; with --relay too, the new key shows
that attestation to the relay, and the owner revokes the old key there.";

const PUBLISH_HELP: &str = "\
Examples:
  skep event publish --content 'hello' --tag t=bees
  skep event publish --kind 7 --content + --tag e=note1… --tag 'p=npub1…'
  skep event publish --tag '[\"title\",\"commas, too\"]' --content x
  skep event publish < events.jsonl

Without --kind, --content and --tag it reads JSON from stdin: signed events go as they are,
drafts ({\"kind\":1,\"content\":\"…\"}) are signed first. Exit code 1 when the relay refuses one.";

const QUERY_HELP: &str = "\
Examples:
  skep event query --kind 1 --author alice --limit 10
  skep event query --tag t=bees,wasps --since 7d
  skep event query '{\"kinds\":[1],\"limit\":5}'
  skep event query --id nevent1… --json
  skep event query --kind 1 --follow

On a terminal: one line for each event. With --json, or in a pipe: JSONL.";

const COUNT_HELP: &str = "\
Examples:
  skep event count --kind 1
  echo '{\"kinds\":[7]}' | skep event count -";

const ATTEST_HELP: &str = "\
Examples:
  skep agent attest claude --owner alice
  skep agent attest npub1… --owner alice --kind 1,44200 --before 1900000000";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// Where clap breaks a line on a wide terminal; examples and texts of ours that are wider would be broken twice.
    const HELP_COLUMNS: usize = 100;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let mut root = super::Cli::command();
        root.build();
        root.clone().debug_assert();
        fn walk(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{} has no example", sub.get_name());
                let widest = help.lines().map(|line| line.chars().count()).max().unwrap_or(0);
                assert!(widest <= HELP_COLUMNS, "the help of {} is {widest} columns wide", sub.get_name());
                walk(sub);
            }
        }
        walk(&root);
    }
}
