//! `budget` and `price`: what an agent, a task, and all agents of a home may spend; what tokens cost.

use serde::{Deserialize, Serialize};
use skep_core::budget;
use skep_core::meter::{Price, PriceTable};

use super::AgentSettings;
use crate::config::ConfigError;

/// A table with the four bounds, and what else it has. One struct within another would not do: serde cannot flatten it
/// and still refuse what it does not know.
macro_rules! bounds {
    ($(#[doc = $head:literal])+ $table:ident { $($more:ident: $type:ty)? }) => {
        $(#[doc = $head])+
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $table {
            #[serde(skip_serializing_if = "Option::is_none")]
            pub usd_per_day: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            pub tokens_per_day: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            pub usd_per_turn: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            pub turns_per_hour: Option<u32>,
            $(pub $more: $type,)?
        }

        impl $table {
            pub(super) fn bounds(&self) -> budget::Limits {
                let Self { usd_per_day, tokens_per_day, usd_per_turn, turns_per_hour, .. } = *self;
                budget::Limits { usd_per_day, tokens_per_day, usd_per_turn, turns_per_hour }
            }
        }
    };
}

bounds! {
    /// `budget`. Nothing: no bound.
    BudgetSettings {}
}

bounds! {
    /// `[budget]`: of all agents of this home together, and in `[budget.task]` of each task.
    FleetBudgetSettings { task: BudgetSettings }
}

impl FleetBudgetSettings {
    /// (name, default, meaning) of each setting, for the generated page.
    pub fn table() -> Vec<(&'static str, &'static str, &'static str)> {
        vec![
            ("usd_per_day", "no bound", "US dollars that all agents of this home may spend in a day (UTC)."),
            ("tokens_per_day", "no bound", "Tokens, likewise."),
            ("usd_per_turn", "no bound", "US dollars of one turn of any agent; it is ended when it passes them."),
            ("turns_per_hour", "no bound", "Turns that all agents together may begin in an hour."),
            ("task", "{}", "The same four for each task: `[budget.task]`."),
        ]
    }

    pub fn check(&self) -> Result<(), ConfigError> {
        let amounts = [
            ("budget.usd_per_day", self.usd_per_day),
            ("budget.usd_per_turn", self.usd_per_turn),
            ("budget.task.usd_per_day", self.task.usd_per_day),
            ("budget.task.usd_per_turn", self.task.usd_per_turn),
        ];
        match amounts.iter().find(|(_, usd)| usd.is_some_and(|usd| !is_amount(usd))) {
            None => Ok(()),
            Some((setting, _)) => Err(ConfigError::Value { setting, cause: "is 0 or more".into() }),
        }
    }

    pub fn limits(&self) -> budget::Shared {
        budget::Shared { fleet: self.bounds(), task: self.task.bounds() }
    }
}

/// `price`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceSettings {
    pub input: f64,
    pub output: f64,
    /// As `input` when it is left out.
    #[serde(default)]
    pub cache_read: Option<f64>,
    #[serde(default)]
    pub cache_write: Option<f64>,
    #[serde(default)]
    pub date: String,
}

impl PriceSettings {
    pub(super) fn table(&self) -> PriceTable {
        let price = Price {
            input: self.input,
            output: self.output,
            cache_read: self.cache_read.unwrap_or(self.input),
            cache_write: self.cache_write.unwrap_or(self.input),
        };
        PriceTable { source: "settings".into(), date: self.date.clone(), rows: Vec::new(), others: Some(price) }
    }

    fn amounts(&self) -> impl Iterator<Item = f64> {
        [self.input, self.output].into_iter().chain(self.cache_read).chain(self.cache_write)
    }
}

impl AgentSettings {
    pub(super) fn check_budget(&self) -> Result<(), ConfigError> {
        let usd = [self.budget.usd_per_day, self.budget.usd_per_turn];
        if !usd.into_iter().flatten().all(is_amount) {
            return Err(self.wrong("budget", "has an amount that is not 0 or more"));
        }
        if !self.price.iter().flat_map(PriceSettings::amounts).all(is_amount) {
            return Err(self.wrong("price", "has an amount that is not 0 or more"));
        }
        Ok(())
    }
}

fn is_amount(usd: f64) -> bool {
    usd.is_finite() && usd >= 0.0
}
