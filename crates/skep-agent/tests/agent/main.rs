//! Backends and their processes, from the outside.

mod acp;
mod child;
mod command;
mod desk;
#[path = "../mock_model/mod.rs"]
mod mock_model;
mod openai;
mod tree;
