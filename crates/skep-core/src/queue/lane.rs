//! The channels of an inbox: a lane for each, with its messages in order and at most one turn.

use std::collections::BTreeMap;

use ahash::AHashMap;
use skep_proto::EventId;
use skep_proto::lease::Epoch;
use skep_proto::time::UnixMs;

use super::row::{Place, Row, State};
use crate::turn::TurnId;

#[derive(Debug, Default)]
struct Lane {
    rows: BTreeMap<Place, Row>,
    turn: Option<Turn>,
}

/// The one turn of a lane.
#[derive(Debug)]
struct Turn {
    /// The messages that it answers; the first began it.
    ids: Vec<EventId>,
    /// `None` while budget, lease and journal are seen to.
    id: Option<TurnId>,
}

impl Lane {
    /// Messages whose sender is not judged yet hold up nobody.
    fn head(&self) -> Option<&Row> {
        self.rows.values().find(|row| row.state == State::Queued)
    }
}

/// Every message that has not ended, by channel.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: BTreeMap<String, Lane>,
    index: AHashMap<EventId, (String, UnixMs)>,
}

impl Lanes {
    pub fn count(&self) -> usize {
        self.index.len()
    }

    pub fn knows(&self, id: &EventId) -> bool {
        self.index.contains_key(id)
    }

    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.lanes.values().flat_map(|lane| lane.rows.values())
    }

    pub fn insert(&mut self, row: Row) {
        let message = &row.message;
        self.index.insert(message.id, (message.channel.clone(), message.arrived_at));
        self.lanes.entry(message.channel.clone()).or_default().rows.insert(row.place(), row);
    }

    pub fn get_mut(&mut self, id: &EventId) -> Option<&mut Row> {
        let (channel, at) = self.index.get(id)?;
        self.lanes.get_mut(channel)?.rows.get_mut(&(*at, *id))
    }

    pub fn remove(&mut self, id: &EventId) -> Option<Row> {
        let (channel, at) = self.index.remove(id)?;
        let lane = self.lanes.get_mut(&channel)?;
        let row = lane.rows.remove(&(at, *id));
        if lane.rows.is_empty() && lane.turn.is_none() {
            self.lanes.remove(&channel);
        }
        row
    }

    /// Takes out a message that is in no turn, not even in one that is about to begin.
    pub fn remove_waiting(&mut self, id: &EventId) -> Option<Row> {
        let (channel, _) = self.index.get(id)?;
        let turn = self.lanes.get(channel)?.turn.as_ref();
        if turn.is_some_and(|turn| turn.ids.contains(id)) { None } else { self.remove(id) }
    }

    /// Takes out a message whose turn does not run yet. A lane in which it was about to begin is free again.
    pub fn call_off(&mut self, id: &EventId) -> Option<Row> {
        if self.is_starting(id) {
            let (channel, _) = self.index.get(id)?;
            self.lanes.get_mut(channel)?.turn = None;
        }
        self.remove_waiting(id)
    }

    /// Takes out a message whose turn goes on without it.
    pub fn leave(&mut self, id: &EventId) -> Option<Row> {
        let (channel, _) = self.index.get(id)?;
        let turn = self.lanes.get_mut(channel)?.turn.as_mut()?;
        turn.ids.retain(|other| other != id);
        self.remove(id)
    }

    /// The messages of the turn of a lane.
    pub fn in_turn(&self, channel: &str) -> Vec<EventId> {
        let turn = self.lanes.get(channel).and_then(|lane| lane.turn.as_ref());
        turn.map(|turn| turn.ids.clone()).unwrap_or_default()
    }

    /// Lanes with a turn that runs or is about to.
    pub fn busy(&self) -> usize {
        self.lanes.values().filter(|lane| lane.turn.is_some()).count()
    }

    /// `None`: the channel is free. `Some(None)`: its turn is about to begin.
    pub fn turn_in(&self, channel: &str) -> Option<Option<TurnId>> {
        self.lanes.get(channel)?.turn.as_ref().map(|turn| turn.id.clone())
    }

    /// The most urgent, then oldest message that may begin now; its lane is busy from here on.
    pub fn start_next(&mut self, now: UnixMs) -> Option<&Row> {
        let is_due = |row: &&Row| row.retry_at.is_none_or(|at| at <= now);
        let free = self.lanes.values().filter(|lane| lane.turn.is_none());
        let rank = |row: &&Row| (std::cmp::Reverse(row.message.priority), row.place());
        let next = free.filter_map(Lane::head).filter(is_due).min_by_key(rank)?;
        let (channel, place) = (next.message.channel.clone(), next.place());
        let lane = self.lanes.get_mut(&channel)?;
        lane.turn = Some(Turn { ids: vec![place.1], id: None });
        lane.rows.get(&place)
    }

    /// When the next head that has to wait may begin.
    pub fn next_at(&self, now: UnixMs) -> Option<UnixMs> {
        let free = self.lanes.values().filter(|lane| lane.turn.is_none());
        free.filter_map(Lane::head).map(|row| row.retry_at.unwrap_or(now)).min()
    }

    pub fn is_starting(&self, id: &EventId) -> bool {
        let lane = self.index.get(id).and_then(|(channel, _)| self.lanes.get(channel));
        let turn = lane.and_then(|lane| lane.turn.as_ref());
        turn.is_some_and(|turn| turn.id.is_none() && turn.ids.contains(id))
    }

    /// The message whose turn is about to begin.
    pub fn starting(&mut self, id: &EventId) -> Option<&mut Row> {
        if self.is_starting(id) { self.get_mut(id) } else { None }
    }

    pub fn run(&mut self, channel: &str, id: TurnId) {
        if let Some(turn) = self.lanes.get_mut(channel).and_then(|lane| lane.turn.as_mut()) {
            turn.id = Some(id);
        }
    }

    /// Adds a message to the turn that runs; the epoch that it runs under. `None`: it runs no more.
    pub fn join(&mut self, channel: &str, turn: &TurnId, id: EventId) -> Option<Epoch> {
        let lane = self.lanes.get_mut(channel)?;
        let running = lane.turn.as_mut().filter(|running| running.id.as_ref() == Some(turn))?;
        let first = *running.ids.first()?;
        running.ids.push(id);
        let (_, at) = self.index.get(&first)?;
        match lane.rows.get(&(*at, first))?.state {
            State::Prompted { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// Ends the turn of a lane; the messages that were in it, in order.
    pub fn free(&mut self, channel: &str) -> Vec<EventId> {
        let turn = self.lanes.get_mut(channel).and_then(|lane| lane.turn.take());
        turn.map(|turn| turn.ids).unwrap_or_default()
    }
}
