//! Permission requests that wait for an answer: exactly one each.

use std::collections::VecDeque;

use serde_json::{Value, json};

use skep_core::backend::{Ask, AskId, AskOption, Direction, Said};

use super::message;
use super::out::Out;

/// Questions open at once. A program that asks more at a time is refused: nobody reads 32 cards.
const QUESTIONS_MAX: usize = 32;

#[derive(Default)]
pub struct Questions {
    open: VecDeque<Question>,
    asked: u64,
}

struct Question {
    id: AskId,
    /// The program's own, given back as it came.
    rpc_id: Value,
    options: Vec<AskOption>,
}

impl Questions {
    /// Asks, under an id that is made here; or refuses at once what cannot be answered.
    pub fn ask(&mut self, rpc_id: &Value, mut ask: Ask, out: &mut Out) {
        if self.open.len() == QUESTIONS_MAX || ask.options.is_empty() {
            let frame = ask.frame.map(|json| Said::Frame { direction: Direction::FromBackend, json });
            out.said.extend(frame);
            return out.send(&message::answer(rpc_id, &Self::cancelled()));
        }
        self.asked += 1;
        // With the call's id, so that an answer meant for an earlier turn meets nothing.
        ask.id = AskId(format!("{}#{}", ask.tool.id, self.asked));
        self.open.push_back(Question { id: ask.id.clone(), rpc_id: rpc_id.clone(), options: ask.options.clone() });
        out.say(Said::Ask(ask));
    }

    /// The first answer counts; one to a question that is not open, does nothing. An option that was not offered is
    /// no consent: it counts as none.
    pub fn answer(&mut self, id: &AskId, option: Option<&str>, out: &mut Out) {
        let Some(at) = self.open.iter().position(|question| question.id == *id) else { return };
        let Some(question) = self.open.remove(at) else { return };
        let chosen = option.filter(|option| question.options.iter().any(|offered| offered.id == *option));
        let outcome = chosen
            .map_or_else(Self::cancelled, |option| json!({ "outcome": { "outcome": "selected", "optionId": option } }));
        out.send(&message::answer(&question.rpc_id, &outcome));
    }

    pub fn cancel_all(&mut self, out: &mut Out) {
        for question in self.open.drain(..) {
            out.send(&message::answer(&question.rpc_id, &Self::cancelled()));
        }
    }

    pub fn cancelled() -> Value {
        json!({ "outcome": { "outcome": "cancelled" } })
    }
}
