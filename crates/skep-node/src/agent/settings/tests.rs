//! Settings of agents, read, checked and resolved.

use super::*;

fn agent(change: impl FnOnce(&mut AgentSettings)) -> AgentSettings {
    let mut settings = AgentSettings {
        name: "scout".into(),
        backend: BackendKind::Command,
        command: "/bin/cat".into(),
        relays: vec!["ws://127.0.0.1:7777".into()],
        ..AgentSettings::default()
    };
    change(&mut settings);
    settings
}

fn free() -> PriceSettings {
    PriceSettings { input: 0.0, output: 0.0, cache_read: None, cache_write: None, date: String::new() }
}

fn server() -> AgentSettings {
    agent(|a| {
        (a.backend, a.command) = (BackendKind::OpenAi, String::new());
        (a.base_url, a.model) = ("http://127.0.0.1:9/v1".into(), "m".into());
    })
}

#[test]
fn a_preset_is_found_in_path_and_asks_before_it_acts() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("goose");
    std::fs::write(&program, "#!/bin/sh\n").expect("written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let leader = LeaderSettings { dir: "/locks".into(), ..LeaderSettings::default() };
    let plan = |preset: &str| {
        let settings = agent(|a| {
            (a.backend, a.command, a.preset) = (BackendKind::Acp, String::new(), preset.into());
            a.args = vec!["--more".into()];
        });
        let path = ("PATH".to_owned(), dir.path().display().to_string());
        settings.plan(&leader, Keys::generate().expect("randomness"), Path::new("/h"), [path])
    };
    let made = plan("goose").expect("a plan");
    let Kind::Acp { command, args } = made.spec.kind else { panic!("it speaks ACP") };
    assert_eq!((command, args), (program, vec!["acp".into(), "--more".into()]));
    assert_eq!(made.spec.env.get("GOOSE_MODE"), Some("approve"));
    let error = plan("opencode").expect_err("it is not there").to_string();
    assert!(error.contains(": preset: OpenCode is not in PATH: npm install"), "{error}");
}

#[test]
fn a_model_server_gets_its_key_its_system_message_and_its_price() {
    let leader = LeaderSettings { dir: "/locks".into(), ..LeaderSettings::default() };
    let host = [("MODEL_KEY".to_owned(), " sesame\n".to_owned())];
    let plan = |change: fn(&mut AgentSettings)| {
        let mut settings = server();
        change(&mut settings);
        settings.plan(&leader, Keys::generate().expect("randomness"), Path::new("/h"), host.clone())
    };
    let made = plan(|a| {
        (a.api_key_env, a.system) = ("MODEL_KEY".into(), "be brief".into());
        a.price = Some(PriceSettings { input: 3.0, ..free() });
        a.budget.turns_per_hour = Some(7);
    });
    let made = made.expect("a plan");
    let Kind::OpenAi(OpenAi { key: Key::Given(_), system, .. }) = made.spec.kind else { panic!("with a key") };
    assert_eq!((system.as_deref(), made.system.as_str()), (Some("be brief"), ""), "said once, and as the system");
    assert_eq!(made.prices.and_then(|table| table.others).map(|price| price.cache_read), Some(3.0));
    assert_eq!(made.budget.turns_per_hour, Some(7));
    let made = plan(|a| a.api_key_file = "/run/key".into()).expect("a plan");
    let Kind::OpenAi(OpenAi { key: Key::File(path), .. }) = made.spec.kind else { panic!("from a file") };
    assert_eq!(path, Path::new("/run/key"));
    let error = plan(|a| a.api_key_env = "OTHER".into()).expect_err("it is not set").to_string();
    assert!(error.contains(": api_key_env: OTHER is not set"), "{error}");
}

#[test]
fn a_wrong_setting_is_named() {
    assert!(agent(|_| {}).check().is_ok());
    type Change = (&'static str, fn(&mut AgentSettings));
    let change: [Change; 18] = [
        ("name", |a| a.name = "Scout".into()),
        ("name", |a| a.name = "a".repeat(64)),
        ("relays", |a| a.relays.clear()),
        ("relays", |a| a.relays.push("http://x".into())),
        ("relays", |a| a.relays.push(a.relays[0].clone())),
        ("parallel", |a| a.parallel = 0),
        ("allowlist", |a| a.allowlist.push("x".into())),
        ("command", |a| a.command.clear()),
        ("preset", |a| a.preset = "goose".into()),
        ("model", |a| (a.backend, a.command) = (BackendKind::OpenAi, String::new())),
        ("base_url", |a| a.base_url = "http://x".into()),
        ("budget", |a| a.budget.usd_per_day = Some(-1.0)),
        ("price", |a| a.price = Some(PriceSettings { output: f64::NAN, ..free() })),
        ("mode", |a| a.mode = queue::Mode::Steer),
        ("api_key_env", |a| a.api_key_env = "KEY".into()),
        ("preset", |a| (a.preset, a.command) = ("goose".into(), String::new())),
        ("preset", |a| (a.backend, a.preset, a.command) = (BackendKind::Acp, "bee".into(), String::new())),
        ("api_key_env", |a| {
            *a = server();
            (a.api_key_env, a.api_key_file) = ("KEY".into(), "key".into());
        }),
    ];
    for (setting, change) in change {
        let error = agent(change).check().expect_err(setting).to_string();
        assert!(error.contains(&format!(": {setting}: ")), "{error}");
    }
    let twice = check_all(&[agent(|_| {}), agent(|_| {})]).expect_err("twice").to_string();
    assert!(twice.starts_with("agent \"scout\": name: "), "{twice}");
}

#[test]
fn a_file_has_agents_and_what_is_unknown_in_it_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    let load = |more: &str| {
        let text = "[leader]\nmode = \"manual\"\n[[agent]]\nname = \"scout\"\ncommand = \"goose\"\nargs = [\"acp\"]\n\
            respond_to = \"siblings\"\nrelays = [\"ws://127.0.0.1:7777\"]\n";
        std::fs::write(&file, format!("{text}{more}")).expect("written");
        crate::config::Settings::load(Some(&file)).map_err(|error| error.to_string())
    };
    let settings = load("").expect("it is read");
    assert_eq!((settings.agent[0].backend, settings.leader.mode), (BackendKind::Acp, leader::Mode::Manual));
    assert_eq!((settings.agent[0].budget.usd_per_day, settings.agent[0].respond_to), (None, RespondTo::Siblings));
    let more = "budget = { usd_per_day = 2.5 }\nprice = { input = 1.0, output = 2.0 }";
    assert_eq!(load(more).expect("it is read").agent[0].budget.usd_per_day, Some(2.5));
    for (more, named) in [
        ("budget = { usd_per_week = 2.5 }", "usd_per_week"),
        ("budget = { task = { usd_per_day = 2.5 } }", "unknown field: found `task`"),
        ("price = { input = 1.0 }", "output"),
        ("paralel = 2", "paralel"),
        ("parallel = 0", "parallel"),
        ("backend = \"x\"", "backend"),
    ] {
        let error = load(more).expect_err(more);
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_plan_has_a_checked_owner_and_a_program_that_is_there() {
    let (keys, owner) = (Keys::generate().expect("randomness"), Keys::generate().expect("randomness"));
    let conditions = skep_proto::attestation::Conditions::default();
    let auth = skep_proto::attestation::attest(owner.keypair(), &keys.pubkey(), &conditions, &[0; 32]);
    let leader = LeaderSettings { dir: "/locks".into(), ..LeaderSettings::default() };
    let plan = |change: fn(&mut AgentSettings), auth: &[String]| {
        let mut settings = agent(change);
        settings.auth = auth.to_vec();
        settings.plan(&leader, keys.clone(), Path::new("/h"), [("PATH".into(), "/bin".into())])
    };
    let made = plan(|a| a.command = "cat".into(), &auth).expect("a plan");
    assert_eq!((made.audience.owner, made.spec.cwd), (Some(owner.pubkey()), PathBuf::from("/h/agents/scout/work")));
    assert!(matches!(made.spec.kind, Kind::Command { command, .. } if command == Path::new("/bin/cat")));
    for (setting, found) in [
        ("command", plan(|a| a.command = "no-such-program".into(), &auth)),
        ("auth", plan(|_| {}, &auth[..3])),
        ("auth", plan(|_| {}, &["auth".into(), owner.pubkey().to_hex(), String::new(), "0".repeat(128)])),
        ("env", plan(|a| a.env = vec!["SKEP_KEY".into(), "PATH".into()], &auth)),
    ] {
        match found {
            Err(error) => assert!(error.to_string().contains(&format!(": {setting}: ")), "{error}"),
            // A variable of ours that is not set cannot be passed on.
            Ok(plan) => assert_eq!((setting, plan.spec.env.get("SKEP_KEY")), ("env", None)),
        }
    }
}

#[test]
fn a_repository_is_for_programs_and_in_place_of_a_directory() {
    let check = |change: fn(&mut AgentSettings)| {
        let mut settings = agent(|a| a.repo = "/repo".into());
        change(&mut settings);
        settings.check().map_err(|error| error.of_agent())
    };
    assert_eq!(check(|_| {}), Ok(()));
    assert_eq!(check(|a| a.worktree_base = "origin/main".into()), Ok(()));
    assert!(check(|a| a.workdir = "/work".into()).is_err_and(|e| e.starts_with("repo: and workdir")));
    assert!(check(|a| a.worktree_base = "--orphan".into()).is_err_and(|e| e.starts_with("worktree_base: is the name")));
    let unused = |a: &mut AgentSettings| (a.repo, a.worktree_base) = (String::new(), "main".into());
    assert!(check(unused).is_err_and(|e| e.starts_with("worktree_base: is read only where repo is set")));
    let mut settings = server();
    settings.repo = "/repo".into();
    assert!(settings.check().is_err_and(|e| e.of_agent().starts_with("repo: is for backend")));
}

#[test]
fn trees_are_in_the_home_of_their_agent_and_nothing_but_git_is_looked_for() {
    let (home, leader) = (
        tempfile::tempdir().expect("a directory"),
        LeaderSettings { dir: "/locks".into(), ..LeaderSettings::default() },
    );
    let plan = |change: fn(&mut AgentSettings), path: &str| {
        let settings = agent(change);
        let path = ("PATH".to_owned(), path.to_owned());
        settings.plan(&leader, Keys::generate().expect("randomness"), home.path(), [path])
    };
    assert!(plan(|_| {}, "/usr/bin:/bin").expect("a plan").trees.is_none());
    let made = plan(|a| a.repo = "/no/such".into(), "/usr/bin:/bin").expect("a plan").trees.expect("trees");
    assert_eq!(made.root(), home.path().canonicalize().expect("a path").join("agents/scout/trees"));
    let error = plan(|a| a.repo = "/no/such".into(), "/nowhere").expect_err("no git").to_string();
    assert!(error.contains("repo: git is not in PATH; install it, or leave repo out"), "{error}");
}
