//! The backend whose prompts are timed: an ACP program that writes down when it read one, and answers at once.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

/// Run by an agent, not by a person.
#[derive(Debug, Clone, Args)]
pub struct Program {
    /// Where the times go: a line of nanoseconds since 1970 for each prompt
    log: PathBuf,
}

impl Program {
    /// Speaks ACP on stdin and stdout until stdin ends.
    pub fn run(&self) -> Result<()> {
        let mut log = File::options().create(true).append(true).open(&self.log)?;
        let mut stdout = std::io::stdout().lock();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            let message: Value = serde_json::from_str(&line)?;
            let Some(id) = message.get("id").filter(|_| message["method"].is_string()) else { continue };
            let result = match message["method"].as_str() {
                Some("initialize") => json!({ "protocolVersion": 1, "agentCapabilities": {}, "authMethods": [] }),
                Some("session/new") => json!({ "sessionId": "bench" }),
                Some("session/prompt") => {
                    log.write_all(format!("{}\n", now.as_nanos()).as_bytes())?;
                    let chunk = json!({ "type": "text", "text": "done" });
                    let update = json!({ "sessionUpdate": "agent_message_chunk", "content": chunk });
                    let params = json!({ "sessionId": "bench", "update": update });
                    let notice = json!({ "jsonrpc": "2.0", "method": "session/update", "params": params });
                    writeln!(stdout, "{notice}")?;
                    json!({ "stopReason": "end_turn" })
                }
                _ => {
                    let error = json!({ "code": -32601, "message": "not known" });
                    writeln!(stdout, "{}", json!({ "jsonrpc": "2.0", "id": id, "error": error }))?;
                    continue;
                }
            };
            writeln!(stdout, "{}", json!({ "jsonrpc": "2.0", "id": id, "result": result }))?;
        }
        Ok(())
    }
}

/// When the last prompt was read.
pub fn last_prompt(log: &Path) -> Result<SystemTime> {
    let text = std::fs::read_to_string(log).context("the backend was never prompted")?;
    let nanos: u64 = text.lines().last().context("the backend was never prompted")?.parse()?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos))
}
