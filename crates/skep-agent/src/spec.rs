//! What a backend is started from.

use std::path::PathBuf;
use std::time::Duration;

use crate::child::{Environment, Family, Ladder, Program};
use crate::openai::OpenAi;
use crate::tree::Conversation;

/// One backend. Resolved: nothing in here is looked up again in the environment or a config file.
#[derive(Debug, Clone)]
pub struct Spec {
    pub kind: Kind,
    /// Where a program runs and where its session is. A model server has no use for it.
    pub cwd: PathBuf,
    /// The conversation whose worktree that is, in place of `cwd`: made, or taken up, before anything else.
    pub tree: Option<Conversation>,
    /// The branch of that worktree, once it is there.
    pub branch: Option<String>,
    /// All that a program gets.
    pub env: Environment,
    /// The model wanted, by the name that the backend offers it under. `None`: its own choice.
    pub model: Option<String>,
    /// How freely an ACP program acts, by its own name for it. Some ask nobody unless they are told to.
    pub mode: Option<String>,
    /// A session to take up again where the backend can; a new one where it cannot.
    pub resume: Option<String>,
    /// Tools that an ACP program is to use.
    pub mcp_servers: Vec<McpServer>,
    /// Told which program it is, once that runs.
    pub family: Option<Family>,
    pub timing: Timing,
}

/// What runs behind.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Speaks the Agent Client Protocol on stdin and stdout.
    Acp { command: PathBuf, args: Vec<String> },
    /// A model server.
    OpenAi(OpenAi),
    /// Takes a prompt on stdin and answers on stdout; one process a turn.
    Command { command: PathBuf, args: Vec<String> },
}

impl Spec {
    pub fn new(kind: Kind, cwd: impl Into<PathBuf>, env: Environment) -> Self {
        let (cwd, timing) = (cwd.into(), Timing::default());
        Self {
            kind,
            cwd,
            tree: None,
            branch: None,
            env,
            model: None,
            mode: None,
            resume: None,
            mcp_servers: Vec::new(),
            family: None,
            timing,
        }
    }

    pub(crate) fn program(&self, command: &std::path::Path, args: &[String]) -> Program {
        Program { command: command.to_owned(), args: args.to_vec(), cwd: self.cwd.clone(), env: self.env.clone() }
    }
}

/// A server of tools (Model Context Protocol) that is passed on to an ACP program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpServer {
    pub name: String,
    pub transport: McpTransport,
}

#[derive(Clone, PartialEq, Eq)]
pub enum McpTransport {
    /// The agent starts it. Every ACP agent can.
    Stdio { command: PathBuf, args: Vec<String>, env: Vec<(String, String)> },
    /// The agent connects to it, when it says that it can.
    Http { url: String, headers: Vec<(String, String)> },
}

/// Values of variables and headers may be secrets and are not shown.
impl std::fmt::Debug for McpTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdio { command, args, .. } => {
                f.debug_struct("Stdio").field("command", command).field("args", args).finish_non_exhaustive()
            }
            Self::Http { url, .. } => f.debug_struct("Http").field("url", url).finish_non_exhaustive(),
        }
    }
}

/// How long the steps of a backend may take. How long a turn may take is the harness's to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Each step until a session can be prompted: Node programs have been seen to take 20 s on a cold disk.
    pub open: Duration,
    /// From a cancel to the end of the turn; then the program is ended by force.
    pub cancel: Duration,
    pub ladder: Ladder,
}

impl Default for Timing {
    fn default() -> Self {
        Self { open: Duration::from_secs(60), cancel: Duration::from_secs(5), ladder: Ladder::default() }
    }
}
