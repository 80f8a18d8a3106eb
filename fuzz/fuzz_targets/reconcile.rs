//! What the guard lets through, the negentropy crate answers without a panic or an unbounded allocation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use skep_proto::limits::NEG_FRAME_BYTES;
use skep_proto::reconcile::{VERSION, guard};

fn answer(message: &[u8]) {
    if guard(message) != Ok(true) {
        return;
    }
    let mut storage = NegentropyStorageVector::new();
    for i in 0..100u8 {
        storage.insert(u64::from(i / 3), Id::from_byte_array([i; 32])).expect("the storage is not sealed");
    }
    storage.seal().expect("the storage is sealed once");
    let mut session = Negentropy::owned(storage, NEG_FRAME_BYTES as u64).expect("the frame is large enough");
    if let Ok(answer) = session.reconcile(message) {
        assert!(answer.len() <= NEG_FRAME_BYTES);
        assert_eq!(guard(&answer), Ok(true), "our own answer passes the guard");
    }
}

fuzz_target!(|data: &[u8]| {
    answer(data);
    // Half of the time goes to messages of the right version.
    answer(&[&[VERSION], data].concat());
});
