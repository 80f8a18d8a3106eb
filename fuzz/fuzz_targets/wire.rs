//! Any text frame is a message or an error that can be answered; decoding never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep_proto::wire::{self, ClientMsg, Target};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match wire::decode(text) {
        Ok(ClientMsg::Event(event) | ClientMsg::Auth(event)) => {
            // What was read once is read again, as the same.
            let again = wire::decode(&format!(r#"["EVENT",{}]"#, event.to_json()));
            assert_eq!(again, Ok(ClientMsg::Event(event)));
        }
        Ok(ClientMsg::Req { sub, .. } | ClientMsg::Close { sub }) => {
            assert!((1..=64).contains(&sub.as_str().chars().count()));
        }
        Ok(_) => {}
        Err(error) => {
            let answer = match &error.target {
                Target::Event(id) => wire::ok(id, Err(&error.refusal)),
                Target::Sub(sub) => wire::closed(sub, &error.refusal),
                Target::Neg(sub) => wire::neg_err(sub, &error.refusal),
                Target::Nothing => wire::notice(&error.refusal.to_string()),
            };
            let answer: Result<Vec<serde_json::Value>, _> = serde_json::from_str(&answer);
            assert!(answer.is_ok_and(|parts| parts.len() >= 2));
        }
    }
});
