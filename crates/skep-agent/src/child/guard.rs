//! Who outlives us for a moment: a shell that waits for our end and then kills what we left.
//!
//! The parent-death signal reaches the child alone, not what the child started, and macOS has none. A guard holds the
//! read end of a pipe whose other end only we hold: when we end, by SIGKILL too, it reads the end of the file and
//! kills the child's process group, and on Linux every process that carries the child's mark.
//!
//! Must not: be in the child's process group, or it would fall with it; know anything but two words.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::sweep::{MARK, Mark};

const SHELL: &str = "/bin/sh";
const PATH: &str = "/usr/bin:/bin";

/// Words are a process group and the mark. A line after them means that all is well. The passes are for what was
/// forked while one ran; a mark is hex, so it means nothing to `grep` but itself.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
read -r group mark || exit 0
read -r done && exit 0
kill -KILL -- "-$group" 2>/dev/null
for pass in 1 2 3; do
  for each in /proc/[0-9]*; do
    grep -qs "$1=$mark" "$each/environ" && kill -KILL "${each#/proc/}" 2>/dev/null
  done
done
exit 0
"#;

/// Runs from before the child's start until after its end.
pub struct Guard {
    shell: Child,
    line: ChildStdin,
}

impl Guard {
    /// Starts one that knows nothing yet: were it started after the child, our end in between would go unseen.
    pub fn start() -> io::Result<Self> {
        let mut command = Command::new(SHELL);
        command.args(["-c", SCRIPT, "skep-guard", MARK]);
        command.env_clear().env("PATH", PATH).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.spawn()?;
        let line = shell.stdin.take().ok_or_else(|| io::Error::other("the guard has no stdin"))?;
        Ok(Self { shell, line })
    }

    /// From now on it kills this group, and what carries the mark, if we end.
    pub fn watch(&mut self, group: u32, mark: &Mark) -> io::Result<()> {
        writeln!(self.line, "{group} {mark}")
    }

    /// The child is gone: the guard ends without doing anything, and is reaped.
    pub fn release(mut self) {
        // It may have been killed by somebody; then there is nothing to tell it.
        let _ = writeln!(self.line, "done");
        drop(self.line);
        let _ = self.shell.wait();
    }
}
