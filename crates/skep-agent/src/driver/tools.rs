//! Calls of the harness's tools, run as the turn of the session that calls.
//!
//! A [`Bench`] is what a backend has of them: it knows its channel and its launch, and the loop runs a call only while
//! that very backend has a turn. What must be looked up is looked up beside the loop.
//! Must not: act for a turn that is over, say what a sealed conversation is about, or write without a permission.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use skep_core::audience::{Asker, Fact, Verdict, next_hop};
use skep_core::backend::{Ask, AskId, AskKind, AskOption, ToolCall, ToolKind, ToolStatus};
use skep_core::door::Door;
use skep_core::permit::Permits;
use skep_core::tools::page::{self, Sibling};
use skep_core::tools::{Call, CallError, Grants, Name, progress_wait};
use skep_core::turn::TurnId;
use skep_core::{prompt, tools};
use skep_proto::agent::telemetry::{Payload, Progress, Reason, TelemetryKind};
use skep_proto::thread::{self, Reply};
use skep_proto::{Draft, RawEvent, limits};
use skep_store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::Library;
use super::desk::{Desk, Inner};
use super::work::How;
use crate::tools::{Tool, ToolAnswer, Toolbox, serve};
use crate::{Kind, Spec};

/// The answers to our own questions.
const ALLOW: &str = "allow";
const REJECT: &str = "reject";

/// The tools of one backend.
pub(super) struct Bench {
    grants: Grants,
    inner: mpsc::Sender<Inner>,
    channel: String,
    generation: u64,
    /// More calls at once are refused.
    places: Arc<Semaphore>,
}

/// A call on its way to its answer. Dropped without one, its turn is over.
pub(super) struct Called {
    channel: String,
    generation: u64,
    call: Call,
    answer: oneshot::Sender<Result<String, CallError>>,
    _place: OwnedSemaphorePermit,
}

/// What was looked up for a call.
pub(super) struct Looked {
    called: Called,
    turn: TurnId,
    /// `None`: nobody answered.
    found: Option<Vec<RawEvent>>,
    /// The relay's words on who is at work, where they were asked for.
    leases: Option<Vec<RawEvent>>,
}

/// A call that waits for its owner's word.
pub(super) struct Waiting {
    called: Called,
    wish: Wish,
}

enum Wish {
    Ask {
        to: Sibling,
        text: String,
    },
    /// What 👍 and 👎 mean.
    Answer([String; 2]),
}

pub(super) type AllWaiting = BTreeMap<AskId, Waiting>;

impl Bench {
    async fn run(&self, name: &str, arguments: Value) -> Result<String, CallError> {
        let call = Call::read(&self.grants, name, arguments)?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| CallError::Busy)?;
        let (answer, said) = oneshot::channel();
        let (channel, generation) = (self.channel.clone(), self.generation);
        let called = Called { channel, generation, call, answer, _place: place };
        self.inner.send(Inner::Called(Box::new(called))).await.map_err(|_| CallError::NoTurn)?;
        said.await.unwrap_or(Err(CallError::TurnEnded))
    }
}

impl Toolbox for Bench {
    fn tools(&self) -> Vec<Tool> {
        let offered = |name: Name| Tool {
            name: name.as_str().to_owned(),
            description: name.description().to_owned(),
            parameters: name.schema(),
            kind: kind(name),
            // The loop asks, whatever runs behind.
            asks: false,
            writes: name.writes(),
        };
        self.grants.names().map(offered).collect()
    }

    fn call<'a>(&'a self, name: &'a str, arguments: Value) -> BoxFuture<'a, ToolAnswer> {
        Box::pin(async move {
            match self.run(name, arguments).await {
                Ok(text) => ToolAnswer::ok(text),
                Err(error) => ToolAnswer::failed(error.to_string()),
            }
        })
    }
}

fn kind(name: Name) -> ToolKind {
    match name {
        Name::History | Name::Agents => ToolKind::Read,
        Name::Progress | Name::AskAgent | Name::AskHuman => ToolKind::Other,
    }
}

impl Called {
    fn end(self, said: Result<String, CallError>) {
        // Whoever called may wait no longer.
        let _ = self.answer.send(said);
    }
}

impl<D: Door + 'static> Desk<D> {
    /// Gives a backend that is about to start its tools; they last as long as what is returned.
    pub(super) fn furnish(&self, spec: &mut Spec, channel: &str, generation: u64) -> Option<AbortOnDropHandle<()>> {
        if self.setup.tools.is_empty() {
            return None;
        }
        let bench = Bench {
            grants: self.setup.tools.clone(),
            inner: self.inner.clone(),
            channel: channel.to_owned(),
            generation,
            places: Arc::new(Semaphore::new(limits::TOOL_CALLS_MAX)),
        };
        match &mut spec.kind {
            Kind::OpenAi(settings) if settings.tools.is_none() => {
                settings.tools = Some(Arc::new(bench));
                None
            }
            Kind::Acp { .. } => match self.setup.bridge.as_ref()?.open() {
                Ok(place) => {
                    spec.mcp_servers.push(place.server.clone());
                    Some(AbortOnDropHandle::new(tokio::spawn(serve(place, Arc::new(bench)))))
                }
                Err(error) => {
                    tracing::warn!(agent = %self.setup.name, %error, "a session has no tools");
                    None
                }
            },
            Kind::OpenAi(_) | Kind::Command { .. } => None,
        }
    }

    pub(super) fn called(&mut self, called: Called) -> Result<(), StoreError> {
        let now = self.mono_ms();
        let Some(running) = self.running_of(&called.channel, called.generation) else {
            called.end(Err(CallError::NoTurn));
            return Ok(());
        };
        running.machine.touch(now);
        let is_sealed = running.trigger.is_sealed();
        match &called.call {
            Call::Progress { text } => {
                let may = progress_wait(running.told, now);
                if may.is_ok() {
                    running.told = Some(now);
                    let payload = Payload::of(&Progress { text: prompt::visible(text) });
                    self.observe(&called.channel, TelemetryKind::Progress, payload);
                }
                called.end(may.map(|()| "told".to_owned()));
            }
            Call::History { .. } if is_sealed => {
                called.end(Err(CallError::Private("the relay has none of it that could be read again")));
            }
            Call::AskAgent { .. } if is_sealed => {
                called.end(Err(CallError::Private("nobody else may be told of it; answer by yourself")));
            }
            Call::History { before, .. } => {
                let filters = page::filters(&running.trigger, *before);
                let turn = running.id.clone();
                self.look_for(called, turn, filters);
            }
            Call::AskHuman { question, options } => {
                let (question, options) = (question.clone(), options.clone());
                return self.ask_owner(called, &question, options);
            }
            Call::Agents | Call::AskAgent { .. } => {
                let turn = running.id.clone();
                self.look_for(called, turn, page::profiles());
            }
        }
        Ok(())
    }

    fn look_for(&self, called: Called, turn: TurnId, filters: Vec<skep_proto::Filter>) {
        let (library, inner) = (Arc::clone(&self.setup.library), self.inner.clone());
        let (owner, me) = (self.setup.audience.owner, self.me);
        tokio::spawn(async move {
            // No filters ask for everything.
            let found = if filters.is_empty() { Some(Vec::new()) } else { library.look_up(filters).await };
            let leases = match (&called.call, &found, owner) {
                (Call::Agents, Some(found), Some(owner)) => {
                    leases_of(&*library, &page::siblings(found, owner, me)).await
                }
                _ => None,
            };
            // The loop has ended, and the turn with it.
            let _ = inner.send(Inner::Looked(Box::new(Looked { called, turn, found, leases }))).await;
        });
    }

    pub(super) fn looked(&mut self, looked: Looked) -> Result<(), StoreError> {
        let Looked { called, turn, found, leases } = looked;
        let Some(running) = self.running_of(&called.channel, called.generation).filter(|running| running.id == turn)
        else {
            called.end(Err(CallError::TurnEnded));
            return Ok(());
        };
        let Some(found) = found else {
            called.end(Err(CallError::Silent));
            return Ok(());
        };
        let trigger = running.trigger.clone();
        match &called.call {
            Call::History { limit, before } => {
                let events = page::choose(&trigger, found, *before, *limit);
                let text = self.render_page(&called.channel, &events);
                called.end(Ok(text));
                Ok(())
            }
            Call::Agents => {
                let text = page::list(&self.siblings(&found), leases.as_deref(), self.unix_now());
                called.end(Ok(text));
                Ok(())
            }
            Call::AskAgent { name, text } => match self.may_ask(&trigger, name, &found) {
                Ok(to) => {
                    let (title, text) = (format!("Ask @{}", to.name), text.clone());
                    let labels = ["Allow", "Reject"].map(str::to_owned);
                    let wish = Wish::Ask { to, text: text.clone() };
                    self.raise(Waiting { called, wish }, (&title, &text), labels, Permits::ask)
                }
                Err(error) => {
                    called.end(Err(error));
                    Ok(())
                }
            },
            Call::Progress { .. } | Call::AskHuman { .. } => Ok(()),
        }
    }

    fn ask_owner(&mut self, called: Called, question: &str, options: [String; 2]) -> Result<(), StoreError> {
        let wish = Wish::Answer(options.clone());
        self.raise(Waiting { called, wish }, ("Question", question), options, Permits::ask_owner)
    }

    fn siblings(&self, found: &[RawEvent]) -> Vec<Sibling> {
        self.setup.audience.owner.map(|owner| page::siblings(found, owner, self.me)).unwrap_or_default()
    }

    /// Whether another agent may be asked in this thread, by what that one would judge of the question.
    fn may_ask(
        &mut self,
        trigger: &RawEvent,
        name: &skep_proto::name::AgentName,
        found: &[RawEvent],
    ) -> Result<Sibling, CallError> {
        let to = tools::page::find(&self.siblings(found), name)?.clone();
        let hop = self.next_hop_of(trigger);
        match self.loops.judge(self.me, &agent_of(&to), hop, self.unix_now()) {
            Verdict::AskOwner(why) => Err(CallError::Loop(why)),
            _ => Ok(to),
        }
    }

    fn next_hop_of(&self, trigger: &RawEvent) -> u32 {
        next_hop(thread::hop(trigger), self.asker(trigger).is_agent)
    }

    /// Through the permissions, as whatever a backend wants to do.
    fn raise(
        &mut self,
        waiting: Waiting,
        (title, detail): (&str, &str),
        [allow, reject]: [String; 2],
        how: How,
    ) -> Result<(), StoreError> {
        // Nobody can foresee it, so that no backend's question passes for it.
        let id = AskId(format!("skep:{}", faster_hex::hex_string(&self.random::<8>())));
        let option = |id: &str, name: String, kind| AskOption { id: id.to_owned(), name, kind };
        let tool = ToolCall {
            id: id.0.clone(),
            title: title.to_owned(),
            kind: kind(waiting.called.call.tool()),
            status: ToolStatus::Pending,
            paths: Vec::new(),
        };
        let options = vec![option(ALLOW, allow, AskKind::AllowOnce), option(REJECT, reject, AskKind::RejectOnce)];
        let ask = Ask { id: id.clone(), tool, detail: detail.to_owned(), options, frame: None };
        let channel = waiting.called.channel.clone();
        self.waiting.insert(id, waiting);
        self.ask(&channel, &ask, how)
    }

    /// The word on a question of ours. `None` for the option: its turn is over, or nobody may be asked.
    pub(super) fn decided(
        &mut self,
        waiting: Waiting,
        turn: &TurnId,
        option: Option<&str>,
        reason: Option<Reason>,
    ) -> Result<(), StoreError> {
        let Waiting { called, wish } = waiting;
        let running = self.running_of(&called.channel, called.generation).filter(|running| running.id == *turn);
        let Some(trigger) = running.map(|running| running.trigger.clone()) else {
            called.end(Err(CallError::TurnEnded));
            return Ok(());
        };
        let is_allowed = option == Some(ALLOW);
        match wish {
            Wish::Answer([yes, no]) => {
                let said = match reason {
                    Some(Reason::Applied) => Ok(format!("your owner says: {}", if is_allowed { yes } else { no })),
                    Some(Reason::TimedOut) => Err(CallError::NoAnswer),
                    _ => Err(CallError::CannotAsk),
                };
                called.end(said);
                Ok(())
            }
            // Who does not wait any more would not know that it was done.
            Wish::Ask { to, text } if is_allowed && !called.answer.is_closed() => {
                let said = self.publish_question(&trigger, &to, &text)?;
                called.end(said);
                Ok(())
            }
            Wish::Ask { .. } => {
                called.end(Err(CallError::Denied));
                Ok(())
            }
        }
    }

    fn publish_question(
        &mut self,
        trigger: &RawEvent,
        to: &Sibling,
        text: &str,
    ) -> Result<Result<String, CallError>, StoreError> {
        let relay = self.setup.relays.first().map_or("", String::as_str);
        let (task, hop) = (self.task_of(trigger), self.next_hop_of(trigger));
        let reply = Reply { parent: trigger, relay, now: self.unix_now(), hop, task: task.as_deref(), claim: None };
        let drafts = reply.drafts(&format!("@{} {text}", to.name));
        let events: Vec<RawEvent> = drafts.into_iter().map(|draft| self.sign(addressed(draft, to))).collect();
        self.enqueue(&events)?;
        self.loops.count(self.me, &agent_of(to), self.unix_now());
        let said = events.last().map(|event| format!("asked @{}; the question is the event {}", to.name, event.id));
        Ok(said.ok_or(CallError::Denied))
    }
}

/// Only the one who is asked is tagged: agents take a `p` tag as a word to them.
fn addressed(draft: Draft, to: &Sibling) -> Draft {
    let kept = draft.tags.iter().filter(|tag| tag.name() != "p").map(|tag| tag.elements().collect::<Vec<_>>());
    let tags = kept.collect();
    Draft { tags, ..draft }.tag(["p", &to.key.to_hex()])
}

fn agent_of(to: &Sibling) -> Asker {
    Asker { key: to.key, is_sibling: Fact::Yes, is_member: Fact::Unknown, is_agent: Fact::Yes }
}

async fn leases_of(library: &dyn Library, siblings: &[Sibling]) -> Option<Vec<RawEvent>> {
    let relay = library.relay_key().await??;
    let filters = page::leases(siblings, relay);
    if filters.is_empty() { Some(Vec::new()) } else { library.look_up(filters).await }
}
