//! `skep usage`: what agents used, by the bills that they sealed for their owner.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skep_node::clock::unix_now;
use skep_node::owner::bills::{Bills, LeftOut};
use skep_node::owner::usage::{How, Spent, Sum, Total, recompute};
use skep_proto::Timestamp;
use skep_proto::time::Moment;
use unicode_width::UnicodeWidthStr;

use super::{Owner, show};
use crate::cli::{OwnerArgs, UsageArgs, UsageBy};
use crate::command::{block_on, input};
use crate::error::CliError;
use crate::screen::{Output, escape, remark};

/// A metric of before the asked time is the baseline of the next one in its session: so much earlier is read.
const BASELINE_SECS: u64 = 7 * 86_400;

pub fn run(args: &UsageArgs, out: &mut Output) -> Result<(), CliError> {
    let since = args.since.as_deref().map(|text| input::time(text, unix_now())).transpose()?;
    let who = OwnerArgs { key: args.key.clone(), relay: args.relay.first().cloned(), config: args.config.clone() };
    let mut owner = Owner::open(&who)?;
    let relays = if args.relay.is_empty() { owner.relays_of(&[]) } else { args.relay.clone() };
    let from = since.map(|since| since.saturating_sub(BASELINE_SECS));
    let bills = block_on(async {
        let mut bills = Bills::default();
        let read = async |owner: &mut Owner, relay: &str| {
            let mut client = owner.connect(relay).await?;
            owner.directory.learn(&mut client).await?;
            bills.read(&mut client, &owner.keys, &owner.directory, from).await?;
            client.close().await;
            Ok(())
        };
        owner.on_each(&relays, read).await?;
        Ok(bills)
    })?;
    let report = Report::of(&bills, &owner, args.by, since);
    if out.json {
        report.json(out)
    } else if args.csv {
        report.csv(out)
    } else {
        report.table(out)
    }
}

/// What is known about the numbers of a group, beyond the numbers.
#[derive(Debug, Clone, Copy, Default)]
struct Worth {
    /// Turns of which nothing is known.
    unknown: u64,
    /// Bills that never came; what they said is in the ones after them.
    missing: u64,
}

#[derive(Debug, Default)]
struct Row {
    total: Total,
    worth: Worth,
}

struct Report {
    by: UsageBy,
    rows: BTreeMap<String, Row>,
    all: Row,
    left_out: [(LeftOut, usize); 3],
    forged: u64,
}

impl Row {
    fn add(&mut self, spent: &Spent) {
        self.total.add(spent);
        match spent.how {
            How::Unknown => self.worth.unknown += 1,
            How::Spans(missing) => self.worth.missing += missing,
            How::Recomputed | How::Published => {}
        }
    }
}

impl Report {
    fn of(bills: &Bills, owner: &Owner, by: UsageBy, since: Option<Timestamp>) -> Self {
        let from = Moment::from_secs(since.unwrap_or(0));
        let (mut rows, mut all) = (BTreeMap::<String, Row>::new(), Row::default());
        for spent in recompute(bills.readings().cloned()) {
            if spent.reading.metric.timestamp >= from {
                rows.entry(key(&spent, owner, by)).or_default().add(&spent);
                all.add(&spent);
            }
        }
        let left_out = [LeftOut::Unreadable, LeftOut::Stranger, LeftOut::Envelope];
        Self { by, rows, all, left_out: left_out.map(|why| (why, bills.left_out(why))), forged: bills.forged }
    }

    fn json(&self, out: &mut Output) -> Result<(), CliError> {
        for (key, row) in &self.rows {
            let mut line = numbers(row);
            line["by"] = json!(name(self.by));
            line["key"] = json!(key);
            out.json_line(&line)?;
        }
        let mut line = numbers(&self.all);
        line["by"] = json!("total");
        let [unreadable, stranger, envelope] = self.left_out.map(|(_, count)| count);
        line["left_out"] =
            json!({ "unreadable": unreadable, "not_yours": stranger, "malformed": envelope, "forged": self.forged });
        out.json_line(&line)
    }

    fn csv(&self, out: &mut Output) -> Result<(), CliError> {
        out.line(&format!(
            "{},turns,input_tokens,cached_tokens,output_tokens,total_tokens,reported_usd,estimated_usd,unlabelled_usd,\
             unknown_turns,cost_unknown_turns,missing_bills",
            name(self.by)
        ))?;
        for (key, Row { total, worth }) in &self.rows {
            let counts = [total.input, total.cached, total.output, total.total].map(|sum| sum.known.to_string());
            let Total { turns, reported_usd, estimated_usd, unlabelled_usd, cost_unknown_turns, .. } = total;
            out.line(&format!(
                "{},{turns},{},{reported_usd},{estimated_usd},{unlabelled_usd},{},{cost_unknown_turns},{}",
                quoted(key),
                counts.join(","),
                worth.unknown,
                worth.missing
            ))?;
        }
        self.notes()
    }

    fn table(&self, out: &mut Output) -> Result<(), CliError> {
        if self.rows.is_empty() {
            out.line("no bills")?;
            return self.notes();
        }
        let head = [name(self.by), "turns", "input", "cached", "output", "total", "US$"].map(str::to_owned);
        let mut lines = vec![head];
        lines.extend(self.rows.iter().map(|(key, row)| cells(&escape(key), row)));
        if self.rows.len() > 1 {
            lines.push(cells("all", &self.all));
        }
        let widths: Vec<usize> =
            (0..7).map(|column| lines.iter().map(|line| line[column].width()).max().unwrap_or(0)).collect();
        for line in &lines {
            let pad = |column: usize| " ".repeat(widths[column] - line[column].width());
            let numbers: String = (1..7).map(|column| format!("  {}{}", pad(column), line[column])).collect();
            out.line(format!("{}{}{numbers}", line[0], pad(0)).trim_end())?;
        }
        self.legend(out)?;
        self.notes()
    }

    /// What the marks in the table mean, as far as there are any.
    fn legend(&self, out: &mut Output) -> Result<(), CliError> {
        let Row { total, worth } = &self.all;
        let sums = [total.input, total.cached, total.output, total.total];
        let mut notes = Vec::new();
        let unknown = sums.iter().map(|sum| sum.unknown_turns).chain([total.cost_unknown_turns]);
        let unknown: Vec<u64> = unknown.filter(|turns| *turns > 0).collect();
        if unknown.contains(&total.turns) {
            notes.push("-   not known".to_owned());
        }
        if unknown.iter().any(|turns| *turns < total.turns) {
            notes.push("+?  not known of some turns, which are not in the number".to_owned());
        }
        if total.estimated_usd > 0.0 {
            notes.push("~   estimated from a price list, not reported by the provider".to_owned());
        }
        if total.unlabelled_usd > 0.0 {
            notes.push("?   of a cost that does not say whether it was reported or estimated".to_owned());
        }
        if worth.missing > 0 {
            notes.push(format!("{} bills never came; what they said is in the ones after them", worth.missing));
        }
        notes.iter().try_for_each(|note| out.line(note))
    }

    fn notes(&self) -> Result<(), CliError> {
        for (why, count) in self.left_out.iter().filter(|(_, count)| *count > 0) {
            remark(&match why {
                LeftOut::Unreadable => format!("{count} bills could not be read with this key, and are not counted"),
                LeftOut::Stranger => format!("{count} bills are not by agents that you attested, and are not counted"),
                LeftOut::Envelope => format!("{count} events are not in the form of a bill, and are not counted"),
            });
        }
        if self.forged > 0 {
            remark(&format!("{} events did not verify: do not trust this relay", self.forged));
        }
        Ok(())
    }
}

fn name(by: UsageBy) -> &'static str {
    match by {
        UsageBy::Agent => "agent",
        UsageBy::Model => "model",
        UsageBy::Day => "day",
        UsageBy::Channel => "channel",
        UsageBy::Task => "task",
    }
}

fn key(spent: &Spent, owner: &Owner, by: UsageBy) -> String {
    let metric = &spent.reading.metric;
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    match by {
        UsageBy::Agent => owner.directory.label(&spent.reading.agent).trim_start_matches('@').to_owned(),
        UsageBy::Model => known(&metric.model),
        UsageBy::Day => metric.timestamp.to_string().chars().take(10).collect(),
        UsageBy::Channel => known(&metric.channel_id),
        UsageBy::Task => known(&metric.task.clone().or_else(|| metric.root_event_id.map(|id| id.to_hex()))),
    }
}

fn cells(key: &str, Row { total, .. }: &Row) -> [String; 7] {
    let key = show::channel(key);
    let count = |sum: Sum| amount(grouped(sum.known), sum.unknown_turns, total.turns);
    let [input, cached, output, all] = [total.input, total.cached, total.output, total.total].map(count);
    [key, total.turns.to_string(), input, cached, output, all, cost(total)]
}

/// A number, with a mark when some turns are not in it.
fn amount(known: String, unknown_turns: u64, turns: u64) -> String {
    match unknown_turns {
        0 => known,
        all if all == turns => "-".into(),
        _ => format!("{known}+?"),
    }
}

/// Costs by where they come from, never added up.
fn cost(total: &Total) -> String {
    let parts = [("", total.reported_usd), ("~", total.estimated_usd), ("?", total.unlabelled_usd)];
    let known: Vec<String> =
        parts.iter().filter(|(_, usd)| *usd > 0.0).map(|(mark, usd)| format!("{mark}{usd:.4}")).collect();
    let known = if known.is_empty() { "0".to_owned() } else { known.join(" ") };
    amount(known, total.cost_unknown_turns, total.turns)
}

/// `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A field of CSV (RFC 4180). One that a spreadsheet would take for a formula is made text.
fn quoted(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

fn numbers(Row { total, worth }: &Row) -> Value {
    let sum = |sum: Sum| json!({ "known": sum.known, "unknown_turns": sum.unknown_turns });
    json!({
        "turns": total.turns,
        "input_tokens": sum(total.input),
        "cached_tokens": sum(total.cached),
        "output_tokens": sum(total.output),
        "total_tokens": sum(total.total),
        "reported_usd": total.reported_usd,
        "estimated_usd": total.estimated_usd,
        "unlabelled_usd": total.unlabelled_usd,
        "cost_unknown_turns": total.cost_unknown_turns,
        "unknown_turns": worth.unknown,
        "missing_bills": worth.missing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_what_is_unknown_is_marked() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let total = Total { turns: 3, ..Total::default() };
        assert_eq!(cost(&total), "0");
        assert_eq!(cost(&Total { cost_unknown_turns: 3, ..total.clone() }), "-");
        let mixed = Total { reported_usd: 1.5, estimated_usd: 0.25, cost_unknown_turns: 1, ..total };
        assert_eq!(cost(&mixed), "1.5000 ~0.2500+?");
    }

    #[test]
    fn fields_of_csv_are_quoted_and_are_no_formulas() {
        for (text, field) in [("scout", "scout"), ("a,\"b\"", "\"a,\"\"b\"\"\""), ("=1+1", "'=1+1")] {
            assert_eq!(quoted(text), field);
        }
    }

    #[test]
    fn long_ids_are_cut_and_names_are_not() {
        let id = "ab".repeat(32);
        let row = Row::default();
        assert_eq!(cells(&format!("notes:{id}"), &row)[0], "notes:abababababab…");
        assert_eq!(cells("h:team", &row)[0], "h:team");
    }
}
