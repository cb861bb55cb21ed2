//! The fixtures of instance types are what the emulated fabric's shapes write: neither drifts unseen.
//! `KVRAIL_BLESS=1 cargo test -p kvrail-topology --test captures` writes them anew.

mod hosts;

use hosts::path;
use kvrail_topology::capture;
use softefa::shape::Shape;
use softefa::sysfs::{CounterNames, Root};

#[test]
fn captures_of_the_emulated_shapes_are_the_fixtures() {
    let folder = tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() {
        "/dev/shm".into()
    } else {
        std::env::temp_dir()
    })
    .unwrap();
    for name in ["p4d", "p5", "p5en", "p6-b200", "gb200"] {
        let shape = Shape::named(name).unwrap();
        let root = Root::create(
            &folder.path().join(name),
            &shape,
            0,
            shape.nics.len(),
            |nic| [nic as u8; 16],
            CounterNames::EFA,
        )
        .unwrap();
        let text = capture(&root.sys(), &[format!("the shape {name} of the emulated fabric")]).unwrap();
        let file = path(&format!("{name}.capture"));
        if std::env::var_os("KVRAIL_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap();
        assert!(text == kept, "{}: run with KVRAIL_BLESS=1 and look at the difference", file.display());
    }
}
