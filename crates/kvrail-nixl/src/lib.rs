//! Agents with NIXL's semantics over [`kvrail::Agent`].
