//! The program `kvrail`; everything is in the library beside it.

fn main() -> std::process::ExitCode {
    kvrail_cli::main()
}
