//! A model server that speaks OpenAI's chat completions: Ollama, llama.cpp, vLLM, LM Studio, mlx_lm, or a provider.
//!
//! Job: hold a conversation, stream the answers, run the tools that the caller gave, measure.
//! Neighbours: `call` makes one model call; `stream` reads its answer; `history` is what the model is sent;
//! [`crate::tools`] is what the caller gives; `failure` says what went wrong; `desk` keeps orders and words moving.
//! Must not: retry. What failed is told with its reason, and the harness decides.

mod call;
mod desk;
mod failure;
mod history;
mod settings;
mod stream;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use skep_core::backend::{
    Ask, AskId, AskKind, AskOption, BackendError, Ended, Order, Said, Session, ToolCall, ToolStatus,
};

use crate::spec::{Kind, Spec};
use crate::text::cut;
use crate::tools::{Tool, ToolAnswer};

pub use settings::{HISTORY_BYTES_DEFAULT, Key, OpenAi, Secret};

use call::Caller;
use desk::Desk;
use history::History;
use stream::{Finish, Wanted};

/// Model calls of one turn. A model that wants yet another tool after 32 answers is going in circles.
const CALLS_MAX: usize = 32;

/// Bytes of a tool's answer that the model is sent: a quarter of the usual history.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Bytes of what a person sees of a tool's arguments.
const DETAIL_BYTES_MAX: usize = 4 * 1024;

const ALLOW: &str = "allow";
const REJECT: &str = "reject";

/// Runs one backend until it is closed.
pub async fn run(spec: &Spec, orders: mpsc::Receiver<Order>, said: mpsc::Sender<Said>) {
    let Kind::OpenAi(settings) = &spec.kind else { return };
    let mut desk = Desk::new(orders, said);
    let session = match session(settings, spec) {
        Ok(session) => session,
        Err(why) => {
            desk.say(Said::Ended(Ended::Error(BackendError::Other(why.clone())))).await;
            return desk.say(Said::Gone(why)).await;
        }
    };
    let caller = Caller::new(settings.clone(), session.model.clone().unwrap_or_default());
    let history = History::new(settings.system.as_deref(), settings.history_bytes_max);
    desk.say(Said::Ready(session)).await;
    let mut chat = Chat { caller, history, desk, asked: 0 };
    while let Some(text) = chat.desk.prompt().await {
        let ended = chat.turn(text).await;
        chat.desk.say(Said::Ended(ended)).await;
    }
    chat.desk.say(Said::Gone("closed".to_owned())).await;
}

/// A conversation is kept in memory: there is nothing to take up again, and each start is a new one.
fn session(settings: &OpenAi, spec: &Spec) -> Result<Session, String> {
    let number = getrandom::u64().map_err(|error| format!("the system gives no random numbers: {error}"))?;
    let model = spec.model.clone().unwrap_or_else(|| settings.model.clone());
    let program = settings.base_url.host_str().unwrap_or("model server").to_owned();
    Ok(Session { id: format!("chat-{number:016x}"), is_new: true, program, model: Some(model), ..Session::default() })
}

struct Chat {
    caller: Caller,
    history: History,
    desk: Desk,
    asked: u64,
}

impl Chat {
    /// A turn that did not end well leaves no trace in the history: it is prompted again, or given up.
    async fn turn(&mut self, text: String) -> Ended {
        self.history.begin(json!({ "role": "user", "content": text }));
        let ended = self.work().await;
        match ended {
            Ended::EndTurn | Ended::MaxTokens | Ended::Refusal => self.history.keep(),
            Ended::Cancelled | Ended::Error(_) => self.history.undo(),
        }
        ended
    }

    async fn work(&mut self) -> Ended {
        for _ in 0..CALLS_MAX {
            let answer = match self.caller.call(&self.history, &mut self.desk).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Ended::Cancelled,
                Err(error) => return Ended::Error(error),
            };
            self.history.add(answer.message());
            match answer.finish {
                _ if !answer.wanted.is_empty() => {}
                Finish::Stop => return Ended::EndTurn,
                Finish::Length => return Ended::MaxTokens,
                Finish::Refusal => return Ended::Refusal,
            }
            for wanted in &answer.wanted {
                let Some(result) = self.run_tool(wanted).await else { return Ended::Cancelled };
                let content = cut(&result, ANSWER_BYTES_MAX);
                self.history.add(json!({ "role": "tool", "tool_call_id": wanted.id, "content": content }));
            }
        }
        Ended::MaxTokens
    }

    /// What the model is told about it. `None`: cancelled.
    async fn run_tool(&mut self, wanted: &Wanted) -> Option<String> {
        let tool = self.caller.tool(&wanted.name);
        let mut shown = shown(wanted, tool.as_ref());
        self.desk.say(Said::Tool(shown.clone())).await;
        let answer = match (tool, wanted.arguments()) {
            (None, _) => ToolAnswer::failed(format!("there is no tool {}", wanted.name)),
            (_, None) => ToolAnswer::failed("the arguments are not a JSON object".to_owned()),
            (Some(tool), Some(arguments)) => {
                if tool.asks && !self.is_allowed(&shown, &arguments).await? {
                    ToolAnswer::failed("the user did not allow this".to_owned())
                } else {
                    self.say_status(&mut shown, ToolStatus::Running).await;
                    let toolbox = self.caller.toolbox()?;
                    self.desk.unless_cancelled(toolbox.call(&tool.name, arguments)).await?
                }
            }
        };
        let status = if answer.is_ok { ToolStatus::Done } else { ToolStatus::Failed };
        self.say_status(&mut shown, status).await;
        Some(answer.text)
    }

    async fn say_status(&mut self, shown: &mut ToolCall, status: ToolStatus) {
        shown.status = status;
        self.desk.say(Said::Tool(shown.clone())).await;
    }

    /// `None`: cancelled.
    async fn is_allowed(&mut self, tool: &ToolCall, arguments: &Value) -> Option<bool> {
        self.asked += 1;
        let id = AskId(format!("{}#{}", tool.id, self.asked));
        let option = |id: &str, name: &str, kind| AskOption { id: id.to_owned(), name: name.to_owned(), kind };
        let options = vec![option(ALLOW, "Allow", AskKind::AllowOnce), option(REJECT, "Reject", AskKind::RejectOnce)];
        let detail = cut(&arguments.to_string(), DETAIL_BYTES_MAX);
        self.desk.say(Said::Ask(Ask { id: id.clone(), tool: tool.clone(), detail, options, frame: None })).await;
        let answer = self.desk.answer(&id).await?;
        Some(answer.as_deref() == Some(ALLOW))
    }
}

fn shown(wanted: &Wanted, tool: Option<&Tool>) -> ToolCall {
    ToolCall {
        id: wanted.id.clone(),
        title: cut(&wanted.name, 256),
        kind: tool.map(|tool| tool.kind).unwrap_or_default(),
        status: ToolStatus::Pending,
        paths: Vec::new(),
    }
}
