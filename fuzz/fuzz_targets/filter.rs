//! A filter that is read can be written and read again as the same, and matches without a panic.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use skep_proto::{EventRef, Filter, RawEvent, Record};

/// A stored event with tags of several kinds; its text is the frozen one of the wire tests.
static RECORD: LazyLock<Record> = LazyLock::new(|| {
    let text = include_str!("../../crates/skep-proto/tests/frozen/event.json");
    let event: RawEvent = serde_json::from_str(text.trim()).expect("the frozen event is one");
    event.verify().expect("the frozen event verifies").into_record()
});

fuzz_target!(|data: &[u8]| {
    let Ok(mut filter) = serde_json::from_slice::<Filter>(data) else { return };
    let event: EventRef<'_> = RECORD.as_ref();
    let is_match = filter.matches(event);
    assert!(!(is_match && filter.matches_nothing()), "a filter that matches nothing matched");
    let _ = filter.values();
    filter.unknown = None; // not written: it is refused before anything else happens
    let text = serde_json::to_string(&filter).expect("a filter serializes");
    let again: Filter = serde_json::from_str(&text).expect("what we write, we read");
    assert_eq!(again, filter);
    assert_eq!(again.matches(event), is_match);
});
