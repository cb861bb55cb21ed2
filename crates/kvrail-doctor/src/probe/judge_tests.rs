use proptest::prelude::*;

use super::*;
use crate::host::{InstanceFacts, InterfaceFacts};
use crate::probe::{Figures, Libfabric, Nic, RULES, Wrong};

const LINE: u64 = 100_000_000_000;

fn side(host: &str) -> Side {
    let nic = |at: usize| Nic { name: format!("rdmap{at}s0"), rate_bps: LINE, ..Nic::default() };
    Side {
        host: host.into(),
        machine: format!("boot-of-{host}"),
        kvrail: "0.1.0".into(),
        nics: (0..4).map(nic).collect(),
        libfabric: Some(Libfabric {
            release: "2.5".into(),
            provider: "efa-direct".into(),
            ..Libfabric::default()
        }),
        ..Side::default()
    }
}

fn rail(at: usize) -> Rail {
    let figures = Some(Figures { latency_us: 14.0, bytes_per_s: 12e9 });
    let counted = Some(Counted { tx: 5000, rx: 4000, again: Some(2) });
    Rail {
        here: format!("rdmap{at}s0"),
        there: format!("rdmap{at}s0"),
        rate_bps: LINE,
        write: figures,
        read: figures,
        counted_here: counted,
        counted_there: counted,
        ..Rail::default()
    }
}

fn healthy() -> Facts {
    Facts {
        here: side("node-1"),
        there: side("node-2"),
        carrier: "efa-direct".into(),
        emulated: [Some((false, false)); 2],
        rails: (0..4).map(rail).collect(),
        ..Facts::default()
    }
}

/// A rail that failed, with (sent, received) on both sides.
fn failed(at: usize, here: Option<(u64, u64)>, there: Option<(u64, u64)>) -> Rail {
    let counted = |of: Option<(u64, u64)>| of.map(|(tx, rx)| Counted { tx, rx, again: None });
    Rail {
        end: End::NotMet { why: "no answer within 3 s".into() },
        write: None,
        read: None,
        counted_here: counted(here),
        counted_there: counted(there),
        ..rail(at)
    }
}

fn all_failed(here: Option<(u64, u64)>, there: Option<(u64, u64)>) -> Facts {
    Facts { rails: (0..4).map(|at| failed(at, here, there)).collect(), ..healthy() }
}

fn ids(facts: &Facts) -> Vec<&'static str> {
    judge(facts).iter().map(|finding| finding.rule.id).collect()
}

#[track_caller]
fn one(facts: &Facts) -> Finding {
    let findings = judge(facts);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.into_iter().next().unwrap()
}

#[test]
fn two_healthy_hosts_are_silent() {
    assert_eq!(judge(&healthy()), []);
    let tcp = Facts {
        here: Side { nics: Vec::new(), libfabric: None, ..side("a") },
        there: Side { nics: Vec::new(), libfabric: None, ..side("b") },
        carrier: "tcp".into(),
        emulated: [None; 2],
        rails: vec![Rail {
            rate_bps: 0,
            here: String::new(),
            there: String::new(),
            counted_here: None,
            counted_there: None,
            ..rail(0)
        }],
        ..Facts::default()
    };
    assert_eq!(judge(&tcp), []);
}

#[test]
fn the_packets_of_dead_rails_tell_the_cause() {
    // What all rails show, what is found, and what its title names.
    let table = [
        ((Some((40, 0)), Some((40, 0))), "probe-nothing-returns", "node-1 and node-2 send each other"),
        ((Some((40, 9)), Some((40, 0))), "probe-nothing-returns", "nothing that node-1 sends"),
        ((Some((40, 0)), Some((40, 9))), "probe-nothing-returns", "nothing that node-2 sends"),
        ((Some((40, 0)), None), "probe-nothing-returns", "send each other"),
        ((Some((0, 0)), Some((40, 0))), "probe-wrong-device", "no device of node-1 sends"),
        ((Some((40, 0)), Some((0, 0))), "probe-wrong-device", "no device of node-2 sends"),
        ((Some((40, 40)), Some((40, 40))), "probe-no-answer", "packets do not say why"),
        ((None, None), "probe-no-answer", "packets do not say why"),
    ];
    for ((here, there), id, names) in table {
        let finding = one(&all_failed(here, there));
        assert_eq!(finding.rule.id, id, "{here:?} {there:?}");
        assert!(finding.title.contains(names), "{here:?} {there:?}: {}", finding.title);
        assert!(finding.confidence < Confidence::Certain, "{}", finding.title);
        assert!(finding.evidence.iter().any(|e| e.seen.contains("no answer within 3 s")));
    }
}

#[test]
fn one_rail_of_many_is_no_security_group_of_the_host() {
    for rail in [failed(2, Some((40, 0)), Some((40, 0))), failed(2, Some((0, 0)), Some((40, 0)))] {
        let mut facts = healthy();
        facts.rails[2] = rail;
        let finding = one(&facts);
        assert_eq!(finding.rule.id, "probe-dead-rail");
        assert_eq!(finding.title, "1 of 4 rails is dead: rdmap2s0");
        let leave_out = finding.fix.iter().filter_map(|step| step.command.as_deref()).next_back().unwrap();
        assert_eq!(leave_out, "export KVRAIL_OFI_DEVICES=rdmap0s0,rdmap1s0,rdmap3s0");
    }
}

fn in_aws(mut side: Side, group: &str, rules: &str) -> Side {
    let interface = InterfaceFacts {
        id: "eni-1".into(),
        groups: vec![group.into()],
        subnet: Some("10.0.1.0/24".into()),
        vpc: Some("10.0.0.0/16".into()),
        ..InterfaceFacts::default()
    };
    side.instance = Some(InstanceFacts { interfaces: vec![interface], ..InstanceFacts::default() });
    side.security_groups = Some(rules.replace("@", group));
    side
}

const ITSELF: &str = r#"{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "@"}]}"#;
const ANYWHERE: &str = r#"{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}"#;

fn rules(ingress: &str, egress: &str) -> String {
    format!(
        r#"{{"SecurityGroups": [{{"GroupId": "@", "GroupName": "efa", "IpPermissions": [{ingress}], "IpPermissionsEgress": [{egress}]}}]}}"#
    )
}

fn blocked(rules: &str) -> Facts {
    let mut facts = all_failed(Some((40, 0)), Some((40, 0)));
    facts.here = in_aws(facts.here, "sg-0a", rules);
    facts.there = in_aws(facts.there, "sg-0a", rules);
    facts
}

#[test]
fn with_the_rules_of_the_group_at_hand_the_missing_one_is_named_and_the_command_adds_it() {
    let finding = one(&blocked(&rules(ITSELF, ANYWHERE)));
    assert_eq!((finding.rule.id, finding.confidence), ("probe-nothing-returns", Confidence::Certain));
    assert!(finding.cause.contains("sg-0a") && finding.cause.contains("no egress rule"), "{}", finding.cause);
    assert!(finding.cause.contains("0.0.0.0/0"), "{}", finding.cause);
    let command = finding.fix[0].command.as_deref().unwrap();
    assert_eq!(
        command,
        "aws ec2 authorize-security-group-egress --group-id sg-0a --ip-permissions \
         'IpProtocol=-1,UserIdGroupPairs=[{GroupId=sg-0a}]'"
    );
    let finding = one(&blocked(&rules("", ITSELF)));
    assert!(finding.fix[0].command.as_deref().unwrap().contains("-ingress"), "{finding:#?}");
}

#[test]
fn where_the_rules_are_right_they_are_not_blamed() {
    let right = rules(ITSELF, ITSELF);
    let finding = one(&blocked(&right));
    assert_eq!(finding.confidence, Confidence::Possible);
    assert!(finding.cause.contains("let the packets pass"), "{}", finding.cause);
    let mut secondary = blocked(&right);
    secondary.there.instance.as_mut().unwrap().interfaces[0].subnet = Some("100.64.3.0/24".into());
    let finding = one(&secondary);
    assert_eq!(finding.rule.id, "probe-secondary-cidr");
    assert!(finding.title.contains("100.64.3.0/24") && finding.title.contains("node-2"), "{}", finding.title);
}

#[test]
fn without_the_rules_a_secondary_range_explains_what_does_not_arrive() {
    let mut facts = blocked("");
    facts.here.instance.as_mut().unwrap().interfaces[0].subnet = Some("100.64.3.0/24".into());
    assert_eq!(ids(&facts), ["probe-secondary-cidr", "probe-nothing-returns"]);
}

#[test]
fn another_fabric_is_not_told_of_security_groups() {
    let facts = Facts { carrier: "verbs".into(), ..all_failed(Some((9, 0)), Some((9, 0))) };
    let finding = one(&facts);
    assert!(finding.cause.contains("partition"), "{}", finding.cause);
    assert!(finding.fix.iter().all(|step| step.command.as_deref().is_none_or(|c| !c.contains("aws"))));
}

#[test]
fn bytes_over_tcp_are_no_news_unless_a_device_is_there() {
    let tcp = |here: usize, there: usize| {
        let mut facts = Facts { carrier: "tcp".into(), emulated: [None; 2], ..healthy() };
        facts.rails = vec![Rail { rate_bps: 0, counted_here: None, counted_there: None, ..rail(0) }];
        for (side, nics) in [(&mut facts.here, here), (&mut facts.there, there)] {
            side.nics.truncate(nics);
            if nics == 0 {
                side.libfabric = None;
            }
        }
        facts
    };
    assert_eq!(ids(&tcp(0, 0)), Vec::<&str>::new());
    let finding = one(&Facts {
        rails: tcp(4, 0).rails,
        ..{
            let mut facts = tcp(4, 0);
            facts.here.libfabric = healthy().here.libfabric;
            facts
        }
    });
    assert_eq!(finding.rule.id, "probe-not-the-fabric");
    assert!(finding.title.contains("node-2 has no RDMA device"), "{}", finding.title);
    let mut no_provider = tcp(4, 4);
    no_provider.there.libfabric = None;
    no_provider.there.no_provider = Some("libfabric.so.1 is not there".into());
    assert!(one(&no_provider).title.contains("libfabric.so.1 is not there"));
    let named = Facts { carrier_named: true, ..tcp(4, 0) };
    assert_eq!(ids(&named), Vec::<&str>::new());
}

#[test]
fn one_node_wrong_bytes_logs_and_emulation_are_found() {
    let mut facts = healthy();
    facts.there.machine = facts.here.machine.clone();
    assert_eq!(ids(&facts), ["probe-same-node"]);
    let mut facts = healthy();
    facts.rails[1].wrong =
        vec![Wrong { step: "write of 4 MiB".into(), like: "zeros".into(), offset: 0, bytes: 4 << 20 }];
    let finding = one(&facts);
    assert_eq!((finding.rule.id, finding.confidence), ("probe-wrong-bytes", Confidence::Certain));
    assert!(finding.title.contains("rdmap1s0") && finding.title.contains("zeros"), "{}", finding.title);
    let mut facts = healthy();
    facts.there.variables.insert("FI_LOG_LEVEL".into(), "Debug".into());
    let finding = one(&facts);
    assert!(
        finding.rule.id == "probe-debug-logging" && finding.title.contains("node-2"),
        "{}",
        finding.title
    );
    let finding = one(&Facts { emulated: [Some((false, true)), Some((false, false))], ..healthy() });
    assert!(
        finding.rule.id == "probe-emulated-writes" && finding.title.contains("node-1"),
        "{}",
        finding.title
    );
}

#[test]
fn a_device_that_is_refused_for_its_emulation_is_told_as_that() {
    let mut facts = Facts { emulated: [Some((true, false)), None], ..healthy() };
    for rail in &mut facts.rails {
        rail.end = End::NotOpened { at: Place::Here, why: "would emulate RDMA read".into() };
    }
    let finding = one(&facts);
    assert_eq!((finding.rule.id, finding.severity), ("probe-emulated-writes", Severity::Error));
}

#[test]
fn a_slow_rail_is_told_from_slow_hosts() {
    let slow = |facts: &mut Facts, at: usize, rate: f64| {
        let figures = Some(Figures { latency_us: 14.0, bytes_per_s: rate });
        (facts.rails[at].write, facts.rails[at].read) = (figures, figures);
    };
    let mut facts = healthy();
    slow(&mut facts, 3, 1.2e9);
    let finding = one(&facts);
    assert!(
        finding.rule.id == "probe-slow-rail" && finding.title.contains("rail rdmap3s0 carries 1.20"),
        "{}",
        finding.title
    );
    // All alike: one finding for all, and it claims less.
    let mut facts = healthy();
    (0..4).for_each(|at| slow(&mut facts, at, 0.35e9));
    let finding = one(&facts);
    assert!(finding.title.starts_with("4 of 4 rails carry at most 3 %"), "{}", finding.title);
    assert_eq!(finding.confidence, Confidence::Possible);
    // Memory copies bound emulated devices, not a line.
    facts.here.emulated = true;
    assert_eq!(ids(&facts), Vec::<&str>::new());
    slow(&mut facts, 0, 0.05e9);
    assert_eq!(ids(&facts), ["probe-slow-rail"]);
}

#[test]
fn differing_releases_and_numbers_of_nics_are_notes() {
    let mut facts = healthy();
    facts.there.libfabric.as_mut().unwrap().release = "1.22".into();
    facts.there.nics.truncate(2);
    let findings = judge(&facts);
    assert_eq!(ids(&facts), ["probe-versions-differ", "probe-rails-unequal"]);
    assert!(findings.iter().all(|finding| finding.severity == Severity::Note));
}

fn counted() -> impl Strategy<Value = Option<(u64, u64)>> {
    prop_oneof![
        Just(None),
        (prop_oneof![Just(0u64), Just(7)], prop_oneof![Just(0u64), Just(7)]).prop_map(Some)
    ]
}

fn end() -> impl Strategy<Value = End> {
    let why = || String::from("why");
    prop_oneof![
        Just(End::Works),
        Just(End::NotMeasured),
        Just(End::NotOpened { at: Place::Here, why: why() }),
        Just(End::NotOpened { at: Place::There, why: why() }),
        Just(End::NotMet { why: why() }),
        Just(End::Failed { step: "write of 8 bytes".into(), why: why() }),
    ]
}

proptest! {
    /// Whatever the rails show: what fails is told, what is told can be acted on, and what works is not blamed.
    #[test]
    fn every_failed_rail_is_told_and_every_finding_says_what_to_do(
        rails in prop::collection::vec((end(), counted(), counted()), 0..6),
        carrier in prop_oneof![Just("efa-direct"), Just("efa"), Just("verbs"), Just("tcp")],
        named: bool,
        nics in (0usize..5, 0usize..5),
        same: bool,
        known: bool,
    ) {
        let mut facts = if known { blocked(&rules(ITSELF, ANYWHERE)) } else { healthy() };
        facts.carrier = carrier.into();
        facts.carrier_named = named;
        facts.here.nics.truncate(nics.0);
        facts.there.nics.truncate(nics.1);
        if same {
            facts.there.machine = facts.here.machine.clone();
        }
        facts.rails = rails
            .into_iter()
            .enumerate()
            .map(|(at, (end, here, there))| Rail { end, ..failed(at, here, there) })
            .collect();
        let findings = judge(&facts);
        let about_rails = ["probe-nothing-returns", "probe-secondary-cidr", "probe-wrong-device", "probe-dead-rail", "probe-no-answer"];
        let told = findings.iter().any(|finding| about_rails.contains(&finding.rule.id));
        prop_assert_eq!(told, facts.rails.iter().any(|rail| !rail.works()), "{:#?}", findings);
        for finding in &findings {
            prop_assert!(RULES.iter().any(|rule| rule.id == finding.rule.id));
            prop_assert!(!finding.fix.is_empty() && !finding.evidence.is_empty(), "{:#?}", finding);
            prop_assert!(finding.title.len() < 400 && !finding.title.ends_with('.'), "{}", finding.title);
        }
        // A cause that belongs to the whole host is not claimed as long as a rail works.
        if facts.rails.iter().any(Rail::works) {
            prop_assert!(findings.iter().all(|f| !["probe-nothing-returns", "probe-wrong-device"].contains(&f.rule.id)));
        }
        prop_assert_eq!(&findings, &judge(&facts));
    }
}
