//! The client's side of ACP as a machine: orders and lines in, lines and words out. No I/O, no clock.
//!
//! Its state is one [`Step`]; what it wants done gathers in [`Out`], in order.

use std::time::Duration;

use serde_json::{Value, json};

use skep_core::backend::{AskId, BackendError, Direction, Ended, Noise, Order, Said, Session};

use super::failure;
use super::message::{self, INVALID_PARAMS, Incoming, METHOD_NOT_FOUND, RpcError};
use super::open::{self, Choice, Initialized, Offer, What};
use super::out::{Out, Stop};
use super::questions::Questions;
use super::turn::Turn;
use super::usage::{GOOSE_UPDATE, Reports};
use crate::child::Ladder;
use crate::lines::Line;
use crate::spec::Spec;
use crate::text::cut;

/// Lines in a row that are not ACP, before the program is given up: a banner or a stack trace is shorter, a program
/// that speaks something else says nothing but this.
const NOISE_IN_A_ROW_MAX: u32 = 100;

/// Bytes of a noisy line that are told.
const NOISE_BYTES_MAX: usize = 512;

/// Bytes of a list of what a program offers: some have hundreds of models.
const OFFERED_BYTES_MAX: usize = 1024;

/// The request for a permission.
const ASK: &str = "session/request_permission";

pub struct Machine {
    spec: Spec,
    pub out: Out,
    step: Step,
    /// The id of the request that is not answered yet. There is one at a time.
    waits_for: u64,
    next_id: u64,
    initialized: Initialized,
    /// Still to be chosen, with what the session offers; the last first.
    wishes: Vec<(What, Option<Offer>)>,
    reports: Reports,
    session: Session,
    /// Ordered before a session was there.
    prompt: Option<String>,
    is_closing: bool,
    noise: u64,
    noise_in_a_row: u32,
}

enum Step {
    Initialize,
    /// `session/load` and `session/resume`.
    Resume(String),
    NewSession,
    Choose(What),
    Idle,
    Turn(Turn),
    Over,
}

impl Machine {
    /// Says hello.
    pub fn start(spec: Spec, program: String) -> Self {
        let session = Session { program, is_new: true, branch: spec.branch.clone(), ..Session::default() };
        let mut machine = Self {
            spec,
            out: Out::default(),
            step: Step::Initialize,
            waits_for: 0,
            next_id: 0,
            initialized: Initialized::default(),
            wishes: Vec::new(),
            reports: Reports::default(),
            session,
            prompt: None,
            is_closing: false,
            noise: 0,
            noise_in_a_row: 0,
        };
        machine.request("initialize", &open::initialize(), Step::Initialize);
        machine
    }

    pub fn handle_order(&mut self, order: Order) {
        match order {
            Order::Prompt { text } => self.prompt(text),
            Order::Cancel => self.cancel(),
            Order::Answer { request, option } => self.answer(&request, option.as_deref()),
            Order::Close => {
                self.is_closing = true;
                if !self.is_in_turn() && self.prompt.is_none() {
                    self.stop(Stop::Orderly);
                }
            }
        }
    }

    /// Nobody is left to hear us.
    pub fn handle_deaf(&mut self) {
        self.stop(Stop::Orderly);
    }

    pub fn handle_line(&mut self, line: Line) {
        let line = match line {
            Line::Text(line) => line,
            Line::NotText(rendering) => return self.noise(&rendering),
            Line::TooLong(bytes) => return self.noise(&format!("a line of {bytes} bytes")),
        };
        let Some(incoming) = message::parse(&line) else { return self.noise(&line) };
        self.noise_in_a_row = 0;
        let shown = message::shown(&line);
        if let (Incoming::Request { id, method, params }, Step::Turn(turn)) = (&incoming, &mut self.step)
            && method == ASK
            && params["sessionId"] == self.session.id
        {
            return turn.ask(id, params, shown, &mut self.out);
        }
        self.out.say(Said::Frame { direction: Direction::FromBackend, json: shown });
        match incoming {
            Incoming::Request { id, method, .. } => self.refuse(&id, &method),
            Incoming::Notice { method, params } => self.handle_notice(&method, &params),
            Incoming::Answer { id, result } if id == json!(self.waits_for) => self.handle_answer(result),
            // An answer to nothing we wait for: shown, not used.
            Incoming::Answer { .. } => {}
        }
    }

    /// The time that was asked for by [`Out::wait`] is over.
    pub fn handle_deadline(&mut self) {
        match &self.step {
            Step::Turn(turn) if turn.is_cancelled() => {
                self.end(Ended::Cancelled);
                self.stop(Stop::Broken("it did not end a cancelled turn".to_owned()));
            }
            Step::Idle | Step::Turn(_) | Step::Over => {}
            Step::Initialize | Step::Resume(_) | Step::NewSession | Step::Choose(_) => {
                let secs = self.spec.timing.open.as_secs();
                self.fail(BackendError::Other(format!("it did not open a session within {secs} s")));
            }
        }
    }

    /// The program ended, or cannot be talked to. Says so where a turn or an opening waits for it.
    pub fn handle_end(&mut self, how: &str) {
        match &self.step {
            Step::Over => {}
            Step::Idle => self.stop(Stop::Broken(how.to_owned())),
            Step::Turn(turn) if turn.is_cancelled() => {
                self.end(Ended::Cancelled);
                self.stop(Stop::Broken(how.to_owned()));
            }
            _ => self.fail(BackendError::Other(how.to_owned())),
        }
    }

    fn prompt(&mut self, text: String) {
        match self.step {
            Step::Idle => self.begin(&text),
            Step::Turn(_) | Step::Over => tracing::warn!("a prompt during a turn, or after the end, is not taken"),
            _ => self.prompt = Some(text),
        }
    }

    fn begin(&mut self, text: &str) {
        let params = json!({ "sessionId": self.session.id, "prompt": [{ "type": "text", "text": text }] });
        self.request("session/prompt", &params, Step::Turn(Turn::default()));
        self.out.wait(None);
    }

    fn cancel(&mut self) {
        if self.prompt.take().is_some() {
            self.out.say(Said::Ended(Ended::Cancelled));
        }
        let Step::Turn(turn) = &mut self.step else { return };
        if !turn.cancel() {
            return;
        }
        turn.questions.cancel_all(&mut self.out);
        self.out.send(&message::notice("session/cancel", &json!({ "sessionId": self.session.id })));
        self.out.wait(Some(self.spec.timing.cancel));
    }

    fn answer(&mut self, request: &AskId, option: Option<&str>) {
        if let Step::Turn(turn) = &mut self.step {
            turn.questions.answer(request, option, &mut self.out);
        }
    }

    /// A request that is no question of the turn that runs.
    fn refuse(&mut self, id: &Value, method: &str) {
        let answer = match &self.step {
            _ if method != ASK => {
                message::refusal(id, METHOD_NOT_FOUND, &format!("{method} is not offered by this client"))
            }
            Step::Turn(_) => message::refusal(id, INVALID_PARAMS, "no such session"),
            // Nobody is there to be asked outside of a turn.
            _ => message::answer(id, &Questions::cancelled()),
        };
        self.out.send(&answer);
    }

    fn handle_notice(&mut self, method: &str, params: &Value) {
        if params["sessionId"] != self.session.id || self.session.id.is_empty() {
            return;
        }
        let update = &params["update"];
        match (method, &mut self.step) {
            ("session/update", Step::Turn(turn)) => turn.update(update, &mut self.out),
            // What a loaded session repeats of its past is no part of a reply. What is spent, counts whenever it is told.
            ("session/update", Step::Idle) | (GOOSE_UPDATE, _) => super::turn::spent(update, &mut self.out),
            _ => {}
        }
    }

    fn handle_answer(&mut self, result: Result<Value, RpcError>) {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        match (step, result) {
            (Step::Initialize, Ok(value)) => self.initialized(&value),
            (Step::Resume(id), Ok(value)) => self.opened(id, false, &value),
            (Step::Resume(_), Err(error)) if error.code != message::AUTH_REQUIRED => {
                // It does not know that session any more. The harness is told that this one is new.
                self.new_session();
            }
            (Step::NewSession, Ok(value)) => match value["sessionId"].as_str() {
                Some(id) => self.opened(id.to_owned(), true, &value),
                None => self.fail(BackendError::Other("it opened a session without an id".to_owned())),
            },
            (Step::Choose(what), Ok(_)) => {
                if what == What::Model {
                    self.session.model.clone_from(&self.spec.model);
                }
                self.choose();
            }
            (Step::Turn(turn), Ok(value)) => {
                let ended = turn.end(&value, self.reports, &mut self.out);
                self.end(ended);
            }
            // Many programs answer a cancelled prompt with an error.
            (Step::Turn(turn), Err(_)) if turn.is_cancelled() => self.end(Ended::Cancelled),
            (Step::Turn(turn), Err(error)) => {
                turn.failed(&error, self.reports, &mut self.out);
                self.end(Ended::Error(self.with_ways_to_log_in(failure::backend_error(&error))));
            }
            (Step::Idle | Step::Over, _) => {}
            (_, Err(error)) => {
                let error = self.with_ways_to_log_in(failure::backend_error(&error));
                self.fail(error);
            }
        }
    }

    fn with_ways_to_log_in(&self, error: BackendError) -> BackendError {
        let ways = self.initialized.ways_to_log_in();
        match error {
            BackendError::Auth(why) if !ways.is_empty() => BackendError::Auth(format!("{why} ({ways})")),
            other => other,
        }
    }

    fn initialized(&mut self, value: &Value) {
        let read: Result<Initialized, _> = serde_json::from_value(value.clone());
        self.initialized = read.unwrap_or_default();
        if self.initialized.protocol_version != json!(open::PROTOCOL_VERSION) {
            let theirs = &self.initialized.protocol_version;
            return self.fail(BackendError::Other(format!("it speaks version {theirs} of ACP; Skep speaks version 1")));
        }
        if let Some(program) = self.initialized.program() {
            self.reports = Reports::of(&program);
            self.session.program = program;
        }
        match (self.spec.resume.clone(), self.initialized.resume_method()) {
            (Some(id), Some(method)) => {
                let params = open::session(&self.spec, &self.initialized, Some(&id));
                self.request(method, &params, Step::Resume(id));
            }
            _ => self.new_session(),
        }
    }

    fn new_session(&mut self) {
        let params = open::session(&self.spec, &self.initialized, None);
        self.request("session/new", &params, Step::NewSession);
    }

    fn opened(&mut self, id: String, is_new: bool, value: &Value) {
        let offer = |what| (what, Offer::of(what, value));
        self.wishes = vec![offer(What::Model), offer(What::Mode)];
        let model = self.wishes[0].1.as_ref().and_then(|models| models.current.clone());
        let models = self.wishes[0].1.as_ref().map(Offer::ids).unwrap_or_default();
        self.session = Session { id, is_new, model, models, ..std::mem::take(&mut self.session) };
        self.choose();
    }

    /// The next wish, until there is none. What a program does not let anybody choose, stays as it is; but a mode
    /// that is wanted and not to be had is an error: it may be what makes the program ask.
    fn choose(&mut self) {
        while let Some((what, offer)) = self.wishes.pop() {
            let wanted = match what {
                What::Mode => self.spec.mode.clone(),
                What::Model => self.spec.model.clone(),
            };
            let Some(wanted) = wanted else { continue };
            let choice = match (&offer, what) {
                (Some(offer), _) => offer.choose(&wanted, &self.session.id),
                (None, What::Model) => Choice::Keep,
                (None, What::Mode) => Choice::NotOffered(Vec::new()),
            };
            match choice {
                Choice::Keep => {}
                Choice::Send { method, params } => return self.request(method, &params, Step::Choose(what)),
                Choice::NotOffered(offered) => {
                    let (offered, what) = (cut(&offered.join(", "), OFFERED_BYTES_MAX), what.category());
                    let why = format!("it does not offer the {what} {wanted}; it offers: {offered}");
                    return self.fail(BackendError::Other(why));
                }
            }
        }
        self.ready();
    }

    fn ready(&mut self) {
        self.step = Step::Idle;
        self.out.wait(None);
        self.out.say(Said::Ready(self.session.clone()));
        match self.prompt.take() {
            Some(text) => self.begin(&text),
            None if self.is_closing => self.stop(Stop::Orderly),
            None => {}
        }
    }

    /// Ends a turn. Questions that are still open are withdrawn: the program has gone on without them.
    fn end(&mut self, ended: Ended) {
        if let Step::Turn(turn) = &mut self.step {
            turn.questions.cancel_all(&mut self.out);
        }
        self.step = Step::Idle;
        self.out.wait(None);
        self.out.say(Said::Ended(ended));
        if self.is_closing {
            self.stop(Stop::Orderly);
        }
    }

    /// No session, or no program any more: the reason, typed, and then the end.
    fn fail(&mut self, error: BackendError) {
        let why = error.to_string();
        self.end(Ended::Error(error));
        self.stop(Stop::Broken(why));
    }

    fn stop(&mut self, stop: Stop) {
        self.step = Step::Over;
        self.out.stop(stop);
    }

    fn noise(&mut self, line: &str) {
        self.noise += 1;
        self.noise_in_a_row += 1;
        self.out.say(Said::Noise(Noise { lines: self.noise, last: cut(line, NOISE_BYTES_MAX) }));
        if self.noise_in_a_row == NOISE_IN_A_ROW_MAX {
            let shown = cut(line, 80);
            self.fail(BackendError::Other(format!(
                "{NOISE_IN_A_ROW_MAX} lines in a row are not ACP; the last: {shown}"
            )));
        }
    }

    fn request(&mut self, method: &str, params: &Value, step: Step) {
        let id = self.next_id;
        self.next_id += 1;
        (self.waits_for, self.step) = (id, step);
        let shown = message::request(id, method, &open::without_secrets(params));
        self.out.send_shown(&message::request(id, method, params), &shown);
        self.out.wait(Some(self.spec.timing.open));
    }

    pub fn ladder(&self) -> Ladder {
        self.spec.timing.ladder
    }

    fn is_in_turn(&self) -> bool {
        matches!(self.step, Step::Turn(_))
    }

    /// The deadline that is waited for, counted from now; asked once after each change.
    pub fn take_wait(&mut self) -> Option<Option<Duration>> {
        self.out.take_wait()
    }
}
