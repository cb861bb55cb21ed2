//! An EFA device in software, under the verbs ABI.
