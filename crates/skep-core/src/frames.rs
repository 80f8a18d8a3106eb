//! Observer frames (NIP-AO): what happens in a harness, told to its owner once a second.
//!
//! Job: number every item, pack what waits into one frame, and when there is more than can be told, drop the oldest
//! and say how many. Lives as long as its harness.
//! Must not: hold up a turn. A watcher who falls behind loses items, never the agent its time.

use std::collections::VecDeque;

use skep_proto::agent::telemetry::{Authorization, Batch, Payload, Telemetry, TelemetryKind};
use skep_proto::limits;
use skep_proto::time::Moment;

/// Something to tell, before it has its number and time.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub kind: TelemetryKind,
    pub channel_id: Option<String>,
    pub session_id: Option<String>,
    pub turn_id: Option<String>,
    pub authorization: Option<Authorization>,
    pub payload: Payload,
}

/// The machine. `now` is wall-clock: it is what watchers see. A batch has a number of its own, after its items.
#[derive(Debug)]
pub struct Frames {
    agent_index: Option<u32>,
    /// The launch that counts, said once a frame.
    instance: Option<String>,
    next_seq: u64,
    /// Each with its JSON's length.
    waiting: VecDeque<(Telemetry, usize)>,
    bytes: usize,
    /// Items dropped since the start.
    dropped: u64,
    sent_at: Option<Moment>,
}

/// Bytes of a batch around its items: its own number, time, kind, count and instance.
const BATCH_BYTES: usize = 224 + limits::LEASE_INSTANCE_BYTES_MAX;

const _: () = assert!(limits::FRAME_ITEM_BYTES_MAX + BATCH_BYTES <= limits::SEALED_BYTES_MAX);

impl Frames {
    /// `first_seq` must be larger than any number of an earlier start: a time in milliseconds is.
    pub fn new(agent_index: Option<u32>, first_seq: u64) -> Self {
        let waiting = VecDeque::new();
        Self { agent_index, instance: None, next_seq: first_seq, waiting, bytes: 0, dropped: 0, sent_at: None }
    }

    /// With the name of this launch, at most [`limits::LEASE_INSTANCE_BYTES_MAX`] bytes of it.
    #[must_use]
    pub fn of_instance(mut self, instance: &str) -> Self {
        let end = instance.floor_char_boundary(limits::LEASE_INSTANCE_BYTES_MAX);
        self.instance = Some(instance[..end].to_owned());
        self
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn push(&mut self, now: Moment, observation: Observation) {
        let item = self.number(now, observation);
        let Some((item, len)) = fitted(item) else {
            // Its number is a gap that the watcher sees.
            self.dropped += 1;
            return;
        };
        self.bytes += len;
        self.waiting.push_back((item, len));
        while self.bytes > limits::FRAMES_PENDING_BYTES_MAX {
            let Some((_, len)) = self.waiting.pop_front() else { break };
            self.bytes -= len;
            self.dropped += 1;
        }
    }

    /// When the next frame may go; `None` when nothing waits.
    pub fn wake_at(&self) -> Option<Moment> {
        let due = self.sent_at.map_or(Moment(0), |at| Moment(at.0 + limits::FRAME_INTERVAL_MS));
        (!self.waiting.is_empty()).then_some(due)
    }

    /// The next frame's plaintext: one item by itself, or as many as fit in a batch, in order. At most one a second; a
    /// clock that went back is not waited for.
    pub fn poll_frame(&mut self, now: Moment) -> Option<String> {
        let went_back = self.sent_at.is_some_and(|at| now < at);
        if self.wake_at().is_none_or(|at| now < at && !went_back) {
            return None;
        }
        let events = self.take_fitting();
        self.sent_at = Some(now);
        let mut frame = if self.dropped == 0 && events.len() == 1 {
            events.into_iter().next()?
        } else {
            let payload = Payload::of(&Batch { events, dropped: self.dropped });
            self.number(now, Observation { kind: TelemetryKind::Batch, ..Observation::of(payload) })
        };
        frame.instance_id.clone_from(&self.instance);
        frame.to_json().ok()
    }

    fn take_fitting(&mut self) -> Vec<Telemetry> {
        let mut room = limits::SEALED_BYTES_MAX - BATCH_BYTES;
        let mut events = Vec::new();
        while let Some((item, len)) = self.waiting.pop_front() {
            if len >= room {
                self.waiting.push_front((item, len));
                break;
            }
            // And the comma after it.
            room -= len + 1;
            self.bytes -= len;
            events.push(item);
        }
        events
    }

    fn number(&mut self, now: Moment, observation: Observation) -> Telemetry {
        let seq = self.next_seq;
        self.next_seq += 1;
        let Observation { kind, channel_id, session_id, turn_id, authorization, payload } = observation;
        Telemetry {
            seq,
            timestamp: now,
            kind,
            agent_index: self.agent_index,
            instance_id: None,
            channel_id,
            session_id,
            turn_id,
            authorization,
            payload,
        }
    }
}

impl Observation {
    fn of(payload: Payload) -> Self {
        Self {
            kind: TelemetryKind::Batch,
            channel_id: None,
            session_id: None,
            turn_id: None,
            authorization: None,
            payload,
        }
    }
}

/// With its length. A raw frame that is too long is not altered but left out, with its size in its place.
fn fitted(mut item: Telemetry) -> Option<(Telemetry, usize)> {
    let len = |item: &Telemetry| item.to_json().ok().map(|json| json.len());
    let fits = |len: &usize| *len < limits::FRAME_ITEM_BYTES_MAX;
    if item.payload.as_str().len() < limits::FRAME_ITEM_BYTES_MAX
        && let Some(len) = len(&item).filter(fits)
    {
        return Some((item, len));
    }
    item.payload = Payload::of(&serde_json::json!({ "tooLargeBytes": item.payload.as_str().len() }));
    let len = len(&item).filter(fits)?;
    Some((item, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observation(bytes: usize) -> Observation {
        let payload = Payload::of(&"x".repeat(bytes));
        Observation { kind: TelemetryKind::AcpRead, channel_id: Some("c".into()), ..Observation::of(payload) }
    }

    fn open(json: &str) -> Telemetry {
        Telemetry::from_json(json).expect("a frame is telemetry")
    }

    fn seqs(json: &str) -> Vec<u64> {
        open(json).into_items().expect("items").iter().map(|item| item.seq).collect()
    }

    #[test]
    fn at_most_one_frame_a_second_and_what_waits_goes_in_a_batch() {
        let mut frames = Frames::new(None, 5);
        assert_eq!((frames.wake_at(), frames.poll_frame(Moment(0))), (None, None));
        frames.push(Moment(0), observation(1));
        let frame = frames.poll_frame(Moment(0)).expect("the first goes at once");
        assert_eq!(open(&frame).kind, TelemetryKind::AcpRead, "one by itself needs no batch");
        frames.push(Moment(1), observation(1));
        frames.push(Moment(2), observation(1));
        assert_eq!(frames.poll_frame(Moment(999)), None);
        assert_eq!(frames.wake_at(), Some(Moment(1_000)));
        let frame = frames.poll_frame(Moment(1_000)).expect("a second later");
        assert_eq!((open(&frame).kind, seqs(&frame)), (TelemetryKind::Batch, vec![6, 7]));
    }

    #[test]
    fn a_clock_that_went_back_is_not_waited_for() {
        let mut frames = Frames::new(None, 0);
        frames.push(Moment(3_600_000), observation(1));
        assert!(frames.poll_frame(Moment(3_600_000)).is_some());
        frames.push(Moment(0), observation(1));
        assert!(frames.poll_frame(Moment(0)).is_some());
        frames.push(Moment(1), observation(1));
        assert_eq!(frames.poll_frame(Moment(999)), None, "and then once a second again");
    }

    #[test]
    fn when_there_is_too_much_the_oldest_are_dropped_and_the_owner_sees_how_many() {
        let mut frames = Frames::new(None, 0);
        let count = limits::FRAMES_PENDING_BYTES_MAX / 60_000 + 10;
        (0..count).for_each(|_| frames.push(Moment(0), observation(60_000)));
        let dropped = frames.dropped();
        assert!(dropped > 0 && frames.bytes <= limits::FRAMES_PENDING_BYTES_MAX);
        let frame = frames.poll_frame(Moment(0)).expect("a frame");
        let batch: Batch = open(&frame).payload.parse().expect("a batch");
        assert_eq!((batch.dropped, batch.events[0].seq), (dropped, dropped), "a gap in seq, and the count");
    }

    #[test]
    fn a_frame_that_is_too_long_is_left_out_with_its_size() {
        let mut frames = Frames::new(None, 0);
        frames.push(Moment(0), observation(70_000));
        let frame = open(&frames.poll_frame(Moment(0)).expect("a frame"));
        assert_eq!(frame.payload.as_str(), r#"{"tooLargeBytes":70002}"#);
        let huge = Observation { channel_id: Some("c".repeat(70_000)), ..observation(1) };
        frames.push(Moment(0), huge);
        assert_eq!((frames.dropped(), frames.wake_at()), (1, None));
    }

    proptest! {
        #[test]
        fn every_item_is_told_once_and_in_order_or_counted_as_dropped(
            sizes in proptest::collection::vec((0usize..66_000, 0u64..700), 1..60),
        ) {
            let mut frames = Frames::new(Some(1), 0);
            let (mut now, mut told) = (Moment(0), Vec::new());
            let mut last = None;
            for (size, wait) in &sizes {
                now.0 += wait;
                frames.push(now, observation(*size));
                if let Some(frame) = frames.poll_frame(now) {
                    prop_assert!(frame.len() <= limits::SEALED_BYTES_MAX);
                    prop_assert!(last.is_none_or(|last| now.0 - last >= limits::FRAME_INTERVAL_MS));
                    last = Some(now.0);
                    told.extend(seqs(&frame));
                }
            }
            while let Some(at) = frames.wake_at() {
                let frame = frames.poll_frame(at);
                prop_assert!(frame.is_some(), "what waits gets out");
                told.extend(seqs(&frame.unwrap_or_default()));
            }
            prop_assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(told.len() as u64 + frames.dropped(), sizes.len() as u64);
        }
    }
}
