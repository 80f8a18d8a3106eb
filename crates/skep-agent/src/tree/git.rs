//! The program `git`, asked one thing at a time: without a shell, a hook, a prompt, or a variable of ours.

use std::path::{Path, PathBuf};

use skep_proto::limits;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::TreeError;
use crate::child::{Child, Environment, Exit, Ladder, Program};
use crate::text::cut;

/// Bytes of an answer that are read. What is asked here is answered in a line, or by whether there is any answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of a line that are read at once where only its beginning counts.
const LINE_PIECE_BYTES: u64 = 4096;

/// Bytes of git's own words in an error.
const WORDS_BYTES_MAX: usize = 300;

/// Before each question. What a repository's configuration would have git run on the way is not run, and nothing goes
/// on when git has answered. Filters that a checkout needs (LFS), and what a partial clone has git run to fetch what is
/// missing (`core.sshCommand`, `remote.<name>.uploadpack`), are no part of that.
const ALWAYS: [&str; 12] = [
    "--no-pager",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "maintenance.auto=false",
    "-c",
    "submodule.recurse=false",
    "--literal-pathspecs",
];

/// What git is told of its surroundings, instead of asking: nobody sits there, and nothing is written by a look.
const SET: [(&str, &str); 7] = [
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ASKPASS", "true"),
    ("SSH_ASKPASS", "true"),
    ("SSH_ASKPASS_REQUIRE", "force"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_EDITOR", "false"),
    ("LC_ALL", "C"),
];

/// The program, and all that it gets of an environment.
#[derive(Debug, Clone)]
pub struct Git {
    program: PathBuf,
    env: Environment,
}

/// What git said.
pub struct Answer {
    pub exit: Exit,
    pub text: String,
    /// What it wrote to stderr, on one line.
    pub words: String,
}

impl Answer {
    pub fn is_well(&self) -> bool {
        self.exit.code == Some(0)
    }

    /// The text without its line break, when git did as it was asked.
    pub fn line(&self) -> Option<&str> {
        self.is_well().then(|| self.text.trim_end_matches('\n')).filter(|line| !line.is_empty())
    }

    /// What was said, where it had to be done. `args` are what was asked.
    pub fn done(self, args: &[&str]) -> Result<Self, TreeError> {
        if self.is_well() {
            return Ok(self);
        }
        let verb = args.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        let said = if self.words.is_empty() { self.exit.to_string() } else { self.words };
        Err(TreeError::Failed { verb, said })
    }
}

impl Git {
    /// Of a host's variables it gets those that any child may have: where programs and the home are, and no `GIT_…`.
    pub fn new(program: PathBuf, host: &Environment) -> Self {
        let host = host.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let set = SET.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = Environment::allowed(host, &[], &set).expect("invariant: no name or value in SET is refused");
        Self { program, env }
    }

    /// Asks in a directory, and waits for the end. Dropped meanwhile, git is killed.
    pub async fn ask(&self, cwd: &Path, args: &[&str]) -> Result<Answer, TreeError> {
        let mut child = self.start(cwd, args).await?;
        let mut bytes = Vec::new();
        if let Some(stdout) = child.take_stdout() {
            // What cannot be read is missing, as what git did not say.
            let _ = stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await;
        }
        Ok(Self::end(child, String::from_utf8_lossy(&bytes).into_owned()).await)
    }

    async fn start(&self, cwd: &Path, args: &[&str]) -> Result<Child, TreeError> {
        let args = ALWAYS.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        let program = Program { command: self.program.clone(), args, cwd: cwd.to_owned(), env: self.env.clone() };
        let mut child = Child::spawn(program).await.map_err(|error| TreeError::NoGit(error.to_string()))?;
        drop(child.take_stdin());
        Ok(child)
    }

    async fn end(mut child: Child, text: String) -> Answer {
        // It may go on after its last word, for as long as whoever asks lets it.
        let exit = child.wait().await;
        // It has ended: this closes what is left of it.
        child.shutdown(Ladder::default()).await;
        let words = words(&child.last_words().await);
        Answer { exit, text, words }
    }

    /// The same, where it has to be done.
    pub async fn tell(&self, cwd: &Path, args: &[&str]) -> Result<Answer, TreeError> {
        self.ask(cwd, args).await?.done(args)
    }

    /// Whether a line of the answer begins so, however long the answer is.
    pub async fn says(&self, cwd: &Path, args: &[&str], start: &str) -> Result<(Answer, bool), TreeError> {
        let mut child = self.start(cwd, args).await?;
        let mut is_said = false;
        if let Some(stdout) = child.take_stdout() {
            let mut stdout = BufReader::new(stdout);
            let (mut piece, mut is_start) = (Vec::new(), true);
            while let Ok(1..) = (&mut stdout).take(LINE_PIECE_BYTES).read_until(b'\n', &mut piece).await {
                is_said |= is_start && piece.starts_with(start.as_bytes());
                is_start = piece.ends_with(b"\n");
                piece.clear();
            }
        }
        Ok((Self::end(child, String::new()).await, is_said))
    }

    /// A revision, as the id of its commit.
    pub async fn commit(&self, cwd: &Path, revision: &str) -> Result<Option<String>, TreeError> {
        let named = format!("{revision}^{{commit}}");
        let answer = self.ask(cwd, &["rev-parse", "--verify", "--quiet", &named]).await?;
        Ok(answer.line().map(str::to_owned))
    }
}

/// The line that says why, of all that git said.
fn words(text: &str) -> String {
    let says_why = |line: &&str| line.starts_with("fatal: ") || line.starts_with("error: ");
    let line = text.lines().find(says_why).or_else(|| text.lines().next()).unwrap_or_default();
    cut(line.trim(), WORDS_BYTES_MAX)
}

/// Asks for no longer than git may take.
pub async fn in_time<T>(work: impl Future<Output = Result<T, TreeError>>) -> Result<T, TreeError> {
    within(limits::GIT_MS_MAX, work).await
}

/// Asks for so many milliseconds.
pub async fn within<T>(ms: u64, work: impl Future<Output = Result<T, TreeError>>) -> Result<T, TreeError> {
    let limit = std::time::Duration::from_millis(ms);
    tokio::time::timeout(limit, work).await.unwrap_or(Err(TreeError::TooLong(ms / 1_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_gets_no_variable_that_would_send_it_elsewhere() {
        let host = [("GIT_DIR", "/elsewhere"), ("GIT_SSH_COMMAND", "evil"), ("PATH", "/bin"), ("HOME", "/h")];
        let names = ["GIT_DIR".to_owned(), "GIT_SSH_COMMAND".to_owned()];
        let host = host.map(|(name, value)| (name.to_owned(), value.to_owned()));
        // Not even what the owner lets his agent have.
        let agents = Environment::allowed(host, &names, &[]).expect("all may pass");
        assert!(agents.get("GIT_DIR").is_some());
        let git = Git::new("git".into(), &agents);
        assert_eq!((git.env.get("GIT_DIR"), git.env.get("GIT_SSH_COMMAND")), (None, None));
        assert_eq!((git.env.get("PATH"), git.env.get("GIT_TERMINAL_PROMPT")), (Some("/bin"), Some("0")));
    }

    #[test]
    fn of_what_git_says_the_line_that_tells_why_is_kept() {
        assert_eq!(
            words("Preparing worktree\nfatal: not a valid object name: 'x'\n"),
            "fatal: not a valid object name: 'x'"
        );
        assert_eq!(words("hint: something\n"), "hint: something");
        assert_eq!(words(""), "");
    }
}
