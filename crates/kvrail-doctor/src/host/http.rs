//! Questions over HTTP: etcd's health and keys, the instance's metadata service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Host, Lack, Live, Question};

/// Most of a body that is read.
const BODY_BYTES_MAX: u64 = 4 << 20;

/// What a server answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpAnswer {
    /// Status, as in 200.
    pub status: u16,
    /// Its body, at most 4 MiB; bytes that are no UTF-8 are replaced.
    pub body: String,
}

struct Request<'a> {
    method: Method,
    url: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a str,
    patience: Option<Duration>,
}

#[derive(Clone, Copy)]
enum Method {
    Get,
    Put,
    Post,
}

impl Host {
    /// A page, by the host's deadline. Statuses of any kind are answers.
    ///
    /// # Errors
    /// [`Lack::Late`], or why nobody answered.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Answer<HttpAnswer> {
        self.ask(&Request { method: Method::Get, url, headers, body: "", patience: None })
    }

    /// The answer to a body that is put.
    ///
    /// # Errors
    /// Those of [`Host::get`].
    pub fn put(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
        patience: Duration,
    ) -> Answer<HttpAnswer> {
        self.ask(&Request { method: Method::Put, url, headers, body, patience: Some(patience) })
    }

    /// The answer to a body that is posted.
    ///
    /// # Errors
    /// Those of [`Host::get`].
    pub fn post(&self, url: &str, headers: &[(&str, &str)], body: &str) -> Answer<HttpAnswer> {
        self.ask(&Request { method: Method::Post, url, headers, body, patience: None })
    }
}

impl Question for Request<'_> {
    const SECTION: &'static str = "http";
    type Answer = HttpAnswer;

    /// Headers are left out: they carry credentials, and the answer does not depend on them.
    fn key(&self) -> String {
        let method = match self.method {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
        };
        format!("{method} {} {}", kvrail_report::redact::text(self.url), self.body).trim_end().into()
    }

    fn ask(&self, live: &Live) -> Answer<HttpAnswer> {
        if !live.is_here() {
            return Err(Lack::Failed("nothing is asked of the network for another root".into()));
        }
        let agent = agent(self.patience.unwrap_or(live.patience()));
        let sent = match self.method {
            Method::Get => with(agent.get(self.url), self.headers).call(),
            Method::Put => with(agent.put(self.url), self.headers).send(self.body),
            Method::Post => with(agent.post(self.url), self.headers).send(self.body),
        };
        let mut answer = sent.map_err(lack)?;
        let status = answer.status().as_u16();
        Ok(HttpAnswer { status, body: body(&mut answer)? })
    }
}

/// What sends requests, each by a deadline.
pub(super) fn agent(patience: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(patience))
        .http_status_as_error(false)
        // What is diagnosed is this host's way to the server, not a proxy's.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .build()
        .into()
}

/// The bounded body of an answer.
pub(super) fn body(answer: &mut ureq::http::Response<ureq::Body>) -> Answer<String> {
    let text = answer.body_mut().with_config().limit(BODY_BYTES_MAX).lossy_utf8(true).read_to_string();
    text.map_err(lack)
}

fn with<T>(request: ureq::RequestBuilder<T>, headers: &[(&str, &str)]) -> ureq::RequestBuilder<T> {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// Why there was no answer.
pub(super) fn lack(error: ureq::Error) -> Lack {
    match error {
        ureq::Error::Timeout(_) => Lack::Late,
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => Lack::Late,
        other => Lack::Failed(kvrail_report::redact::text(&other.to_string())),
    }
}
