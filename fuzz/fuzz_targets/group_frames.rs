#![no_main]
//! Frames of a group's embedded service, as anyone who reaches the port may send them.

use kvrail_rendezvous::wire::{BODY_BYTES_MAX, HEADER_BYTES, Header, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    // The length is made to fit, so that bodies are reached; the header as it came must only not panic.
    if let Ok(header) = Header::decode(head) {
        assert!(header.body_len() <= BODY_BYTES_MAX);
    }
    let mut head = *head;
    head[..4].copy_from_slice(b"KVRG");
    head[4..6].copy_from_slice(&kvrail_rendezvous::wire::VERSION.to_le_bytes());
    head[7] = 0;
    head[8..].copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    let Ok(header) = Header::decode(&head) else { return };
    if let Ok(message) = Message::decode(header, body) {
        let again = message.encode();
        assert_eq!((&again[..HEADER_BYTES], &again[HEADER_BYTES..]), (&head[..], body));
    }
});
