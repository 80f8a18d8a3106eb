//! Another model for a channel, when its owner says so (`switch_model`, NIP-AO).
//!
//! A turn that runs is ended and its message prompted anew; a backend that is idle is ended. The next one begins with
//! the model, and takes its session up again where the program can. What was chosen outlives a restart.
//! Must not: choose what a program does not offer. A model server does not say what it has, so its word on a model comes
//! with the next turn.

use skep_core::door::Door;
use skep_core::tree::TreeName;
use skep_core::turn::Cancel;
use skep_proto::agent::control::Status;
use skep_store::StoreError;

use super::desk::Desk;
use crate::{Kind, Spec};

fn fact(channel: &str) -> String {
    format!("model:{channel}")
}

/// The fact that names the conversation of a tree: its name is a digest.
pub fn tree_fact(name: &TreeName) -> String {
    format!("tree:{name}")
}

impl<D: Door + 'static> Desk<D> {
    pub(super) fn switch_model(&mut self, channel: &str, model: &str) -> Result<Status, StoreError> {
        let is_offered = match &self.setup.spec.kind {
            Kind::Acp { .. } => self.models_of(channel).is_some_and(|models| models.iter().any(|each| each == model)),
            Kind::OpenAi(_) => !model.is_empty(),
            Kind::Command { .. } => false,
        };
        if !is_offered {
            return Ok(Status::UnsupportedModel);
        }
        let turns = self.running_turns(Some(channel));
        if turns.iter().any(|turn| self.is_ending(turn)) {
            return Ok(Status::TurnEnding);
        }
        self.setup.store.set_fact(&fact(channel), Some(model))?;
        if turns.is_empty() {
            self.end_backend(channel);
            return Ok(Status::Switched);
        }
        for turn in turns {
            self.cancel_turn(&turn, Cancel::SwitchModel)?;
        }
        Ok(Status::Sent)
    }

    /// What the backend of a channel is started from.
    pub(super) fn spec_of(&self, channel: &str) -> Result<Spec, StoreError> {
        let mut spec = self.setup.spec.clone();
        spec.resume = self.setup.store.session(channel)?.map(|row| row.session);
        if let Some(model) = self.setup.store.fact(&fact(channel))? {
            spec.model = Some(model);
        }
        if let Some(trees) = &self.setup.trees {
            let fact = tree_fact(&trees.name_of(channel));
            if self.setup.store.fact(&fact)?.as_deref() != Some(channel) {
                self.setup.store.set_fact(&fact, Some(channel))?;
            }
            spec.tree = Some(trees.conversation(channel));
        }
        Ok(spec)
    }
}
