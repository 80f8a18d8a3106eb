//! The verbs of whoever operates a relay.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ManagementArgs, RELAY_DEFAULT, SettingsArgs};

#[derive(Debug, Subcommand)]
pub enum RelayCommand {
    /// Give the space of removed events back to the disk, while the relay is down.
    #[command(after_help = COMPACT_HELP)]
    Compact {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Exchange events with another relay until both have the same (NIP-77).
    #[command(after_help = SYNC_HELP)]
    Sync(SyncArgs),
    /// Give keys a local name, name@host, while the relay runs (NIP-05).
    #[command(subcommand, after_help = NAME_HELP)]
    Name(NameCommand),
}

#[derive(Debug, Subcommand)]
pub enum NameCommand {
    /// Add a name, or give it to another key.
    #[command(after_help = "Example: skep relay name add alice npub1… --key admin")]
    Add {
        /// 1 to 64 characters out of a-z 0-9 . - _
        name: String,
        /// Whose it is: npub, hex or the name of a key.
        #[arg(value_name = "PUBKEY")]
        owner: String,
        #[command(flatten)]
        call: ManagementArgs,
    },
    /// Remove a name that was added; one in the configuration stays.
    #[command(after_help = "Example: skep relay name remove alice --key admin")]
    Remove {
        /// As it was added.
        name: String,
        #[command(flatten)]
        call: ManagementArgs,
    },
    /// List all names, those of the configuration too.
    #[command(after_help = "Example: skep relay name list --key admin --json")]
    List {
        #[command(flatten)]
        call: ManagementArgs,
    },
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file of events, one JSON object a line; - reads stdin.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Go through a running relay; without it the store is opened directly, while its relay is down.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "data"])]
    pub relay: Option<String>,
    /// Authenticate there as this key.
    #[arg(long, value_name = "KEY", requires = "relay")]
    pub key: Option<String>,
    /// Go on where an earlier import of this file ended, in whatever way.
    #[arg(long)]
    pub resume: bool,
    /// Stop at the first line that holds no valid event.
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Only what matches, as JSON; may be given several times.
    #[arg(long, value_name = "JSON")]
    pub filter: Vec<String>,
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Ask a running relay; without it the store is opened directly, while its relay is down.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "data"])]
    pub relay: Option<String>,
    /// Authenticate there as this key, to get what only it may read.
    #[arg(long, value_name = "KEY", requires = "relay")]
    pub key: Option<String>,
    /// A file, mode 0600, that appears when it is whole. Without it: stdout.
    #[arg(long, short, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    /// The other relay.
    #[arg(value_name = "URL")]
    pub remote: String,
    /// Only what matches, as JSON.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub filter: String,
    /// up: what it lacks; down: what we lack.
    #[arg(long, value_enum, default_value_t = Dir::Both)]
    pub dir: Dir,
    /// Our relay, running.
    #[arg(long, value_name = "URL", env = "SKEP_RELAY", default_value = RELAY_DEFAULT)]
    pub relay: String,
    /// Our relay is down: open its data directory.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Our relay is down: its configuration file.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Authenticate to both as this key; only what it may read is exchanged.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dir {
    Up,
    Down,
    Both,
}

#[derive(Debug, Args)]
pub struct ChannelsArgs {
    /// A TOML file; without it: config.toml in the home directory, if it is there.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Ask a running relay, which also knows the rules that were made while it ran.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    pub relay: Option<String>,
    /// Who asks, an admin of the relay: a key name, a path with a slash, env:VARIABLE or prompt:.
    #[arg(long, value_name = "KEY", requires = "relay", default_value = "default")]
    pub key: String,
}

const NAME_HELP: &str = "\
Examples:
  skep relay name add alice npub1… --key admin
  skep relay name list --key admin

The relay answers for them at /.well-known/nostr.json. It takes effect at once and outlives a
restart. A name added here goes before one of the configuration.";

pub const IMPORT_HELP: &str = "\
Examples:
  skep import events.jsonl                      into ~/.skep/relay, while the relay is down
  skep import events.jsonl --data DIR --resume  on after an interruption
  zcat dump.jsonl.gz | skep import --data DIR
  skep import events.jsonl --relay ws://127.0.0.1:7777

Every event passes the rules that the relay has, but those on its delivery (age, rate). What is
there already is counted as a duplicate, so a second run does no harm.

Owners are learned from profiles that carry an attestation without conditions (NIP-OA); what a relay
knows from elsewhere (AUTH, an admin, a revocation) is not in any event, so an import cannot bring
it. A turn metric (kind 44200) needs its agent's owner to be known: when owners were learned on the
way, run it again. Exit code 1 when a line was bad or an event refused.";

pub const EXPORT_HELP: &str = "\
Examples:
  skep export -o events.jsonl                   everything, while the relay is down
  skep export --data DIR --filter '{\"kinds\":[1]}' > notes.jsonl
  skep export --relay ws://127.0.0.1:7777 --key alice -o mine.jsonl

Newest first, one event a line. From the data directory come ALL stored events, private messages and
other gated kinds too: whoever owns the disk can read them anyway. From a relay comes what it serves
to the given key. Ephemeral and expired events never come.

Owners, revocations, bans, names and channel rules are not events: copy the data directory for a
full backup.";

const COMPACT_HELP: &str = "\
Example: skep relay compact --data DIR

It writes a copy, checks that it holds every event, and puts it in place in one step. Needs room for
the copy.";

const SYNC_HELP: &str = "\
Examples:
  skep relay sync wss://relay.example
  skep relay sync wss://relay.example --filter '{\"kinds\":[0,1,3]}' --dir down
  skep relay sync wss://relay.example --data DIR    while our relay is down

Only ids are compared first, so two relays that are nearly equal exchange a few kilobytes.
Interrupted, run it again: what was moved is there. Every event is verified on the way. Exit code 1
when a side refused one.";

pub const CHANNELS_HELP: &str = "\
Examples:
  skep channels
  skep channels --config skep.toml --json
  skep channels --relay ws://127.0.0.1:7777 --key admin";

pub const DOCTOR_HELP: &str = "\
Examples:
  skep doctor
  skep doctor --config skep.toml --json

Looks at the home, keys, configuration, store, durability, disk, open files, clock and limits. Exit
code 1 when something is wrong; the line says what, and how to mend it.";
