//! The tool says what a relay did, and above all what it did not do.

mod fake;

use std::path::Path;
use std::process::{Command, Output};

use fake::Lie;
use serde_json::Value;

fn bench(relay: &str, args: &[&str]) -> Output {
    let (mode, args) = args.split_first().expect("a mode");
    let mut command = Command::new(env!("CARGO_BIN_EXE_skep-bench"));
    command.args([mode, "--json", "--url", relay, "--stall-s", "2"]).args(args).output().expect("the tool runs")
}

fn against(lie: Lie, args: &[&str]) -> Output {
    bench(&format!("ws://{}", fake::start(lie)), args)
}

/// The sheets, and whether the tool reported a fault by its exit code.
fn sheets(output: &Output) -> (Vec<Value>, bool) {
    let found: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (found["median"].as_array().expect("sheets").clone(), output.status.code() == Some(3))
}

fn one_line_error(output: &Output, has: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1 && said.contains(has), "{said}");
}

const INGEST: [&str; 7] = ["ingest", "--events", "500", "--connections", "3", "--window", "8"];

#[test]
fn events_are_counted_when_the_relay_is_honest() {
    let (found, faulty) = sheets(&against(Lie::None, &INGEST));
    assert_eq!(found[0]["values"]["stored"], 500.0);
    assert!(!faulty, "{found:?}");
    let (found, faulty) = sheets(&against(Lie::None, &["publish", "--events", "50", "--rate", "500"]));
    assert_eq!(found[0]["values"]["operations"], 50.0);
    assert!(!faulty && found[0]["values"]["send_lag_p99_ms"].is_number(), "{found:?}");
}

#[test]
fn agents_need_a_binary_that_runs_them() {
    let run = |bin: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skep-bench"));
        command.args(["agents", "--skep-bin", bin]).output().expect("the tool runs")
    };
    one_line_error(&run("/no/such/binary"), "/no/such/binary");
    one_line_error(&run("/bin/true"), "the relay did not say");
}

#[test]
fn a_refused_event_is_never_a_success() {
    let (found, faulty) = sheets(&against(Lie::Refuses, &INGEST));
    assert_eq!((&found[0]["values"]["stored"], &found[0]["values"]["refused"]), (&450.0.into(), &50.0.into()));
    assert_eq!(found[0]["faults"][0], "50 events refused: blocked: not today");
    assert!(faulty);
}

#[test]
fn a_duplicate_is_never_a_success() {
    let (found, faulty) = sheets(&against(Lie::KnowsAll, &INGEST));
    assert_eq!((&found[0]["values"]["stored"], &found[0]["values"]["duplicates"]), (&0.0.into(), &500.0.into()));
    assert!(faulty);
}

#[test]
fn a_relay_that_does_not_answer_is_an_error_with_its_last_notice() {
    one_line_error(&against(Lie::Mute, &INGEST), "I am not well");
}

#[test]
fn missing_deliveries_are_a_fault_and_counted() {
    let fanout = ["fanout", "--subscribers", "20", "--events", "100"];
    let (found, faulty) = sheets(&against(Lie::None, &fanout));
    assert_eq!((&found[0]["values"]["operations"], faulty), (&2000.0.into(), false), "{found:?}");
    let (found, faulty) = sheets(&against(Lie::DropsDeliveries, &fanout));
    assert_eq!((&found[0]["values"]["missing"], faulty), (&200.0.into(), true), "{found:?}");

    let some = ["fanout", "--subscribers", "20", "--events", "100", "--matching", "10", "--rate", "2000"];
    let (found, faulty) = sheets(&against(Lie::None, &some));
    assert_eq!((&found[0]["values"]["operations"], faulty), (&200.0.into(), false), "{found:?}");
}

fn query_all(lie: Lie, dir: &Path) -> Vec<(Vec<Value>, bool)> {
    let relay = format!("ws://{}", fake::start(lie));
    let manifest = dir.join(format!("{lie:?}.json"));
    let manifest = manifest.to_str().expect("a plain path");
    let loaded = bench(&relay, &["preload", "--events", "700", "--authors", "10", "--manifest", manifest]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let ask = |mode: &str| {
        sheets(&bench(&relay, &[mode, "--manifest", manifest, "--requests", "30", "--connections", "1,3"]))
    };
    let negentropy = bench(&relay, &["negentropy", "--manifest", manifest, "--events", "300"]);
    vec![ask("query"), ask("count"), sheets(&negentropy)]
}

#[test]
fn whole_answers_are_counted_and_short_ones_are_a_fault() {
    let dir = tempfile::tempdir().expect("a directory");
    for (found, faulty) in query_all(Lie::None, dir.path()) {
        assert!(!faulty, "{found:?}");
        assert!(found.iter().all(|sheet| sheet["values"]["operations"].as_f64() > Some(0.0)), "{found:?}");
    }
    for (found, faulty) in query_all(Lie::ShortAnswers, dir.path()) {
        assert!(faulty, "{found:?}");
    }
}

#[test]
fn idle_connections_are_held() {
    let (found, faulty) = sheets(&against(Lie::None, &["idle", "--connections", "120", "--hold-s", "0.2"]));
    assert_eq!((&found[0]["values"]["open_connections"], faulty), (&120.0.into(), false));
}

#[test]
fn bad_input_gives_one_clear_line() {
    one_line_error(&bench("ws://127.0.0.1:1", &["ingest", "--events", "1"]), "cannot reach ws://127.0.0.1:1");
    one_line_error(&bench("ws://127.0.0.1:1", &["query", "--manifest", "/nonexistent"]), "make one with preload");
    for (relay, args) in
        [("http://x", ["ingest"].as_slice()), ("ws://x", &["ingest", "--events", "0"]), ("ws://x", &["what"])]
    {
        assert_eq!(bench(relay, args).status.code(), Some(2), "{relay} {args:?}");
    }
}
