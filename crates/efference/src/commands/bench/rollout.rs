//! `efference bench rollout`: the parts of a rollout and of an update, each alone, and a whole rollout.

use std::path::Path;
use std::time::{Duration, Instant};

use efference_envs::{ACTION_DIM, Action, Env};
use efference_nets::Draw;
use efference_rollout::{CollectOptions, Collector, EnvSource, EpisodePlan, Look, Noise, VlaPolicy};
use efference_train::config::TrainConfig;
use efference_train::decisions::Example;
use efference_train::network;
use efference_train::optimise::{Optimiser, OptimiserSettings};
use efference_train::run::in_pool;
use efference_train::world::{Tabletop, World};
use efference_train::{Error, supervised};
use rayon::prelude::*;
use serde::Serialize;

use crate::errors::{Failure, Result};
use crate::text::{table, thousands};
use crate::ui::Ui;

/// Environments that run at the same time.
const SLOTS: usize = 64;
const CONFIG: &str = include_str!("../../../../../configs/quickstart.toml");

/// Environment steps with and without pictures, policy decisions, trained action tokens, per second
///
/// On the policy and the tasks of configs/quickstart.toml. Times on a shared machine mean little; ratios within one run
/// mean more.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds per measurement
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Worker threads; 0 takes all cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Change a setting of configs/quickstart.toml; may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Measurement {
    what: &'static str,
    unit: &'static str,
    per_second: f64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let config = TrainConfig::from_text(Path::new("configs/quickstart.toml"), CONFIG, &args.sets)?;
    let world = Tabletop::new(&config.env)?;
    let policy = network::policy(&config, world.proprio_range())?;
    if !(0.01..=600.0).contains(&args.seconds) {
        return Err(Failure::usage("--seconds must be between 0.01 and 600"));
    }
    let (seconds, side) = (Duration::from_secs_f64(args.seconds), config.env.image_size);
    let measured = in_pool(args.threads, || {
        Ok((rayon::current_num_threads(), Bench { config, world, policy, seconds }.all(ui)?))
    })?;
    let (threads, measured) = measured;
    for m in &measured {
        ui.object(m);
    }
    let rows: Vec<Vec<String>> =
        measured.iter().map(|m| vec![m.what.into(), thousands(m.per_second), m.unit.into()]).collect();
    for line in table(&rows) {
        ui.line(line);
    }
    ui.line(format!(
        "{threads} threads, MuJoCo {}, {side} px pictures of two cameras",
        efference_envs::mujoco_version()
    ));
    Ok(())
}

struct Bench {
    config: TrainConfig,
    world: Tabletop,
    policy: VlaPolicy,
    seconds: Duration,
}

/// Pictures of the scene at each of these control steps.
#[derive(Clone, Copy)]
enum Pictures {
    Never,
    EveryChunk,
    EveryStep,
}

impl Bench {
    fn all(&self, ui: &Ui) -> efference_train::Result<Vec<Measurement>> {
        let mut out = Vec::new();
        let mut add = |what, unit, per_second| {
            ui.note(format!("{what}: {} {unit}", thousands(per_second)));
            out.push(Measurement { what, unit, per_second });
        };
        add("environment, no pictures", "control steps/s", self.steps(Pictures::Never)?);
        add("environment, pictures once per chunk", "control steps/s", self.steps(Pictures::EveryChunk)?);
        add("environment, pictures at every step", "control steps/s", self.steps(Pictures::EveryStep)?);
        let looks = self.looks()?;
        add("policy, 64 looks at a time", "decisions/s", self.decisions(&looks)?);
        add("training, 32 decisions at a time", "action tokens/s", self.training(&looks)?);
        let (episodes, steps) = self.rollout()?;
        add("rollout, everything together", "episodes/s", episodes);
        add("rollout, everything together", "control steps/s", steps);
        Ok(out)
    }

    /// Calls `work`, which says how much it did, until the time is over; the first call warms up.
    fn rate(&self, mut work: impl FnMut() -> efference_train::Result<usize>) -> efference_train::Result<f64> {
        work()?;
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < self.seconds {
            done += work()?;
        }
        Ok(done as f64 / start.elapsed().as_secs_f64())
    }

    fn steps(&self, pictures: Pictures) -> efference_train::Result<f64> {
        let tasks = self.world.tasks();
        let mut envs: Vec<Box<dyn Env>> = (0..SLOTS)
            .map(|i| Ok(self.world.make(&tasks[i % tasks.len()])?))
            .collect::<efference_train::Result<_>>()?;
        let chunk = self.policy.chunk();
        let mut round = 0u64;
        self.rate(|| {
            round += 1;
            let steps: Vec<usize> = envs
                .par_iter_mut()
                .enumerate()
                .map(|(i, env)| {
                    env.reset(self.world.train_seed(round * SLOTS as u64 + i as u64))?;
                    let mut steps = 0;
                    for t in 0..4 * chunk {
                        let looks = match pictures {
                            Pictures::Never => false,
                            Pictures::EveryChunk => t % chunk == 0,
                            Pictures::EveryStep => true,
                        };
                        if looks {
                            for camera in self.world.cameras() {
                                env.render(camera)?;
                            }
                        }
                        steps += 1;
                        if env.step(&wave(i, t))?.done {
                            break;
                        }
                    }
                    Ok(steps)
                })
                .collect::<efference_envs::Result<_>>()?;
            Ok(steps.iter().sum())
        })
    }

    fn looks(&self) -> efference_train::Result<Vec<Look>> {
        let tasks = self.world.tasks();
        (0..SLOTS)
            .map(|i| {
                let mut env = self.world.make(&tasks[i % tasks.len()])?;
                let proprio = env.reset(self.world.train_seed(i as u64))?.proprio;
                let mut pixels = Vec::new();
                for camera in self.world.cameras() {
                    pixels.extend_from_slice(env.render(camera)?.as_raw());
                }
                Ok(Look { pixels, proprio, prompt: self.policy.prompt(env.instruction())? })
            })
            .collect()
    }

    fn decisions(&self, looks: &[Look]) -> efference_train::Result<f64> {
        let draws: Vec<Draw> = (0..looks.len() as u64).map(Draw::Tokens).collect();
        self.rate(|| Ok(self.policy.sample(looks, 1.0, &draws)?.len()))
    }

    fn training(&self, looks: &[Look]) -> efference_train::Result<f64> {
        // Weights of its own: the other measurements keep theirs.
        let policy = network::policy(&self.config, self.world.proprio_range())?;
        let sft = self.config.sft.clone().unwrap_or_default();
        let mut optimiser = Optimiser::new(&policy.params, OptimiserSettings::sft(&sft))?;
        let actions: Vec<Action> = (0..policy.chunk()).map(|t| wave(0, t)).collect();
        let targets = policy.encode_chunk(&actions);
        let examples: Vec<Example> = looks
            .iter()
            .take(32)
            .map(|look| Example { look: look.clone(), targets: targets.clone() })
            .collect();
        self.rate(|| {
            supervised::update(&policy, &mut optimiser, &examples, &sft.smoothing())?;
            Ok(examples.len() * targets.len())
        })
    }

    fn rollout(&self) -> efference_train::Result<(f64, f64)> {
        let mut collector = Collector::new(&self.world);
        let (mut round, mut steps) = (0u64, 0);
        let start = Instant::now();
        let episodes = self.rate(|| {
            round += 1;
            let plans: Vec<EpisodePlan> = (0..SLOTS as u64)
                .map(|i| EpisodePlan {
                    task: self.world.tasks()[i as usize % self.world.tasks().len()].clone(),
                    env_seed: self.world.train_seed(round * SLOTS as u64 + i),
                    action_seed: round * SLOTS as u64 + i,
                    mirrored: false,
                    group: i,
                })
                .collect();
            let options =
                CollectOptions { temperature: 1.0, noise: Noise::Token, slots: SLOTS, keep_snapshots: false };
            let played =
                collector.collect(&self.policy, &plans, &options, &mut |_| true).map_err(Error::from)?;
            steps += played.iter().map(|t| t.finish_steps).sum::<usize>();
            Ok(played.len())
        })?;
        Ok((episodes, steps as f64 / start.elapsed().as_secs_f64()))
    }
}

/// Slow waves: the arm moves about and nothing is thrown off the table.
fn wave(env: usize, t: usize) -> Action {
    let mut action = [0.0; ACTION_DIM];
    for (d, x) in action.iter_mut().enumerate() {
        *x = 0.4 * (0.3 * t as f32 + 1.7 * d as f32 + 0.5 * env as f32).sin();
    }
    action
}
