#![no_main]
//! Fragments of messages, as several peers may send them: any bytes, any headers, any order, at any time.

use core::time::Duration;

use kvrail_core::time::Time;
use kvrail_transport::ofi::fragment::{Header, MESSAGE_BYTES_MAX, PARTIAL_MAX, PAYLOAD_BYTES, Reassembly};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<(u8, u8, u16, u8, u8)>, &[u8])| {
    let (steps, noise) = input;
    let mut reassembly = Reassembly::new();
    let mut now = Time::ZERO;
    let _ = reassembly.accept(now, noise);
    for (sender, message, message_len, index, later) in steps {
        now = now + Duration::from_millis(u64::from(later));
        let len = usize::from(message_len);
        // A header that fits its message, where a fuzzer would seldom come by itself, or nearly.
        let count = len.div_ceil(PAYLOAD_BYTES).max(1) as u8;
        let header =
            Header { instance: sender.into(), message: message.into(), message_len, index: index % 33, count };
        let payload = len.saturating_sub(usize::from(header.index) * PAYLOAD_BYTES).min(PAYLOAD_BYTES);
        let fragment = [&header.encode()[..], &vec![sender; payload]].concat();
        if let Ok(Some(whole)) = reassembly.accept(now, &fragment) {
            assert!(whole.len() == len && len <= MESSAGE_BYTES_MAX);
            assert!(whole.iter().all(|&byte| byte == sender));
        }
        assert!(reassembly.unfinished() <= PARTIAL_MAX);
    }
    reassembly.expire(now + Duration::from_secs(60));
    assert_eq!(reassembly.unfinished(), 0);
});
