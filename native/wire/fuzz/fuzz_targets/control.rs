//! Any packet: an error, or a message that can be sent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snakepit_wire::control::{self, FromWarden, FromWorker, Message, ToWarden, ToWorker, VERSION};
use snakepit_wire::service::Request;

fn hostile<M: Message>(packet: &[u8]) {
    if let Ok(message) = control::decode::<M>(packet) {
        assert!(control::encode(&message).is_ok());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut packet = VERSION.to_be_bytes().to_vec();
    packet.extend_from_slice(bytes);
    for packet in [bytes, &packet] {
        hostile::<FromWorker>(packet);
        hostile::<FromWarden>(packet);
        hostile::<ToWorker>(packet);
        hostile::<ToWarden>(packet);
        hostile::<Request>(packet);
    }
});
