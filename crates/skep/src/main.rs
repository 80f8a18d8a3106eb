//! The `skep` binary: arguments in, one command run, an exit code out.

mod cli;
mod command;
mod error;
mod screen;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let outcome = match cli::Cli::try_parse() {
        Ok(cli) => command::run(cli),
        Err(error) => error::usage(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
