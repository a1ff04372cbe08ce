//! `efference data flow`: simulated objects move by themselves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::builder::{PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use efference_data::flow::FlowWriter;
use efference_envs::flow::{ArmKind, FlowTask, GenerateOptions, Generated, Recipe, generate};
use efference_envs::libero::suite::Suite;
use efference_envs::libero::{LiberoRecipe, Pack, packs_dir};
use efference_train::report::Event;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::interrupt;
use crate::text::count;
use crate::ui::Ui;

/// Make episodes of object flow: picture, depth, mask, instruction, and exact 3D tracks of points on the object
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each episode is one scene, drawn from its number: sizes, places, colours, a calibrated camera, light, bystanders, wording. \
The object does the task by itself along a random motion that touches nothing. The same arguments give the same episodes, \
on any number of threads; more --episodes go on where the folder ends, also after an interruption. Scenes in which the \
camera sees too little of the object are passed over. Check the result with `efference data check DIR`. Format: \
docs/flow_format.md.")]
pub(crate) struct Args {
    /// Folder of the set; made, or gone on with if the same settings made it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Family of tasks; may be repeated [default: all]
    #[arg(long = "task", value_name = "ID", value_parser = PossibleValuesParser::new(FlowTask::ids()).try_map(|id| FlowTask::from_id(&id)))]
    tasks: Vec<FlowTask>,
    /// Instead of the workbench, scenes of this LIBERO suite, of the task packs that are there; may be repeated
    #[arg(long = "suite", value_name = "NAME", conflicts_with_all = ["tasks", "arms", "eval"])]
    suites: Vec<Suite>,
    /// Arm that stands in the picture; may be repeated, then scenes have them in turn [default: both]
    #[arg(long = "arm", value_name = "ID", value_parser = PossibleValuesParser::new(["arm7", "arm6"]).try_map(|id| ArmKind::from_id(&id)))]
    arms: Vec<ArmKind>,
    /// Episodes that the folder holds in the end
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=10_000_000))]
    episodes: u64,
    /// Chooses the scenes
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = RangedU64ValueParser::<u64>::new().range(0..=65_535))]
    seed: u64,
    /// Evaluation scenes instead of training scenes; the two have none in common
    #[arg(long)]
    eval: bool,
    /// Side of the pictures in pixels, 16 to 1024
    #[arg(long, value_name = "PX", default_value_t = 128, value_parser = RangedU64ValueParser::<u64>::new().range(16..=1024))]
    image_size: u64,
    /// Threads; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = RangedU64ValueParser::<u64>::new().range(0..=1024))]
    threads: u64,
}

/// Scenes between two looks at Ctrl-C.
const ROUND: u64 = 64;

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.suites.is_empty() {
        let options = options(args);
        return make(args, &options, &serde_json::to_value(&options)?, ui);
    }
    let packs = packs(&args.suites)?;
    let ids: Vec<String> = packs.iter().map(|pack| pack.id()).collect();
    let (first, image_size) = (args.seed << 20, args.image_size as usize);
    ui.note(format!("{}: {}", count(ids.len(), "task pack"), ids.join(", ")));
    let description = json!({ "packs": ids, "first": first, "image_size": image_size });
    make(args, &LiberoRecipe { packs, first, image_size }, &description, ui)
}

/// All task packs of the suites that are there.
fn packs(suites: &[Suite]) -> Result<Vec<Arc<Pack>>> {
    let root = packs_dir();
    let mut all = Vec::new();
    for suite in suites {
        let before = all.len();
        for task in 0..suite.len() {
            // Only some may have been exported.
            if let Ok(dir) = Pack::find(&root, &suite.to_string(), task) {
                all.push(Pack::open(dir)?);
            }
        }
        if all.len() == before {
            let what = format!("there is no task pack of `{suite}` in {}", root.display());
            return Err(Failure::new(what).help("`cargo xtask libero` writes task packs"));
        }
    }
    Ok(all)
}

fn make(args: &Args, recipe: &impl Recipe, description: &serde_json::Value, ui: &Ui) -> Result<()> {
    let stop = interrupt::install(ui)?;
    let mut writer = FlowWriter::append_to(&args.out, description)?;
    let before = writer.entries().len() as u64;
    let reporter = ui.reporter();
    let (unit, total) = ("episode".to_owned(), args.episodes);
    reporter.report(&Event::Stage { name: "flow".into(), unit, total, done: before.min(total) });
    let began = Instant::now();
    let (mut held, mut sum) = (before, Generated::default());
    while held < args.episodes && !stop.requested() {
        let first = writer.next();
        if first > 4 * args.episodes + 8 * ROUND {
            break;
        }
        let round = first..first + ROUND.min(args.episodes - held);
        let made = generate(recipe, round, args.threads as usize, |_, episode| -> Result<()> {
            held += u64::from(episode.is_some());
            reporter.report(&Event::Progress { done: held });
            Ok(writer.append(episode.as_ref())?)
        })?;
        sum.made += made.made;
        sum.hidden += made.hidden;
        sum.blocked += made.blocked;
    }
    writer.flush()?;
    drop(reporter);
    let secs = began.elapsed().as_secs_f64();
    let (made, passed) = (sum.made, sum.hidden + sum.blocked);
    ui.line(format!(
        "{} made in {secs:.1} s ({:.0} per minute); passed over: {} with too little in view, {} without a free motion",
        count(made as usize, "episode"),
        60.0 * made as f64 / secs.max(1e-9),
        sum.hidden,
        sum.blocked
    ));
    ui.line(format!("{} in {}", count(held as usize, "episode"), args.out.display()));
    ui.object(&json!({
        "episodes": held, "made": made, "hidden": sum.hidden, "blocked": sum.blocked, "secs": secs,
    }));
    if held >= args.episodes {
        return Ok(());
    }
    let what = format!("{held} of {} episodes are stored in {}", args.episodes, args.out.display());
    if stop.requested() {
        return Err(Failure::interrupted(what).help("the same command makes the rest"));
    }
    Err(Failure::new(format!("{what}: {passed} scenes gave none"))
        .help("larger pictures show more of the object"))
}

fn options(args: &Args) -> GenerateOptions {
    let all = GenerateOptions::default();
    let mut tasks = if args.tasks.is_empty() { all.tasks } else { args.tasks.clone() };
    tasks.dedup();
    let arms = if args.arms.is_empty() { all.arms } else { args.arms.clone() };
    // A million scenes per family for each seed.
    let first = args.seed << 20;
    GenerateOptions { tasks, arms, first, eval: args.eval, image_size: args.image_size as usize }
}
