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
use skep_proto::lease::{Claim, Epoch};
use skep_proto::thread::{self, Reply};
use skep_proto::{Draft, RawEvent, limits};
use skep_store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::desk::{Desk, Inner};
use super::lease::turn_resource;
use super::letter::Letter;
use super::look::{Found, Looked, Looks};
use super::work::{How, Running};
use crate::child::Family;
use crate::tools::{Tool, ToolAnswer, Toolbox, serve};
use crate::{Kind, Spec};

/// The answers to our own questions.
const ALLOW: &str = "allow";
const REJECT: &str = "reject";

/// Characters of a turn's message on a card.
const ABOUT_CHARS_MAX: usize = 40;

/// The tools of one backend.
pub(super) struct Bench {
    grants: Grants,
    inner: mpsc::Sender<Inner>,
    channel: String,
    generation: u64,
    /// More calls at once are refused.
    places: Arc<Semaphore>,
    looks: Arc<Looks>,
}

/// A call on its way to its answer. Dropped without one, its turn is over.
pub(super) struct Called {
    channel: String,
    generation: u64,
    pub call: Call,
    pub looks: Arc<Looks>,
    answer: oneshot::Sender<Result<String, CallError>>,
    _place: OwnedSemaphorePermit,
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
        let looks = Arc::clone(&self.looks);
        let called = Called { channel, generation, call, looks, answer, _place: place };
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
    /// Nobody waits for the answer.
    pub(super) fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

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
            looks: Arc::default(),
        };
        match &mut spec.kind {
            Kind::OpenAi(settings) if settings.tools.is_none() => {
                settings.tools = Some(Arc::new(bench));
                None
            }
            Kind::Acp { .. } => match self.setup.bridge.as_ref()?.open() {
                Ok(place) => {
                    spec.mcp_servers.push(place.server.clone());
                    // Of this launch alone.
                    let family = Family::default();
                    spec.family = Some(family.clone());
                    Some(AbortOnDropHandle::new(tokio::spawn(serve(place, family, Arc::new(bench)))))
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
        let has_question = self.has_question(&called.channel);
        let Some(running) = self.running_of(&called.channel, called.generation) else {
            called.end(Err(CallError::NoTurn));
            return Ok(());
        };
        let is_sealed = running.trigger.is_sealed();
        match &called.call {
            Call::Progress { text } => {
                let may = progress_wait(running.told, now);
                if may.is_ok() {
                    running.told = Some(now);
                    running.machine.touch(now);
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
                running.machine.touch(now);
                let filters = page::filters(&running.trigger, *before);
                let turn = running.id.clone();
                self.look_for(called, turn, filters);
            }
            Call::AskHuman { .. } if has_question => called.end(Err(CallError::Asked)),
            Call::AskHuman { question, options } => {
                let (question, options) = (question.clone(), options.clone());
                return self.ask_owner(called, &question, options);
            }
            Call::Agents | Call::AskAgent { .. } => {
                running.machine.touch(now);
                let turn = running.id.clone();
                self.look_for(called, turn, Vec::new());
            }
        }
        Ok(())
    }

    pub(super) fn looked(&mut self, looked: Looked) -> Result<(), StoreError> {
        let Looked { called, turn, found } = looked;
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
        match (&called.call, found) {
            (Call::History { limit, before }, Found::Page(found)) => {
                let events = page::choose(&trigger, found, *before, *limit);
                let text = self.render_page(&called.channel, &events);
                called.end(Ok(text));
                Ok(())
            }
            (Call::Agents, Found::Agents { siblings, leases }) => {
                let text = page::list(&siblings, leases.as_deref(), self.unix_now());
                called.end(Ok(text));
                Ok(())
            }
            (Call::AskAgent { name, text }, Found::Agents { siblings, .. }) => {
                match self.may_ask(&trigger, name, &siblings) {
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
                }
            }
            // Nothing else is looked up for these.
            _ => Ok(()),
        }
    }

    fn ask_owner(&mut self, called: Called, question: &str, options: [String; 2]) -> Result<(), StoreError> {
        let wish = Wish::Answer(options.clone());
        self.raise(Waiting { called, wish }, ("Question", question), options, Permits::ask_owner)
    }

    /// Whether a question to the owner is open in the turn of a channel.
    fn has_question(&self, channel: &str) -> bool {
        let of_channel = |waiting: &&Waiting| waiting.called.channel == channel && !waiting.called.is_gone();
        self.waiting.values().filter(of_channel).any(|waiting| matches!(waiting.wish, Wish::Answer(_)))
    }

    /// Takes back the questions of calls that nobody waits for.
    pub(super) fn forget_gone(&mut self) -> Result<(), StoreError> {
        let gone = self.waiting.iter().filter(|(_, waiting)| waiting.called.is_gone());
        let gone: Vec<AskId> = gone.map(|(id, _)| id.clone()).collect();
        let closed = gone.iter().flat_map(|id| self.permits.withdraw(id)).collect();
        self.settle_permits(closed)
    }

    /// Whether another agent may be asked in this thread, by what that one would judge of the question.
    fn may_ask(
        &mut self,
        trigger: &RawEvent,
        name: &skep_proto::name::AgentName,
        siblings: &[Sibling],
    ) -> Result<Sibling, CallError> {
        let to = tools::page::find(siblings, name)?.clone();
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
        let now = self.mono_ms();
        let Some(running) = self.running_of(&waiting.called.channel, waiting.called.generation) else {
            waiting.called.end(Err(CallError::TurnEnded));
            return Ok(());
        };
        running.machine.touch(now);
        let about = about(running);
        // Nobody can foresee it, so that no backend's question passes for it.
        let id = AskId(format!("skep:{}", faster_hex::hex_string(&self.random::<8>())));
        let option = |id: &str, name: String, kind| AskOption { id: id.to_owned(), name, kind };
        let tool = ToolCall {
            id: id.0.clone(),
            // A program that an earlier turn left may be the one who asks: what it asks for is told by the turn.
            title: format!("{title} ({}, in the turn of {about})", waiting.called.call.tool().as_str()),
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
        let Some((trigger, epoch)) = running.map(|running| (running.trigger.clone(), running.epoch)) else {
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
                let said = self.publish_question(&trigger, epoch, &to, &text)?;
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
        trigger: &Letter,
        epoch: Epoch,
        to: &Sibling,
        text: &str,
    ) -> Result<Result<String, CallError>, StoreError> {
        let relay = self.setup.relays.first().map_or("", String::as_str);
        let (task, hop) = (self.task_of(trigger), self.next_hop_of(trigger));
        // Of an instance that another has taken over from, the relay takes no question either.
        let resource = turn_resource(&self.me, &trigger.carrier);
        let claim = Some(Claim { resource, epoch, is_final: false });
        let reply = Reply { parent: trigger, relay, now: self.unix_now(), hop, task: task.as_deref(), claim };
        let drafts = reply.drafts(&format!("@{} {text}", to.name));
        let events: Vec<RawEvent> = drafts.into_iter().map(|draft| self.sign(addressed(draft, to))).collect();
        self.enqueue(&events)?;
        self.loops.count(self.me, &agent_of(to), self.unix_now());
        let said = events.last().map(|event| format!("asked @{}; the question is the event {}", to.name, event.id));
        Ok(said.ok_or(CallError::Denied))
    }
}

/// The message that a turn answers, as a card says it: its first words, and the beginning of its id.
fn about(running: &Running) -> String {
    let words: String = running.trigger.content.chars().take(ABOUT_CHARS_MAX).collect();
    format!("{words:?}, {}", &running.trigger.carrier.to_hex()[..8])
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
