//! `efference demos libero`: the scripted expert plays LIBERO.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use efference_data::{Entry, Episode, EpisodeWriter, Error};
use efference_envs::libero::expert::ExpertOptions;
use efference_envs::libero::suite::Suite;
use efference_envs::libero::{
    LiberoOptions, Pack, Profile, SubstepOrder, demonstrate, packs_dir, train_seed,
};
use efference_rollout::{Purpose, seed_for};
use efference_train::report::{Event, Reporter, StopFlag};
use rayon::prelude::*;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::text::{count, range, table};
use crate::ui::Ui;

/// Let the scripted expert solve LIBERO tasks and store its episodes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The expert finds its grasps by trial in the simulation and plays through the same seven numbers as a policy; noise is on \
what is executed, the stored actions are what the expert wanted. Episodes begin after the ten idle steps and end when the \
goal holds; failures are not stored. Pictures are stored as evaluators show them to policies (rotated by 180 degrees \
against LIBERO's array). Initial states are drawn from the 50 saved ones, fixture poses from their table, as LIBERO's \
evaluations do. The same arguments give the same episodes, on any number of threads. Task packs come from `cargo xtask \
libero`.")]
pub(crate) struct Args {
    /// libero_spatial, libero_object, libero_goal, libero_10, libero_90
    #[arg(long, value_name = "NAME", default_value = "libero_spatial")]
    suite: Suite,
    /// Number of a task to demonstrate; may be repeated [default: all of the suite]
    #[arg(long = "task", value_name = "ID")]
    tasks: Vec<usize>,
    /// Successful episodes per task
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<u64>::new().range(1..=100_000))]
    per_task: u64,
    /// Folder to make [default: demos_SUITE]; it must not hold episodes yet, unless --append is given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Add to the folder's episodes; those that are there already are not made again
    #[arg(long)]
    append: bool,
    /// Chooses initial states, fixture poses, noise
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Standard deviation of the noise on executed translations, 0 to 0.3 (a tenth of it on rotations)
    #[arg(long, value_name = "X", default_value_t = 0.03, value_parser = noise)]
    noise: f64,
    /// Side of the pictures in pixels, 16 to 1024
    #[arg(long, value_name = "PX", default_value_t = 128, value_parser = RangedU64ValueParser::<u64>::new().range(16..=1024))]
    image_size: u64,
    /// Draw at every N-th control step only: pictures are most of the work
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<u64>::new().range(1..=100))]
    look_every: u64,
    /// Quality of the pictures
    #[arg(long, value_enum, default_value_t = ProfileArg::Faithful)]
    profile: ProfileArg,
    /// Passes in a physics step
    #[arg(long, value_enum, default_value_t = OrderArg::Exact)]
    order: OrderArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileArg {
    /// As LIBERO draws
    Faithful,
    /// Without shadows and reflections, reduced meshes
    Fast,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OrderArg {
    /// As Python LIBERO computes them
    Exact,
    /// One: faster
    Fused,
}

fn noise(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..=0.3).contains(&x) => Ok(x),
        _ => Err("give a number from 0 to 0.3".into()),
    }
}

/// One task's account.
struct Tally {
    id: usize,
    pack: Arc<Pack>,
    /// Initial states tried, counted from 0.
    tried: u64,
    stored: u64,
    steps: Vec<usize>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let mut tallies = tasks(args)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("demos_{}", args.suite)));
    let stop = interrupt::install(ui)?;
    let mut writer = open(args, &out)?;
    let reporter = ui.reporter();
    let total = args.per_task * tallies.len() as u64;
    reporter.report(&Event::Stage { name: "demos".into(), unit: "episode".into(), total, done: 0 });
    let made = make(args, &mut tallies, &mut writer, reporter.as_ref(), &stop);
    drop(reporter);
    // What was stored is told even when something stopped the rest.
    tell(&tallies, ui);
    ui.line(format!("{} in {}", count(writer.entries().len(), "episode"), out.display()));
    made?;
    let stored: u64 = tallies.iter().map(|t| t.stored).sum();
    if stop.requested() && stored < total {
        let what = format!("{stored} of {total} episodes are stored in {}", out.display());
        return Err(Failure::interrupted(what).help("the same command with --append makes the rest"));
    }
    match tallies.iter().find(|t| t.stored < args.per_task) {
        None => Ok(()),
        Some(t) => {
            let what = format!(
                "the expert solved `{}` (\"{}\") only {} times in {} attempts",
                t.pack.id(),
                t.pack.language(),
                t.stored,
                t.tried
            );
            Err(Failure::new(what).help("lower --noise, or choose other tasks with --task"))
        }
    }
}

fn tasks(args: &Args) -> Result<Vec<Tally>> {
    let known = args.suite.len();
    let mut ids = if args.tasks.is_empty() { (0..known).collect() } else { args.tasks.clone() };
    ids.sort_unstable();
    ids.dedup();
    if let Some(id) = ids.iter().find(|id| **id >= known) {
        let what = format!("there is no task {id} in {}: its tasks are 0 to {}", args.suite, known - 1);
        return Err(Failure::usage(what));
    }
    let root = packs_dir();
    let open = |id: usize| -> Result<Tally> {
        let pack = Pack::open(Pack::find(&root, &args.suite.to_string(), id)?)?;
        Ok(Tally { id, pack, tried: 0, stored: 0, steps: Vec::new() })
    };
    ids.into_iter().map(open).collect()
}

fn open(args: &Args, out: &Path) -> Result<EpisodeWriter> {
    if args.append {
        return Ok(EpisodeWriter::append_to(out)?);
    }
    EpisodeWriter::create(out).map_err(|error| match error {
        Error::AlreadyThere { path, episodes } => {
            let what = format!("`{}` already holds {}", path.display(), count(episodes, "episode"));
            Failure::new(what).help("choose another folder with --out, or add to this one with --append")
        }
        other => other.into(),
    })
}

/// Rounds of attempts until every task has its episodes, as for the tabletop: stored in the order of their seeds, so
/// that the number of threads leaves no trace.
fn make(
    args: &Args,
    tallies: &mut [Tally],
    writer: &mut EpisodeWriter,
    reporter: &dyn Reporter,
    stop: &StopFlag,
) -> Result<()> {
    let round = 2 * rayon::current_num_threads(); // at most so many episodes wait in memory
    // A task that fails more often than every second time is given up.
    let enough = 2 * args.per_task + 4;
    let done = AtomicU64::new(0);
    let entry = |e: &Entry| ((e.meta.task.clone(), e.meta.seed), e.steps);
    let there: BTreeMap<(String, u64), usize> = writer.entries().iter().map(entry).collect();
    loop {
        let mut wanted: Vec<(usize, u64)> = tallies
            .iter()
            .enumerate()
            .flat_map(|(t, tally)| {
                let missing = (args.per_task - tally.stored).min(enough.saturating_sub(tally.tried));
                (tally.tried..tally.tried + missing).map(move |i| (t, i))
            })
            .collect();
        // All tasks in turn: what an interruption leaves is balanced.
        wanted.sort_by_key(|&(t, i)| (i, t));
        if wanted.is_empty() {
            return Ok(());
        }
        for attempts in wanted.chunks(round) {
            if stop.requested() {
                return Ok(());
            }
            let play = |&(t, i): &(usize, u64)| -> Result<(usize, Attempt)> {
                let tally = &tallies[t];
                let seed = train_seed(seed_for(args.seed, Purpose::Demonstrations, &[tally.id as u64, i]));
                let attempt = match there.get(&(tally.pack.id(), seed)) {
                    Some(&steps) => Attempt::There { steps },
                    None => Attempt::Played(Box::new(attempt(args, &tally.pack, seed)?)),
                };
                if attempt.counts() {
                    let done = 1 + done.fetch_add(1, Ordering::Relaxed);
                    reporter.report(&Event::Progress { done });
                }
                Ok((t, attempt))
            };
            let played: Vec<Result<(usize, Attempt)>> = attempts.par_iter().map(play).collect();
            for attempt in played {
                let (t, attempt) = attempt?;
                tallies[t].tried += 1;
                if attempt.counts() {
                    tallies[t].stored += 1;
                    tallies[t].steps.push(attempt.steps());
                }
                if let Attempt::Played(episode) = attempt
                    && episode.meta.success
                {
                    writer.append(&episode)?;
                }
            }
        }
    }
}

/// What became of an initial state.
enum Attempt {
    Played(Box<Episode>),
    /// The folder had it already.
    There {
        steps: usize,
    },
}

impl Attempt {
    /// Whether the folder holds it in the end.
    fn counts(&self) -> bool {
        matches!(self, Self::There { .. }) || matches!(self, Self::Played(episode) if episode.meta.success)
    }

    fn steps(&self) -> usize {
        match self {
            Self::Played(episode) => episode.steps(),
            Self::There { steps } => *steps,
        }
    }
}

fn attempt(args: &Args, pack: &Arc<Pack>, seed: u64) -> Result<Episode> {
    let options = LiberoOptions {
        order: match args.order {
            OrderArg::Exact => SubstepOrder::Exact,
            OrderArg::Fused => SubstepOrder::Fused,
        },
        profile: match args.profile {
            ProfileArg::Faithful => Profile::Faithful,
            ProfileArg::Fast => Profile::Fast,
        },
        image_size: args.image_size as usize,
        ..LiberoOptions::default()
    };
    let expert = ExpertOptions {
        noise: args.noise,
        jitter: if args.noise > 0.0 { 0.01 } else { 0.0 },
        ..Default::default()
    };
    Ok(demonstrate(pack, &options, expert, seed, args.look_every as usize)?)
}

fn tell(tallies: &[Tally], ui: &Ui) {
    let mut rows = vec![["task", "stored", "failed", "steps", "instruction"].map(str::to_owned).to_vec()];
    for tally in tallies {
        let Tally { pack, tried, stored, steps, .. } = tally;
        let (failed, language) = (tried - stored, pack.language());
        let numbers = [stored.to_string(), failed.to_string(), range(steps), language.to_owned()];
        rows.push([vec![pack.id()], numbers.to_vec()].concat());
        ui.object(&json!({
            "task": pack.id(), "instruction": language, "stored": stored, "failed": failed, "steps": steps,
        }));
    }
    for line in table(&rows) {
        ui.line(line);
    }
}
