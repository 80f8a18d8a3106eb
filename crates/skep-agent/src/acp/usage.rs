//! What a turn used, in the shapes in which ACP programs report it.

use serde::Deserialize;
use serde_json::Value;

use skep_core::backend::{Counters, Scope, Usage};

/// ACP's `usage`. Other programs' spellings of the same are read too.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Tokens {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    total_tokens: Option<u64>,
    #[serde(alias = "reasoningTokens")]
    thought_tokens: Option<u64>,
    #[serde(alias = "cacheReadTokens")]
    cached_read_tokens: Option<u64>,
    #[serde(alias = "cacheWriteTokens")]
    cached_write_tokens: Option<u64>,
}

impl Tokens {
    /// ACP counts five kinds apart, and `totalTokens` is their sum; some programs count what came from a cache, or
    /// was thought, within input and output. The total tells which: then nothing is counted twice.
    fn counters(&self) -> Counters {
        let number = |value: Option<u64>| value.unwrap_or(0);
        let (cached, thought) =
            (number(self.cached_read_tokens) + number(self.cached_write_tokens), number(self.thought_tokens));
        let bare = number(self.input_tokens) + number(self.output_tokens);
        let is_total = |sum: u64| self.total_tokens == Some(sum);
        let cache_is_within = is_total(bare) || is_total(bare + thought);
        let thought_is_within = is_total(bare) || is_total(bare + cached);
        Counters {
            input: self.input_tokens.map(|input| if cache_is_within { input } else { input + cached }),
            output: self.output_tokens.map(|output| if thought_is_within { output } else { output + thought }),
            total: self.total_tokens,
            cache_read: self.cached_read_tokens,
            cache_write: self.cached_write_tokens,
            cost_usd: None,
        }
    }
}

/// What the `usage` in the answer to a prompt is about. ACP's draft leaves it open, its schema says the session, and
/// programs differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reports {
    #[default]
    Session,
    Turn,
    /// Only the last model call of the turn.
    LastCall,
}

/// What programs call themselves, in lower case. OpenCode was measured (see the tests with real agents); the
/// others are as their sources say.
const REPORTS: [(&str, Reports); 3] =
    [("opencode", Reports::LastCall), ("codex", Reports::LastCall), ("claude", Reports::Turn)];

impl Reports {
    pub fn of(program: &str) -> Self {
        let program = program.to_lowercase();
        REPORTS.iter().find(|(name, _)| program.contains(name)).map_or(Self::default(), |(_, reports)| *reports)
    }
}

/// From a member like `"usage": {"inputTokens": …}`. `None` when it tells nothing.
pub fn tokens(value: &Value, scope: Scope) -> Option<Usage> {
    let tokens = Tokens::deserialize(value).ok()?;
    let counters = tokens.counters();
    let tells = counters.input.is_some() || counters.output.is_some() || counters.total.is_some();
    tells.then_some(Usage { scope, counters })
}

/// ACP's `usage_update`: `used` and `size` are about the context window, only the cost is about what was spent.
pub fn cost(update: &Value) -> Option<Usage> {
    let cost = &update["cost"];
    if cost["currency"] != "USD" {
        return None;
    }
    let cost_usd = Some(cost["amount"].as_f64()?);
    Some(Usage { scope: Scope::Session, counters: Counters { cost_usd, ..Counters::default() } })
}

/// The method of goose's own notification, which it sends to a client that declares `_meta.goose.customNotifications`.
pub const GOOSE_UPDATE: &str = "_goose/unstable/session/update";

/// Counts of the session so far, caches within the input.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Accumulated {
    accumulated_input_tokens: Option<u64>,
    accumulated_output_tokens: Option<u64>,
    accumulated_total_tokens: Option<u64>,
    accumulated_cached_input_tokens: Option<u64>,
    accumulated_cache_write_tokens: Option<u64>,
    accumulated_cost: Option<f64>,
}

/// From the `update` of a [`GOOSE_UPDATE`].
pub fn goose(update: &Value) -> Option<Usage> {
    if update["sessionUpdate"] != "usage_update" {
        return None;
    }
    let all = Accumulated::deserialize(update).ok()?;
    let counters = Counters {
        input: all.accumulated_input_tokens,
        output: all.accumulated_output_tokens,
        total: all.accumulated_total_tokens,
        cache_read: all.accumulated_cached_input_tokens,
        cache_write: all.accumulated_cache_write_tokens,
        cost_usd: all.accumulated_cost,
    };
    (counters != Counters::default()).then_some(Usage { scope: Scope::Session, counters })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input_output(value: Value) -> (Option<u64>, Option<u64>) {
        let usage = tokens(&value, Scope::Turn).expect("counts");
        (usage.counters.input, usage.counters.output)
    }

    #[test]
    fn what_came_from_a_cache_is_counted_once() {
        let apart =
            json!({"inputTokens":10,"outputTokens":5,"cachedReadTokens":100,"thoughtTokens":3,"totalTokens":118});
        assert_eq!(input_output(apart), (Some(110), Some(8)));
        let within =
            json!({"inputTokens":110,"outputTokens":8,"cachedReadTokens":100,"thoughtTokens":3,"totalTokens":118});
        assert_eq!(input_output(within), (Some(110), Some(8)));
        let plain = json!({"inputTokens":7,"outputTokens":2});
        assert_eq!(input_output(plain), (Some(7), Some(2)));
    }

    #[test]
    fn unknown_is_not_zero() {
        assert_eq!(tokens(&json!({}), Scope::Turn), None);
        assert_eq!(tokens(&json!(null), Scope::Turn), None);
        assert_eq!(cost(&json!({"used": 5, "size": 10})), None);
        assert_eq!(cost(&json!({"cost": {"amount": 1.5, "currency": "EUR"}})), None);
        let usage = cost(&json!({"cost": {"amount": 1.5, "currency": "USD"}})).expect("a cost");
        assert_eq!((usage.counters.cost_usd, usage.counters.input), (Some(1.5), None));
    }

    #[test]
    fn goose_is_understood() {
        let update = json!({"sessionUpdate": "usage_update", "used": 9, "contextLimit": 10,
            "accumulatedInputTokens": 3, "accumulatedOutputTokens": 4, "accumulatedCost": 0.5});
        let usage = goose(&update).expect("counts");
        assert_eq!((usage.scope, usage.counters.input, usage.counters.output), (Scope::Session, Some(3), Some(4)));
        assert_eq!((usage.counters.cost_usd, usage.counters.cache_read), (Some(0.5), None));
        assert_eq!(goose(&json!({"sessionUpdate": "status_message", "accumulatedInputTokens": 3})), None);
    }
}
