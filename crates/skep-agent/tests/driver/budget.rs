//! Money has brakes: nothing begins that the budget does not allow, and what was spent is known after a restart.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use skep_agent::driver::{Purse, Refused};
use skep_agent::openai::OpenAi;
use skep_agent::tools::{Tool, ToolAnswer, Toolbox};
use skep_core::backend::ToolKind;
use skep_core::budget::{End, Exhausted, Limit, Limits, Scope, Shared, Spent, Start};
use skep_core::meter::{Price, PriceTable};
use skep_core::turn::TurnId;

use super::*;
use crate::leading::until_is;
use crate::mock_model::{MockModel, Reply};

/// A dollar for a thousand tokens, in or out.
fn prices() -> Option<PriceTable> {
    let price = Price { input: 1_000.0, output: 1_000.0, cache_read: 1_000.0, cache_write: 1_000.0 };
    Some(PriceTable { source: "settings".into(), date: "2026-11-21".into(), rows: Vec::new(), others: Some(price) })
}

fn openai(mock: &MockModel) -> Backend {
    Backend::OpenAi(OpenAi::new(mock.base_url().parse().unwrap(), "mock"))
}

fn reason(instance: &Instance, event: &RawEvent) -> String {
    instance.store.message(&event.id).unwrap().unwrap().state.detail
}

#[tokio::test]
async fn what_the_hour_does_not_allow_waits_until_it_does_and_the_owner_is_told_once() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let machine = Arc::new(Machine::default());
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let start = |name: &str| {
        let budget = Limits { turns_per_hour: Some(1), ..Limits::default() };
        let setup = setup(dir.path(), name, script("cat >/dev/null; echo done"));
        Instance::start(Setup { budget, store: Arc::clone(&store), host: machine.clone(), ..setup }, &relay)
    };
    let instance = start("first");
    instance.tell(PROMPTER).await;
    ask(&instance, "one").await;
    relay.wait_for(Kind::NOTE, 1).await;
    let waiting = [mention(OWNER, "two"), mention(OWNER, "three")];
    for event in &waiting {
        instance.event(event).await;
    }
    let told = relay.wait_for(Kind::NOTE, 2).await.pop().unwrap();
    assert!(told.content.starts_with("budget: turns_per_hour is used up until "), "{}", told.content);
    assert_eq!(told.tags.values("p").collect::<Vec<_>>(), [pubkey(OWNER).to_hex()]);
    until_is(&store, &waiting[0].id, "queued").await;
    assert!(reason(&instance, &waiting[0]).contains("budget: turns_per_hour"));
    instance.kill();

    // A start forgets neither what was used nor that it was told.
    let instance = start("second");
    instance.tell(PROMPTER).await;
    instance.event(&mention(OWNER, "four")).await;
    instance.flush().await;
    assert_eq!(store.newest_turns(9).unwrap().len(), 1, "nothing is spent");
    assert_eq!(relay.accepted(Kind::NOTE).len(), 2, "told once");
    instance.kill();

    machine.ahead_ms.store(3_600_000, Ordering::Relaxed);
    let instance = start("third");
    instance.tell(PROMPTER).await;
    relay.wait_for(Kind::NOTE, 3).await;
    until_is(&store, &waiting[0].id, "answered").await;
    assert_eq!(store.newest_turns(9).unwrap().len(), 2, "one in an hour, the oldest first");
}

#[test]
fn that_many_channels_wait_for_a_budget_is_no_deeper_than_that_one_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wait = move || runtime.block_on(many_channels_wait(400));
    let small = std::thread::Builder::new().stack_size(512 * 1024);
    small.spawn(wait).unwrap().join().unwrap();
}

async fn many_channels_wait(count: usize) {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let budget = Limits { turns_per_hour: Some(0), ..Limits::default() };
    let setup = setup(dir.path(), "a", script("cat >/dev/null; echo done"));
    let instance = Instance::start(Setup { budget, ..setup }, &relay);
    let mut last = None;
    for n in 0..count {
        let draft = Draft::new(Kind::NOTE, now(), "hello").tag(["p", &pubkey(AGENT).to_hex()]);
        let event = draft.tag(["h", &format!("channel-{n}")]).sign(&keys(OWNER), &[0; 32]).raw().clone();
        instance.event(&event).await;
        last = Some(event);
    }
    instance.tell(PROMPTER).await;
    instance.flush().await;
    assert!(reason(&instance, &last.unwrap()).contains("budget: turns_per_hour"));
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 0);
}

#[tokio::test]
async fn a_days_money_is_counted_by_the_meter_and_after_a_restart() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let mock = MockModel::start(|_| Reply::Text("one two three".into())).await;
    let store = Arc::new(AgentStore::open(&dir.path().join("one.db")).unwrap());
    let start = |name: &str, usd_per_day: f64| {
        let budget = Limits { usd_per_day: Some(usd_per_day), ..Limits::default() };
        let setup = setup(dir.path(), name, openai(&mock));
        Instance::start(Setup { budget, prices: prices(), store: Arc::clone(&store), ..setup }, &relay)
    };
    let instance = start("first", 1_000.0);
    instance.tell(PROMPTER).await;
    let asked = ask(&instance, "one").await;
    until_is(&store, &asked.id, "answered").await;
    let bill = &mock.ledger()[0];
    let usd = (bill.input + bill.output) as f64 / 1_000.0;
    let end = store.newest_turns(1).unwrap()[0].end.clone().unwrap();
    let metric = TurnMetric::from_json(&end.metric.unwrap()).unwrap();
    assert!(metric.turn.cost_usd.is_some_and(|cost| (cost - usd).abs() < 1e-9), "{metric:?}, {usd}");
    instance.kill();

    // One turn's money is left but for a hair: the next would need as much again.
    let instance = start("second", 2.0 * usd - 0.000_01);
    instance.tell(PROMPTER).await;
    let asked = ask(&instance, "two").await;
    relay.wait_for(Kind::NOTE, 2).await;
    assert!(
        reason(&instance, &asked).contains("budget: usd_per_day is used up until"),
        "{}",
        reason(&instance, &asked)
    );
    assert_eq!(mock.ledger().len(), 1);
    instance.kill();

    let instance = start("third", 2.0 * usd + 0.000_01);
    instance.tell(PROMPTER).await;
    until_is(&store, &asked.id, "answered").await;
    assert_eq!(mock.ledger().len(), 2, "as soon as there is money");
}

/// A tool that is never done.
struct Again;

impl Toolbox for Again {
    fn tools(&self) -> Vec<Tool> {
        let parameters = json!({ "type": "object", "properties": {} });
        let (name, description) = ("again".to_owned(), "says: once more".to_owned());
        vec![Tool { name, description, parameters, kind: ToolKind::Read, asks: false, writes: false }]
    }

    fn call<'a>(&'a self, _: &'a str, _: Value) -> BoxFuture<'a, ToolAnswer> {
        Box::pin(async { ToolAnswer::ok("once more") })
    }
}

#[tokio::test]
async fn a_turn_that_costs_more_than_one_may_is_ended_and_says_so() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let mock = MockModel::start(|_| Reply::Tool { name: "again".into(), arguments: json!({}) }).await;
    let Backend::OpenAi(settings) = openai(&mock) else { unreachable!() };
    let backend = Backend::OpenAi(OpenAi { tools: Some(Arc::new(Again)), ..settings });
    let budget = Limits { usd_per_turn: Some(0.5), ..Limits::default() };
    let instance = prompter(Setup { budget, prices: prices(), ..setup(dir.path(), "a", backend) }, &relay).await;
    let asked = ask(&instance, "go on for ever").await;
    until_is(&instance.store, &asked.id, "dead").await;
    assert!(reason(&instance, &asked).contains("budget: the turn cost more than usd_per_turn"));
    let notice = relay.wait_for(Kind::NOTE, 1).await.pop().unwrap();
    assert!(notice.content.contains("usd_per_turn"), "{}", notice.content);
    let end = instance.store.newest_turns(1).unwrap()[0].end.clone().unwrap();
    assert_eq!(
        (end.outcome.as_str(), end.reason.as_str()),
        ("cancelled", "budget: the turn cost more than usd_per_turn")
    );
    let metric = TurnMetric::from_json(&end.metric.unwrap()).unwrap();
    assert!(metric.turn.cost_usd.is_some_and(|usd| usd > 0.5), "and it is billed: {metric:?}");
    assert!(mock.ledger().len() < 16, "it was ended in the middle: {} calls", mock.ledger().len());
}

/// A budget in common that refuses as it is told, and keeps what it was asked.
#[derive(Default)]
struct Common {
    refusals: Mutex<VecDeque<Refused>>,
    asked: Mutex<Vec<String>>,
    /// What the last start knew.
    known: Mutex<Vec<End>>,
}

impl Common {
    async fn until(&self, wanted: &[&str]) {
        let heard = async {
            while self.asked.lock().unwrap().as_slice() != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(30), heard).await;
        heard.unwrap_or_else(|_| panic!("{:?}", self.asked.lock().unwrap()));
    }
}

impl Purse for Common {
    fn limits(&self) -> Shared {
        Shared::default()
    }

    fn reserve(&self, _: u64, _: &TurnId, _: PubKey, task: Option<&str>) -> Result<(), Refused> {
        match self.refusals.lock().unwrap().pop_front() {
            Some(refused) => Err(refused),
            None => {
                self.asked.lock().unwrap().push(format!("reserve {}", task.unwrap_or("-")));
                Ok(())
            }
        }
    }

    fn settle(&self, _: u64, _: &TurnId, spent: Option<Spent>) {
        let what = if spent.is_some() { "settle" } else { "give back" };
        self.asked.lock().unwrap().push(what.into());
    }

    fn take_up(&self, start: Start) {
        *self.known.lock().unwrap() = start.ends;
    }

    fn tick(&self, _: u64) {}
}

#[tokio::test]
async fn the_common_budget_is_asked_before_a_turn_and_told_after_it_with_the_task_of_those_who_may_say_one() {
    let (dir, relay) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()));
    let common = Arc::new(Common::default());
    let full = Exhausted {
        scope: Scope::Fleet,
        limit: Limit::UsdPerDay,
        until: now() + 10_000,
        is_aside: false,
        is_news: true,
    };
    let broken = Refused::Unusable("budget: budget.db cannot be used: the disk is full".into());
    common.refusals.lock().unwrap().extend([Refused::Exhausted(full), broken]);
    let setup = setup(dir.path(), "a", script("cat >/dev/null; echo done"));
    let audience = Audience { respond_to: RespondTo::Anyone, ..setup.audience.clone() };
    let instance = Instance::start(Setup { purse: Some(common.clone()), audience, ..setup }, &relay);
    instance.tell(PROMPTER).await;
    let say = |author: u8, channel: &str, task: &str| {
        let draft = Draft::new(Kind::CHAT, now(), "work").tag(["p", &pubkey(AGENT).to_hex()]).tag(["h", channel]);
        draft.tag(["task", task]).sign(&keys(author), &[0; 32]).raw().clone()
    };
    let waiting = [say(OWNER, "one", "T1"), say(OWNER, "two", "T1")];
    for event in &waiting {
        instance.event(event).await;
    }
    instance.flush().await;
    assert!(reason(&instance, &waiting[0]).contains("budget: usd_per_day of the fleet is used up until"));
    assert!(reason(&instance, &waiting[1]).contains("budget.db cannot be used: the disk is full"));
    let told = relay.wait_for(Kind::NOTE, 1).await.pop().unwrap();
    assert!(told.content.starts_with("budget: usd_per_day of the fleet"), "{}", told.content);
    assert_eq!(instance.store.newest_turns(9).unwrap().len(), 0, "nothing is spent");
    for (author, channel, task) in [(OWNER, "three", "T1"), (STRANGER, "four", "T1"), (OWNER, "five", "two words")] {
        let asked = say(author, channel, task);
        instance.event(&asked).await;
        until_is(&instance.store, &asked.id, "answered").await;
    }
    let replies = relay.wait_for(Kind::CHAT, 3).await;
    assert_eq!(replies.iter().map(|reply| reply.tags.single("task")).collect::<Vec<_>>(), [Some("T1"), None, None]);
    let asked = common.asked.lock().unwrap().clone();
    assert_eq!(asked, ["reserve T1", "settle", "reserve -", "settle", "reserve -", "settle"]);
}

#[tokio::test]
async fn a_turn_that_came_to_nothing_before_its_backend_said_anything_costs_nothing() {
    for (backend, wanted) in [
        (script("cat >/dev/null; exit 3"), ["reserve -", "give back"]),
        (script("cat >/dev/null; echo done"), ["reserve -", "settle"]),
    ] {
        let (dir, relay, common) =
            (tempfile::tempdir().unwrap(), Arc::new(Relay::default()), Arc::new(Common::default()));
        let setup = setup(dir.path(), "a", backend);
        let queue = queue::Settings { attempts_max: 1, ..setup.queue };
        let budget = Limits { tokens_per_day: Some(1_000), ..Limits::default() };
        let instance = prompter(Setup { purse: Some(common.clone()), queue, budget, ..setup }, &relay).await;
        ask(&instance, "work").await;
        common.until(&wanted).await;
        let end = async {
            loop {
                match instance.store.newest_turns(1).unwrap().pop().and_then(|turn| turn.end) {
                    Some(end) => return end,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(30), end).await.unwrap();
        assert_eq!(end.charge.is_some(), wanted[1] == "settle", "{end:?}");
    }
}

#[tokio::test]
async fn what_is_set_aside_for_a_turn_that_is_about_to_begin_is_given_back_at_a_stop() {
    let (dir, relay, common) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()), Arc::new(Common::default()));
    let shelf = Arc::new(Shelf::default());
    // What was said before is waited for, for a while: the turn cannot begin yet.
    shelf.is_silent.store(true, Ordering::Relaxed);
    let setup = setup(dir.path(), "a", script("cat >/dev/null; echo done"));
    let instance = prompter(Setup { purse: Some(common.clone()), library: shelf, ..setup }, &relay).await;
    let draft = Draft::new(Kind::CHAT, now(), "hello").tag(["p", &pubkey(AGENT).to_hex()]).tag(["h", "team"]);
    instance.event(draft.sign(&keys(OWNER), &[0; 32]).raw()).await;
    common.until(&["reserve -"]).await;
    instance.pump.abort();
    let Instance { inputs, driver, store, .. } = instance;
    drop(inputs);
    tokio::time::timeout(Duration::from_secs(30), driver).await.unwrap().unwrap().unwrap();
    common.until(&["reserve -", "give back"]).await;
    assert_eq!(store.newest_turns(1).unwrap(), [], "it did not begin");
}

#[tokio::test]
async fn a_start_tells_the_common_budget_of_turns_whose_end_nobody_saw() {
    let (dir, relay, common) = (tempfile::tempdir().unwrap(), Arc::new(Relay::default()), Arc::new(Common::default()));
    let start = |name: &str| {
        let setup = setup(dir.path(), "a", script("cat >/dev/null; sleep 60"));
        Instance::start(Setup { purse: Some(common.clone()), instance: name.into(), ..setup }, &relay)
    };
    let first = start("first");
    first.tell(PROMPTER).await;
    ask(&first, "work").await;
    relay.wait_for(Kind::REACTION, 1).await;
    let turn = first.store.newest_turns(1).unwrap().remove(0);
    first.kill();
    let second = start("second");
    second.flush().await;
    let unseen = End { turn: TurnId(turn.turn), at: turn.started_at, spent: Some(Spent::default()) };
    assert_eq!(*common.known.lock().unwrap(), [unseen]);
}
