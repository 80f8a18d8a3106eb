//! Who started whom: a program, and what it started.

use std::sync::{Arc, OnceLock};

/// A program that may run yet, and all that it started. One that was started by a process that has ended since is its
/// family's no more.
#[derive(Debug, Clone, Default)]
pub struct Family(Arc<OnceLock<u32>>);

/// Steps from a process to its ancestor: a shell in a shell, and a sandbox of several, are a dozen.
#[cfg(target_os = "linux")]
const STEPS_MAX: usize = 64;

impl Family {
    /// Said once; what is said later does not count.
    pub fn begin(&self, pid: u32) {
        // It began already.
        let _ = self.0.set(pid);
    }

    /// Whether that process is the program, or descends from it by parents that all run.
    #[cfg(target_os = "linux")]
    pub fn has(&self, pid: u32) -> bool {
        let Some(first) = self.0.get() else { return false };
        let line = std::iter::successors(Some(pid), |pid| parent(*pid));
        line.take(STEPS_MAX).any(|pid| pid == *first)
    }

    /// Elsewhere nobody says who started whom.
    #[cfg(not(target_os = "linux"))]
    pub fn has(&self, _: u32) -> bool {
        false
    }
}

/// `pid (name) state parent …` (proc_pid_stat(5)); the name may have anything in it.
#[cfg(target_os = "linux")]
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok().filter(|pid| *pid != 0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_family_is_a_program_and_what_it_started_as_long_as_the_line_is_unbroken() {
        // The second sleeps below a shell that has ended: nobody of the family is its parent.
        let script = "sleep 60 & echo $!; (sleep 60 & echo $!); read -r end; kill $(jobs -p) 2>/dev/null; exit 0";
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().expect("a shell");
        let mut lines = BufReader::new(program.stdout.take().expect("its pipe")).lines();
        let mut next = || lines.next().expect("a line").expect("text").parse::<u32>().expect("a pid");
        let (grandchild, orphan) = (next(), next());
        let family = Family::default();
        assert!(!family.has(program.id()), "of nobody yet");
        family.begin(program.id());
        family.begin(std::process::id());
        let until = Instant::now() + Duration::from_secs(30);
        while family.has(orphan) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let found = [program.id(), grandchild, orphan, std::process::id(), 1].map(|pid| family.has(pid));
        let orphan = rustix::process::Pid::from_raw(orphan as i32).expect("a pid");
        rustix::process::kill_process(orphan, rustix::process::Signal::KILL).expect("killed");
        drop(program.stdin.take());
        program.wait().expect("ended");
        assert_eq!(found, [true, true, false, false, false]);
    }
}
