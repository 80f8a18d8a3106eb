//! `skep export`: events as JSONL, from a store or a relay.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use skep_node::home::Home;
use skep_node::transfer::{Missing, Offline, Progress, Written, export_relay, export_store};
use skep_proto::Filter;

use super::progress::{Bar, Unit};
use super::{block_on, connect, filter, load_key, relay};
use crate::cli::{ExportArgs, RelayArgs};
use crate::error::{CliError, Kind};
use crate::screen::{self, Output};

/// Seconds that a relay may take for an answer.
const TIMEOUT_SECS: u16 = 30;

pub fn run(args: &ExportArgs, out: &mut Output) -> Result<(), CliError> {
    let filters: Vec<Filter> =
        args.filter.iter().map(|text| filter::from_json(text, "the filter")).collect::<Result<_, _>>()?;
    let Some(path) = &args.output else {
        let written = if out.is_for_a_person() {
            export(args, filters, &mut ForAPerson { out, line: Vec::new() }, true)?
        } else {
            export(args, filters, &mut BufWriter::new(io::stdout().lock()), false)?
        };
        return forged(&written);
    };
    let partial = partial_path(path)?;
    let file = create(&partial).map_err(failed("create", &partial))?;
    let mut file = BufWriter::new(file);
    let whole = export(args, filters, &mut file, false).and_then(|written| {
        file.get_ref().sync_all().map_err(failed("flush", &partial))?;
        fs::rename(&partial, path).map_err(failed("write", path))?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("flush", dir))?;
        Ok(written)
    });
    if whole.is_err() {
        // The failure itself is what counts.
        let _ = fs::remove_file(&partial);
    }
    let written = whole?;
    if out.json {
        out.json_line(&json!({ "events": written.events, "bytes": written.bytes, "path": path }))?;
    } else {
        out.line(&format!("{} events, {} bytes", written.events, written.bytes))?;
    }
    out.flush()?;
    forged(&written)
}

/// Events as lines on a terminal, which raw JSON could steer.
struct ForAPerson<'o> {
    out: &'o mut Output,
    line: Vec<u8>,
}

impl Write for ForAPerson<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let event = serde_json::from_slice(&self.line)?;
            self.line.clear();
            self.out.event(&event).map_err(|error| match error.kind {
                Kind::ClosedPipe => io::ErrorKind::BrokenPipe.into(),
                _ => io::Error::other(error.cause),
            })?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn export(args: &ExportArgs, filters: Vec<Filter>, to: &mut dyn Write, is_shown: bool) -> Result<Written, CliError> {
    let Some(url) = &args.relay else {
        let home = Home::locate()?;
        let store = Offline::open(&relay::settings(&home, &args.settings)?.relay, &home, Missing::Fail)?;
        let total = if filters.is_empty() { Some(store.len()?) } else { None };
        let bar = if is_shown { Bar::hidden() } else { Bar::new(Unit::Events, total) };
        return Ok(export_store(&store, filters, to, &mut |progress: Progress| bar.tell(progress))?);
    };
    let keys = args.key.as_deref().map(load_key).transpose()?;
    let relay = RelayArgs { relay: url.clone(), timeout: TIMEOUT_SECS };
    block_on(async {
        let mut client = connect(&relay, keys).await?;
        let bar = if is_shown { Bar::hidden() } else { Bar::new(Unit::Events, None) };
        let written = export_relay(&mut client, filters, to, &mut |progress: Progress| bar.tell(progress)).await?;
        client.close().await;
        Ok(written)
    })
}

fn forged(written: &Written) -> Result<(), CliError> {
    match written.forged {
        0 => Ok(()),
        n => Err(CliError::new(Kind::Refused, format!("{n} events did not verify and were left out"))
            .hint("do not trust this relay")),
    }
}

/// Beside the file, always the same name: what a crash leaves, the next run writes over.
fn partial_path(path: &Path) -> Result<PathBuf, CliError> {
    let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
        return Err(CliError::new(
            Kind::Input,
            format!("{} is not a file", screen::escape(&path.display().to_string())),
        )
        .hint("name the file to write"));
    };
    let mut partial = OsString::from(".");
    partial.push(name);
    partial.push(".skep-partial");
    Ok(path.with_file_name(partial))
}

/// Private messages may be in it: nobody else may read it, before or after.
fn create(partial: &Path) -> io::Result<File> {
    match fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.display().to_string();
    move |cause| {
        let kind = match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => Kind::Input,
            io::ErrorKind::PermissionDenied => Kind::Permission,
            _ => Kind::Internal,
        };
        CliError::new(kind, format!("cannot {verb} {path}: {cause}")).hint("check the path and the disk")
    }
}
