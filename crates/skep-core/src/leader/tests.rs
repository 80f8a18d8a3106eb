//! The rules of [`super`], each by its name.

use super::*;
use proptest::prelude::*;

const T: UnixMs = 1_000_000;

fn file(id: &str, at: UnixMs, holds: bool) -> File {
    let file = LockFile { instance_id: id.into(), pid: 7, claimed_at: Moment(at), holds };
    File::Text(serde_json::to_string(&file).expect("it is written"))
}

fn facts(file: File) -> Facts {
    Facts { file, pid: Pid::Alive, hold: Hold::Mine, lease: RelayLease::None }
}

fn auto() -> Leader {
    Leader::new("me", 1, Mode::Auto)
}

fn role(facts: &Facts) -> Role {
    auto().tick(T, facts).0
}

const PROMPTER: Role = Role::Prompter(None);

#[test]
fn the_lock_file_is_frozen() {
    let lock = LockFile { instance_id: "i".into(), pid: 12_345, claimed_at: Moment(0), holds: false };
    let json = serde_json::to_string(&lock).expect("it is written");
    assert_eq!(json, r#"{"instance_id":"i","pid":12345,"claimed_at":"1970-01-01T00:00:00.000Z"}"#);
    let foreign = r#"{"instance_id":"me","pid":1,"claimed_at":1700000000,"more":1}"#;
    assert_eq!(role(&facts(File::Text(foreign.into()))), PROMPTER, "readers look at the id only");
}

#[test]
fn absent_unreadable_empty_or_malformed_every_instance_leads() {
    for mode in [Mode::Auto, Mode::Manual] {
        for file in [File::Absent, File::Unreadable, File::Text(String::new()), File::Text("{".into())] {
            for hold in [Hold::Mine, Hold::Unavailable] {
                let facts = Facts { hold, ..facts(file.clone()) };
                assert_eq!(Leader::new("me", 1, mode).tick(T, &facts).0, PROMPTER, "{file:?}");
            }
            let held = Facts { hold: Hold::Others, ..facts(file) };
            assert_eq!(Leader::new("me", 1, mode).tick(T, &held).0, Role::Follows(None), "unless another holds");
        }
    }
}

#[test]
fn a_claim_is_takeable_when_dead_or_older_than_ten_seconds() {
    let follows = Role::Follows(Some("you".into()));
    assert_eq!(role(&facts(file("you", T - 10_000, false))), follows);
    assert_eq!(role(&facts(file("you", T + 99_000, false))), follows, "a clock that differs is not stale");
    assert_eq!(role(&facts(file("you", T - 10_001, false))), PROMPTER);
    assert_eq!(role(&Facts { pid: Pid::Dead, ..facts(file("you", T, false)) }), PROMPTER);
    assert_eq!(role(&facts(file("me", T - 99_000, false))), PROMPTER);
}

#[test]
fn a_crash_of_ours_is_seen_at_once_by_the_hold_even_when_its_pid_lives_again() {
    assert_eq!(role(&facts(file("you", T, true))), PROMPTER);
    let others = Facts { hold: Hold::Others, ..facts(file("you", T, true)) };
    assert_eq!(role(&others), Role::Follows(Some("you".into())));
}

#[test]
fn a_manual_instance_leads_only_when_told_and_keeps_it() {
    let mut leader = Leader::new("me", 1, Mode::Manual);
    let stale = facts(file("you", T - 60_000, false));
    assert_eq!(leader.tick(T, &stale).0, Role::Follows(Some("you".into())));
    leader.claim();
    let (role, out) = leader.tick(T, &stale);
    assert_eq!(role, PROMPTER);
    assert!(matches!(&out[..], [Effect::Write(file)] if file.instance_id == "me" && file.holds));
}

#[test]
fn who_is_stolen_from_ends_its_turns_and_stands_down_ten_seconds() {
    let mut leader = auto();
    assert_eq!(leader.tick(T, &facts(file("me", T, true))).0, PROMPTER);
    let stolen = facts(file("you", T + 1, false));
    assert!(!leader.may_act(T + 1, &stolen), "at once, before any tick");
    let (role, out) = leader.tick(T + 2, &stolen);
    assert_eq!(role, Role::Follows(Some("you".into())));
    assert_eq!(out, [Effect::Abort, Effect::FreeHold]);
    let free = facts(File::Absent);
    assert_eq!(leader.tick(T + 1 + limits::LEADER_STAND_DOWN_MS, &free).0, Role::Follows(None));
    assert_eq!(leader.tick(T + 2 + limits::LEADER_STAND_DOWN_MS, &free).0, PROMPTER);
}

#[test]
fn a_claim_takes_the_file_and_waits_until_the_one_before_lets_go() {
    let mut leader = auto();
    leader.claim();
    let held = |file| Facts { hold: Hold::Others, ..facts(file) };
    let (role, out) = leader.tick(T, &held(file("you", T, true)));
    assert_eq!(role, Role::Waits(WaitsFor::Hold));
    assert!(matches!(&out[..], [Effect::Write(_), Effect::TakeHold]));
    assert_eq!(leader.tick(T + 10_000, &held(file("me", T, false))).0, Role::Waits(WaitsFor::Hold));
    // It is stopped: it reads the file before it acts, should it ever wake.
    assert_eq!(leader.tick(T + 10_001, &held(file("me", T, false))).0, PROMPTER);
}

#[test]
fn the_prompter_is_local_leader_and_lease_holder_where_leases_exist() {
    let mut leader = auto();
    let with = |lease| Facts { lease, ..facts(file("me", T, true)) };
    for lease in [RelayLease::Unknown, RelayLease::Others] {
        let (role, out) = leader.tick(T, &with(lease));
        assert_eq!((role, out), (Role::Waits(WaitsFor::Lease), vec![Effect::AskLease]));
        assert!(!leader.may_act(T, &with(lease)));
    }
    assert_eq!(leader.tick(T, &with(RelayLease::Held(4))).0, Role::Prompter(Some(4)));
    assert!(!leader.may_act(T, &with(RelayLease::Others)));
    let (_, out) = leader.tick(T, &with(RelayLease::Others));
    assert!(out.contains(&Effect::Abort), "the lease was lost in the middle of a turn");
    let follower = Facts { hold: Hold::Others, ..with(RelayLease::Held(4)) };
    let (role, out) = auto().tick(T, &Facts { file: file("you", T, true), ..follower });
    assert_eq!((role, out), (Role::Follows(Some("you".into())), vec![Effect::FreeLease]));
}

#[test]
fn the_claim_is_renewed_every_round_and_our_own_write_wakes_no_other() {
    let mut leader = auto();
    let mine = |at| {
        let lock = LockFile { instance_id: "me".into(), pid: 1, claimed_at: Moment(at), holds: true };
        facts(File::Text(serde_json::to_string(&lock).expect("it is written")))
    };
    assert_eq!(leader.tick(T, &mine(T)).1, []);
    assert_eq!(leader.tick(T + limits::LEADER_REFRESH_MS, &mine(T)).1.len(), 1);
}

#[test]
fn release_truncates_only_what_is_ours() {
    let mut leader = auto();
    leader.tick(T, &facts(file("me", T, true)));
    assert_eq!(leader.release(T, &facts(file("me", T, true))), [Effect::Truncate, Effect::Abort, Effect::FreeHold]);
    let others = Facts { hold: Hold::Others, ..facts(file("you", T, true)) };
    assert_eq!(auto().release(T, &others), []);
}

/// A machine with instances that share a file and a hold.
struct Machine {
    now: UnixMs,
    file: File,
    holder: Option<usize>,
    leaders: Vec<Option<Leader>>,
    launches: u32,
}

impl Machine {
    fn new(n: usize) -> Self {
        let leaders = (0..n).map(|i| Some(Leader::new(i.to_string(), i as u32, Mode::Auto))).collect();
        Self { now: T, file: File::Absent, holder: None, leaders, launches: n as u32 }
    }

    fn facts(&self, i: usize) -> Facts {
        let text = match &self.file {
            File::Text(text) => text.as_str(),
            _ => "",
        };
        let is_alive = |file: LockFile| self.leaders.iter().flatten().any(|leader| leader.pid == file.pid);
        let pid = match serde_json::from_str::<LockFile>(text) {
            Ok(file) if !is_alive(file.clone()) => Pid::Dead,
            _ => Pid::Alive,
        };
        let hold = if self.holder == Some(i) { Hold::Mine } else { Hold::Others };
        Facts { file: self.file.clone(), pid, hold, lease: RelayLease::None }
    }

    fn tick(&mut self, i: usize) {
        if self.leaders[i].is_none() {
            return;
        }
        self.holder.get_or_insert(i);
        let facts = self.facts(i);
        let Some(leader) = self.leaders[i].as_mut() else { return };
        let (_, out) = leader.tick(self.now, &facts);
        self.carry_out(i, out);
    }

    fn carry_out(&mut self, i: usize, out: Vec<Effect>) {
        for effect in out {
            match effect {
                Effect::Write(file) => self.file = File::Text(serde_json::to_string(&file).expect("it is written")),
                Effect::Truncate => self.file = File::Text(String::new()),
                Effect::FreeHold if self.holder == Some(i) => self.holder = None,
                _ => {}
            }
        }
    }

    fn crash(&mut self, i: usize) {
        self.leaders[i] = None;
        if self.holder == Some(i) {
            self.holder = None;
        }
    }

    fn launch(&mut self, i: usize) {
        if self.leaders[i].is_none() {
            self.launches += 1;
            self.leaders[i] = Some(Leader::new(self.launches.to_string(), self.launches, Mode::Auto));
        }
    }

    fn acting(&self) -> usize {
        let may_act =
            |i: usize| self.leaders[i].as_ref().is_some_and(|leader| leader.may_act(self.now, &self.facts(i)));
        (0..self.leaders.len()).filter(|i| may_act(*i)).count()
    }
}

proptest! {
    #[test]
    fn never_two_prompters_and_one_when_the_faults_end(
        acts in proptest::collection::vec((0usize..3, 0u8..10, 0u64..7_900), 0..60),
    ) {
        let mut machine = Machine::new(3);
        for (i, act, wait) in acts {
            machine.now += wait;
            match act {
                0 => machine.crash(i),
                1 => machine.launch(i),
                2 => if let Some(leader) = machine.leaders[i].as_mut() { leader.claim() },
                3 => {
                    let (now, facts) = (machine.now, machine.facts(i));
                    let Some(leader) = machine.leaders[i].as_mut() else { continue };
                    let out = leader.stand_down(now, &facts).1;
                    machine.carry_out(i, out);
                }
                _ => machine.tick(i),
            }
            prop_assert!(machine.acting() <= 1, "{:?}", machine.file);
        }
        (0..3).for_each(|i| machine.launch(i));
        for _ in 0..10 {
            machine.now += limits::LEADER_REFRESH_MS;
            for i in 0..3 {
                machine.tick(i);
                prop_assert!(machine.acting() <= 1);
            }
        }
        prop_assert_eq!(machine.acting(), 1);
    }
}
