//! No secret that shows as one gets into a bundle or into a report, wherever on the host it stands.

use kvrail_doctor::host::{Bundle, Live, Scope};
use kvrail_doctor::render::{self, Manner, Report};
use kvrail_doctor::rule::{Kind, Reference, Rule, Severity};
use kvrail_doctor::{Finding, Host};
use proptest::prelude::*;

static RULE: Rule = Rule {
    id: "canary",
    title: "t",
    severity: Severity::Error,
    kind: Kind::Host,
    cause: "c",
    remedy: "r",
    story: "s",
    references: &[Reference { title: "t", url: "https://example.org" }],
    explained_by: &[],
};

/// Ways in which a secret stands somewhere.
fn ways(secret: &str) -> Vec<String> {
    vec![
        format!("password: {secret}"),
        format!("DB_PASSWORD={secret}"),
        format!("http://root:{secret}@etcd:2379/health"),
        format!("Authorization: Bearer {secret}"),
        format!("{{\"api_key\": \"{secret}\", \"a\": 1}}"),
        format!("A=1\0HF_TOKEN={secret}\0B=2"),
        format!("run --etcd-password={secret} --verbose"),
        format!("https://h/x?access_token={secret}&b=1"),
    ]
}

fn assert_absent(secret: &str, text: &str) -> Result<(), TestCaseError> {
    prop_assert!(!text.contains(secret), "{secret} is in {text}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_canary_survives_into_a_bundle(secret in "[A-Za-z0-9]{6,20}x7Q9z") {
        let root = tempfile::tempdir().unwrap();
        let ways = ways(&secret);
        for (at, way) in ways.iter().enumerate() {
            std::fs::write(root.path().join(format!("file{at}")), way).unwrap();
        }
        let variables = [("HF_TOKEN", secret.as_str()), ("OPTIONS", ways[2].as_str()), ("FI_PROVIDER", "efa")];
        let host = Host::live(Live::new().with_root(root.path()).with_variables(variables), Scope {
            etcd: vec![ways[2].clone()], ..Scope::default()
        });
        for at in 0..ways.len() {
            prop_assert!(host.read(&format!("/file{at}")).unwrap().contains(&secret), "a check sees it");
        }
        let here = Host::live(Live::new().with_variables(variables), Scope::default());
        for way in &ways {
            let way = way.replace('\0', "\n");
            let said = here.run(&["printf", "%s", &way]).unwrap();
            prop_assert!(said.stdout.contains(&secret));
        }
        // Nobody listens there: the address is the question.
        let _ = here.get(&format!("http://root:{secret}@127.0.0.1:1/health"), &[("Authorization", &secret)]);
        for host in [&host, &here] {
            let text = host.bundle().to_json();
            assert_absent(&secret, &text)?;
            let again = Host::replay(Bundle::parse(&text).unwrap());
            prop_assert_eq!(again.variable("FI_PROVIDER"), Some("efa"));
        }
    }

    #[test]
    fn no_canary_survives_into_any_report(secret in "[A-Za-z0-9]{6,20}x7Q9z") {
        let finding = |way: &String| {
            Finding::new(&RULE, way.clone()).cause(way.clone()).evidence(way.clone(), way.clone()).fix(way.clone(), way.clone())
        };
        let mut findings: Vec<_> = ways(&secret).iter().map(finding).collect();
        findings.push(Finding::new(&RULE, "t").evidence("$HF_TOKEN", secret.clone()));
        let report = Report::of_findings(Kind::Host, ways(&secret)[2].clone(), &[], findings)
            .unread(ways(&secret)[2].clone(), ways(&secret)[0].clone())
            .table(ways(&secret)[1].clone());
        let manner = Manner { verbose: true, ..Manner::default() };
        for text in [render::terminal(&report, manner), render::json(&report), render::markdown(&report), render::sarif(&report)] {
            assert_absent(&secret, &text)?;
        }
    }
}
