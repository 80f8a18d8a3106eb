//! An event is read, hashed and written back as the same; bytes that claim to be a stored record are walked safely.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_proto::lease::{Claim, Request};
use skep_proto::{EventRef, RawEvent, agent, filter};

fuzz_target!(|data: &[u8]| {
    if let Ok(event) = serde_json::from_slice::<RawEvent>(data) {
        let again: RawEvent = serde_json::from_str(&event.to_json()).expect("what we write, we read");
        assert_eq!(again, event);
        let _ = (event.expiration(), agent::metric(&event), agent::frame(&event));
        let _ = (Request::from_event(&event), Claim::from_event(&event));
        // With its right id it gets as far as the signature.
        let right = RawEvent { id: event.computed_id(), ..event };
        let _ = right.verify();
    }
    if let Some(record) = EventRef::from_bytes(data) {
        let tags = record.tags().count();
        assert!(tags <= data.len());
        let _ = (record.id(), record.kind(), record.identifier().len(), record.to_json().len());
        let _ = filter::content_of(record);
    }
});
