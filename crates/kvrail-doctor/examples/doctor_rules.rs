//! Writes docs/doctor-rules.md: what `kvrail doctor --list --format markdown` writes, and how each rule is proved.
//! `cargo run -p kvrail-doctor --example doctor_rules > docs/doctor-rules.md`.

#[path = "../tests/proof/mod.rs"]
#[allow(dead_code, reason = "a test uses the rest")]
mod proof;

fn main() {
    print!("{}{}", kvrail_doctor::render::list_markdown(), proof::markdown());
}
