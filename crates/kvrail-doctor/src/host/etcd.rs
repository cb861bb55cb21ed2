//! Questions to an etcd: which keys there are below a prefix. Names only, never a value: values are somebody's metadata and secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, Host, Lack, Live, Question};

/// Most keys of one prefix that are told.
const KEYS_MAX: u32 = 256;

/// Keys below a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EtcdKeys {
    /// The store's revision: how many changes it has seen.
    pub revision: u64,
    /// How many keys there are; more than are told where that is too many.
    pub count: u64,
    /// In the order of their names.
    pub keys: Vec<EtcdKey>,
}

/// A key without its value.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EtcdKey {
    /// Its name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// The lease that ends it; 0 where none does.
    pub lease: u64,
    /// The store's revision when it was made.
    pub created: u64,
    /// The store's revision when it was last written.
    pub modified: u64,
}

struct Below<'a> {
    endpoint: &'a str,
    prefix: &'a str,
}

impl Host {
    /// The keys below a prefix in an etcd, at most 256, over the JSON gateway of etcd 3.4 and later.
    ///
    /// # Errors
    /// Why they are not told: nobody answers, or in etcd's words (a user is wanted).
    pub fn etcd_keys(&self, endpoint: &str, prefix: &str) -> Answer<EtcdKeys> {
        self.ask(&Below { endpoint, prefix })
    }
}

impl Question for Below<'_> {
    const SECTION: &'static str = "etcd";
    type Answer = EtcdKeys;

    fn key(&self) -> String {
        format!("{} {}", self.endpoint, self.prefix)
    }

    fn ask(&self, live: &Live) -> Answer<EtcdKeys> {
        if !live.is_here() {
            return Err(Lack::Failed("nothing is asked of the network for another root".into()));
        }
        let asked = json!({
            "key": STANDARD.encode(self.prefix),
            "range_end": STANDARD.encode(end_of(self.prefix.as_bytes())),
            "keys_only": true,
            "limit": KEYS_MAX.to_string(),
        });
        let sent = super::http::agent(live.patience())
            .post(format!("{}/v3/kv/range", self.endpoint))
            .header("Content-Type", "application/json")
            .send(asked.to_string());
        let mut answer = sent.map_err(super::http::lack)?;
        let status = answer.status();
        let text = super::http::body(&mut answer)?;
        let told: Value = serde_json::from_str(&text)
            .map_err(|_| Lack::Failed(format!("etcd's JSON gateway is not there ({status})")))?;
        if let Some(why) = told.get("error").and_then(Value::as_str) {
            return Err(Lack::Failed(why.chars().take(200).collect()));
        }
        Ok(EtcdKeys {
            revision: told.get("header").map_or(0, |header| number(header, "revision")),
            count: number(&told, "count"),
            keys: told.get("kvs").and_then(Value::as_array).into_iter().flatten().filter_map(key).collect(),
        })
    }
}

/// The first key after all that begin with a prefix, as etcd wants ranges told.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn key(told: &Value) -> Option<EtcdKey> {
    let name = STANDARD.decode(told.get("key")?.as_str()?).ok()?;
    Some(EtcdKey {
        name: String::from_utf8_lossy(&name).into_owned(),
        lease: number(told, "lease"),
        created: number(told, "create_revision"),
        modified: number(told, "mod_revision"),
    })
}

/// A 64-bit number, which the gateway writes as a string, and leaves out where it is 0.
fn number(of: &Value, name: &str) -> u64 {
    match of.get(name) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(value) => value.as_u64().unwrap_or(0),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_after_everything_that_begins_with_its_prefix() {
        assert_eq!(end_of(b"xferbench/"), b"xferbench0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), b"\0", "to the end of the store");
    }

    #[test]
    fn keys_are_read_as_the_gateway_writes_them_and_nonsense_is_left_out() {
        let told = json!({"key": "eGZlcmJlbmNoL2RlZmF1bHQvL3NpemU=", "create_revision": "4", "mod_revision": "7", "lease": "11"});
        let read = key(&told).unwrap();
        assert_eq!((read.name.as_str(), read.lease, read.modified), ("xferbench/default//size", 11, 7));
        assert_eq!(key(&json!({"key": "****"})), None);
        assert_eq!(key(&json!({})), None);
    }
}
