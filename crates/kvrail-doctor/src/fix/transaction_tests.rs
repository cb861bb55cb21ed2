//! What a transaction promises, on random trees and at every point at which it can be stopped.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// All that a tree is: kinds, contents, link targets, modes, owners, times.
fn image(root: &Path) -> BTreeMap<String, (String, u32, u32, i64, i64)> {
    fn walk(root: &Path, at: &Path, image: &mut BTreeMap<String, (String, u32, u32, i64, i64)>) {
        let metadata = at.symlink_metadata().unwrap();
        let what = if metadata.is_symlink() {
            format!("link {}", fs::read_link(at).unwrap().display())
        } else if metadata.is_dir() {
            "directory".into()
        } else {
            format!("file {:?} in {} names", fs::read(at).unwrap(), metadata.nlink())
        };
        let name = at.strip_prefix(root).unwrap().display().to_string();
        let is = (what, metadata.mode(), metadata.uid(), metadata.mtime(), metadata.mtime_nsec());
        image.insert(name, is);
        if metadata.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                walk(root, &entry.unwrap().path(), image);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut all);
    all
}

/// The same without times and without the store: what a program sees.
fn content(root: &Path) -> BTreeMap<String, (String, u32)> {
    let seen = image(root).into_iter().filter(|(name, _)| !name.starts_with(STORE));
    let plain = |what: String| what.split(" in ").next().unwrap_or_default().to_owned();
    seen.map(|(name, (what, mode, ..))| (name, (plain(what), mode))).collect()
}

/// A tree with what the tests change: a file, a read-only one, a link, a link that leads nowhere.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("lib/site")).unwrap();
    for (name, mode) in [("a", 0o644), ("b", 0o444), ("c.pyc", 0o600)] {
        let path = root.path().join("lib/site").join(name);
        fs::write(&path, format!("content of {name}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("a", root.path().join("lib/site/link")).unwrap();
    symlink("/nowhere", root.path().join("lib/broken")).unwrap();
    root
}

fn changes() -> Vec<Change> {
    vec![
        Change::link("lib/site/a", "/usr/lib/libother.so", "one"),
        Change::file("lib/site/b", "new", "two"),
        Change::stale("lib/site/c.pyc", "three"),
        Change::file("lib/site/link", "was a link", "four"),
        Change::link("lib/broken", "site/b", "five"),
        Change::link("lib/new", "site/b", "six"),
        Change::file("added", "at the root", "seven"),
    ]
}

fn go(place: &Place, changes: &[Change]) -> Result<Applied, FixError> {
    apply(place, &new_run(), &[Remedy::LoaderPath], changes, &mut || Ok(()), &mut |_| Ok(()))
}

fn back(place: &Place) -> Result<Journal, FixError> {
    undo(place, None, false, &mut |_| Ok(()))
}

#[test]
fn an_undo_leaves_the_tree_bit_for_bit_as_it_was() {
    let root = tree();
    let before = image(root.path());
    let place = Place::environment(root.path()).unwrap();
    let Applied::Changed(journal) = go(&place, &changes()).unwrap() else { panic!() };
    assert_eq!(journal.entries.len(), 7);
    assert_eq!(fs::read_to_string(root.path().join("lib/site/b")).unwrap(), "new");
    assert_eq!(root.path().join("lib/site/b").metadata().unwrap().mode() & 0o777, 0o444);
    assert_eq!(fs::read_link(root.path().join("lib/site/a")).unwrap(), Path::new("/usr/lib/libother.so"));
    assert_ne!(content(root.path()), BTreeMap::new());
    assert_eq!(runs(&place).unwrap().len(), 1);
    back(&place).unwrap();
    assert_eq!(image(root.path()), before);
    assert!(matches!(back(&place), Err(FixError::NoRun { .. })));
    assert_eq!(image(root.path()), before, "an undo of nothing leaves nothing behind");
}

#[test]
fn a_second_run_has_nothing_to_do_and_leaves_the_journal_alone() {
    let root = tree();
    let place = Place::environment(root.path()).unwrap();
    go(&place, &changes()).unwrap();
    let once = image(&root.path().join(STORE));
    assert_eq!(go(&place, &changes()).unwrap(), Applied::Nothing);
    assert_eq!(image(&root.path().join(STORE)), once);
    assert!(preview(&place, &changes()).unwrap().is_empty());
}

#[test]
fn a_run_that_is_stopped_anywhere_is_taken_back_by_the_next_one() {
    let pristine = tree();
    let after = {
        let place = Place::environment(pristine.path()).unwrap();
        let before = content(pristine.path());
        go(&place, &changes()).unwrap();
        let after = content(pristine.path());
        back(&place).unwrap();
        assert_eq!(content(pristine.path()), before);
        after
    };
    let mut points = 0;
    for stop in 0.. {
        let root = tree();
        let place = Place::environment(root.path()).unwrap();
        let before = image(root.path());
        let mut step = 0;
        let mut hook = |_: &'static str| {
            step += 1;
            if step > stop { Err(FixError::Stopped) } else { Ok(()) }
        };
        let ended = apply(&place, &new_run(), &[], &changes(), &mut || Ok(()), &mut hook);
        if ended.is_ok() {
            points = stop;
            assert_eq!(content(root.path()), after);
            break;
        }
        assert_eq!(ended, Err(FixError::Stopped));
        recover(&place, false).unwrap();
        assert_eq!(image(root.path()), before, "stopped at step {stop}");
    }
    assert!(points > 20, "only {points} points were tried");
}

#[test]
fn an_undo_that_is_stopped_anywhere_is_completed_by_the_next_run() {
    for stop in 0.. {
        let root = tree();
        let place = Place::environment(root.path()).unwrap();
        let before = image(root.path());
        go(&place, &changes()).unwrap();
        let after = content(root.path());
        let mut step = 0;
        let mut hook = |_: &'static str| {
            step += 1;
            if step > stop { Err(FixError::Stopped) } else { Ok(()) }
        };
        let ended = undo(&place, None, false, &mut hook);
        if ended.is_ok() {
            assert!(stop > 10);
            assert_eq!(image(root.path()), before);
            break;
        }
        recover(&place, false).unwrap();
        if stop == 0 {
            assert_eq!(content(root.path()), after, "nothing had begun");
            back(&place).unwrap();
        }
        assert_eq!(image(root.path()), before, "stopped at step {stop}");
    }
}

#[test]
fn what_does_not_prove_itself_is_taken_back_at_once() {
    let root = tree();
    let before = image(root.path());
    let place = Place::environment(root.path()).unwrap();
    let ended = apply(&place, &new_run(), &[], &changes(), &mut || Err("no".into()), &mut |_| Ok(()));
    assert_eq!(ended, Err(FixError::Unproven { why: "no".into() }));
    assert_eq!(image(root.path()), before);
}

#[test]
fn what_somebody_else_changed_since_is_not_undone_unless_that_is_forced() {
    let root = tree();
    let place = Place::environment(root.path()).unwrap();
    let before = content(root.path());
    go(&place, &changes()).unwrap();
    let b = root.path().join("lib/site/b");
    fs::remove_file(&b).unwrap();
    fs::write(&b, "somebody else's").unwrap();
    let now = image(root.path());
    let Err(FixError::Changed { path, .. }) = back(&place) else { panic!() };
    assert!(path.ends_with("lib/site/b"));
    assert_eq!(image(root.path()), now, "nothing was put back");
    undo(&place, None, true, &mut |_| Ok(())).unwrap();
    assert_eq!(content(root.path()), before);
}

#[test]
fn what_is_made_from_something_else_may_have_been_made_again() {
    let root = tree();
    let before = content(root.path());
    let place = Place::environment(root.path()).unwrap();
    go(&place, &changes()).unwrap();
    fs::write(root.path().join("lib/site/c.pyc"), "compiled anew").unwrap();
    back(&place).unwrap();
    assert_eq!(content(root.path()), before);
}

#[test]
fn runs_are_undone_one_after_the_other_and_the_later_one_first() {
    let root = tree();
    let before = image(root.path());
    let place = Place::environment(root.path()).unwrap();
    let Applied::Changed(first) = go(&place, &changes()).unwrap() else { panic!() };
    go(&place, &[Change::file("lib/site/b", "newer", "again")]).unwrap();
    let refused = undo(&place, Some(&first.run), false, &mut |_| Ok(()));
    assert!(matches!(refused, Err(FixError::Later { .. })), "{refused:?}");
    back(&place).unwrap();
    back(&place).unwrap();
    assert_eq!(image(root.path()), before);
}

#[test]
fn a_path_that_leads_out_of_the_place_or_over_a_link_is_refused() {
    let root = tree();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), root.path().join("lib/out")).unwrap();
    let place = Place::environment(root.path()).unwrap();
    let before = image(root.path());
    for path in ["../x", "lib/../../x", "/etc/passwd", "lib//x", "lib/.", "", "lib/out/x", "lib/broken/x"] {
        let ended = go(&place, &[Change::file(path, "x", "an attack")]);
        assert!(matches!(ended, Err(FixError::Outside { .. })), "{path}: {ended:?}");
    }
    let ended = go(&place, &[Change::file("lib/site", "x", "a directory")]);
    assert!(matches!(ended, Err(FixError::Strange { .. })), "{ended:?}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(image(root.path()), before);
}

#[test]
fn a_directory_that_may_not_be_written_is_an_error_before_the_first_change() {
    let root = tree();
    let place = Place::environment(root.path()).unwrap();
    let before = image(root.path());
    // No process may make a file below /proc/self; as root, permission bits alone would not refuse.
    let missing = go(&place, &[changes().remove(0), Change::file("lib/missing/x", "x", "no such directory")]);
    assert!(matches!(missing, Err(FixError::Unwritable { .. })), "{missing:?}");
    assert_eq!(image(root.path()), before);
    let proc = Place::environment(Path::new("/proc/self")).unwrap();
    let ended = go(&proc, &[Change::file("x", "x", "impossible")]);
    assert!(matches!(ended, Err(FixError::Unwritable { .. })), "{ended:?}");
}

#[test]
fn runs_at_the_same_time_take_turns() {
    let root = tree();
    let before = image(root.path());
    let place = Place::environment(root.path()).unwrap();
    let changed = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8).map(|_| scope.spawn(|| go(&place, &changes()).unwrap())).collect();
        runs.into_iter()
            .filter(|_| true)
            .map(|run| run.join().unwrap())
            .filter(|run| *run != Applied::Nothing)
            .count()
    });
    assert_eq!(changed, 1, "one changes, the others find nothing to do");
    back(&place).unwrap();
    assert_eq!(image(root.path()), before);
}

#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>, u32),
    Link(String),
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..64), 0..8u32)
            .prop_map(|(content, mode)| Node::File(content, 0o600 | mode)),
        "[a-z./]{1,12}".prop_map(Node::Link),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn undo_is_the_inverse_of_apply_and_a_crash_leaves_either(
        nodes in prop::collection::btree_map("[a-c]/[a-f]", node(), 0..8),
        wanted in prop::collection::btree_map("[a-c]/[a-h]", prop_oneof![node().prop_map(Some), Just(None)], 1..8),
        stop in 0..60usize,
    ) {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        for (path, node) in &nodes {
            let path = root.path().join(path);
            match node {
                Node::File(content, mode) => {
                    fs::write(&path, content).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                }
                Node::Link(target) => symlink(target, &path).unwrap(),
            }
        }
        let changes: Vec<_> = wanted.iter().map(|(path, node)| Change {
            path: path.clone(),
            to: match node {
                Some(Node::File(content, _)) => To::File(content.clone()),
                Some(Node::Link(target)) => To::Link(target.clone()),
                None => To::Absent,
            },
            why: "random".into(),
            derived: false,
        }).collect();
        let place = Place::environment(root.path()).unwrap();
        let before = image(root.path());
        let mut step = 0;
        let stopped = apply(&place, &new_run(), &[], &changes, &mut || Ok(()), &mut |_| {
            step += 1;
            if step > stop { Err(FixError::Stopped) } else { Ok(()) }
        });
        recover(&place, false).unwrap();
        if stopped.is_err() {
            prop_assert_eq!(&image(root.path()), &before);
            go(&place, &changes).unwrap();
        }
        let once = content(root.path());
        prop_assert_eq!(go(&place, &changes).unwrap(), Applied::Nothing);
        prop_assert_eq!(content(root.path()), once);
        if !runs(&place).unwrap().is_empty() {
            back(&place).unwrap();
        }
        prop_assert_eq!(image(root.path()), before);
    }
}
