//! Names of the headers' enumerations, for people.

use core::ffi::{CStr, c_char, c_int};

fn name(names: &[&'static CStr], value: c_int) -> *const c_char {
    let name = usize::try_from(value).ok().and_then(|value| names.get(value));
    name.map_or(c"unknown", |name| name).as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn ibv_node_type_str(kind: c_int) -> *const c_char {
    const NAMES: [&CStr; 8] = [
        c"unknown",
        c"InfiniBand channel adapter",
        c"InfiniBand switch",
        c"InfiniBand router",
        c"iWARP NIC",
        c"usNIC",
        c"usNIC UDP",
        c"unspecified",
    ];
    name(&NAMES, kind)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_port_state_str(state: c_int) -> *const c_char {
    const NAMES: [&CStr; 6] = [c"no change", c"down", c"init", c"armed", c"active", c"active, deferred"];
    name(&NAMES, state)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_event_type_str(event: c_int) -> *const c_char {
    const NAMES: [&CStr; 21] = [
        c"CQ error",
        c"QP fatal error",
        c"QP request error",
        c"QP access error",
        c"connection established",
        c"send queue drained",
        c"path migrated",
        c"path migration error",
        c"device fatal error",
        c"port active",
        c"port error",
        c"LID changed",
        c"P_Key table changed",
        c"subnet manager changed",
        c"SRQ error",
        c"SRQ limit reached",
        c"QP's last work request reached",
        c"client has to register again",
        c"GID table changed",
        c"WQ fatal error",
        c"device speed changed",
    ];
    name(&NAMES, event)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_wc_status_str(status: c_int) -> *const c_char {
    const NAMES: [&CStr; 24] = [
        c"success",
        c"local length error",
        c"local QP operation error",
        c"local EE context operation error",
        c"local protection error",
        c"work request flushed",
        c"memory window bind error",
        c"bad response error",
        c"local access error",
        c"remote invalid request error",
        c"remote access error",
        c"remote operation error",
        c"transport retries exceeded",
        c"receiver-not-ready retries exceeded",
        c"local RDD violation",
        c"remote invalid RD request",
        c"remote aborted",
        c"invalid EE context number",
        c"invalid EE context state",
        c"fatal error",
        c"response timed out",
        c"general error",
        c"tag matching error",
        c"tag matching rendezvous incomplete",
    ];
    name(&NAMES, status)
}

#[unsafe(no_mangle)]
extern "C" fn ibv_wr_opcode_str(opcode: c_int) -> *const c_char {
    const NAMES: [&CStr; 16] = [
        c"rdma-write",
        c"rdma-write-with-imm",
        c"send",
        c"send-with-imm",
        c"rdma-read",
        c"atomic-cmp-and-swp",
        c"atomic-fetch-and-add",
        c"local-inv",
        c"bind-mw",
        c"send-with-inv",
        c"tso",
        c"driver1",
        c"unknown",
        c"unknown",
        c"flush",
        c"atomic-write",
    ];
    name(&NAMES, opcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_without_a_name_is_unknown() {
        for value in [-1, 24, c_int::MIN, c_int::MAX] {
            // SAFETY: a C string with static storage.
            assert_eq!(unsafe { CStr::from_ptr(ibv_wc_status_str(value)) }, c"unknown");
        }
        // SAFETY: as above.
        assert_eq!(unsafe { CStr::from_ptr(ibv_port_state_str(4)) }, c"active");
    }
}
