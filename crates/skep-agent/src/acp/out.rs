//! What the machine wants done, in order.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use serde_json::Value;

use skep_core::backend::{Direction, Said};

use super::message;
use crate::text::pieces;

/// Why the driver is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It was asked for.
    Orderly,
    Broken(String),
}

/// Bounded by what it comes from: no line is read while a word waits here, and a line is bounded.
#[derive(Default)]
pub struct Out {
    pub to_program: BytesMut,
    pub said: VecDeque<Said>,
    pub stop: Option<Stop>,
    wait: Option<Option<Duration>>,
}

impl Out {
    pub fn send(&mut self, message: &Value) {
        self.send_shown(message, message);
    }

    /// Sends one and shows another: with the secrets left out.
    pub fn send_shown(&mut self, message: &Value, shown: &Value) {
        let json = message::shown(&shown.to_string());
        self.said.push_back(Said::Frame { direction: Direction::ToBackend, json });
        self.to_program.extend_from_slice(message.to_string().as_bytes());
        self.to_program.extend_from_slice(b"\n");
    }

    pub fn say(&mut self, said: Said) {
        match said {
            Said::Text(text) => self.said.extend(pieces(&text).map(|piece| Said::Text(piece.to_owned()))),
            Said::Thought(text) => self.said.extend(pieces(&text).map(|piece| Said::Thought(piece.to_owned()))),
            other => self.said.push_back(other),
        }
    }

    /// From now on; `None`: for as long as it takes.
    pub fn wait(&mut self, at_most: Option<Duration>) {
        self.wait = Some(at_most);
    }

    pub fn take_wait(&mut self) -> Option<Option<Duration>> {
        self.wait.take()
    }

    /// The first reason stays.
    pub fn stop(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
    }
}
