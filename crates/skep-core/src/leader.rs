//! Which instance of an agent prompts (NIP-LE): one on a machine, and one among machines where a relay grants leases.
//!
//! Job: from the lock file, the held lock and the relay's lease say whether this instance may act, and what to write.
//! Three facts, in this order: the *file* says who claims (any NIP-LE program understands it), the *hold* is an OS lock
//! that dies with its process (only ours take it), the *lease* is the relay's word. The shell calls [`Leader::tick`]
//! every 5 s, when the file changes and when the hold is freed, with the file locked from before it reads it until the
//! effects are carried out; before each act on the wire it asks [`Leader::may_act`].
//! Must not: lead because something could not be read while another process is known to hold the lock.

use serde::{Deserialize, Serialize};
use skep_proto::lease::Epoch;
use skep_proto::limits;
use skep_proto::time::{Moment, UnixMs};

/// What stands in `<agent>.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFile {
    pub instance_id: String,
    pub pid: u32,
    pub claimed_at: Moment,
    /// Ours: its writer keeps the hold while it leads. So when the hold is free, the writer is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds: bool,
}

/// The lock file as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum File {
    Absent,
    /// The file system refuses, or it is a link.
    Unreadable,
    Text(String),
}

/// Whether the process in the file lives, by `kill(pid, 0)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pid {
    /// ESRCH.
    Dead,
    /// Also when we may not ask (EPERM).
    Alive,
}

/// The held lock `<agent>.hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    Mine,
    Others,
    /// Locks do not work here.
    Unavailable,
}

/// The relay's lease `prompter:<agent>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayLease {
    /// Ours, and not run out by our own clock.
    Held(Epoch),
    Others,
    /// The relay grants leases, and has not answered.
    Unknown,
    /// No relay of this agent grants leases: the guarantee is per machine.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub file: File,
    /// About the process in the file.
    pub pid: Pid,
    pub hold: Hold,
    pub lease: RelayLease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Takes the lead when nobody has it.
    #[default]
    Auto,
    /// Leads only when it is told to.
    Manual,
}

/// What an instance is, for its screens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// May prompt, react and publish; under this lease where there is one.
    Prompter(Option<Epoch>),
    /// Leads on this machine, and waits for what is named.
    Waits(WaitsFor),
    /// `None`: nobody knows by whom.
    Follows(Option<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// The one before to let go.
    Hold,
    /// The relay, or the instance on another machine that has its lease.
    Lease,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the file in place, under its lock.
    Write(LockFile),
    /// Truncate it; never unlink it: another may have it open.
    Truncate,
    TakeHold,
    FreeHold,
    /// Acquire the relay's lease, or renew it.
    AskLease,
    FreeLease,
    /// This instance was the prompter and is not any more: end its turns.
    Abort,
}

/// What a file says about who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    /// `None`: by its id; the rest is not readable.
    Mine(Option<LockFile>),
    /// Absent, empty or malformed.
    Nobody,
    /// Of a process that is dead.
    Dead(String),
    /// Not renewed in time.
    Stale(String),
    /// Cannot be read, so not written either.
    Unreadable,
    Others(String),
}

/// The machine. Times are wall-clock milliseconds: the file is shared between processes.
#[derive(Debug)]
pub struct Leader {
    instance_id: String,
    pid: u32,
    mode: Mode,
    /// Explicitly told to lead, until it is stolen from.
    is_claimed: bool,
    stands_down_until: UnixMs,
    /// Since when the file has been ours while another holds the hold.
    awaits_hold_since: Option<UnixMs>,
    has_led: bool,
    is_prompter: bool,
}

impl Leader {
    /// `instance_id` must be unique to this launch of the process.
    pub fn new(instance_id: impl Into<String>, pid: u32, mode: Mode) -> Self {
        Self {
            instance_id: instance_id.into(),
            pid,
            mode,
            is_claimed: false,
            stands_down_until: 0,
            awaits_hold_since: None,
            has_led: false,
            is_prompter: false,
        }
    }

    /// The owner says that this instance is to lead (`skep claim`, `claim_leadership`). The next tick takes the file,
    /// whoever has it.
    pub fn claim(&mut self) {
        self.is_claimed = true;
        self.has_led = false;
        self.stands_down_until = 0;
    }

    /// The owner says that another instance is to lead.
    pub fn stand_down(&mut self, now: UnixMs, facts: &Facts) -> (Role, Vec<Effect>) {
        self.step_back(now);
        let mut out = Vec::new();
        if matches!(self.read(now, facts), Claim::Mine(_)) {
            out.push(Effect::Truncate);
        }
        self.let_go(facts, &mut out);
        (Role::Follows(None), out)
    }

    /// The end of the process: frees what is ours, and only that.
    pub fn release(&mut self, now: UnixMs, facts: &Facts) -> Vec<Effect> {
        self.stand_down(now, facts).1
    }

    pub fn tick(&mut self, now: UnixMs, facts: &Facts) -> (Role, Vec<Effect>) {
        let mut out = Vec::new();
        let claim = self.read(now, facts);
        let role = if self.has_local_lead(now, facts, &claim, &mut out) {
            self.has_led = true;
            self.local_leader(now, facts, &mut out)
        } else {
            self.awaits_hold_since = None;
            if std::mem::take(&mut self.has_led) && matches!(claim, Claim::Others(_)) {
                self.step_back(now);
            }
            self.let_go(facts, &mut out);
            Role::Follows(match claim {
                Claim::Others(id) | Claim::Stale(id) | Claim::Dead(id) => Some(id),
                Claim::Mine(_) | Claim::Nobody | Claim::Unreadable => None,
            })
        };
        let is_prompter = matches!(role, Role::Prompter(_));
        if self.is_prompter && !is_prompter && !out.contains(&Effect::Abort) {
            out.push(Effect::Abort);
        }
        self.is_prompter = is_prompter;
        (role, out)
    }

    /// The check before each act: a process that was stopped and wakes up must not act on what it knew.
    pub fn may_act(&self, now: UnixMs, facts: &Facts) -> bool {
        let leads_here = match self.read(now, facts) {
            Claim::Mine(_) => true,
            Claim::Nobody | Claim::Unreadable => facts.hold != Hold::Others,
            // Lapsed or not, it is not ours: it may have been made while we were stopped.
            Claim::Others(_) | Claim::Stale(_) | Claim::Dead(_) => false,
        };
        let has_lease = matches!(facts.lease, RelayLease::Held(_) | RelayLease::None);
        self.is_prompter && leads_here && has_lease
    }

    fn read(&self, now: UnixMs, facts: &Facts) -> Claim {
        /// What every reader looks at.
        #[derive(Deserialize)]
        struct Id {
            instance_id: String,
        }
        let text = match &facts.file {
            File::Absent => return Claim::Nobody,
            File::Unreadable => return Claim::Unreadable,
            File::Text(text) => text,
        };
        let Ok(Id { instance_id }) = serde_json::from_str(text) else { return Claim::Nobody };
        let file = serde_json::from_str::<LockFile>(text).ok();
        if instance_id == self.instance_id {
            return Claim::Mine(file);
        }
        // Without a readable time a claim has no age that could be too young.
        let Some(file) = file else { return Claim::Stale(instance_id) };
        let is_gone = file.holds && facts.hold == Hold::Mine;
        if facts.pid == Pid::Dead || is_gone {
            return Claim::Dead(instance_id);
        }
        // A time in the future is a clock that differs, not a stale claim.
        let is_stale = now.saturating_sub(file.claimed_at.0) > limits::LEADER_STALE_MS;
        if is_stale { Claim::Stale(instance_id) } else { Claim::Others(instance_id) }
    }

    /// Whether this instance leads on this machine, after what is written now.
    fn has_local_lead(&self, now: UnixMs, facts: &Facts, claim: &Claim, out: &mut Vec<Effect>) -> bool {
        if now < self.stands_down_until {
            return false;
        }
        let wants = self.is_claimed || self.mode == Mode::Auto;
        let is_held = facts.hold == Hold::Others;
        let takes = match claim {
            Claim::Mine(_) => true,
            // Another of ours holds the lock and is about to write: it leads.
            Claim::Nobody | Claim::Dead(_) if is_held => self.is_claimed,
            Claim::Nobody | Claim::Dead(_) | Claim::Stale(_) => wants,
            Claim::Others(_) => self.is_claimed && !self.has_led,
            // A lone user on a file system without permissions never notices; two processes are told apart by the hold.
            Claim::Unreadable => return !is_held,
        };
        if takes && self.needs_write(now, facts, claim) {
            out.push(Effect::Write(self.lock_file(now, facts)));
        }
        // In manual mode, where nobody was chosen, whoever holds leads.
        takes || (*claim == Claim::Nobody && !is_held)
    }

    /// Our own write wakes us, too: what is young and right is not written again.
    fn needs_write(&self, now: UnixMs, facts: &Facts, claim: &Claim) -> bool {
        let Claim::Mine(Some(file)) = claim else { return true };
        let is_young = now.abs_diff(file.claimed_at.0) < limits::LEADER_REFRESH_MS / 2;
        !is_young || file.holds != (facts.hold == Hold::Mine)
    }

    fn local_leader(&mut self, now: UnixMs, facts: &Facts, out: &mut Vec<Effect>) -> Role {
        match facts.hold {
            Hold::Mine | Hold::Unavailable => self.awaits_hold_since = None,
            Hold::Others => {
                out.push(Effect::TakeHold);
                let since = *self.awaits_hold_since.get_or_insert(now);
                // The file is ours, so whoever holds reads it before it acts; one that is stopped holds for ever.
                if now.saturating_sub(since) <= limits::LEADER_STALE_MS {
                    return Role::Waits(WaitsFor::Hold);
                }
            }
        }
        if facts.lease != RelayLease::None {
            out.push(Effect::AskLease);
        }
        match facts.lease {
            RelayLease::Held(epoch) => Role::Prompter(Some(epoch)),
            RelayLease::None => Role::Prompter(None),
            RelayLease::Others | RelayLease::Unknown => Role::Waits(WaitsFor::Lease),
        }
    }

    fn step_back(&mut self, now: UnixMs) {
        self.is_claimed = false;
        self.has_led = false;
        self.stands_down_until = now + limits::LEADER_STAND_DOWN_MS;
    }

    fn let_go(&mut self, facts: &Facts, out: &mut Vec<Effect>) {
        if self.is_prompter {
            out.push(Effect::Abort);
        }
        self.is_prompter = false;
        if matches!(facts.lease, RelayLease::Held(_)) {
            out.push(Effect::FreeLease);
        }
        if facts.hold == Hold::Mine {
            out.push(Effect::FreeHold);
        }
    }

    fn lock_file(&self, now: UnixMs, facts: &Facts) -> LockFile {
        LockFile {
            instance_id: self.instance_id.clone(),
            pid: self.pid,
            claimed_at: Moment(now),
            holds: facts.hold == Hold::Mine,
        }
    }
}

#[cfg(test)]
mod tests;
