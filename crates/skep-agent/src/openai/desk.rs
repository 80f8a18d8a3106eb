//! Orders come in and words go out while something else is waited for, so that a cancel is always heard.

use std::future::Future;

use tokio::sync::mpsc;

use skep_core::backend::{AskId, Order, Said};

/// Answers that came before anybody waited for them: one of a question, and a few that are late.
const ANSWERS_MAX: usize = 8;

pub struct Desk {
    orders: mpsc::Receiver<Order>,
    said: mpsc::Sender<Said>,
    is_cancelled: bool,
    is_closing: bool,
    answers: Vec<(AskId, Option<String>)>,
}

impl Desk {
    pub fn new(orders: mpsc::Receiver<Order>, said: mpsc::Sender<Said>) -> Self {
        Self { orders, said, is_cancelled: false, is_closing: false, answers: Vec::new() }
    }

    /// The next prompt; `None` when there will be none.
    pub async fn prompt(&mut self) -> Option<String> {
        while !self.is_closing {
            match self.orders.recv().await? {
                Order::Prompt { text } => {
                    self.is_cancelled = false;
                    self.answers.clear();
                    return Some(text);
                }
                Order::Close => self.is_closing = true,
                // Of a turn that is over.
                Order::Cancel | Order::Answer { .. } => {}
            }
        }
        None
    }

    /// Waits while the harness is slow, and hears its orders meanwhile.
    pub async fn say(&mut self, word: Said) {
        loop {
            let order = tokio::select! {
                biased;
                permit = self.said.reserve() => {
                    // No permit: the harness is gone, and its orders end too.
                    if let Ok(permit) = permit {
                        permit.send(word);
                    }
                    return;
                }
                order = self.orders.recv(), if !self.is_deaf() => order,
            };
            self.take(order);
        }
    }

    /// `None`: cancelled first.
    pub async fn unless_cancelled<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        while !self.is_cancelled {
            tokio::select! {
                biased;
                order = self.orders.recv(), if !self.is_deaf() => self.take(order),
                result = &mut work => return Some(result),
            }
        }
        None
    }

    /// The first answer to a question. `None`: cancelled first.
    pub async fn answer(&mut self, id: &AskId) -> Option<Option<String>> {
        while !self.is_cancelled {
            if let Some(at) = self.answers.iter().position(|(of, _)| of == id) {
                return Some(self.answers.swap_remove(at).1);
            }
            let order = self.orders.recv().await;
            self.take(order);
        }
        None
    }

    /// All senders are gone: there is nothing to hear any more.
    fn is_deaf(&self) -> bool {
        self.is_cancelled && self.is_closing
    }

    fn take(&mut self, order: Option<Order>) {
        match order {
            Some(Order::Cancel) => self.is_cancelled = true,
            Some(Order::Close) => self.is_closing = true,
            Some(Order::Answer { request, option }) if self.answers.len() < ANSWERS_MAX => {
                if !self.answers.iter().any(|(of, _)| *of == request) {
                    self.answers.push((request, option));
                }
            }
            Some(Order::Answer { .. }) => {}
            Some(Order::Prompt { .. }) => tracing::warn!("a prompt during a turn is not taken"),
            None => (self.is_cancelled, self.is_closing) = (true, true),
        }
    }
}
