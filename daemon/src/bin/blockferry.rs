//! The command line of blockferry.

fn main() -> std::process::ExitCode {
    daemon::cli::main()
}
