//! A line on the terminal that says how far a long job is. Elsewhere nothing is drawn.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use skep_node::transfer::Progress;

/// How often the line is drawn, however often it is told.
const DRAWS_PER_SECOND: u8 = 8;

const BYTES: &str = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {msg} events, {eta} left";
const BYTES_UNKNOWN: &str = "{spinner} {bytes} {bytes_per_sec}, {msg} events, {elapsed}";
const EVENTS: &str = "{bar:30} {human_pos}/{human_len} events, {per_sec}, {eta} left";
const EVENTS_UNKNOWN: &str = "{spinner} {human_pos} events, {per_sec}, {elapsed}";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Events,
}

pub struct Bar {
    bar: ProgressBar,
    unit: Unit,
}

impl Bar {
    /// `total`: how much it will be, where that is known.
    pub fn new(unit: Unit, total: Option<u64>) -> Self {
        let template = match (unit, total) {
            (Unit::Bytes, Some(_)) => BYTES,
            (Unit::Bytes, None) => BYTES_UNKNOWN,
            (Unit::Events, Some(_)) => EVENTS,
            (Unit::Events, None) => EVENTS_UNKNOWN,
        };
        // indicatif draws nothing where stderr is no terminal.
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
        bar.set_style(ProgressStyle::with_template(template).expect("invariant: the templates above are valid"));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, unit }
    }

    /// None at all: the output is on the same terminal.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), unit: Unit::Events }
    }

    /// Begins at what an earlier run did.
    pub fn begin_at(&self, position: u64) {
        self.bar.set_position(position);
        self.bar.reset_eta();
    }

    pub fn tell(&self, progress: Progress) {
        match self.unit {
            Unit::Bytes => {
                self.bar.set_message(progress.events.to_string());
                self.bar.set_position(progress.bytes);
            }
            Unit::Events => self.bar.set_position(progress.events),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
