//! `efference demos tabletop`: the scripted expert plays.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use efference_data::{Entry, Episode, EpisodeWriter, Error};
use efference_envs::tabletop::{Expert, TabletopOptions, Task, train_seed};
use efference_rollout::{Purpose, demonstrate, seed_for};
use efference_train::report::{Event, Reporter, StopFlag};
use rayon::prelude::*;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::{count, table};
use crate::ui::Ui;
use crate::{interrupt, text};

/// Let the scripted expert solve the tabletop tasks and store its episodes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every episode holds both cameras at every control step, actions, proprioception and the simulator's states; the \
environment decides about success, and failures are not stored. The initial states are training states, never those of \
the evaluation. The same arguments give the same episodes, on any number of threads. Format: docs/episode_format.md.")]
pub(crate) struct Args {
    /// Folder to make; it must not hold episodes yet, unless --append is given
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Add to the folder's episodes; those that are there already are not made again
    #[arg(long)]
    append: bool,
    /// Task to demonstrate; may be repeated [default: all]
    #[arg(long = "task", value_name = "ID", value_parser = PossibleValuesParser::new(Task::ids()).try_map(|id| Task::from_id(&id)))]
    tasks: Vec<Task>,
    /// Successful episodes per task
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<u64>::new().range(1..=100_000))]
    per_task: u64,
    /// Chooses the initial states
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Side of the pictures in pixels, 16 to 1024
    #[arg(long, value_name = "PX", default_value_t = 64, value_parser = RangedU64ValueParser::<u64>::new().range(16..=1024))]
    image_size: u64,
    /// Share of the largest command that the expert moves with, 0.1 to 1
    #[arg(long, value_name = "X", default_value_t = Expert::SPEED, value_parser = within::<10, 100>)]
    speed: f64,
    /// Amplitude of uniform noise on the motion commands, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = within::<0, 100>)]
    noise: f64,
}

/// A number between hundredths.
fn within<const LOW: u32, const HIGH: u32>(text: &str) -> std::result::Result<f64, String> {
    let (low, high) = (f64::from(LOW) / 100.0, f64::from(HIGH) / 100.0);
    match text.parse::<f64>() {
        Ok(x) if (low..=high).contains(&x) => Ok(x),
        _ => Err(format!("give a number from {low} to {high}")),
    }
}

/// One task's account.
struct Tally {
    task: Task,
    /// Initial states tried, counted from 0.
    tried: u64,
    stored: u64,
    steps: Vec<usize>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let stop = interrupt::install(ui)?;
    let mut writer = open(args)?;
    let mut tasks = if args.tasks.is_empty() { Task::ALL.to_vec() } else { args.tasks.clone() };
    tasks.dedup();
    let mut tallies: Vec<Tally> =
        tasks.into_iter().map(|task| Tally { task, tried: 0, stored: 0, steps: Vec::new() }).collect();
    let reporter = ui.reporter();
    let total = args.per_task * tallies.len() as u64;
    reporter.report(&Event::Stage { name: "demos".into(), unit: "episode".into(), total, done: 0 });
    let made = make(args, &mut tallies, &mut writer, reporter.as_ref(), &stop);
    drop(reporter);
    made?;
    tell(&tallies, writer.entries().len(), args, ui);
    let stored: u64 = tallies.iter().map(|t| t.stored).sum();
    if stop.requested() && stored < total {
        let what = format!("{stored} of {total} episodes are stored in {}", args.out.display());
        return Err(Failure::interrupted(what).help("the same command with --append makes the rest"));
    }
    match tallies.iter().find(|t| t.stored < args.per_task) {
        None => Ok(()),
        Some(t) => Err(Failure::new(format!(
            "the expert solved `{}` only {} times in {} attempts",
            t.task.id(),
            t.stored,
            t.tried
        ))
        .help("lower --noise, or bring --speed nearer to its default")),
    }
}

fn open(args: &Args) -> Result<EpisodeWriter> {
    if args.append {
        return Ok(EpisodeWriter::append_to(&args.out)?);
    }
    EpisodeWriter::create(&args.out).map_err(|error| match error {
        Error::AlreadyThere { path, episodes } => {
            let what = format!("`{}` already holds {}", path.display(), count(episodes, "episode"));
            Failure::new(what).help("choose another folder with --out, or add to this one with --append")
        }
        other => other.into(),
    })
}

/// Rounds of attempts until every task has its episodes. Episodes are stored in the order of their seeds, whichever is
/// ready first, so that the number of threads leaves no trace.
fn make(
    args: &Args,
    tallies: &mut [Tally],
    writer: &mut EpisodeWriter,
    reporter: &dyn Reporter,
    stop: &StopFlag,
) -> Result<()> {
    let round = 4 * rayon::current_num_threads(); // at most so many episodes wait in memory
    // A task that fails more often than every second time is given up.
    let enough = 2 * args.per_task + 8;
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
            let play = |&(t, i): &(usize, u64)| {
                let task = tallies[t].task;
                let seed = env_seed(args, task, i);
                if let Some(&steps) = there.get(&(task.id().to_owned(), seed)) {
                    return Ok((t, Attempt::There { steps }));
                }
                Ok((t, Attempt::Played(Box::new(attempt(args, task, seed)?))))
            };
            let play = |place: &(usize, u64)| {
                let attempt = play(place);
                if attempt.as_ref().is_ok_and(|(_, attempt)| attempt.counts()) {
                    let done = 1 + done.fetch_add(1, Ordering::Relaxed);
                    reporter.report(&Event::Progress { done });
                }
                attempt
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

/// The seeds of `train`'s own demonstrations: the same run seed gives the same episodes here and there.
fn env_seed(args: &Args, task: Task, i: u64) -> u64 {
    let number = Task::ALL.iter().position(|other| *other == task).unwrap_or(0) as u64;
    train_seed(seed_for(args.seed, Purpose::Demonstrations, &[number, i]))
}

fn attempt(args: &Args, task: Task, seed: u64) -> Result<Episode> {
    let options = TabletopOptions { image_size: args.image_size as usize, ..TabletopOptions::default() };
    let expert = Expert::new(task).with_speed(args.speed).with_noise(args.noise, seed);
    let mut episode = demonstrate(&options, task, seed, expert)?;
    episode.meta.extra.insert("expert_speed".into(), args.speed.to_string());
    episode.meta.extra.insert("expert_noise".into(), args.noise.to_string());
    Ok(episode)
}

fn tell(tallies: &[Tally], held: usize, args: &Args, ui: &Ui) {
    let mut rows = vec![["task", "stored", "failed", "steps"].map(str::to_owned).to_vec()];
    for tally in tallies {
        let Tally { task, tried, stored, steps } = tally;
        let failed = tried - stored;
        let range = text::range(steps);
        rows.push(vec![task.id().into(), stored.to_string(), failed.to_string(), range]);
        ui.object(&json!({ "task": task.id(), "stored": stored, "failed": failed, "steps": steps }));
    }
    for line in table(&rows) {
        ui.line(line);
    }
    ui.line(format!("{} in {}", count(held, "episode"), args.out.display()));
}
