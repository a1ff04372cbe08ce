//! Reinforcement learning of the generator: a chain of denoising steps is a sequence of decisions.
//!
//! ```text
//! group         K flows of one scene by a random chain, x_next ~ N(mean(x), std^2)
//! log pi        of every step, averaged over the numbers of a flow: a column of [B, steps]
//! reward        1 if the final pose is right (the workbench's predicate, or near the true pose) - rms that the best rigid motion leaves / 1 cm (at most 1)
//!               - share of places below the table
//! objective     the recipe of `efference_objectives::papers::flow3d_action`: group-relative advantage, clipped ratio;
//!               KL to the generator as it was
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::Tensor;
use efference_envs::Env;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask};
use efference_geometry::metrics::pose_error;
use efference_geometry::rigid::{fit_rigid, rigidity_rms};
use efference_geometry::{Flow3d, Isometry3, Point3};
use efference_nets::flow::{Context, FlowBatch, QueryCode};
use efference_objectives::batch::{GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS};
use efference_objectives::papers::flow3d_action::recipe;
use efference_objectives::regularizer::Kl;
use efference_objectives::{Batch, Objective, State, Table};
use efference_ops::{Grads, no_grad, value_and_grad};
use efference_rollout::{Purpose, seed_for};

use super::config::{FlowConfig, FlowRlConfig, SamplerConfig};
use super::model::{FlowModel, read_flows};
use super::random::Gaussian;
use super::sampler::{Chain, Sampler};
use super::scene::{Jitter, Scene};
use super::source::Scenes;
use crate::checkpoint::Tensors;
use crate::error::{Error, Result};
use crate::optimise::Optimiser;
use crate::report::Values;

/// Says whether the object, moved by `pose` (left-multiplied in the world frame), is where the task wants it; `None`
/// where it cannot tell.
pub type Predicate<'a> = dyn Fn(&Scene, &Isometry3<f64>) -> Option<bool> + Send + Sync + 'a;

/// Where in the stream of scenes those of reinforcement learning lie: far from training's.
const FIRST: u64 = 1 << 40;

/// What a flow is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Worth {
    /// Whether the final pose is right.
    pub success: bool,
    /// The reward.
    pub reward: f64,
}

/// The reward of a flow of a scene.
pub struct FlowReward<'a> {
    goal_m: f64,
    goal_deg: f64,
    predicate: Option<Box<Predicate<'a>>>,
}

impl<'a> FlowReward<'a> {
    /// Right is a final pose within these distances of the true one.
    #[must_use]
    pub fn new(goal_m: f64, goal_deg: f64) -> Self {
        Self { goal_m, goal_deg, predicate: None }
    }

    /// As [`new`](Self::new), but `predicate` decides where it can tell.
    #[must_use]
    pub fn with_predicate(mut self, predicate: Box<Predicate<'a>>) -> Self {
        self.predicate = Some(predicate);
        self
    }

    /// The reward of `flow`; `truth` is the scene's motion of the same points.
    ///
    /// # Errors
    /// Another number of points than the truth.
    pub fn of(&self, scene: &Scene, flow: &Flow3d, truth: &Flow3d) -> Result<Worth> {
        let pose = fit_rigid(flow.at(0), flow.at(flow.frames() - 1), None)?.pose;
        let decided = self.predicate.as_ref().and_then(|predicate| predicate(scene, &pose));
        let success = match decided {
            Some(success) => success,
            None => {
                let right = fit_rigid(truth.at(0), truth.at(truth.frames() - 1), None)?.pose;
                let error = pose_error(&pose, &right, &centre(truth.at(0)));
                error.translation_m <= self.goal_m && error.rotation_deg <= self.goal_deg
            }
        };
        let worst = rigidity_rms(flow)?.into_iter().fold(0.0, f64::max);
        let reward = f64::from(u8::from(success)) - (worst / 0.01).min(1.0) - below(flow);
        Ok(Worth { success, reward })
    }
}

thread_local! {
    static BENCHES: RefCell<BTreeMap<FlowTask, (FlowEnv, Option<u64>)>> = const { RefCell::new(BTreeMap::new()) };
}

/// Whether the workbench of the scene's seed calls the moved object's pose a success; `None` for other scenes, and when
/// the simulator refuses the scene.
pub fn workbench_goal(scene: &Scene, pose: &Isometry3<f64>) -> Option<bool> {
    if !scene.workbench {
        return None;
    }
    let task = FlowTask::from_id(&scene.task).ok()?;
    BENCHES.with_borrow_mut(|benches| {
        let (env, at) = match benches.entry(task) {
            Entry::Occupied(bench) => bench.into_mut(),
            Entry::Vacant(place) => {
                // The goal is the same for every arm.
                let env = FlowEnv::new(task, ArmKind::ALL[0], &FlowOptions::default()).ok()?;
                place.insert((env, None))
            }
        };
        if *at != Some(scene.seed) {
            *at = None;
            env.reset(scene.seed).ok()?;
            *at = Some(scene.seed);
        }
        Some(env.goal_reached(&(pose * env.object_pose())))
    })
}

fn centre(points: &[Point3<f64>]) -> Point3<f64> {
    let sum = points.iter().fold(efference_geometry::Vector3::zeros(), |sum, p| sum + p.coords);
    Point3::from(sum / points.len().max(1) as f64)
}

/// Share of places more than a centimetre below the object's lowest point now: there is the table.
fn below(flow: &Flow3d) -> f64 {
    let floor = flow.at(0).iter().map(|p| p.z).fold(f64::INFINITY, f64::min) - 0.01;
    let low = (1..flow.frames()).flat_map(|t| flow.at(t)).filter(|p| p.z < floor).count();
    low as f64 / ((flow.frames() - 1).max(1) * flow.points()) as f64
}

/// Improves a generator.
pub(super) struct Improver<'a> {
    rl: &'a FlowRlConfig,
    seed: u64,
    sampler: SamplerConfig,
    /// How held-out scenes are sampled: as the generator is used.
    usual: SamplerConfig,
    objective: Objective,
    reference: FlowModel,
    reward: FlowReward<'static>,
}

/// Scenes asked about, each once.
struct Asked {
    scenes: Vec<Scene>,
    codes: Vec<QueryCode>,
    truths: Vec<Flow3d>,
}

impl<'a> Improver<'a> {
    /// `frozen` are the weights that the KL pulls towards.
    ///
    /// # Errors
    /// An objective that cannot be put together.
    pub fn new(
        config: &FlowConfig,
        rl: &'a FlowRlConfig,
        model: &FlowModel,
        frozen: &Tensors,
    ) -> Result<Self> {
        let mut surrogate = toml::Table::new();
        surrogate.insert("clip_low".into(), rl.clip.into());
        surrogate.insert("clip_high".into(), rl.clip.into());
        let over = toml::Table::from_iter([("surrogate".to_string(), toml::Value::Table(surrogate))]);
        let mut composition = recipe().with(&over)?;
        if rl.kl > 0.0 {
            composition = composition.regularizer(&Kl { coef: rl.kl, ..Kl::default() });
        }
        let reference = FlowModel::new(model.spec.clone(), 0, model.params.device().clone())?;
        reference.set(std::path::Path::new("the frozen generator"), frozen)?;
        let sampler = SamplerConfig {
            steps: rl.steps,
            integrator: "euler".into(),
            guidance: 1.0,
            temperature: 1.0,
            points: rl.points,
            // A projection is no Gaussian step: the chain that is learned from does without.
            rigid: false,
            eta: rl.eta,
        };
        Ok(Self {
            rl,
            seed: config.run.seed,
            sampler,
            usual: config.sampler.clone(),
            objective: composition.build()?,
            reference,
            reward: FlowReward::new(rl.goal_m, rl.goal_deg).with_predicate(Box::new(workbench_goal)),
        })
    }

    fn ask(&self, model: &FlowModel, scenes: Vec<(Scene, Gaussian)>) -> Result<Asked> {
        let n = scenes.iter().map(|(scene, _)| scene.flow.points()).fold(self.rl.points, usize::min);
        let mut asked = Asked { scenes: Vec::new(), codes: Vec::new(), truths: Vec::new() };
        for (scene, mut random) in scenes {
            let chosen = random.choose(n, scene.flow.points());
            asked.codes.push(scene.code(&model.spec.net, &chosen, Jitter::default(), &mut random)?);
            asked.truths.push(scene.flow.select(&chosen)?);
            asked.scenes.push(scene);
        }
        Ok(asked)
    }

    /// One iteration: groups of flows, rewards, updates.
    pub fn iteration(
        &self,
        model: &FlowModel,
        scenes: &Scenes,
        optimiser: &mut Optimiser,
        iteration: u64,
    ) -> Result<Values> {
        let group = self.rl.group;
        let drawn = (0..self.rl.scenes as u64)
            .map(|slot| scenes.draw(FIRST + iteration, slot))
            .collect::<Result<Vec<_>>>()?;
        let asked = self.ask(model, drawn)?;
        let rows: Vec<&QueryCode> =
            asked.codes.iter().flat_map(|code| std::iter::repeat_n(code, group)).collect();
        let mut random: Vec<Gaussian> = (0..rows.len() as u64)
            .map(|row| Gaussian::new(seed_for(self.seed, Purpose::Actions, &[FIRST + iteration, row])))
            .collect();
        let (chain, old) = no_grad(|| {
            let context = model.actor_context(&asked.codes)?.repeat(group)?;
            let ask = Sampler { net: model.actor(), process: model.process(), config: &self.sampler };
            let chain = ask.walk(&context, &mut random, None)?;
            let old = self.log_probs(&ask, &context, &chain)?;
            Ok::<_, Error>((chain, old))
        })?;
        let anchor = no_grad(|| {
            let context = self.reference.actor_context(&asked.codes)?.repeat(group)?;
            let net = self.reference.actor();
            let ask = Sampler { net, process: model.process(), config: &self.sampler };
            self.log_probs(&ask, &context, &chain)
        })?;
        let flows = read_flows(chain.last(), &chain.visibility, &rows)?;
        let worth: Vec<Worth> = flows
            .iter()
            .enumerate()
            .map(|(row, flow)| self.reward.of(&asked.scenes[row / group], flow, &asked.truths[row / group]))
            .collect::<Result<_>>()?;
        let rewards: Vec<f64> = worth.iter().map(|w| w.reward).collect();
        let groups: Vec<u64> = (0..rows.len()).map(|row| (row / group) as u64).collect();
        let (b, steps) = old.dims2()?;
        let ones = Table { rows: b, cols: steps, values: vec![1.0; b * steps] };
        let batch = Batch::new(ones)
            .with(REWARDS, rewards.clone())?
            .with(GROUP_IDS, groups)?
            .with(OLD_LOG_PROBS, old)?
            .with(REF_LOG_PROBS, anchor)?;
        let mut state = State::default();
        let prepared = self.objective.prepare(batch, &mut state)?;
        let whole = prepared.batch.normaliser();
        let queries = FlowBatch::new(&model.spec.net, &asked.codes, model.params.device())?;
        let mut values = Values::new();
        for epoch in 0..self.rl.epochs {
            let mut seen = Values::new();
            let (_, found) = value_and_grad(|| {
                let context = model.net.context(&queries)?.repeat(group)?;
                let ask = Sampler { net: &model.net, process: model.process(), config: &self.sampler };
                let mut batch = prepared.batch.clone();
                batch.set(LOG_PROBS, self.log_probs(&ask, &context, &chain)?)?;
                let parts = self.objective.loss(&batch, &prepared.signals, &whole, &state)?;
                seen.insert("pg_loss".into(), parts.pg_loss);
                seen.insert("ratio_gap".into(), parts.max_ratio_gap);
                seen.insert("clip_frac".into(), parts.stat("clip_frac"));
                seen.insert("kl".into(), parts.regularizers.iter().map(|(_, x)| x).sum());
                Ok::<_, Error>(parts.loss)
            })?;
            let mut grads = Grads::from_store(found, model.params.trainable())?;
            let report = optimiser.step(&mut grads)?;
            seen.insert("grad_norm".into(), report.grad_norm);
            if epoch == 0 || epoch + 1 == self.rl.epochs {
                let name = if epoch == 0 { "first" } else { "last" };
                values.extend(seen.into_iter().map(|(key, x)| (format!("rl/{name}/{key}"), x)));
            }
        }
        let mean = |get: &dyn Fn(&Worth) -> f64| worth.iter().map(get).sum::<f64>() / worth.len() as f64;
        values.insert("rl/reward".into(), mean(&|w| w.reward));
        values.insert("rl/success".into(), mean(&|w| f64::from(u8::from(w.success))));
        Ok(values)
    }

    /// Log-likelihood of every random step of a chain, averaged over the numbers of a row: [B, random steps].
    fn log_probs(&self, ask: &Sampler<'_>, context: &Context, chain: &Chain) -> Result<Tensor> {
        let mut columns = Vec::new();
        for (i, &std) in chain.stds.iter().enumerate().filter(|(_, std)| **std > 0.0) {
            let mean = ask.mean(context, chain, i)?;
            let gap = (&chain.states[i + 1].detach() - mean)?;
            let squared = gap.sqr()?.flatten_from(1)?.mean(1)?; // [B]
            let constant = std.ln() + 0.5 * std::f64::consts::TAU.ln();
            columns.push(((squared * (-0.5 / (std * std)))? - constant)?);
        }
        Ok(Tensor::stack(&columns, 1)?)
    }

    /// Success and reward on held-out scenes: of flows as the generator is used, and of the random chain.
    pub fn held_out(&self, model: &FlowModel, scenes: &[Scene]) -> Result<Values> {
        const AT_ONCE: usize = 8;
        const SAMPLES: usize = 4;
        let mut sums = [[0.0; 2]; 2];
        let mut count = 0.0;
        for (part, scenes) in scenes.chunks(AT_ONCE).enumerate() {
            let seed = |i: usize| seed_for(self.seed, Purpose::Actions, &[part as u64, i as u64]);
            let drawn = scenes.iter().enumerate().map(|(i, s)| (s.clone(), Gaussian::new(seed(i)))).collect();
            let asked = self.ask(model, drawn)?;
            let seeds: Vec<u64> = (0..asked.codes.len()).map(seed).collect();
            for (sum, sampler) in sums.iter_mut().zip([&self.usual, &self.sampler]) {
                let flows = model.of_codes(&asked.codes, sampler, SAMPLES, &seeds)?;
                for (i, flow) in
                    flows.iter().enumerate().flat_map(|(i, flows)| flows.iter().map(move |f| (i, f)))
                {
                    let worth = self.reward.of(&asked.scenes[i], flow, &asked.truths[i])?;
                    sum[0] += f64::from(u8::from(worth.success));
                    sum[1] += worth.reward;
                }
            }
            count += (asked.codes.len() * SAMPLES) as f64;
        }
        let share = |x: f64| if count > 0.0 { x / count } else { 0.0 };
        Ok(Values::from([
            ("success".into(), share(sums[0][0])),
            ("reward".into(), share(sums[0][1])),
            ("success_random_chain".into(), share(sums[1][0])),
            ("reward_random_chain".into(), share(sums[1][1])),
        ]))
    }
}
