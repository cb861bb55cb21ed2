//! What is installed of NIXL, UCX and libfabric, and what the dynamic loader would do with it: asked by the checks that find what is
//! wrong with it, and by the remedies that mend that.

pub(crate) mod inventory;
pub(crate) mod loader;
