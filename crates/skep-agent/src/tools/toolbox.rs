//! What a backend offers to its model and runs for it, whoever gives it.

use futures_util::future::BoxFuture;
use serde_json::Value;

use skep_core::backend::ToolKind;

/// What a model may be offered, and what runs it.
pub trait Toolbox: Send + Sync {
    /// Asked before each model call.
    fn tools(&self) -> Vec<Tool>;

    /// Runs one of them. Dropped when the turn is cancelled.
    fn call<'a>(&'a self, name: &'a str, arguments: Value) -> BoxFuture<'a, ToolAnswer>;
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: String,
    /// A JSON schema of an object.
    pub parameters: Value,
    pub kind: ToolKind,
    /// The backend is to ask for a permission before each call. A toolbox that asks by itself says no.
    pub asks: bool,
    /// Others see what it does.
    pub writes: bool,
}

/// What a model is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolAnswer {
    pub is_ok: bool,
    pub text: String,
}

impl ToolAnswer {
    pub fn ok(text: impl Into<String>) -> Self {
        Self { is_ok: true, text: text.into() }
    }

    pub fn failed(text: impl Into<String>) -> Self {
        Self { is_ok: false, text: text.into() }
    }
}
