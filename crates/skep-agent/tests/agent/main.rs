//! Backends and their processes, from the outside.

mod acp;
mod child;
mod command;
mod desk;
