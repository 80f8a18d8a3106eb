//! Model servers on this machine's loopback.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use url::Url;

use crate::http::{self, Call};
use crate::openai::OpenAi;

/// For an answer on loopback: a list that is in memory takes milliseconds; Ollama reads its from a disk.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// Bytes of a list of models, and how many are named.
const LIST_BYTES_MAX: usize = 1024 * 1024;
const MODELS_MAX: usize = 256;

/// Where servers listen unless they are told otherwise. Two share 8080, and much else may be there.
pub const PORTS: [(u16, &str); 4] =
    [(11_434, "Ollama"), (8_080, "llama.cpp or mlx_lm"), (8_000, "vLLM"), (1_234, "LM Studio")]; // not a kind

/// What servers call the owner of their models.
const OWNERS: [(&str, &str); 4] =
    [("llamacpp", "llama.cpp"), ("vllm", "vLLM"), ("library", "Ollama"), ("organization_owner", "LM Studio")];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub name: &'static str,
    pub base_url: Url,
    pub models: Vec<String>,
}

impl Server {
    /// How to reach one of its models.
    pub fn settings(&self, model: &str) -> OpenAi {
        OpenAi::new(self.base_url.clone(), model)
    }
}

/// Those that answer, in the order of the ports.
pub async fn servers(ports: &[(u16, &'static str)]) -> Vec<Server> {
    let probes = ports.iter().map(|(port, name)| tokio::time::timeout(PROBE_MAX, probe(*port, name)));
    join_all(probes).await.into_iter().filter_map(|answer| answer.ok().flatten()).collect()
}

async fn probe(port: u16, name: &'static str) -> Option<Server> {
    let base_url = Url::parse(&format!("http://127.0.0.1:{port}/v1")).ok()?;
    let url = Url::parse(&format!("{base_url}/models")).ok()?;
    let reply = http::send(Call { url: &url, bearer: None, json: None }).await.ok()?;
    if reply.status() != 200 {
        return None;
    }
    let body = reply.body(LIST_BYTES_MAX).await.ok()?;
    let list: Value = serde_json::from_slice(&body).ok()?;
    let models = list["data"].as_array()?;
    let owner = models.first().and_then(|model| model["owned_by"].as_str()).unwrap_or_default();
    let name = OWNERS.iter().find(|(known, _)| *known == owner).map_or(name, |(_, name)| name);
    let ids = models.iter().filter_map(|model| model["id"].as_str()).take(MODELS_MAX);
    Some(Server { name, base_url, models: ids.map(str::to_owned).collect() })
}
