//! Tools that an agent has of its harness, on their way to it.
//!
//! Job: offer one [`Toolbox`] to whatever runs behind: a model server is told of it in each call (`openai`), an ACP
//! program reaches it over MCP, on a socket of its session's own (`socket`, `mcp`, as fast as it reads: `flow`).
//! Neighbours: [`skep_core::tools`] says what the tools are; `driver` runs them, as the turn of the session that calls.
//! Lifetime: a socket lives as long as the backend that it was opened for.
//! Must not: know who calls by anything that a caller says; let a caller wait or fill memory without a bound.

mod flow;
mod mcp;
mod socket;
mod toolbox;

use tokio::net::UnixListener;

use crate::spec::McpServer;

pub use mcp::INSTRUCTIONS;
pub use toolbox::{Tool, ToolAnswer, Toolbox};

pub use socket::is_same_user;
pub(crate) use socket::serve;

/// Makes the places where programs find the tools of their sessions: the machine's affair.
pub trait Bridge: Send + Sync {
    /// A new one, that nobody knows of yet.
    fn open(&self) -> std::io::Result<Place>;
}

/// One socket, and how a program gets to it.
pub struct Place {
    /// Takes connections of the session's own program and what it started: each is checked.
    pub listener: UnixListener,
    /// What a program is told to start.
    pub server: McpServer,
    /// Dropped when the session is over: takes the socket away.
    pub guard: Box<dyn Send + Sync>,
}
