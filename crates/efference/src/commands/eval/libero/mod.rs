//! `efference eval libero`: the benchmark's protocol, for our policies and for other people's.

mod pictures;
mod players;
mod settings;
mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use efference_data::atomic;
use efference_envs::libero::suite::Suite;
use efference_envs::libero::{Pack, Profile, SimOptions, SubstepOrder, packs_dir};
use efference_rollout::libero::worker::{Isolated, WorkerCommand, WorkerLimits};
use efference_rollout::libero::{
    Evaluation, Hooks, Images, Journal, Native, Packs, Place, Protocol, Simulator, TaskEntry, TaskNote,
    evaluate,
};
use efference_train::report::{Event, Reporter};

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::ui::Ui;

/// Measure a policy's success on LIBERO's saved initial states
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Finished episodes are on disk at once (OUT/episodes.jsonl); after an interruption the same command with --resume goes on. \
OUT/report.json and OUT/report.md hold the table and every setting that moves LIBERO numbers. Task packs come from \
`cargo xtask libero`; EFFERENCE_LIBERO names their folder if it is another one.")]
pub(crate) struct Args {
    /// libero_spatial, libero_object, libero_goal, libero_10 or libero_90, or a variant that packs were made of
    #[arg(long)]
    suite: String,
    /// Who plays: a checkpoint or run folder, `expert`, `zero`, `idle`, openpi://HOST:PORT or vla-eval://HOST:PORT
    #[arg(long, value_name = "POLICY")]
    policy: String,
    /// Episodes per task: saved initial states 0 to N-1
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    episodes: u32,
    /// Only this task, by its number; may be given several times
    #[arg(long = "task", value_name = "N")]
    tasks: Vec<usize>,
    /// Whose protocol: own, oft, openpi, vla-eval, lerobot, simplevla or rlinf; the policy's own unless told
    #[arg(long, value_name = "NAME")]
    protocol: Option<String>,
    /// Actions that are executed of each answer, instead of the protocol's
    #[arg(long, value_name = "K")]
    executed: Option<usize>,
    /// Control steps without the idle ones, instead of the protocol's
    #[arg(long, value_name = "STEPS")]
    max_steps: Option<usize>,
    /// Seed of everything drawn at random, instead of the protocol's
    #[arg(long)]
    seed: Option<u64>,
    /// Pictures, instead of the protocol's
    #[arg(long, value_enum)]
    images: Option<ImagesArg>,
    /// Folder of results
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the evaluation in the folder of results
    #[arg(long)]
    resume: bool,
    /// Simulators at the same time; 0 takes one per core
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// How physics are computed: as Python does, or in one pass (three times faster)
    #[arg(long, value_enum, default_value_t = Order::Exact)]
    order: Order,
    /// How pictures are drawn: as LIBERO does, or without effects and with fewer triangles
    #[arg(long, value_enum, default_value_t = Quality::Faithful)]
    profile: Quality,
    /// Record the first N episodes of each task: a filmstrip each, and all in OUT/recording.rrd
    #[arg(long, value_name = "N", default_value_t = 0)]
    record: usize,
    /// Every simulator in a process of its own: a crash or a hang costs one episode
    #[arg(long)]
    isolate: bool,
    /// Sampling temperature of a checkpoint; 0 takes the most likely action
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Which weights of a checkpoint act
    #[arg(long, default_value = "trained", value_parser = ["trained", "ema"])]
    weights: String,
    /// Seconds that a policy server has for an answer
    #[arg(long, default_value_t = 60.0, value_name = "S")]
    answer_seconds: f64,
    /// Seconds that the simulator has for a control step, an observation or a picture
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    step_seconds: f64,
    /// Seconds that the simulator has for compiling a scene
    #[arg(long, default_value_t = 300.0, value_name = "S")]
    start_seconds: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Exact,
    Fused,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Quality {
    Faithful,
    Fast,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ImagesArg {
    Oft,
    OftWithoutJpeg,
    #[value(name = "openpi")]
    OpenPi,
    Plain,
    Own,
}

impl ImagesArg {
    fn pipeline(self) -> Images {
        match self {
            Self::Oft => Images::Oft,
            Self::OftWithoutJpeg => Images::OftWithoutJpeg,
            Self::OpenPi => Images::OpenPi,
            Self::Plain => Images::Plain,
            Self::Own => Images::Own,
        }
    }
}

/// Between two pictures of a recorded episode, control steps.
const RECORD_EVERY: usize = 5;
/// LIBERO's control steps per second.
const CONTROL_HZ: f64 = 20.0;

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let protocol = protocol(args)?;
    let answer = seconds("answer-seconds", args.answer_seconds)?;
    let step_limit = seconds("step-seconds", args.step_seconds)?;
    let start_limit = seconds("start-seconds", args.start_seconds)?;
    let (packs, mut notes) = packs(args)?;
    let out = args.out.clone().unwrap_or_else(|| default_out(args));
    let journal_path = out.join("episodes.jsonl");
    if journal_path.exists() && !args.resume {
        // Known before a server is asked or a scene compiled.
        let failure = Failure::new(format!("`{}` holds an evaluation already", out.display()));
        return Err(failure.help("`--resume` goes on with it; `--out` names another folder"));
    }
    let stop = interrupt::install(ui)?;
    let player = players::open(&args.policy, &args.suite, &protocol, args, answer)?;
    if player.needs_simulator && args.isolate {
        let why = "the expert reads the simulator's state, which `--isolate` puts into another process";
        return Err(Failure::usage(why).help("leave `--isolate` out"));
    }
    let image_size = protocol.images.render_size().or(player.image_size).unwrap_or(256);
    let options = SimOptions { order: order(args), profile: profile(args), image_size };
    let settings =
        settings::collect(args.suite.as_str(), &protocol, &options, &packs, player.source.settings())?;
    settings::tell(&settings, ui);
    let mut journal = Journal::open(&journal_path, &settings, args.resume)?;

    let tasks: Vec<TaskEntry> = packs
        .iter()
        .map(|(&task, pack)| TaskEntry { task, instruction: pack.language().to_owned() })
        .collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let evaluation = Evaluation {
        suite: &args.suite,
        tasks: &tasks,
        episodes: args.episodes as usize,
        protocol: &protocol,
        step_limit,
        workers: if args.workers == 0 { cores } else { args.workers },
        record: args.record,
        record_every: RECORD_EVERY,
    };
    let total = (tasks.len() * evaluation.episodes) as u64;
    let done = tasks
        .iter()
        .flat_map(|t| (0..evaluation.episodes).map(move |episode| Place { task: t.task, episode }));
    let done = done.filter(|&place| journal.finished(place)).count() as u64;
    let reporter = ui.reporter();
    reporter.report(&Event::Stage { name: "eval".into(), unit: "episode".into(), total, done });
    let (reporting, count) = (&*reporter as &dyn Reporter, AtomicU64::new(done));
    // Compiled scenes are large: packs are opened again by the workers that play them.
    let packs = Arc::new(Packs::new(packs.iter().map(|(&task, pack)| (task, pack.dir.clone())).collect()));
    let limits = WorkerLimits { start: start_limit, step: step_limit };
    let command = worker_command()?;
    let simulator = || -> Box<dyn Simulator> {
        if args.isolate {
            Box::new(Isolated::new(command.clone(), Arc::clone(&packs), options, limits))
        } else {
            Box::new(Native::new(Arc::clone(&packs), options))
        }
    };
    let album = pictures::Album::new(&out, &args.suite, &tasks, &args.policy, CONTROL_HZ);
    let hooks = Hooks {
        simulator: &simulator,
        on_line: &|line| {
            if !line.verdict.finished()
                && let Some(reason) = &line.reason
            {
                let (task, episode) = (line.place.task, line.place.episode);
                reporting.note(format!("task {task}, episode {episode}: {}", first_line(reason)));
            }
            reporting.report(&Event::Progress { done: count.fetch_add(1, Ordering::SeqCst) + 1 });
        },
        on_recording: &|place, outcome, recording| album.keep(place, outcome, recording),
        stop: &|| stop.requested(),
    };
    notes.extend(evaluate(&evaluation, &*player.source, &mut journal, &hooks)?);
    drop(reporter);

    let report = summary::Report::new(&args.suite, &tasks, evaluation.episodes, &journal, &notes, settings);
    // Also after an interruption: what is finished is worth reading.
    atomic::write_file(&out.join("report.json"), report.json()?.as_bytes())?;
    atomic::write_file(&out.join("report.md"), report.markdown().as_bytes())?;
    ui.object(&report);
    ui.line(report.table());
    for problem in album.problems() {
        ui.warn(problem);
    }
    ui.note(format!("written to {}", out.display()));
    if stop.requested() && !report.complete {
        let what = format!("{} of {total} episodes are finished and kept", report.finished());
        return Err(Failure::interrupted(what).help("the same command with `--resume` goes on"));
    }
    if report.complete {
        return Ok(());
    }
    let missing = report.expected - report.finished();
    let mut failure = Failure::new(format!("{missing} of {} episodes could not be played", report.expected));
    for note in notes.iter().take(8) {
        failure = failure.help(format!("task {}: {}", note.task, first_line(&note.why)));
    }
    Err(failure.help("the same command with `--resume` plays what is missing"))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn seconds(name: &str, value: f64) -> Result<Duration> {
    if value.is_finite() && (0.001..=86_400.0).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(Failure::usage(format!("--{name} must be from 0.001 to 86400, got {value}")))
}

/// The preset with what was set by hand.
fn protocol(args: &Args) -> Result<Protocol> {
    let name = args.protocol.as_deref().unwrap_or_else(|| players::usual_protocol(&args.policy));
    let mut protocol =
        Protocol::preset(name, &args.suite).map_err(|e| Failure::from(e).doing("cannot evaluate"))?;
    let before = protocol.clone();
    protocol.executed = args.executed.or(protocol.executed);
    protocol.max_steps = args.max_steps.unwrap_or(protocol.max_steps);
    protocol.seed = args.seed.unwrap_or(protocol.seed);
    protocol.images = args.images.map_or(protocol.images, ImagesArg::pipeline);
    if protocol != before {
        protocol.name += ", changed";
    }
    protocol.check()?;
    Ok(protocol)
}

fn order(args: &Args) -> SubstepOrder {
    match args.order {
        Order::Exact => SubstepOrder::Exact,
        Order::Fused => SubstepOrder::Fused,
    }
}

fn profile(args: &Args) -> Profile {
    match args.profile {
        Quality::Faithful => Profile::Faithful,
        Quality::Fast => Profile::Fast,
    }
}

type Opened = BTreeMap<usize, Arc<Pack>>;

/// The packs of the tasks asked for; those that cannot be read are noted, the others are played.
fn packs(args: &Args) -> Result<(Opened, Vec<TaskNote>)> {
    let in_suite = args.suite.parse::<Suite>()?.len();
    let mut wanted = args.tasks.clone();
    wanted.sort_unstable();
    wanted.dedup();
    if let Some(task) = wanted.iter().find(|&&task| task >= in_suite) {
        let why = format!("there is no task {task} in `{}`", args.suite);
        return Err(Failure::usage(why).help(format!("its tasks are 0 to {}", in_suite - 1)));
    }
    if wanted.is_empty() {
        wanted = (0..in_suite).collect();
    }
    let root = packs_dir();
    let (mut packs, mut notes, mut first) = (BTreeMap::new(), Vec::new(), None);
    for task in wanted {
        match Pack::find(&root, &args.suite, task).and_then(Pack::open) {
            Ok(pack) => {
                packs.insert(task, pack);
            }
            Err(error) => {
                notes.push(TaskNote { task, why: error.to_string() });
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if packs.is_empty() => {
            Err(Failure::from(error).doing(format!("no task of `{}` can be played", args.suite)))
        }
        _ => Ok((packs, notes)),
    }
}

fn default_out(args: &Args) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let policy: String = args.policy.trim_end_matches('/').chars().map(plain).collect();
    Path::new("runs").join("eval").join(format!("{}-{}", args.suite, policy.trim_matches(['-', '.'])))
}

/// This program, as `efference env-worker`.
fn worker_command() -> Result<WorkerCommand> {
    let program =
        std::env::current_exe().map_err(|e| Failure::from(e).doing("cannot find this program's file"))?;
    Ok(WorkerCommand { program, arguments: vec!["env-worker".into()] })
}
