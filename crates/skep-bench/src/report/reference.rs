//! What strfry, the fastest relay in use, was measured at elsewhere.
//!
//! Not on this machine and not by this program: on one of 2 cores too, shared by client and server, without strfry
//! syncing its last commit. To compare for real, run strfry here and name it with `--beside`.

use crate::query::Type;

pub const INGEST_8: &str = "9,000–25,000";
pub const INGEST_1: &str = "9,000";
pub const DISK_PER_EVENT: &str = "1,900";
pub const KIB_PER_CONNECTION: &str = "81";

/// Requests a second.
pub fn query(kind: Type, connections: usize) -> Option<&'static str> {
    Some(match (kind, connections) {
        (Type::Id, 1) => "9,400",
        (Type::Id, 32) => "56,000",
        (Type::Author, 1) => "2,600",
        (Type::Author, 32) => "5,100",
        (Type::Kind, 1) => "1,740",
        (Type::Kind, 32) => "3,340",
        (Type::P, 1) => "1,680",
        (Type::P, 32) => "3,020",
        (Type::Latest, 1) => "850",
        (Type::Latest, 32) => "890",
        (Type::CountAuthor, 1) => "4,300",
        (Type::CountAuthor, 32) => "12,500",
        _ => return None,
    })
}
