//! One model call: request, stream, measurements.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use skep_core::backend::{BackendError, Direction, Said, Speed};
use url::Url;

use super::desk::Desk;
use super::failure;
use super::history::History;
use super::settings::OpenAi;
use super::stream::{Answer, Stream};
use crate::acp::message::shown;
use crate::http::{self, Call, HttpError, Reply};
use crate::tools::{Tool, Toolbox};

/// Bytes of a refusal that are read.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// Bytes of an answer that is not streamed.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

pub struct Caller {
    settings: OpenAi,
    model: String,
    url: Url,
}

impl Caller {
    pub fn new(settings: OpenAi, model: String) -> Self {
        let mut url = settings.base_url.clone();
        url.set_path(&format!("{}/chat/completions", url.path().trim_end_matches('/')));
        Self { settings, model, url }
    }

    pub fn toolbox(&self) -> Option<Arc<dyn Toolbox>> {
        self.settings.tools.clone()
    }

    pub fn tool(&self, name: &str) -> Option<Tool> {
        self.toolbox()?.tools().into_iter().find(|tool| tool.name == name)
    }

    /// Says what comes while it comes. `Ok(None)`: cancelled; the connection is closed, and the server stops.
    pub async fn call(&self, history: &History, desk: &mut Desk) -> Result<Option<Answer>, BackendError> {
        let body = self.body(history).to_string();
        desk.say(Said::Frame { direction: Direction::ToBackend, json: shown(&body) }).await;
        let mut clock = Clock { began: Instant::now(), first: None };
        let Some(reply) = desk.unless_cancelled(self.send(body)).await else { return Ok(None) };
        let reply = reply?;
        let is_stream = reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        let answer = if is_stream {
            read(reply, &mut clock, desk).await?
        } else {
            let Some(body) = desk.unless_cancelled(reply.body(BODY_BYTES_MAX)).await else { return Ok(None) };
            let mut said = Vec::new();
            let answer = Stream::whole(&body.map_err(broken)?, &mut said)?;
            clock.mark(&said);
            say_all(said, desk).await;
            Some(answer)
        };
        if let Some(answer) = &answer {
            tell(answer, &clock, desk).await;
        }
        Ok(answer)
    }

    fn body(&self, history: &History) -> Value {
        let mut body = json!({
            "model": self.model,
            "messages": history.messages(),
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let tools: Vec<_> = self.toolbox().map(|toolbox| toolbox.tools()).unwrap_or_default();
        if !tools.is_empty() {
            body["tools"] = tools.iter().map(declared).collect();
        }
        for (name, value) in &self.settings.extra {
            body[name] = value.clone();
        }
        body
    }

    async fn send(&self, body: String) -> Result<Reply, BackendError> {
        let key = self.settings.key.read().await.map_err(BackendError::Auth)?;
        let bearer = key.as_ref().map(|key| key.expose());
        let reply = http::send(Call { url: &self.url, bearer, json: Some(body) }).await.map_err(broken)?;
        let status = reply.status();
        if status == 200 {
            return Ok(reply);
        }
        let retry_after = reply.header("retry-after").map(str::to_owned);
        let body = reply.body(REFUSAL_BYTES_MAX).await.unwrap_or_default();
        Err(failure::of_status(status, retry_after.as_deref(), &body))
    }
}

fn declared(tool: &Tool) -> Value {
    let function = json!({ "name": tool.name, "description": tool.description, "parameters": tool.parameters });
    json!({ "type": "function", "function": function })
}

async fn read(mut reply: Reply, clock: &mut Clock, desk: &mut Desk) -> Result<Option<Answer>, BackendError> {
    let mut stream = Stream::default();
    loop {
        let Some(chunk) = desk.unless_cancelled(reply.chunk()).await else { return Ok(None) };
        let Some(chunk) = chunk.map_err(broken)? else { break };
        let said = stream.take(&chunk)?;
        clock.mark(&said);
        say_all(said, desk).await;
    }
    let mut said = Vec::new();
    let answer = stream.end(&mut said)?;
    clock.mark(&said);
    say_all(said, desk).await;
    Ok(Some(answer))
}

async fn say_all(said: Vec<Said>, desk: &mut Desk) {
    for word in said {
        desk.say(word).await;
    }
}

/// What it used and how fast it was, and the answer for those who watch.
async fn tell(answer: &Answer, clock: &Clock, desk: &mut Desk) {
    let json = shown(&answer.message().to_string());
    desk.say(Said::Frame { direction: Direction::FromBackend, json }).await;
    if let Some(usage) = answer.usage {
        desk.say(Said::Usage(usage)).await;
    }
    let output = answer.usage.and_then(|usage| usage.counters.output);
    desk.say(Said::Speed(clock.speed(output))).await;
}

fn broken(error: HttpError) -> BackendError {
    match error {
        HttpError::Url(_) | HttpError::Request(_) => BackendError::Other(error.to_string()),
        HttpError::Connect { .. } | HttpError::Broken(_) | HttpError::Body(_) => {
            BackendError::Disconnected(error.to_string())
        }
    }
}

struct Clock {
    began: Instant,
    first: Option<Instant>,
}

impl Clock {
    /// The first word of an answer is the first token.
    fn mark(&mut self, said: &[Said]) {
        if !said.is_empty() {
            self.first.get_or_insert_with(Instant::now);
        }
    }

    fn speed(&self, output: Option<u64>) -> Speed {
        let ms = |since: Instant| u64::try_from((since - self.began).as_millis()).unwrap_or(u64::MAX);
        let end = Instant::now();
        let writing = self.first.map(|first| (end - first).as_secs_f64()).filter(|secs| *secs > 0.0);
        Speed {
            first_token_ms: self.first.map(ms),
            total_ms: ms(end),
            tokens_per_sec: output.zip(writing).map(|(tokens, secs)| tokens as f64 / secs),
        }
    }
}
