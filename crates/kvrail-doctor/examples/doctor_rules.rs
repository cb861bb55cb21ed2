//! Writes docs/doctor-rules.md, as `kvrail doctor --list --format markdown` does, without building the program:
//! `cargo run -p kvrail-doctor --example doctor_rules > docs/doctor-rules.md`.

fn main() {
    print!("{}", kvrail_doctor::render::list_markdown());
}
