//! The store of a program that was built without etcd: there is none.

use std::convert::Infallible;
use std::time::Duration;

use super::config::StoreConfig;
use super::context::Context;

pub(super) struct Store(Infallible);

impl Store {
    pub(super) fn new(config: StoreConfig, _agent: &str, _watch_timeout: Duration) -> Self {
        // `StoreConfig::new` makes none in such a program.
        unreachable!("a store without etcd: {config:?}")
    }

    pub(super) async fn greet(&self, _: &Context) {
        match self.0 {}
    }

    pub(super) async fn publish(&self, _: &Context, _label: &str, _metadata: &[u8]) {
        match self.0 {}
    }

    pub(super) async fn withdraw(&self, _: &Context) {
        match self.0 {}
    }

    pub(super) async fn fetch(&self, _: &Context, _remote: &str, _label: &str) {
        match self.0 {}
    }

    pub(super) async fn unwatch(&self, _remote: &str) {
        match self.0 {}
    }

    pub(super) async fn close(&self) {
        match self.0 {}
    }
}
