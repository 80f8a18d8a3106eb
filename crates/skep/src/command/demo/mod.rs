//! `skep up --demo`: what Skep does, shown with three agents that need no model, in a home of their own.
//!
//! Every line of the story is printed when the thing was seen: in an event of the relay, in a control socket's answer,
//! or on the disk. `witness` sees, `narrator` prints, `story` is the order of things.

mod narrator;
mod story;
mod witness;

use skep_node::demo::{self, Stage, TWICE};
use skep_node::home::Home;
use skep_node::node::{Blueprint, Node};

use super::signals::Signals;
use crate::error::{CliError, Kind};
use crate::screen::{self, Output};

use narrator::Narrator;

pub async fn run(home: &Home, out: &mut Output) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let mut narrator = Narrator::new(out);
    let stage = demo::stage(home)?;
    let mut node = Node::start(first_act(&stage)).await?;
    let fleet = node.fleet().clone();
    let told = tokio::select! {
        biased;
        _ = signals.next() => Ok(false),
        told = story::tell(&stage, &fleet, &mut narrator) => told.map(|()| true),
        // It has no reason to end: nobody stops it.
        () = node.run(std::future::pending()) => Ok(false),
    };
    if matches!(told, Ok(true)) {
        let stop = async {
            signals.next().await;
        };
        node.run(stop).await;
    }
    signals.exit_at_next();
    narrator.end();
    node.stop().await;
    told.map(drop)
}

/// The relay and the agents that run once. The other one comes when its second instance leads.
fn first_act(stage: &Stage) -> Blueprint {
    let mut settings = stage.settings.clone();
    settings.agent.retain(|agent| agent.name != TWICE);
    Blueprint { home: stage.home.clone(), config: Some(stage.config.clone()), settings }
}

/// A story that does not go on as it should.
fn stuck(waited_for: &str) -> CliError {
    CliError::new(Kind::Internal, format!("the demo waited for {waited_for}, and it did not come"))
        .hint("RUST_LOG=info skep up --demo says more")
}

/// Said beside the story.
fn aside(text: &str) {
    screen::remark(text);
}
