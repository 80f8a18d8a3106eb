//! Backends against ACP programs that nobody here wrote, each with a home of its own and a mock model.
//!
//! Run by `tests/agents/run.sh`, which installs them and sets `SKEP_REAL_AGENTS`.

#[path = "../agent/desk.rs"]
#[expect(dead_code, reason = "each test binary uses a part of it")]
mod desk;
mod driven;
#[path = "../mock_model/mod.rs"]
mod mock_model;
mod program;
#[path = "../driver/relay.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "each test binary uses a part of it, and it is a test")]
mod relay;
mod turns;
