//! Secrets taken out of whatever goes into a document: by the name of what holds them, and by their shape.
//!
//! A report is made to be sent to colleagues and attached to issues. What is redacted can be asked for again; what was
//! published cannot be taken back: where in doubt, out.

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Parts of names whose values are secrets, wherever they stand in the name.
const NAMES: [&str; 14] = [
    "TOKEN",
    "SECRET",
    "PASSW",
    "PASSPHRASE",
    "CREDENTIAL",
    "APIKEY",
    "ACCESSKEY",
    "PRIVATEKEY",
    "AUTH",
    "COOKIE",
    "SESSION",
    "SIGNATURE",
    "BEARER",
    "LICENSE",
];
/// The same, as whole words of the name (`MONKEY` is none).
const WORDS: [&str; 5] = ["KEY", "KEYS", "PWD", "PAT", "PASS"];
/// Names that sound like it and are known to hold none.
const INNOCENT: [&str; 2] = ["PWD", "OLDPWD"];

/// Beginnings of tokens that their issuers mark, and how many characters follow at least.
const MARKS: [(&str, usize); 19] = [
    ("AKIA", 12),
    ("ASIA", 12),
    ("hf_", 16),
    ("ghp_", 16),
    ("gho_", 16),
    ("ghs_", 16),
    ("ghu_", 16),
    ("ghr_", 16),
    ("github_pat_", 16),
    ("glpat-", 16),
    ("sk-", 16),
    ("sk_live_", 16),
    ("nvapi-", 16),
    ("xoxb-", 10),
    ("xoxp-", 10),
    ("npm_", 16),
    ("pypi-", 16),
    ("dop_v1_", 16),
    ("AIza", 16),
];

/// Whether a variable, flag or field of this name holds a secret.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let name = name.trim_start_matches('-').to_ascii_uppercase();
    if INNOCENT.contains(&name.as_str()) {
        return false;
    }
    let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    NAMES.iter().any(|part| letters.contains(part))
        || name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| WORDS.contains(&word))
}

/// The value of a variable, or what may be said of it.
#[must_use]
pub fn value(name: &str, value: &str) -> String {
    if is_secret_name(name) && !value.is_empty() { REDACTED.into() } else { text(value) }
}

/// A command line. The value of a flag with a secret's name goes, also where it is the next word.
#[must_use]
pub fn command(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut secret_next = false;
    for word in words {
        if std::mem::take(&mut secret_next) && !word.starts_with("--") {
            out.push(REDACTED.into());
            continue;
        }
        match word.split_once('=') {
            Some((name, of)) => out.push(format!("{name}={}", value(name, of))),
            None => {
                secret_next = word.starts_with('-') && is_secret_name(&word);
                out.push(text(&word));
            }
        }
    }
    out
}

/// What the words of a text so far make of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Nothing,
    /// The last word names a secret: `=` or `:` makes the one after it that secret.
    Separator,
    Secret,
}

/// Any text: secrets that their shape betrays go, the rest stays as it is.
#[must_use]
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut expect = Expect::Nothing;
    while let Some(start) = rest.find(is_of_word) {
        out.push_str(&rest[..start]);
        if rest[..start].contains('\n') {
            expect = Expect::Nothing;
        }
        rest = &rest[start..];
        if let Some(end) = private_key(rest) {
            out.push_str(REDACTED);
            rest = &rest[end..];
            continue;
        }
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let separates = matches!(word, "=" | ":");
        expect = match expect {
            Expect::Secret if !separates && !is_scheme(word) => {
                out.push_str(REDACTED);
                Expect::Nothing
            }
            Expect::Secret => {
                out.push_str(word);
                Expect::Secret
            }
            Expect::Separator if separates => {
                out.push_str(word);
                Expect::Secret
            }
            Expect::Separator | Expect::Nothing => {
                out.push_str(&word_without_secrets(word));
                announced(word)
            }
        };
        rest = after;
    }
    out + rest
}

/// Whether a character can be part of a word that is looked at as one.
fn is_of_word(c: char) -> bool {
    // A control character parts words too: `/proc/*/environ` and `/proc/*/cmdline` write zeros between theirs.
    !c.is_whitespace()
        && !c.is_control()
        && !matches!(c, '"' | '\'' | '`' | '<' | '>' | '(' | ')' | '[' | ']' | '{' | '}' | ',' | ';')
}

/// Length of a PEM private key at the beginning of a text, to its last line or to the text's end.
fn private_key(text: &str) -> Option<usize> {
    let head = text.strip_prefix("-----BEGIN ")?;
    let (label, _) = head.split_once("-----")?;
    if !label.contains("PRIVATE KEY") {
        return None;
    }
    let end = format!("-----END {label}-----");
    Some(text.find(&end).map_or(text.len(), |at| at + end.len()))
}

fn is_scheme(word: &str) -> bool {
    ["bearer", "basic", "token"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// What a word says of the next: `Authorization:`, `password=`, `api_key`, `Bearer`.
fn announced(word: &str) -> Expect {
    if word.eq_ignore_ascii_case("bearer") {
        return Expect::Secret;
    }
    match word.strip_suffix([':', '=']) {
        Some(name) if is_secret_label(last_part(name)) => Expect::Secret,
        None if is_secret_label(word) => Expect::Separator,
        _ => Expect::Nothing,
    }
}

/// Whether a name in running text is one of a secret. A bare `key` is none there: fabrics have keys of their own.
fn is_secret_label(name: &str) -> bool {
    is_secret_name(name) && !WORDS.iter().any(|word| name.eq_ignore_ascii_case(word))
}

/// The last part of `scheme://host/name` or `section.name`.
fn last_part(name: &str) -> &str {
    name.rsplit(['?', '&', '/', '.']).next().unwrap_or(name)
}

fn word_without_secrets(word: &str) -> String {
    let word = without_user_info(word);
    // Each value of `a=1&b=2`, of a query in a URL, of `name=value` and `name:value`.
    let mut out = String::new();
    for (i, part) in word.split_inclusive(['&', '?', '|']).enumerate() {
        let (body, last) = match part.char_indices().next_back() {
            Some((at, '&' | '?' | '|')) => part.split_at(at),
            _ => (part, ""),
        };
        let named = body.split_once('=').or_else(|| if i == 0 { colon(body) } else { None });
        match named {
            Some((name, value)) if !value.is_empty() => {
                let separator = &body[name.len()..=name.len()];
                let value =
                    if is_secret_label(last_part(name)) { REDACTED.to_string() } else { pieces(value) };
                out += &format!("{}{separator}{value}", pieces(name));
            }
            _ => out += &pieces(body),
        }
        out += last;
    }
    out
}

/// `name:value`, where that is no address, path or time.
fn colon(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once(':')?;
    (!value.starts_with("//") && is_secret_label(name)).then_some((name, value))
}

/// `scheme://user:password@host` without user and password, wherever it stands in a word.
fn without_user_info(word: &str) -> String {
    let Some((before, after)) = word.split_once("://") else { return word.into() };
    let authority_end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (authority, path) = after.split_at(authority_end);
    // A password may hold any of the characters that would end the authority: up to the last @ all of it is suspect.
    match after.rfind('@') {
        Some(at) if at < authority.len() || after[..at].contains(':') => {
            format!("{before}://{REDACTED}@{}", &after[at + 1..])
        }
        _ => format!("{before}://{authority}{}", without_user_info(path)),
    }
}

/// Tokens that their shape betrays, inside of a word.
fn pieces(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word;
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    while let Some(start) = rest.find(of_token) {
        out.push_str(&rest[..start]);
        let end = start + rest[start..].find(|c| !of_token(c)).unwrap_or(rest.len() - start);
        out.push_str(&token(&rest[start..end]));
        rest = &rest[end..];
    }
    out + rest
}

fn token(piece: &str) -> String {
    if is_jwt(piece) {
        return REDACTED.into();
    }
    let found = MARKS.iter().filter_map(|(mark, least)| {
        let at = piece.find(mark)?;
        let follows = piece[at + mark.len()..].chars().filter(char::is_ascii_alphanumeric).count();
        let begins = at == 0 || !piece.as_bytes()[at - 1].is_ascii_alphanumeric();
        (begins && follows >= *least).then_some(at)
    });
    match found.min() {
        Some(at) => format!("{}{REDACTED}", &piece[..at]),
        None => piece.into(),
    }
}

/// Three parts of base64url, of which the first begins a JSON object (`{"`).
fn is_jwt(piece: &str) -> bool {
    let parts: Vec<&str> = piece.split('.').collect();
    piece.starts_with("eyJ") && parts.len() >= 3 && parts[0].len() >= 8 && parts[1].len() >= 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Secrets, each in a text as it is met in the wild; the secret is what must not come out.
    const CANARIES: [(&str, &str); 26] = [
        ("A=1\0DB_PASSWORD=hunter2\0PATH=/bin", "hunter2"),
        ("key AKIAIOSFODNN7EXAMPLE was denied", "AKIAIOSFODNN7EXAMPLE"),
        ("aws:ASIAIOSFODNN7EXAMPLE/x", "ASIAIOSFODNN7EXAMPLE"),
        ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"),
        ("pushed with ghp_0123456789abcdefghijABCDEFGHIJ012345.", "ghp_0123456789abcdefghij"),
        ("github_pat_11ABCDEFG0123456789_abcdefghijkl", "github_pat_11ABCDEFG"),
        ("OPENAI=sk-proj-abcdef0123456789abcdef0123", "sk-proj-abcdef"),
        ("nvapi-abcdefghijklmnop0123456789", "abcdefghijklmnop"),
        ("(glpat-abcdefghij0123456789)", "glpat-abcdefghij"),
        ("xoxb-123456789012-abcdefGHIJ", "xoxb-123456789012"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4", "SflKxwRJSMeKKF2QT4"),
        ("http://root:hunter2@etcd:2379/health", "hunter2"),
        ("--etcd=https://root:hun/ter2@etcd:2379", "ter2"),
        ("cannot reach http://root:p@ss@etcd:2379", "p@ss"),
        ("redis://:hunter2@cache", "hunter2"),
        ("https://ghp0token@github.com/x", "ghp0token"),
        ("Authorization: Bearer abc.def-123", "abc.def-123"),
        ("authorization: Basic cm9vdDpodW50ZXIy", "cm9vdDpodW50ZXIy"),
        ("sent header Bearer s3cr3t, got 401", "s3cr3t"),
        ("password: hunter2", "hunter2"),
        ("db_password=hunter2 host=x", "hunter2"),
        ("password = hunter2", "hunter2"),
        ("{\"api_key\": \"hunter2\"}", "hunter2"),
        ("https://bucket/x?X-Amz-Signature=0123abcd&X-Amz-Date=2026", "0123abcd"),
        ("https://host/x?user=a&access_token=0123abcd", "0123abcd"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEhunter2\n-----END RSA PRIVATE KEY-----", "hunter2"),
    ];

    #[test]
    fn no_canary_comes_through_in_texts_variables_or_arguments() {
        for (canary, secret) in CANARIES {
            let out = text(canary);
            assert!(!out.contains(secret) && out.contains(REDACTED), "{canary} -> {out}");
            for out in [value("FI_OPT", canary), command([canary.to_string()]).join(" ")] {
                assert!(!out.contains(secret), "{canary} -> {out}");
            }
            let among = text(&format!("before\t{canary} after"));
            assert!(among.starts_with("before\t") && among.ends_with(" after"), "{among}");
        }
    }

    #[test]
    fn names_of_secrets_hide_their_values() {
        for name in [
            "HF_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "KVRAIL_ETCD_PASSWORD",
            "NIXL_ETCD_PASSWD",
            "UCX_API_KEY",
            "SSH_AUTH_SOCK",
            "--etcd-password",
            "GOOGLE_CREDENTIALS",
            "apiKey",
            "WANDB_PASS",
            "SIGNING_KEY",
            "MY_PAT",
        ] {
            assert_eq!(value(name, "hunter2"), REDACTED, "{name}");
        }
        for name in [
            "FI_PROVIDER",
            "PWD",
            "UCX_TLS",
            "MONKEY_BUSINESS",
            "NCCL_KEYNOTE",
            "PATH",
            "FI_EFA_USE_DEVICE_RDMA",
        ] {
            assert_eq!(value(name, "efa"), "efa", "{name}");
        }
        assert_eq!(value("HF_TOKEN", ""), "", "that it is empty is worth knowing");
    }

    #[test]
    fn a_flag_takes_its_secret_along_whether_joined_or_apart() {
        let words =
            "kvrail bench --etcd-password hunter2 --token=hunter2 --connect node:7100 --auth-token --verbose";
        let out = command(words.split(' ').map(String::from)).join(" ");
        let expected = "kvrail bench --etcd-password [redacted] --token=[redacted] --connect node:7100 --auth-token --verbose";
        assert_eq!(out, expected);
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        for innocent in [
            "provider efa-direct, libfabric 2.5 (v2.5, FABRIC_1.9):",
            "http://etcd:2379/health at 12:30:01",
            "/opt/amazon/efa/lib:/usr/lib UCX_TLS=rc_mlx5,self FI_EFA_ENABLE_SHM_TRANSFER=0",
            "key 0x1234 was not registered; keys: 4",
            "task-1234567890123456789 on disk-abcdefghijklmnopqrstuvwxyz",
            "user@host wrote; 3 tokens/s — ½ µs",
            "rail rdmap79s0 refused to register 2 GiB: cannot allocate memory",
        ] {
            assert_eq!(text(innocent), innocent);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_twice_is_once(any in "\\PC{0,64}") {
            let once = text(&any);
            prop_assert_eq!(text(&once), once.clone());
        }

        #[test]
        fn a_password_in_a_url_never_comes_through(password in "[a-zA-Z0-9/@:?#=&.!$_-]{1,16}x7Q9z", path in "[a-z/]{0,8}") {
            let out = text(&format!("dial http://root:{password}@etcd:2379/{path} failed"));
            prop_assert!(!out.contains("x7Q9z"), "{}", out);
        }
    }
}
