//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::commands::Command;
use crate::errors::{self, Failure};
use crate::ui::Ui;

const AFTER_HELP: &str = "\
Exit codes: 0 all went well, 1 something failed, 2 the command line is wrong, 130 interrupted.
Start with `efference doctor`; it says what this machine has and how to get what it lacks.";

/// Train, watch and evaluate multimodal and embodied policies.
#[derive(Debug, Parser)]
#[command(name = "efference", version, after_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    /// Say only results and errors: no bars, no notes
    #[arg(long, short, global = true)]
    quiet: bool,
    /// For machines: events and results on stdout, errors on stderr, one JSON object per line
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Parses the arguments of this process, runs the command, reports what went wrong.
pub fn main() -> ExitCode {
    efference_ops::host::prepare();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let ui = Ui::new(cli.quiet, cli.json);
    match cli.command.run(&ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            errors::print(&failure, ui.json());
            ExitCode::from(failure.code())
        }
    }
}

/// Help and version are answers; everything else is a wrong command line, told in clap's words.
fn usage(error: &clap::Error) -> ExitCode {
    let is_answer = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if !is_answer && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ").to_owned();
        let failure = Failure::usage(text);
        errors::print(&failure, true);
    } else {
        // A closed pipe (`efference --help | head -1`) is no reason to complain.
        let _ = error.print();
    }
    ExitCode::from(error.exit_code() as u8)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
