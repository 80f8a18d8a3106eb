//! Hands: what runs a turn, behind one handle.
//!
//! Job: speak the words of [`skep_core::backend`] to an ACP program (`acp`), a model server (`openai`) or a command
//! (`command`), each in one task, and see that nothing of a child process is left behind (`child`). Find what is
//! installed (`detect`). Give them the harness's tools (`tools`). Make each conversation a worktree of its own (`tree`). Be
//! an ACP program that needs no network (`demo`).
//! Neighbours: `skep-core` below has the words; `skep-node` above starts backends from its settings.
//! Lifetime: a [`Backend`] that is dropped is gone, with its processes.
//! Must not: decide what may run or be spent (core does), read the environment, a config file or the home directory
//! (node does), know the relay, give a child process a key.

pub mod acp;
mod backend;
pub mod child;
pub mod command;
pub mod demo;
pub mod detect;
pub mod driver;
mod http;
mod lines;
pub mod openai;
mod spec;
mod text;
pub mod tools;
pub mod tree;

pub use backend::{Backend, Closed, ORDERS_MAX, SAID_MAX};
pub use child::environment::{Environment, EnvironmentError};
pub use http::tls;
pub use lines::LINE_BYTES_MAX;
pub use skep_core::backend as words;
pub use spec::{Kind, McpServer, McpTransport, Spec, Timing};
