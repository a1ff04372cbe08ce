//! One file per command. A new one is a `mod` line and a line in the list below.

mod algorithms;
mod bench;
mod compare;
mod conformance;
mod data;
mod demos;
mod doctor;
mod doctor_libero;
mod env_worker;
mod eval;
mod export;
mod flow;
mod quickstart;
mod train;
mod view;

use crate::errors::Result;
use crate::ui::Ui;

macro_rules! commands {
    ($($name:ident => $module:ident),* $(,)?) => {
        /// What to do.
        #[derive(Debug, clap::Subcommand)]
        pub(crate) enum Command {
            $(#[allow(missing_docs)] $name($module::Args),)*
        }

        impl Command {
            /// Does it.
            pub(crate) fn run(&self, ui: &Ui) -> Result<()> {
                match self {
                    $(Self::$name(args) => $module::run(args, ui),)*
                }
            }
        }
    };
}

// In the order in which `--help` lists them; the help text is the first line above each `Args`.
commands! {
    Quickstart => quickstart,
    Train => train,
    Eval => eval,
    Demos => demos,
    Data => data,
    Compare => compare,
    Export => export,
    Flow => flow,
    View => view,
    Algorithms => algorithms,
    Conformance => conformance,
    Bench => bench,
    Doctor => doctor,
    EnvWorker => env_worker,
}
