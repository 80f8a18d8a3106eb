//! The pages that are tables in the code: kinds, limits, settings, metrics.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use skep_node::agent::settings::{AgentSettings, FleetBudgetSettings, LeaderSettings};
use skep_node::config::RelaySettings;
use skep_proto::kind::{Class, ReadRule, Retention, Row, TABLE, WriteRule};
use skep_proto::limits::Limits;

use super::page::{code, head, table};

pub fn kinds() -> String {
    let intro = "\
Every kind that Skep knows. A kind that is not here follows its range (NIP-01: 10000–19999 replaceable,
20000–29999 ephemeral, 30000–39999 addressable, all others regular), is written by its author under the rules of the
channels that it names, and read by everyone whom those rules let in.

On a closed relay all of this holds for members and their agents only. Whoever may not read an event gets the answer
that they would get if it were not there.";
    let mut out = head("Kinds", "`skep_proto::kind::TABLE`", intro);
    let rows: Vec<_> = TABLE.iter().map(kind_row).collect();
    out.push_str(&table(["kind", "name", "class", "write", "read", "content", "search", "kept", "spec"], &rows));
    out.push_str("## Who may write\n\n");
    let mut rules: Vec<WriteRule> = Vec::new();
    TABLE.iter().for_each(|row| push_new(&mut rules, row.write));
    out.push_str(&table(
        ["rule", "meaning"],
        &rules.into_iter().map(|rule| write_rule(rule).map(Into::into)).collect::<Vec<_>>(),
    ));
    out.push_str("## Who may read\n\n");
    let mut rules: Vec<ReadRule> = Vec::new();
    TABLE.iter().for_each(|row| push_new(&mut rules, row.read));
    let meaning = |rule: ReadRule| {
        let [name, meaning] = read_rule(rule);
        [name.into(), meaning.into(), if rule.is_gated() { "yes" } else { "" }.into()]
    };
    out.push_str(&table(["rule", "meaning", "gated"], &rules.into_iter().map(meaning).collect::<Vec<_>>()));
    out.push_str("A filter that names only gated kinds is closed with `auth-required:` for a reader who has not authenticated.\n");
    out
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
    }
}

fn kind_row(row: &Row) -> [String; 9] {
    let number = if row.first == row.last { row.first.to_string() } else { format!("{}–{}", row.first, row.last) };
    let class = match row.class {
        Class::Regular => "regular",
        Class::Replaceable => "replaceable",
        Class::Ephemeral => "ephemeral",
        Class::Addressable => "addressable",
    };
    let kept = match row.retention {
        Retention::Forever => "",
        Retention::Ring => "memory ring",
        Retention::None => "never",
    };
    [
        number,
        row.name.into(),
        class.into(),
        write_rule(row.write)[0].into(),
        read_rule(row.read)[0].into(),
        if row.encrypted { "encrypted" } else { "" }.into(),
        if row.search { "yes" } else { "" }.into(),
        kept.into(),
        row.spec.into(),
    ]
}

fn write_rule(rule: WriteRule) -> [&'static str; 2] {
    match rule {
        WriteRule::Author => ["author", "Whoever signs it, under the relay's general rules."],
        WriteRule::Channel => ["channel", "Whoever signs it, when every ruled channel that it names lets them in."],
        WriteRule::RelayKey => ["relay", "Only the relay's own key."],
        WriteRule::AgentMetric => {
            ["agent to owner", "The authenticated agent that it is about, to its owner in the ownership registry."]
        }
        WriteRule::AgentFrame => {
            ["agent and owner", "An agent to its owner or the owner to the agent, by the ownership registry."]
        }
        WriteRule::LeaseRequest => {
            ["lease request", "Whoever may ask for that lease. It is not stored; the answer is in its OK."]
        }
        WriteRule::Membership => {
            ["membership", "Whoever asks to join or leave. It is not stored; the relay acts on it."]
        }
        WriteRule::Never => ["never", "Belongs in another message; refused in EVENT."],
    }
}

fn read_rule(rule: ReadRule) -> [&'static str; 2] {
    match rule {
        ReadRule::All => ["all", "Everyone whom the relay lets in."],
        ReadRule::Members => [
            "members",
            "Keys with a standing: admins, members and their agents; on an open relay also registered agents and owners.",
        ],
        ReadRule::Channel => {
            ["channel", "Whoever may read every ruled channel that it names; everyone when none has a rule."]
        }
        ReadRule::Recipient => ["recipient", "An authenticated key in a `p` tag."],
        ReadRule::Parties => ["parties", "Its authenticated author, or an authenticated key in a `p` tag."],
        ReadRule::PartiesAndOwners => ["parties and owners", "The parties, or the registered owner of one of them."],
        ReadRule::AppData => ["application data", "Everyone; with `d` = `read-state:*` its authenticated author only."],
        ReadRule::Nobody => ["nobody", "Nobody, on any path."],
    }
}

pub fn limits(root: &Path) -> Result<String> {
    let intro = "\
What a client may do, and how much of it. Those in the first table are set under `[relay.limits]` in the
configuration; each that NIP-11 has a field for is told there, with the value in force.";
    let mut out = head("Limits", "`skep_proto::limits`", intro);
    let row =
        |(name, default, unit, meaning): (&str, String, &str, &str)| [code(name), default, unit.into(), meaning.into()];
    let rows: Vec<_> = Limits::table().into_iter().map(row).collect();
    out.push_str(&table(["setting", "default", "unit", "meaning"], &rows));
    out.push_str("## Fixed\n\nThese follow from a specification or from arithmetic, and are not settings.\n\n");
    let rows: Vec<_> = constants(root)?
        .into_iter()
        .map(|constant| [code(constant.name), code(constant.value), constant.meaning])
        .collect();
    out.push_str(&table(["constant", "value", "meaning"], &rows));
    Ok(out)
}

struct Constant {
    name: String,
    value: String,
    meaning: String,
}

/// The documented constants of `limits.rs`, with their values as they are written there: the arithmetic counts.
fn constants(root: &Path) -> Result<Vec<Constant>> {
    let path = root.join("crates/skep-proto/src/limits.rs");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = read_constants(&text);
    ensure!(found.len() > 10, "limits.rs is not written as `/// …` and `pub const NAME: T = value;` any more");
    Ok(found)
}

fn read_constants(text: &str) -> Vec<Constant> {
    let mut found: Vec<Constant> = Vec::new();
    let mut meaning: Vec<&str> = Vec::new();
    // Constants that stand together share the comment above the first.
    let mut is_below_constant = false;
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("///") {
            if is_below_constant {
                meaning.clear();
            }
            meaning.push(comment.trim());
            is_below_constant = false;
        } else if let Some((name, value)) = line.strip_prefix("pub const ").and_then(constant_of) {
            if !meaning.is_empty() {
                found.push(Constant { name: name.into(), value: value.into(), meaning: meaning.join(" ") });
            }
            is_below_constant = true;
        } else {
            meaning.clear();
        }
    }
    found
}

fn constant_of(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.split_once(':')?;
    let (_, value) = rest.split_once('=')?;
    Some((name, value.trim().strip_suffix(';')?))
}

pub fn config() -> String {
    let intro = "\
A TOML file, `config.toml` in the home directory (`$SKEP_HOME`, else `~/.skep`) or the one given with `--config`.
Every setting has a default; an unknown one is an error, not ignored. Variables like `SKEP_RELAY__NAME` win over the
file (two underscores for each level), flags like `--listen` over both. It is read once, at the start.

## `[relay]`";
    let mut out = head("Configuration", "`skep_node::config`", intro);
    let row = |(name, default, meaning): (&str, String, &str)| [code(name), code(default), meaning.into()];
    out.push_str(&table(
        ["setting", "default", "meaning"],
        &RelaySettings::table().into_iter().map(row).collect::<Vec<_>>(),
    ));
    out.push_str(CONFIG_REST);
    out.push_str(CONFIG_AGENTS);
    out.push_str(&table(
        ["setting", "default", "meaning"],
        &AgentSettings::table().into_iter().map(row).collect::<Vec<_>>(),
    ));
    out.push_str(CONFIG_BUDGET);
    let row = |(name, default, meaning): (&str, &str, &str)| [code(name), default.into(), meaning.into()];
    out.push_str(&table(
        ["setting", "default", "meaning"],
        &FleetBudgetSettings::table().into_iter().map(row).collect::<Vec<_>>(),
    ));
    let row = |(name, default, meaning): (&str, String, &str)| [code(name), code(default), meaning.into()];
    out.push_str("## `[leader]`\n\n");
    out.push_str(&table(
        ["setting", "default", "meaning"],
        &LeaderSettings::table().into_iter().map(row).collect::<Vec<_>>(),
    ));
    out
}

const CONFIG_BUDGET: &str = "
## `[budget]`

What all agents of this home may spend together, whatever processes they run in, and what each task may; an agent's own
`budget` holds besides. Counted in `<home>/budget.db`, which is made when a limit is set here. What agents spend in
another home is counted there. A changed limit holds from the next start on.

";

const CONFIG_AGENTS: &str = "
## `[[agent]]`

One table for each agent of this machine. `budget` may have `usd_per_day`, `tokens_per_day`, `usd_per_turn` and
`turns_per_hour`; what is left out has no bound.

";

/// The sections that are not plain settings. `the_example_is_read` in this module reads the example.
const CONFIG_REST: &str = "\
Keys are npub or 64 hex characters; a list of members may also hold `group:<name>`.

## `[relay.limits]`

See [limits](limits.md): each setting of its first table, with the same name.

## `[relay.groups]`, `[relay.names]`, `[[relay.channels]]`

A group is a list of keys under a name. A name is served for NIP-05. A channel's rule is `open`, `members` (the keys
listed) or `invite` (the keys listed, and those whom its admins let in while the relay runs); `id` is the id of a
kind 40 event or the value of an `h` tag. Members and admins of a channel may read and write in it, and so may the
relay's admins.

## Example

```toml
[relay]
listen = \"0.0.0.0:7777\"
urls = [\"wss://relay.example\"]
name = \"Our hive\"
closed = true
members = [\"group:people\"]
admins = [\"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798\"]

[relay.limits]
connections = 2000

[relay.groups]
people = [\"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798\"]

[relay.names]
alice = \"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798\"

[[relay.channels]]
id = \"planning\"
access = \"members\"
members = [\"group:people\"]
```
";

pub fn metrics() -> String {
    let intro = "\
Served at `/metrics` on the relay's port, as OpenMetrics text. Names begin with `skep_relay_`; counters end in
`_total`.";
    let mut out = head("Metrics", "`skep_relay::metrics`", intro);
    let row = |(name, kind, help): (&str, &str, &str)| {
        let suffix = if kind.starts_with("counter") { "_total" } else { "" };
        [code(format!("skep_relay_{name}{suffix}")), kind.into(), help.into()]
    };
    out.push_str(&table(
        ["metric", "type", "meaning"],
        &skep_relay::metrics::table().into_iter().map(row).collect::<Vec<_>>(),
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_share_the_comment_above_them() {
        let text = "/// Two\n/// lines.\npub const A: u64 = 2 * KIB;\npub const B: u64 = 3;\n\npub const C: u64 = 4;\n/// D.\npub const D: u64 = 5;\n";
        let found: Vec<_> = read_constants(text).into_iter().map(|c| (c.name, c.value, c.meaning)).collect();
        let row = |name: &str, value: &str, meaning: &str| (name.into(), value.into(), meaning.into());
        assert_eq!(found, [row("A", "2 * KIB", "Two lines."), row("B", "3", "Two lines."), row("D", "5", "D.")]);
    }

    #[test]
    fn the_example_is_read() {
        let (_, rest) = CONFIG_REST.split_once("```toml\n").expect("an example");
        let (example, _) = rest.split_once("```").expect("its end");
        let settings: skep_node::config::Settings = toml::from_str(example).expect("valid settings");
        let rules = settings.relay.channel_rules().expect("a valid channel");
        assert_eq!(rules.len(), 1);
        assert!(settings.relay.closed);
    }
}
