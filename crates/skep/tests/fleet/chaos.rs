//! What is done to a hive while it is asked: instances and the relay die, stop, sleep and come back, lines break.
//!
//! What is done next is drawn from a seed; when it happens is the machine's.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;

use crate::hive::{Hive, LOOK};
use crate::proxy::End;

/// Between two acts.
const GAP_MS: std::ops::Range<u64> = 200..900;

/// Longer than the relay's lease on being prompter (15 s), and until a claim in the lock file and then the hold of who
/// sleeps count for nothing (10 s each): another takes the lead.
const LONG_SLEEP: Duration = Duration::from_secs(20);

/// What ends by itself at a time.
#[derive(Debug, Clone, Copy)]
enum Later {
    Start(usize),
    /// It was told to stop, and may still be at it.
    StartWhenGone(usize),
    Wake(usize),
    Mend(usize),
    RelayUp,
}

pub struct Chaos<'h> {
    hive: &'h mut Hive,
    rng: StdRng,
    begin: Instant,
    later: Vec<(Instant, Later)>,
    asleep: Vec<usize>,
    is_relay_up: bool,
    had_long_sleep: bool,
}

impl<'h> Chaos<'h> {
    pub fn new(hive: &'h mut Hive, rng: StdRng) -> Self {
        let begin = Instant::now();
        Self { hive, rng, begin, later: Vec::new(), asleep: Vec::new(), is_relay_up: true, had_long_sleep: false }
    }

    /// Goes on until told otherwise, then mends everything.
    pub fn run(mut self, goes_on: impl Fn() -> bool) {
        let mut next = Instant::now();
        while goes_on() {
            self.come_due(Instant::now());
            if Instant::now() >= next {
                self.act();
                next = Instant::now() + Duration::from_millis(self.rng.random_range(GAP_MS));
            }
            // Not a wait for anything: these moments are what is being tested.
            std::thread::sleep(LOOK);
        }
        self.mend();
    }

    fn act(&mut self) {
        let n = self.choose();
        let is_free = self.hive.slots[n].process.is_some() && !self.asleep.contains(&n);
        let kind = if self.had_long_sleep { self.rng.random_range(0..100) } else { 45 };
        let ms = |rng: &mut StdRng, range| Duration::from_millis(rng.random_range(range));
        match kind {
            0..25 if is_free => {
                self.tell(&format!("kill -9 of {n}"));
                self.hive.kill(n);
                let wait = ms(&mut self.rng, 0..3_000);
                self.after(wait, Later::Start(n));
            }
            25..35 if is_free => {
                self.tell(&format!("SIGTERM to {n}"));
                self.signal(n, Signal::TERM);
                self.asleep.push(n);
                let wait = ms(&mut self.rng, 0..3_000);
                self.after(wait, Later::StartWhenGone(n));
            }
            35..45 if is_free => {
                let wait = ms(&mut self.rng, 100..4_000);
                self.sleep(n, wait);
            }
            45..48 if is_free => {
                self.had_long_sleep = true;
                self.sleep(n, LONG_SLEEP);
            }
            48..60 => {
                self.tell(&format!("the lines of {n} are cut"));
                self.hive.slots[n].proxy.cut(End::Closed);
            }
            60..70 => {
                self.tell(&format!("the lines of {n} are reset"));
                self.hive.slots[n].proxy.cut(End::Reset);
            }
            70..80 => {
                let wait = ms(&mut self.rng, 500..7_000);
                self.tell(&format!("the lines of {n} stall for {wait:?}"));
                self.hive.slots[n].proxy.stall(true);
                self.after(wait, Later::Mend(n));
            }
            80..92 => {
                let bytes = self.rng.random_range(0..20_000);
                self.tell(&format!("the lines of {n} break after {bytes} bytes"));
                self.hive.slots[n].proxy.cut_after(bytes);
            }
            92..100 if self.is_relay_up => {
                let wait = ms(&mut self.rng, 0..1_500);
                self.tell(&format!("kill -9 of the relay for {wait:?}"));
                self.hive.relay_down();
                self.is_relay_up = false;
                self.after(wait, Later::RelayUp);
            }
            _ => {}
        }
    }

    /// Mostly whoever prompts: what happens to it is what matters.
    fn choose(&mut self) -> usize {
        let any = self.rng.random_range(0..self.hive.slots.len());
        let wants_prompter = !self.had_long_sleep || self.rng.random_bool(0.6);
        let prompter = (wants_prompter && self.is_relay_up).then(|| self.hive.prompter());
        prompter.flatten().unwrap_or(any)
    }

    fn sleep(&mut self, n: usize, wait: Duration) {
        self.tell(&format!("{n} sleeps for {wait:?}"));
        self.signal(n, Signal::STOP);
        self.asleep.push(n);
        self.after(wait, Later::Wake(n));
    }

    fn signal(&self, n: usize, signal: Signal) {
        if let Some(process) = &self.hive.slots[n].process {
            process.signal(signal);
        }
    }

    fn after(&mut self, wait: Duration, later: Later) {
        self.later.push((Instant::now() + wait, later));
    }

    fn come_due(&mut self, now: Instant) {
        let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= now);
        self.later = later;
        let due: Vec<(Instant, Later)> = due;
        due.into_iter().for_each(|(_, later)| self.do_later(later));
    }

    fn do_later(&mut self, later: Later) {
        match later {
            Later::Start(n) => self.hive.start(n),
            Later::StartWhenGone(n) => {
                let process = self.hive.slots[n].process.as_mut();
                if process.is_some_and(|process| process.child.try_wait().unwrap().is_none()) {
                    return self.after(LOOK, later);
                }
                self.asleep.retain(|other| *other != n);
                self.hive.slots[n].process = None;
                self.hive.start(n);
            }
            Later::Wake(n) => {
                self.signal(n, Signal::CONT);
                self.asleep.retain(|other| *other != n);
            }
            Later::Mend(n) => self.hive.slots[n].proxy.mend(),
            Later::RelayUp => {
                self.hive.relay_up();
                self.is_relay_up = true;
            }
        }
        self.tell(&format!("{later:?}"));
    }

    /// Everything that was to come back does, now.
    fn mend(&mut self) {
        self.tell("all is mended");
        while !self.later.is_empty() {
            let later = std::mem::take(&mut self.later);
            later.into_iter().for_each(|(_, later)| self.do_later(later));
            std::thread::sleep(LOOK);
        }
        self.hive.slots.iter().for_each(|slot| slot.proxy.mend());
    }

    fn tell(&self, what: &str) {
        println!("{:7.3} s: {what}", self.begin.elapsed().as_secs_f64());
    }
}
