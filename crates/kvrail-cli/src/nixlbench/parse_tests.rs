use proptest::prelude::*;

use crate::nixlbench::flags::{FLAGS, Group};

use super::*;

fn given(words: &[&str]) -> Given {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    match request(&words).unwrap() {
        Request::Run(given) => *given,
        other => panic!("{other:?}"),
    }
}

fn refused(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    request(&words).unwrap_err().to_string()
}

#[test]
fn flags_are_spelled_with_one_dash_or_two_and_underscores_or_hyphens() {
    for words in [
        &["--max_block_size=8192"][..],
        &["--max-block-size=8192"],
        &["-max_block_size", "8192"],
        &["--max-block_size", "0x2000"],
        &["--max_block_size=1", "--max_block_size=8192"],
    ] {
        assert_eq!(given(words).flags.max_block_size, 8192, "{words:?}");
    }
}

#[test]
fn booleans_stand_alone_or_negated_or_with_a_value_that_is_not_the_next_word() {
    for (words, truth) in [
        (&["--check_consistency"][..], true),
        (&["--check-consistency=yes"], true),
        (&["-check_consistency=1"], true),
        (&["--check_consistency=T"], true),
        (&["--check_consistency", "--nocheck_consistency"], false),
        (&["--check_consistency", "--no-check-consistency"], false),
        (&["--check_consistency=0"], false),
        (&["--check_consistency=No"], false),
    ] {
        assert_eq!(given(words).flags.check_consistency, truth, "{words:?}");
    }
    assert!(refused(&["--check_consistency", "true"]).contains("`true` belongs to no flag"));
    assert!(refused(&["--check_consistency=maybe"]).contains("neither true"));
    assert!(refused(&["--nocheck_consistency=true"]).contains("takes no value"));
}

#[test]
fn a_value_may_begin_with_a_dash_and_be_empty() {
    assert_eq!(given(&["--num_iter", "-5"]).flags.num_iter, -5);
    assert_eq!(given(&["--device_list="]).flags.device_list, "");
    assert_eq!(given(&["--etcd_endpoints=http://a:1?x=y"]).flags.etcd_endpoints, "http://a:1?x=y");
}

#[test]
fn an_unknown_flag_is_an_error_that_names_the_nearest() {
    assert!(refused(&["--start_blok_size=1"]).contains("did you mean --start_block_size?"));
    assert!(refused(&["--etcd-endpoint=x"]).contains("did you mean --etcd_endpoints?"));
    assert!(refused(&["--frobnicate"]).contains("--help"));
    assert!(refused(&["--num_iter"]).contains("needs a value"));
    assert!(refused(&["--num_iter=many"]).contains("whole number from -2^31"));
    assert!(refused(&["--asio_port=65536"]).contains("65,535"));
    assert!(refused(&["--total_buffer_size=-1"]).contains("whole number from 0"));
    assert!(refused(&["--total_buffer_size=+-1"]).contains("whole number"));
    assert!(refused(&["--flagfile=x"]).contains("--config_file"));
    assert!(refused(&["8192"]).contains("belongs to no flag"));
    assert!(refused(&["--"]).contains("belongs to no flag"));
}

#[test]
fn what_the_command_line_says_wins_over_the_file() {
    let mut run = given(&["--num_iter=64"]);
    config("num_iter = 32\nwarmup_iter = 16\nenable_pt = true\nop-type = 'READ'\n", &mut run).unwrap();
    assert_eq!((run.flags.num_iter, run.flags.warmup_iter), (64, 16));
    assert!(run.flags.enable_pt);
    assert_eq!(run.flags.op_type, "READ");
    assert_eq!(run.source("num_iter"), Some(Source::CommandLine));
    assert_eq!(run.source("warmup_iter"), Some(Source::ConfigFile));
    assert_eq!(run.source("scheme"), None);
}

#[test]
fn a_file_with_a_mistake_is_an_error_not_a_default() {
    let mut run = Given::default();
    assert!(config("num_itr = 1", &mut run).unwrap_err().contains("did you mean `num_iter`?"));
    assert!(config("num_iter = 'many'", &mut run).unwrap_err().contains("whole number"));
    assert!(config("num_iter = 1.5", &mut run).unwrap_err().contains("float"));
    assert!(config("[num_iter]\nx = 1", &mut run).unwrap_err().contains("table"));
    assert!(config("config_file = 'other.toml'", &mut run).unwrap_err().contains("no flag"));
    assert!(config("num_iter = ", &mut run).is_err());
    assert!(
        refused(&["--config_file=/nonexistent/x.toml"]).contains("cannot read --config_file /nonexistent")
    );
}

#[test]
fn help_and_version_are_answered_wherever_they_stand() {
    for word in ["--help", "-h", "-help", "--helpfull", "--helpshort"] {
        assert_eq!(request(&["--num_iter=1".into(), word.into()]), Ok(Request::Help));
    }
    assert_eq!(request(&["--version".into()]), Ok(Request::Version));
}

#[test]
fn every_flag_of_nixlbench_is_known_and_takes_its_default() {
    // As its source declares them.
    let names = include_str!("nixlbench_flags.txt");
    let mut count = 0;
    for line in names.lines().filter(|line| !line.starts_with('#')) {
        let (name, default) = line.split_once('=').unwrap();
        assert!(flags::find(name).is_some(), "{name}");
        assert_eq!(Flags::default().show(name), default, "{name}");
        count += 1;
    }
    assert_eq!(count, 73);
}

#[test]
fn the_help_names_every_flag_with_its_default() {
    let help = super::super::help::text();
    for flag in FLAGS.iter().filter(|flag| flag.group != Group::Hidden) {
        assert!(help.contains(&format!("--{}", flag.name)), "{}", flag.name);
    }
    assert!(help.contains("[default: 8589934592]"));
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
}

#[test]
fn no_two_flags_share_a_name_and_none_looks_like_a_negation() {
    for (index, flag) in FLAGS.iter().enumerate() {
        assert!(FLAGS[index + 1..].iter().all(|other| other.name != flag.name), "{}", flag.name);
        let rest = flag.name.strip_prefix("no").unwrap_or_default();
        assert!(flags::find(rest.trim_start_matches('_')).is_none(), "{}", flag.name);
    }
}

proptest! {
    #[test]
    fn no_command_line_panics(words in proptest::collection::vec("-{0,2}[a-z_=-]{0,20}|\\PC{0,12}", 0..6)) {
        let _ = request(&words);
    }

    #[test]
    fn no_file_panics(text in "[a-z_]{0,12} ?= ?\\PC{0,20}") {
        let _ = config(&text, &mut Given::default());
    }

    /// Whatever is set is shown as it was typed, and so can be passed on to other participants.
    #[test]
    fn a_value_that_is_shown_can_be_typed_again(index in 0..FLAGS.len(), number in 0u16.., text in "[a-z0-9/._-]{1,12}") {
        let flag = &FLAGS[index];
        let mut flags = Flags::default();
        let word = [number.to_string(), text].into_iter().find(|word| flags.set(flag.name, word).is_ok());
        if word.is_some() {
            let shown = flags.show(flag.name);
            let mut again = Flags::default();
            again.set(flag.name, &shown).unwrap();
            prop_assert_eq!(again.show(flag.name), shown);
        }
    }
}
