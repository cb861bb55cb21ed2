//! Choices among made-up offers.

use super::*;

fn efa(fabric: &str, nic: &str, bus: u8) -> Offer {
    Offer {
        provider: "efa".into(),
        fabric: fabric.into(),
        domain: format!("{nic}-rdm"),
        version: 0,
        nic: Some(OfferedNic {
            name: nic.into(),
            pci: Some(Pci::new(0, bus, 0, 0)),
            rate_bps: 100_000_000_000,
            down: false,
        }),
        address_format: 12,
        lacks: Vec::new(),
        immediate_bytes: 4,
        message_bytes_max: 8_928,
        queue: (4_096, 8_192),
    }
}

fn tcp(interface: &str, address_format: u32) -> Offer {
    Offer {
        provider: "tcp".into(),
        fabric: "10.0.0.0/8".into(),
        domain: interface.into(),
        immediate_bytes: 8,
        message_bytes_max: usize::MAX,
        queue: (1_024, 1_024),
        address_format,
        ..Offer::default()
    }
}

fn config(provider: &str) -> Config {
    Config { provider: provider.parse().unwrap(), ..Config::default() }
}

/// Chooses among what a library offers by provider; what is not listed is not in the library.
fn choose_of(config: &Config, nics: &[HostNic], offers: &[(&str, Answer)]) -> Result<Choice, OpenError> {
    let has: Vec<String> = offers.iter().map(|(name, _)| name.to_string()).collect();
    choose(config, nics, "/lib/libfabric.so.1 (v2.5)", &has, |name| {
        offers.iter().find(|(known, _)| *known == name).map_or(Answer::Absent, |(_, answer)| answer.clone())
    })
}

fn names(choice: &Choice) -> Vec<&str> {
    choice.rails.iter().map(|rail| rail.name.as_str()).collect()
}

#[test]
fn auto_takes_efa_direct_and_its_nics_in_pci_order() {
    let offers = vec![
        efa("efa-direct", "rdmap116s0", 0x74),
        efa("efa", "rdmap79s0", 0x4f),
        efa("efa-direct", "rdmap79s0", 0x4f),
    ];
    let choice = choose_of(&config("auto"), &[], &[("efa-direct", Answer::Offers(offers))]).unwrap();
    assert_eq!((choice.provider.as_str(), names(&choice)), ("efa-direct", vec!["rdmap79s0", "rdmap116s0"]));
    assert_eq!(choice.rails[0].offer, 2, "the offer of the fabric that was asked for");
    assert!(choice.passed.is_empty() && choice.left_out.is_empty());
    assert_eq!(choice.rails[1].pci.unwrap().to_string(), "0000:74:00.0");
}

#[test]
fn where_only_efa_is_offered_auto_says_why_it_is_not_efa_direct() {
    let only_efa = || Answer::Offers(vec![efa("efa", "rdmap0s6", 0)]);
    for direct in [Answer::Nothing("this release has no efa-direct".into()), only_efa(), Answer::Absent] {
        let choice = choose_of(&config("auto"), &[], &[("efa-direct", direct), ("efa", only_efa())]).unwrap();
        assert_eq!(choice.provider, "efa");
        assert_eq!(choice.passed[0].name, "efa-direct");
        assert!(!choice.passed[0].why.is_empty());
    }
}

#[test]
fn a_named_provider_is_that_one_or_an_error() {
    let efa_only = [
        ("efa", Answer::Offers(vec![efa("efa", "rdmap0s6", 0)])),
        ("tcp", Answer::Offers(vec![tcp("eth0", 2)])),
    ];
    let error = choose_of(&config("psm9"), &[], &efa_only).unwrap_err();
    assert!(matches!(&error, OpenError::NoSuchProvider { has, .. } if has == &["efa", "tcp"]), "{error}");
    // Which of the two it is, libfabric before 2.0 does not say.
    let error = choose_of(&config("efa-direct"), &[], &efa_only).unwrap_err().to_string();
    assert!(error.ends_with("efa-direct: not in this library, or no NIC for it"), "{error}");
    let nothing = [("efa-direct", Answer::Nothing("no device".into()))];
    let error = choose_of(&config("efa-direct"), &[], &nothing).unwrap_err().to_string();
    assert!(error.ends_with("can be used here: efa-direct: no device"), "{error}");
}

#[test]
fn auto_without_a_nic_is_an_error_that_names_all_it_asked() {
    let error =
        choose_of(&config("auto"), &[], &[("tcp", Answer::Offers(vec![tcp("eth0", 2)]))]).unwrap_err();
    let OpenError::NoProvider { passed, .. } = &error else { panic!("{error}") };
    let asked: Vec<_> = passed.iter().map(|passed| passed.name.as_str()).collect();
    assert_eq!(asked, ["efa-direct", "efa", "cxi", "verbs"]);
    assert!(!error.hints().is_empty());
}

#[test]
fn devices_that_are_asked_for_are_taken_or_missed_by_name() {
    let offers = || Answer::Offers(vec![efa("efa", "a", 1), efa("efa", "b", 2), efa("efa", "c", 3)]);
    let with = |devices: &[&str]| Config {
        devices: devices.iter().map(ToString::to_string).collect(),
        ..config("efa")
    };
    let choice = choose_of(&with(&["c", "a-rdm"]), &[], &[("efa", offers())]).unwrap();
    assert_eq!(names(&choice), ["a", "c"]);
    assert_eq!(
        choice.left_out,
        [PassedOver { name: "b".into(), why: "not among the devices asked for".into() }]
    );
    let error = choose_of(&with(&["a", "x"]), &[], &[("efa", offers())]).unwrap_err();
    assert_eq!(error.to_string(), "provider efa offers no device x; it offers a, b, c");
}

#[test]
fn a_nic_that_is_down_is_left_out_and_named() {
    let offers = || Answer::Offers(vec![efa("efa", "a", 1), efa("efa", "b", 2)]);
    let down = |name: &str| HostNic {
        name: name.into(),
        down: Some("its link is down (INIT)".into()),
        ..HostNic::default()
    };
    let choice = choose_of(&config("efa"), &[down("a")], &[("efa", offers())]).unwrap();
    assert_eq!(names(&choice), ["b"]);
    assert_eq!(choice.left_out[0].to_string(), "a: its link is down (INIT)");
    let error = choose_of(&config("efa"), &[down("a"), down("b")], &[("efa", offers())]).unwrap_err();
    assert_eq!(error, OpenError::AllDown { provider: "efa".into(), nics: vec!["a".into(), "b".into()] });
    let mut by_provider = efa("efa", "a", 1);
    by_provider.nic.as_mut().unwrap().down = true;
    let choice =
        choose_of(&config("efa"), &[], &[("efa", Answer::Offers(vec![by_provider, efa("efa", "b", 2)]))]);
    assert_eq!(names(&choice.unwrap()), ["b"]);
}

#[test]
fn rails_take_rate_and_numa_node_from_the_topology() {
    let pci = Some(Pci::new(0, 2, 0, 0));
    let nic = HostNic {
        name: "other-name".into(),
        pci,
        numa: Some(1),
        rate_bps: Some(200_000_000_000),
        ..HostNic::default()
    };
    let offers = [("efa", Answer::Offers(vec![efa("efa", "a", 1), efa("efa", "b", 2)]))];
    let rails = choose_of(&config("efa"), &[nic], &offers).unwrap().rails;
    assert_eq!((rails[0].numa, rails[0].rate_bps), (None, 100_000_000_000));
    assert_eq!((rails[1].numa, rails[1].rate_bps), (Some(1), 200_000_000_000));
}

#[test]
fn fewer_rails_take_the_first_nics_and_more_share_them() {
    let offers =
        || [("efa", Answer::Offers((1..=4).map(|bus| efa("efa", &format!("n{bus}"), bus)).collect()))];
    let with = |rails| Config { rails: Some(rails), ..config("efa") };
    let two = choose_of(&with(2), &[], &offers()).unwrap();
    assert_eq!(names(&two), ["n1", "n2"]);
    assert_eq!(two.left_out[1].to_string(), "n4: beyond the 2 rails asked for");
    let six = choose_of(&with(6), &[], &offers()).unwrap();
    assert_eq!(names(&six), ["n1", "n2", "n3", "n4", "n1#2", "n2#2"]);
    assert_eq!((six.rails[0].rate_bps, six.rails[3].rate_bps), (50_000_000_000, 100_000_000_000));
    assert_eq!((six.rails[4].nic.as_str(), six.rails[4].offer), ("n1", 0));
}

#[test]
fn more_nics_than_rails_can_be_is_an_error() {
    let offers = (0..65).map(|bus| efa("efa", &format!("n{bus}"), bus)).collect();
    let error = choose_of(&config("efa"), &[], &[("efa", Answer::Offers(offers))]).unwrap_err();
    assert_eq!(error.to_string(), "65 rails are too many; an agent has at most 64");
}

#[test]
fn tcp_takes_each_interface_once_without_loopback_and_one_kind_of_address() {
    let offers = || Answer::Offers(vec![tcp("eth0", 2), tcp("eth0", 3), tcp("eth1", 3), tcp("lo", 2)]);
    let choice = choose_of(&config("tcp"), &[], &[("tcp", offers())]).unwrap();
    assert_eq!(names(&choice), ["eth0"]);
    let left: Vec<_> = choice.left_out.iter().map(|left| left.name.as_str()).collect();
    assert_eq!(left, ["eth1", "lo"]);
    let lo = Config { devices: vec!["lo".into()], ..config("tcp") };
    assert_eq!(names(&choose_of(&lo, &[], &[("tcp", offers())]).unwrap()), ["lo"]);
    // Where there is nothing but loopback, it is what there is.
    let alone = [("tcp", Answer::Offers(vec![tcp("lo", 2)]))];
    assert_eq!(names(&choose_of(&config("tcp"), &[], &alone).unwrap()), ["lo"]);
}

#[test]
fn what_an_offer_lacks_is_said() {
    for (spoil, why) in [
        ((|offer| offer.lacks = vec!["RDMA writes"]) as fn(&mut Offer), "a-rdm lacks RDMA writes"),
        (|offer| offer.immediate_bytes = 0, "immediates of 0 bytes"),
        (|offer| offer.message_bytes_max = 100, "messages of 100 bytes"),
        (|offer| offer.queue = (4_096, 1), "1 receives"),
        (|offer| offer.domain.clear(), "has no name"),
        (|offer| offer.provider = "else".into(), "only fabric efa of else is offered"),
    ] {
        let mut offer = efa("efa", "a", 1);
        spoil(&mut offer);
        let error =
            choose_of(&config("efa"), &[], &[("efa", Answer::Offers(vec![offer]))]).unwrap_err().to_string();
        assert!(error.contains(why), "{error} should have said {why}");
    }
}

#[test]
fn names_from_a_library_are_shown_printable_and_short() {
    let hostile = format!("\u{1b}[31m{}\n", "x".repeat(10_000));
    let mut offer = tcp(&hostile, 2);
    offer.fabric = hostile.clone();
    let choice = choose_of(&config("tcp"), &[], &[("tcp", Answer::Offers(vec![offer]))]).unwrap();
    assert!(choice.rails[0].name.chars().all(|c| !c.is_control()) && choice.rails[0].name.len() <= 256);
    assert_eq!(choice.rails[0].domain, hostile, "what libfabric is asked for is its own name");
    let error = choose_of(&config("efa"), &[], &[("efa", Answer::Nothing(hostile))]).unwrap_err().to_string();
    assert!(error.len() < 600 && !error.contains('\u{1b}'), "{error}");
}
