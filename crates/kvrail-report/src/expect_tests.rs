use super::*;
use crate::document::tests::row;
use crate::fingerprint::{Nics, TopologySummary};
use crate::{Environment, Figures, Fingerprint, Sides};

/// Two P5 hosts and one row of 64 MiB.
fn p5(gbps: f64) -> Document {
    let mut document = Document::begin(std::time::SystemTime::UNIX_EPOCH, 1, 1);
    let environment = |host: &str| Environment {
        kvrail: "0.1.0".into(),
        profile: "release".into(),
        host: host.into(),
        kernel: "Linux 6.8".into(),
        cpu: "x".into(),
        cpus: 96,
        memory_bytes: 1 << 40,
    };
    document.environment = Sides { initiator: Some(environment("a")), target: Some(environment("b")) };
    let nics = vec![Nics { kind: "efa".into(), rate_bps: 100_000_000_000, count: 32 }];
    let topology = Some(TopologySummary { nics, ..TopologySummary::default() });
    let print = Some(Fingerprint { machine: Some("p5.48xlarge".into()), topology, ..Fingerprint::default() });
    document.fingerprint = Sides { initiator: print.clone(), target: print };
    let figures = Some(Figures { bandwidth_gbps: gbps, ..Figures::default() });
    document.results.push(Row {
        transport: Some("ofi".into()),
        block_bytes: 64 << 20,
        batch: 1,
        figures,
        ..row()
    });
    document.conclude(Ok(()));
    document
}

fn ids(document: &Document) -> Vec<&str> {
    document.results[0].verdicts.iter().map(|verdict| verdict.id.as_str()).collect()
}

#[test]
fn the_shipped_file_is_read_and_every_figure_has_a_source() {
    let shipped = Expectations::read(SHIPPED).unwrap();
    for name in ["P5", "p5.48xlarge", "p4d", "p4de.24xlarge"] {
        assert!(!shipped.instance(name).unwrap().figures.is_empty(), "{name}");
    }
    let unknown = shipped.instance("p9").unwrap_err().to_string();
    assert!(unknown.contains("p5.48xlarge") && unknown.contains("p4d.24xlarge"), "{unknown}");
    let p5 = shipped.instance("p5").unwrap();
    assert!(p5.figures.iter().any(|f| f.gbps == Gbps::About(46.48) && f.latency_us == Some(1443.8)));
}

#[test]
fn the_page_on_expectations_has_every_figure() {
    let page = include_str!("../../../docs/expectations.md");
    for instance in Expectations::shipped().instances {
        assert!(page.contains(&instance.name), "{}", instance.name);
        for figure in &instance.figures {
            let (least, most) = match figure.gbps {
                Gbps::About(gbps) => (gbps, gbps),
                Gbps::Between(least, most) => (least, most),
            };
            assert!(page.contains(&least.to_string()) && page.contains(&most.to_string()), "{figure:?}");
        }
    }
}

#[test]
fn a_tenth_below_is_healthy_and_more_is_not() {
    let shipped = Expectations::shipped();
    for (gbps, code, id) in
        [(36.1, 0, "healthy"), (45.0, 0, "healthy"), (48.0, 0, "healthy"), (35.9, 1, "below-expectation")]
    {
        let mut document = p5(gbps);
        let instance = shipped.instance_of(&document).unwrap();
        assert_eq!(instance.judge(&mut document).exit_code(), code, "{gbps}");
        assert_eq!(ids(&document), [id], "{gbps}");
        let again = shipped.instance("p5").unwrap().judge(&mut document);
        assert_eq!((again.exit_code(), ids(&document).len()), (code, 1), "judging twice says it once");
    }
}

#[test]
fn what_has_no_expectation_cannot_be_told_and_what_did_not_cross_meets_none() {
    let shipped = Expectations::shipped();
    let mut document = p5(45.0);
    document.results[0].batch = 3;
    assert_eq!(shipped.instance("p5").unwrap().judge(&mut document).exit_code(), 2);
    let mut document = p5(1000.0);
    assert_eq!(ids(&document), ["did-not-cross-the-network"]);
    assert_eq!(shipped.instance("p5").unwrap().judge(&mut document).exit_code(), 1);
    let mut document = p5(45.0);
    document.results[0].verified = false;
    document.judge();
    assert_eq!(
        shipped.instance("p5").unwrap().judge(&mut document).exit_code(),
        1,
        "wrong bytes are no figure"
    );
}

#[test]
fn a_low_figure_is_said_with_what_the_document_shows_of_the_reasons() {
    assert_eq!(ids(&p5(10.1)), [""; 0]);
    let mut document = p5(0.35);
    assert_eq!(ids(&document), ["low"]);
    assert!(document.results[0].verdicts[0].text.ends_with("the document shows no reason"));
    let print = document.fingerprint.initiator.as_mut().unwrap();
    print.variables.insert("FI_HMEM_DISABLE_P2P".into(), "1".into());
    print.variables.insert("FI_LOG_LEVEL".into(), "debug".into());
    document.fingerprint.target.as_mut().unwrap().topology.as_mut().unwrap().nics.clear();
    document.environment.target = document.environment.initiator.clone();
    document.judge();
    let text = &document.results[0].verdicts[0].text;
    for reason in [
        "P2P is disabled at the initiator",
        "FI_LOG_LEVEL=debug",
        "target sees no EFA",
        "both sides are on one host",
    ] {
        assert!(text.contains(reason), "{text}");
    }
    document.results[0].block_bytes = 4096;
    document.judge();
    assert_eq!(ids(&document), [""; 0], "small transfers are slow everywhere");
}

#[test]
fn files_that_make_no_sense_are_refused_with_the_reason() {
    let file =
        |figure: &str| format!("version = 1\n[[instance]]\nname = \"x\"\n[[instance.figure]]\n{figure}");
    let good = "transfer_bytes = [1, 2]\ngbps = 1.0\nsource = \"me\"";
    let mine = Expectations::read(&file(good)).unwrap();
    assert_eq!(mine.instance_of(&p5(1.0)).unwrap().name, "x", "the only instance is meant");
    for (figure, says) in [
        ("transfer_bytes = [2, 1]\ngbps = 1.0\nsource = \"me\"", "holds no size"),
        ("transfer_bytes = [1, 2]\ngbps = -1.0\nsource = \"me\"", "no bandwidth"),
        ("transfer_bytes = [1, 2]\ngbps = [2.0, 1.0]\nsource = \"me\"", "no bandwidth"),
        ("transfer_bytes = [1, 2]\ngbps = inf\nsource = \"me\"", "no bandwidth"),
        ("transfer_bytes = [1, 2]\ngbps = 1.0\nsource = \"\"", "no source"),
        ("transfer_bytes = [1, 2]\ngbps = 1.0\nsource = \"me\"\ntypo = 1", "typo"),
    ] {
        let error = Expectations::read(&file(figure)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(matches!(Expectations::read("version = 2\ninstance = []"), Err(ExpectError::Version(2))));
    assert!(Expectations::read("").is_err());
}
