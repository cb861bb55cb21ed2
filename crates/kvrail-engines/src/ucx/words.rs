//! What UCX says, as an engine says it.

use kvrail_sys::ucp::{LoadError, Status, UcpError};

use crate::error::{EngineError, Kind};

/// No UCX can be used.
pub(super) fn load(error: &LoadError) -> EngineError {
    let said = EngineError::new(Kind::Environment, error.to_string());
    error.hints().into_iter().fold(said, EngineError::hint)
}

/// A call that failed, with what it was for.
pub(super) fn call(what: &str, error: &UcpError) -> EngineError {
    advise(EngineError::new(kind(error.status), format!("ucx: {what}: {error}")), error.status)
}

/// An operation that failed, with what it was for.
pub(super) fn operation(what: &str, status: Status) -> EngineError {
    advise(EngineError::new(kind(status), format!("ucx: {what}: {status}")), status)
}

fn kind(status: Status) -> Kind {
    match status.name() {
        Some("NO_DEVICE" | "NO_MEMORY" | "SHMEM_SEGMENT" | "EXCEEDS_LIMIT") => Kind::Environment,
        _ if status.is_of_the_peer() => Kind::Peer,
        _ => Kind::Engine,
    }
}

fn advise(error: EngineError, status: Status) -> EngineError {
    match status.name() {
        Some("NO_DEVICE") => error
            .hint("no transport is left of those that UCX_TLS, or the engine's list, allows: `ucx_info -d` lists what this UCX has")
            .hint("transports in files of their own (cma, ib) are looked for in `ucx/` beside the library; UCX_MODULE_DIR names another place"),
        Some("UNREACHABLE") => error
            .hint("both sides need a transport in common: compare UCX_TLS and UCX_NET_DEVICES there and here")
            .hint("cma and shared memory need both processes on one host, in one IPC and user namespace"),
        Some("NO_MEMORY") => error.hint("raise the memlock limit (`ulimit -l`), as RDMA registers memory"),
        Some("SHMEM_SEGMENT") => error.hint("make /dev/shm larger, or leave posix and sysv out of UCX_TLS"),
        Some("IO_ERROR") => error
            .hint("with cma the kernel may deny access to the peer's memory: /proc/sys/kernel/yama/ptrace_scope, or the container's capabilities"),
        _ if status.is_of_the_peer() => error.hint("see whether the peer's process still runs"),
        _ => error,
    }
}
