//! What the tests share: a harness that listens, and a look at the process table.

use std::path::Path;
use std::time::Duration;

use skep_agent::words::{Ask, Ended, Order, Said, Session, Usage};
use skep_agent::{Backend, Environment, Kind, Spec, Timing};

/// Far longer than anything here takes; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn env(set: &[(&str, &str)]) -> Environment {
    let host = std::env::vars().filter(|(name, _)| name == "PATH");
    let set: Vec<_> = set.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Environment::allowed(host, &[], &set).expect("an environment")
}

/// Times short enough for a test that must see them pass.
pub fn quick() -> Timing {
    let short = Duration::from_millis(200);
    let ladder = skep_agent::child::Ladder { ask: short, terminate: short };
    Timing { open: PATIENCE, cancel: short, ladder }
}

pub fn demo(cwd: &Path) -> Spec {
    let command = env!("CARGO_BIN_EXE_agent-fixture").into();
    Spec::new(Kind::Acp { command, args: vec!["demo".into()] }, cwd, env(&[]))
}

/// An ACP program written in shell.
pub fn shell_acp(script: &str) -> Spec {
    let kind = Kind::Acp { command: "/bin/sh".into(), args: vec!["-c".into(), script.into()] };
    Spec { timing: quick(), ..Spec::new(kind, "/", env(&[])) }
}

/// What came of a turn.
#[derive(Debug, Default)]
pub struct Heard {
    pub session: Option<Session>,
    pub text: String,
    pub thoughts: String,
    pub asked: Vec<Ask>,
    pub usage: Vec<Usage>,
    pub all: Vec<Said>,
    pub ended: Option<Ended>,
    pub gone: Option<String>,
}

/// How a question is answered: by the kind of an option's name, or not.
pub type Answer = fn(&Ask) -> Option<String>;

pub fn prompt(text: &str) -> Order {
    Order::Prompt { text: text.to_owned() }
}

/// Listens until the turn ends, or the backend does.
pub async fn listen(backend: &mut Backend, answer: Answer) -> Heard {
    let mut heard = Heard::default();
    while heard.ended.is_none() && heard.gone.is_none() {
        let said = tokio::time::timeout(PATIENCE, backend.said()).await.expect("a word in time");
        let Some(said) = said else { break };
        if let Said::Ask(ask) = &said {
            let order = Order::Answer { request: ask.id.clone(), option: answer(ask) };
            backend.order(order).await.expect("a backend that listens");
        }
        heard.take(said);
    }
    heard
}

/// Listens until the first word of this sort.
pub async fn until(backend: &mut Backend, wanted: fn(&Said) -> bool) -> Said {
    loop {
        let said = tokio::time::timeout(PATIENCE, backend.said()).await.expect("a word in time");
        let said = said.expect("a backend that is there");
        if wanted(&said) {
            return said;
        }
    }
}

pub fn never(_: &Ask) -> Option<String> {
    None
}

impl Heard {
    fn take(&mut self, said: Said) {
        self.all.push(said.clone());
        match said {
            Said::Ready(session) => self.session = Some(session),
            Said::Text(text) => self.text.push_str(&text),
            Said::Thought(text) => self.thoughts.push_str(&text),
            Said::Ask(ask) => self.asked.push(ask),
            Said::Usage(usage) => self.usage.push(usage),
            Said::Ended(ended) => self.ended = Some(ended),
            Said::Gone(why) => self.gone = Some(why),
            _ => {}
        }
    }
}

/// Processes that have this variable in their environment, by number.
pub fn with_variable(name: &str, value: &str) -> Vec<u32> {
    let entry = format!("{name}={value}").into_bytes();
    let has = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|each| each == entry))
    };
    let entries = std::fs::read_dir("/proc").expect("a process table").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(has).collect()
}

/// Waits until it is so; looks often.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A name that no other test and no other run has.
pub fn unique(name: &str) -> String {
    format!("{name}-{}-{}", std::process::id(), std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos())
}
