//! The page in Markdown. Generated, so that no figure in it was typed.

use std::fmt::Write;

use super::steps::{Column, SECTIONS};
use super::{Report, machine};
use crate::cli::unix_now;
use crate::sheet::{Metric, Outcome, number};

const NOTES: &str = "\
- Client and relay share the cores. The client signs everything before the clock starts, and parses no event while it
  runs; its own CPU time is given where it matters.
- An event counts when its `OK true` has come and is not a `duplicate:`. A query counts when as many events, or the
  count, came as the store must give. A delivery counts once, at the subscriber that was to get it. Anything else is
  a fault, listed at the end.
- Latency is per operation, from just before the send. *One at a time*, *window* and *queries* are closed loops: the
  next waits for the last, so a slow relay is asked for less. *On a schedule* is an open loop.
- On an idle virtual machine a sleeping core wakes slowly. Read the figures of one connection beside the loopback echo
  above: that is what a relay which does nothing would reach.
- Memory is the growth of the process's resident set; the kernel's socket buffers are in no process.
- Disk is allocated blocks, after the events were sent, without compaction. Start is from `exec` to the ready line,
  page cache warm.
- A *takeover* is from a signal, or the owner's order, to the news from the relay that another instance has the lease;
  both instances were up and connected. Between machines, after kill -9, the lease of 15 s must run out first.
- The **strfry** column was *measured elsewhere*: the same shape of load on another machine of 2 cores, by another
  client, and strfry does not sync its last commit. How large its store was, and how many events an author had, which
  decides COUNT, is not known. It is a mark to reach, not a race. To race, start strfry here and add
  `--beside strfry=ws://…`.
";

/// From here on the page says that the machine was busy with something else. The kernel's writeback is below it.
const OTHERS_MAX_PERCENT: f64 = 10.0;

pub fn render(report: &Report, raw: &Outcome, columns: &[Column]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = head(&mut out, report, raw, columns);
    for section in SECTIONS {
        let _ = table(&mut out, section, columns);
    }
    let _ = tail(&mut out, columns);
    out
}

fn head(out: &mut String, report: &Report, raw: &Outcome, columns: &[Column]) -> std::fmt::Result {
    let date = report.date.clone().unwrap_or_else(|| machine::date(unix_now()));
    let args: Vec<String> = std::env::args().skip(1).collect();
    let file_system = machine::file_system(&report.dir).unwrap_or_else(|| "unknown".into());
    writeln!(out, "# Benchmarks\n\n<!-- Written by `skep-bench report`. Do not edit: run it again. -->\n")?;
    writeln!(out, "- Date: {date}")?;
    writeln!(out, "- Machine: {}; data on {file_system}", machine::describe())?;
    if machine::is_volatile(&file_system) {
        writeln!(
            out,
            "- **The data is in memory here: a sync costs nothing, and no write figure below is a durable one.**"
        )?;
    }
    writeln!(out, "- Command: `skep-bench {}`", args.join(" "))?;
    writeln!(out, "- Runs of each measurement: {}; the figures are medians", report.runs)?;
    let others = columns.iter().filter_map(Column::cpu_of_others).fold(0.0, f64::max);
    let warning = if others > OTHERS_MAX_PERCENT { "**, so the figures are too low**" } else { "" };
    writeln!(
        out,
        "- CPU that neither the client nor the relay took while they were measured: {others:.0} %{warning}\n"
    )?;
    writeln!(out, "## Limits of this machine, in the same run\n\n| limit | | p50 | p99 |\n|---|--:|--:|--:|")?;
    for sheet in &raw.median {
        let main = match (sheet.get(Metric::MibPerSecond), sheet.get(Metric::PerSecond)) {
            (Some(mib), _) => format!("{} MiB/s", number(mib)),
            (None, rate) => rate.map_or("–".into(), |rate| format!("{}/s", number(rate))),
        };
        let ms = |metric| sheet.get(metric).map_or(String::new(), |ms| format!("{} ms", number(ms)));
        writeln!(out, "| {} | {main} | {} | {} |", sheet.label, ms(Metric::P50Ms), ms(Metric::P99Ms))?;
    }
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    writeln!(out, "\n## How to read it\n\nMeasured here: {}.\n\n{NOTES}", names.join(", "))
}

fn table(out: &mut String, section: &str, columns: &[Column]) -> std::fmt::Result {
    let Some(first) = columns.first() else { return Ok(()) };
    let rows: Vec<_> = first.figures.iter().filter(|figure| figure.section == section).collect();
    let has_reference = rows.iter().any(|figure| figure.reference.is_some());
    write!(out, "## {section}\n\n|")?;
    columns.iter().try_for_each(|column| write!(out, " | {}", column.name))?;
    writeln!(out, "{}|", if has_reference { " | strfry, elsewhere " } else { " " })?;
    writeln!(out, "|---{}|", "|--:".repeat(columns.len() + usize::from(has_reference)))?;
    for row in rows {
        write!(out, "| {}", row.what)?;
        for column in columns {
            let same = column.figures.iter().find(|figure| figure.section == section && figure.what == row.what);
            let value = same.and_then(|figure| figure.value).map_or("–".into(), number);
            write!(out, " | {value}")?;
        }
        if has_reference {
            write!(out, " | {}", row.reference.unwrap_or(""))?;
        }
        writeln!(out, " |")?;
    }
    writeln!(out)
}

fn tail(out: &mut String, columns: &[Column]) -> std::fmt::Result {
    writeln!(out, "## Faults\n")?;
    let mut faults =
        columns.iter().flat_map(|column| column.faults().map(move |fault| (&column.name, fault))).peekable();
    if faults.peek().is_none() {
        writeln!(out, "None: every event was stored, every answer whole, every delivery made.")?;
    }
    for (name, fault) in faults {
        writeln!(out, "- {name}: {fault}")?;
    }
    writeln!(out, "\n## Commands\n\nEach step by itself, with `--url` and `--pid` of a relay:\n\n```sh")?;
    for command in columns.first().into_iter().flat_map(|column| &column.commands) {
        writeln!(out, "{command}")?;
    }
    writeln!(out, "```")
}
