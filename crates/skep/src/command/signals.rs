//! SIGTERM and SIGINT: the first asks us to stop, the second does not wait for it.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Kind};

/// What a shell adds to a signal's number in an exit code.
const EXIT_BY_SIGNAL: i32 = 128;

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on they no longer end the process by themselves.
    pub fn new() -> Result<Self, CliError> {
        let failed = |error| CliError::new(Kind::Internal, format!("cannot wait for signals: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Waits for one; gives the exit code that it stands for.
    pub async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        EXIT_BY_SIGNAL + kind.as_raw_value()
    }

    /// The next one ends the process at once. Children of ours end with it.
    pub fn exit_at_next(mut self) {
        tokio::spawn(async move {
            let code = self.next().await;
            std::process::exit(code);
        });
    }
}
