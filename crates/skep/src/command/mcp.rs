//! `skep mcp`: copies bytes between an agent's program and the harness that runs it. It holds no key, reads no
//! configuration and knows nothing of what passes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::thread;

use skep_node::agent::bridge;

use crate::cli::McpArgs;
use crate::error::{CliError, Kind};

/// Bytes that are carried at once.
const PIECE_BYTES: usize = 16 * 1024;

/// Runs until the session is over: the harness says so by closing the socket, also after our input has ended.
pub fn run(args: &McpArgs) -> Result<(), CliError> {
    let Some(path) = &args.socket else {
        return Err(CliError::new(Kind::Usage, "skep mcp is started by an agent's program, with --socket")
            .hint("there is nothing to do by hand: see skep mcp --help"));
    };
    let gone = |error: io::Error| {
        CliError::new(Kind::Network, format!("no session has its tools at {}: {error}", path.display()))
            .hint("a socket goes with its session; the program is given a new one at its next start")
    };
    let harness = bridge::connect(path).map_err(gone)?;
    let upwards = harness.try_clone().map_err(gone)?;
    // It waits for input that may never come, and ends with the process.
    thread::spawn(move || {
        // A harness that has gone ends the process below.
        let _ = carry(io::stdin().lock(), &upwards);
        let _ = upwards.shutdown(Shutdown::Write);
    });
    // A program that has gone, or a connection that was cut, is the end of a session and no failure.
    let _ = carry(&harness, io::stdout().lock());
    Ok(())
}

/// Each piece at once. Not `io::copy`: it splices from the socket into the pipe, and what came in two pieces has been seen
/// to wait there for a third.
fn carry(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut piece = [0; PIECE_BYTES];
    loop {
        let length = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&piece[..length])?;
        to.flush()?;
    }
}
