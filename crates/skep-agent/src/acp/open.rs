//! Opening a session: what we say of ourselves, what the program says of itself, its mode and its model.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::spec::{McpServer, McpTransport, Spec};
use crate::text::cut;

/// The version of ACP that is spoken here.
pub const PROTOCOL_VERSION: u64 = 1;

/// Bytes of what a program says of how to log in.
const LOG_IN_BYTES_MAX: usize = 1024;

/// No files and no terminals of ours: a program works in its own process, under its own sandbox, and asks before it
/// acts. Goose tells what it used only to a client that says this.
pub fn initialize() -> Value {
    json!({
        "protocolVersion": PROTOCOL_VERSION,
        "clientCapabilities": {
            "fs": { "readTextFile": false, "writeTextFile": false },
            "terminal": false,
            "_meta": { "goose": { "customNotifications": true } },
        },
        "clientInfo": { "name": "skep", "title": "Skep", "version": env!("CARGO_PKG_VERSION") },
    })
}

/// What a program says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Initialized {
    pub protocol_version: Value,
    agent_capabilities: Value,
    agent_info: Option<AgentInfo>,
    auth_methods: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AgentInfo {
    name: String,
    version: String,
}

impl Initialized {
    pub fn program(&self) -> Option<String> {
        let info = self.agent_info.as_ref().filter(|info| !info.name.is_empty())?;
        Some(format!("{} {}", info.name, info.version).trim_end().to_owned())
    }

    /// What it says of how to log in, for a person who must do that.
    pub fn ways_to_log_in(&self) -> String {
        let methods = self.auth_methods.as_array().into_iter().flatten();
        let described = methods.filter_map(|method| {
            let text = |member: &str| method[member].as_str().filter(|text| !text.is_empty());
            text("description").or_else(|| text("name"))
        });
        cut(&described.collect::<Vec<_>>().join("; or: "), LOG_IN_BYTES_MAX)
    }

    /// How it takes up a session: without repeating what was said, or with, or not at all.
    pub fn resume_method(&self) -> Option<&'static str> {
        let capabilities = &self.agent_capabilities;
        if capabilities["sessionCapabilities"]["resume"].is_object() {
            Some("session/resume")
        } else if capabilities["loadSession"] == true {
            Some("session/load")
        } else {
            None
        }
    }

    pub fn takes_http_tools(&self) -> bool {
        self.agent_capabilities["mcpCapabilities"]["http"] == true
    }
}

/// Parameters of `session/new`, and with an id of `session/load` and `session/resume`.
pub fn session(spec: &Spec, initialized: &Initialized, resumed: Option<&str>) -> Value {
    let takes_http = initialized.takes_http_tools();
    let usable = |server: &&McpServer| takes_http || matches!(server.transport, McpTransport::Stdio { .. });
    let servers: Vec<_> = spec.mcp_servers.iter().filter(usable).map(mcp_server).collect();
    let mut params = json!({ "cwd": spec.cwd, "mcpServers": servers });
    if let Some(id) = resumed {
        params["sessionId"] = json!(id);
    }
    params
}

fn mcp_server(server: &McpServer) -> Value {
    let pairs = |pairs: &[(String, String)]| -> Vec<Value> {
        pairs.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
    };
    match &server.transport {
        McpTransport::Stdio { command, args, env } => {
            json!({ "name": server.name, "command": command, "args": args, "env": pairs(env) })
        }
        McpTransport::Http { url, headers } => {
            json!({ "type": "http", "name": server.name, "url": url, "headers": pairs(headers) })
        }
    }
}

/// The same for those who watch: without the values that may be secrets.
pub fn without_secrets(params: &Value) -> Value {
    let mut shown = params.clone();
    for server in shown["mcpServers"].as_array_mut().into_iter().flatten() {
        for list in ["env", "headers"] {
            for pair in server[list].as_array_mut().into_iter().flatten() {
                pair["value"] = json!("…");
            }
        }
    }
    shown
}

/// Models of one program that are remembered; some have hundreds.
const OFFERED_MAX: usize = 1_024;

/// What of a session can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// How freely it acts: whether it asks before it edits or runs something.
    Mode,
    Model,
}

impl What {
    /// The category of ACP's session options.
    pub fn category(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Model => "model",
        }
    }

    /// The older way, which many programs still have: members of the answer, and how one is chosen.
    fn older(self) -> Older {
        match self {
            Self::Mode => Older {
                offered: "/modes/availableModes",
                current: "/modes/currentModeId",
                id: "id",
                method: "session/set_mode",
                param: "modeId",
            },
            Self::Model => Older {
                offered: "/models/availableModels",
                current: "/models/currentModelId",
                id: "modelId",
                method: "session/set_model",
                param: "modelId",
            },
        }
    }
}

struct Older {
    offered: &'static str,
    current: &'static str,
    id: &'static str,
    method: &'static str,
    param: &'static str,
}

/// What a session offers to choose from, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    what: What,
    pub current: Option<String>,
    offered: Vec<(String, String)>,
    /// The session option's id; `None`: the older way.
    option: Option<String>,
}

/// What to do about a wish.
#[derive(Debug, PartialEq)]
pub enum Choice {
    Keep,
    Send {
        method: &'static str,
        params: Value,
    },
    /// It offers others; their names.
    NotOffered(Vec<String>),
}

impl Offer {
    /// `None`: nothing of the sort can be chosen.
    pub fn of(what: What, answer: &Value) -> Option<Self> {
        Self::from_options(what, &answer["configOptions"]).or_else(|| Self::from_older(what, answer))
    }

    fn from_options(what: What, options: &Value) -> Option<Self> {
        let option = options.as_array()?.iter().find(|option| option["category"] == what.category())?;
        let id = option["id"].as_str()?.to_owned();
        let current = option["currentValue"].as_str().map(str::to_owned);
        let listed = option["options"].as_array()?;
        // A group has options of its own.
        let offered = listed.iter().flat_map(|each| match each["options"].as_array() {
            Some(group) => group.iter().collect::<Vec<_>>(),
            None => vec![each],
        });
        Some(Self {
            what,
            current,
            offered: offered.filter_map(|each| named(each, "value")).collect(),
            option: Some(id),
        })
    }

    fn from_older(what: What, answer: &Value) -> Option<Self> {
        let older = what.older();
        let listed = answer.pointer(older.offered)?.as_array()?;
        let current = answer.pointer(older.current).and_then(Value::as_str).map(str::to_owned);
        let offered = listed.iter().filter_map(|each| named(each, older.id)).collect();
        Some(Self { what, current, offered, option: None })
    }

    /// What can be chosen, by the ids that the program uses.
    pub fn ids(&self) -> Vec<String> {
        self.offered.iter().take(OFFERED_MAX).map(|(id, _)| id.clone()).collect()
    }

    /// By the id that the program uses, or the name that it shows.
    pub fn choose(&self, wanted: &str, session: &str) -> Choice {
        if self.current.as_deref() == Some(wanted) {
            return Choice::Keep;
        }
        let by_id = self.offered.iter().find(|(id, _)| id == wanted);
        let Some((id, _)) = by_id.or_else(|| self.offered.iter().find(|(_, name)| name == wanted)) else {
            return Choice::NotOffered(self.offered.iter().map(|(id, _)| id.clone()).collect());
        };
        if self.current.as_ref() == Some(id) {
            return Choice::Keep;
        }
        match &self.option {
            Some(option) => Choice::Send {
                method: "session/set_config_option",
                params: json!({ "sessionId": session, "configId": option, "value": id }),
            },
            None => {
                let older = self.what.older();
                Choice::Send { method: older.method, params: json!({ "sessionId": session, older.param: id }) }
            }
        }
    }
}

fn named(each: &Value, id: &str) -> Option<(String, String)> {
    let each: &Map<String, Value> = each.as_object()?;
    let id = each.get(id)?.as_str()?;
    let name = each.get("name").and_then(Value::as_str).unwrap_or(id);
    Some((id.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_and_a_mode_are_chosen_in_both_ways_that_programs_offer() {
        let options = json!({ "configOptions": [{ "id": "m", "category": "model", "currentValue": "a",
            "options": [{ "group": "g", "name": "G", "options": [{ "value": "a", "name": "A" }, { "value": "b", "name": "B" }] }] }] });
        let sent = Offer::of(What::Model, &options).expect("an offer").choose("b", "s");
        assert!(matches!(sent, Choice::Send { method: "session/set_config_option", params } if params["value"] == "b"));
        assert_eq!(Offer::of(What::Mode, &options), None);

        let older = json!({ "models": { "currentModelId": "a", "availableModels": [{ "modelId": "a", "name": "A" }, { "modelId": "b", "name": "B" }] },
            "modes": { "currentModeId": "yolo", "availableModes": [{ "id": "yolo", "name": "YOLO" }, { "id": "default", "name": "Ask" }] } });
        let models = Offer::of(What::Model, &older).expect("an offer");
        assert!(
            matches!(models.choose("B", "s"), Choice::Send { method: "session/set_model", params } if params["modelId"] == "b")
        );
        assert_eq!((models.ids(), models.choose("a", "s")), (vec!["a".into(), "b".into()], Choice::Keep));
        assert_eq!(models.choose("A", "s"), Choice::Keep);
        assert_eq!(models.choose("c", "s"), Choice::NotOffered(vec!["a".into(), "b".into()]));
        let modes = Offer::of(What::Mode, &older).expect("an offer");
        assert!(
            matches!(modes.choose("default", "s"), Choice::Send { method: "session/set_mode", params } if params["modeId"] == "default")
        );
    }

    #[test]
    fn who_watches_does_not_see_the_values_of_variables_and_headers() {
        let spec = Spec {
            mcp_servers: vec![McpServer {
                name: "tools".into(),
                transport: McpTransport::Stdio {
                    command: "t".into(),
                    args: vec![],
                    env: vec![("K".into(), "v1".into())],
                },
            }],
            ..Spec::new(crate::Kind::Acp { command: "x".into(), args: vec![] }, "/", crate::Environment::default())
        };
        let params = session(&spec, &Initialized::default(), None);
        assert_eq!(params["mcpServers"][0]["env"][0]["value"], "v1");
        assert!(!without_secrets(&params).to_string().contains("v1"));
    }
}
