//! A trained generator: weights, what they mean, and answers to queries.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Device;
use efference_data::flow::FlowQuery;
use efference_geometry::rigid::fit_rigid;
use efference_geometry::{Flow3d, Frame, Point3, farthest_points};
use efference_nets::ParamStore;
use efference_nets::flow::{Context, FlowBatch, FlowNetConfig, PointFlowNet, QueryCode};
use efference_ops::no_grad;
use efference_rollout::flow::Predictor;
use efference_rollout::{Purpose, seed_for};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::config::{ProcessConfig, SamplerConfig, json};
use super::process::Process;
use super::random::Gaussian;
use super::sampler::{Sampler, sigmoid};
use super::scene::code_of;
use crate::checkpoint::{Checkpoint, CheckpointError, Tensors};
use crate::error::{Error, Result};
use crate::optimise::averaged;

/// Name of the weights that come with the program.
pub const BUILT_IN_FLOW: &str = "builtin:flow_world";

/// Those weights, made by `configs/flow/pretrain.toml`.
const WEIGHTS: &[u8] = include_bytes!("../../../../assets/flow_world.safetensors");

/// Key of the description in the metadata of a weights file.
const META: &str = "efference.flow";

/// Largest weights file that is read: 400M parameters in 4 bytes and some room.
const MOST_BYTES: u64 = 4 << 30;

/// What weights mean: stored with them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowSpec {
    /// Shape of the network.
    pub net: FlowNetConfig,
    /// What it predicts.
    pub process: ProcessConfig,
    /// How it is asked unless somebody says otherwise.
    pub sampler: SamplerConfig,
}

/// A generator of flows.
pub struct FlowModel {
    /// What the weights mean.
    pub spec: FlowSpec,
    /// The weights.
    pub params: ParamStore,
    /// The network that is trained.
    pub net: PointFlowNet,
    /// The same weights without gradients.
    actor: PointFlowNet,
    process: Process,
}

impl FlowModel {
    /// With initial weights drawn from `seed`.
    ///
    /// # Errors
    /// Sizes that make no network, a schedule out of range.
    pub fn new(spec: FlowSpec, seed: u64, device: Device) -> Result<Self> {
        let mut params = ParamStore::new(seed_for(seed, Purpose::Weights, &[]), device);
        let net = PointFlowNet::new(&mut params.root(), &spec.net)?;
        let actor = PointFlowNet::new(&mut params.constants(), &spec.net)?;
        Ok(Self { process: Process::new(&spec.process)?, spec, params, net, actor })
    }

    /// From [`BUILT_IN_FLOW`] (or `builtin`), a `.safetensors` file with a description, a checkpoint or a run folder; of
    /// the last two the averages of the weights, if they were kept.
    ///
    /// # Errors
    /// A file that is missing, damaged, or no flow world model.
    pub fn load(name: &str, device: Device) -> Result<Self> {
        if name == BUILT_IN_FLOW || name == "builtin" {
            return Self::from_bytes(Path::new("assets/flow_world.safetensors"), WEIGHTS, device);
        }
        let path = Path::new(name);
        if path.is_file() {
            let size = path.metadata().map(|meta| meta.len()).unwrap_or(0);
            if size > MOST_BYTES {
                return Err(corrupt(path, format!("{size} bytes are more than any flow world model has")));
            }
            let bytes = std::fs::read(path).map_err(|e| corrupt(path, e.to_string()))?;
            return Self::from_bytes(path, &bytes, device);
        }
        let checkpoint = Checkpoint::load(path)?;
        let spec: FlowSpec = serde_json::from_value(checkpoint.identity.model.clone())
            .map_err(|_| corrupt(path, "it holds another kind of network".into()))?;
        let model = Self::new(spec, 0, device)?;
        let weights = averaged(&checkpoint.model, &checkpoint.optimizer).unwrap_or(checkpoint.model);
        model.set(&checkpoint.path, &weights)?;
        Ok(model)
    }

    /// Weights and description of one file in memory; `path` names it in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(path: &Path, bytes: &[u8], device: Device) -> Result<Self> {
        let (_, meta) =
            SafeTensors::read_metadata(bytes).map_err(|e| corrupt(path, format!("no weights file: {e}")))?;
        let text = meta.metadata().as_ref().and_then(|meta| meta.get(META));
        let text = text.ok_or_else(|| corrupt(path, format!("it has no description `{META}`")))?;
        let spec: FlowSpec = serde_json::from_str(text).map_err(|e| corrupt(path, e.to_string()))?;
        let model = Self::new(spec, 0, device)?;
        model.params.load_bytes(path, bytes)?;
        Ok(model)
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// Tensors of another network.
    pub fn set(&self, path: &Path, weights: &Tensors) -> Result<()> {
        let bytes = safetensors::serialize(weights, None).map_err(|e| corrupt(path, e.to_string()))?;
        Ok(self.params.load_bytes(path, &bytes)?)
    }

    /// The weights by name, copies.
    ///
    /// # Errors
    /// No memory.
    pub fn weights(&self) -> Result<Tensors> {
        let copy =
            |(name, var): (&String, &candle_core::Var)| Ok((name.clone(), var.as_detached_tensor().copy()?));
        self.params.vars().iter().map(copy).collect()
    }

    /// Weights and description as one file, 16 bits a number if `half`.
    ///
    /// # Errors
    /// No memory.
    pub fn to_bytes(&self, half: bool) -> Result<Vec<u8>> {
        let dtype = if half { candle_core::DType::F16 } else { candle_core::DType::F32 };
        let weights: Tensors = self
            .weights()?
            .into_iter()
            .map(|(name, x)| Ok((name, x.to_dtype(dtype)?)))
            .collect::<Result<_>>()?;
        let meta = HashMap::from([(META.to_string(), json(&self.spec).to_string())]);
        let path = Path::new("weights in memory");
        safetensors::serialize(&weights, Some(meta)).map_err(|e| corrupt(path, e.to_string()))
    }

    /// How noise is added.
    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    /// `samples` flows of a query, in the world frame, frame 0 at the query's points. Sample k is the same whatever the
    /// number of samples. Of more points than [`SamplerConfig::points`], the others are carried along.
    ///
    /// # Errors
    /// A query that the network cannot read; see [`QueryCode::new`].
    pub fn flows(
        &self,
        query: &FlowQuery,
        goal: Option<Point3<f64>>,
        sampler: &SamplerConfig,
        samples: usize,
        seed: u64,
    ) -> Result<Vec<Flow3d>> {
        // What is not finite is refused as a query, with a reason.
        let finite = query.points.iter().all(|p| p.coords.iter().all(|x| x.is_finite()));
        if query.points.len() <= sampler.points || !sampler.rigid || !finite {
            let code = code_of(query, goal, &self.spec.net)?;
            return Ok(self.of_codes(&[code], sampler, samples, &[seed])?.remove(0));
        }
        let chosen = farthest_points(&query.points, sampler.points, 0)?;
        let few = FlowQuery { points: chosen.iter().map(|&i| query.points[i]).collect(), ..query.clone() };
        let code = code_of(&few, goal, &self.spec.net)?;
        let flows = self.of_codes(&[code], sampler, samples, &[seed])?.remove(0);
        flows.iter().map(|flow| carried(flow, &few.points, &query.points)).collect()
    }

    /// As [`flows`](Self::flows) for several queries of equally many points, each with its seed.
    pub(super) fn of_codes(
        &self,
        codes: &[QueryCode],
        sampler: &SamplerConfig,
        samples: usize,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Flow3d>>> {
        if samples == 0 {
            return Ok(vec![Vec::new(); codes.len()]);
        }
        no_grad(|| {
            let context = self.actor_context(codes)?.repeat(samples)?;
            let mut random: Vec<Gaussian> = seeds
                .iter()
                .flat_map(|&seed| (0..samples as u64).map(move |k| seed_for(seed, Purpose::Actions, &[k])))
                .map(Gaussian::new)
                .collect();
            let rows: Vec<&QueryCode> =
                codes.iter().flat_map(|code| std::iter::repeat_n(code, samples)).collect();
            let ask = Sampler { net: &self.actor, process: &self.process, config: sampler };
            let chain = ask.walk(&context, &mut random, Some(&rows))?;
            let flows = read_flows(chain.last(), &chain.visibility, &rows)?;
            let mut flows = flows.into_iter();
            Ok(codes.iter().map(|_| flows.by_ref().take(samples).collect()).collect())
        })
    }

    /// What the network without gradients makes of queries.
    pub(super) fn actor_context(&self, codes: &[QueryCode]) -> Result<Context> {
        let batch = FlowBatch::new(&self.spec.net, codes, self.params.device())?;
        Ok(self.actor.context(&batch)?)
    }

    /// The network without gradients.
    pub(super) fn actor(&self) -> &PointFlowNet {
        &self.actor
    }
}

/// A flow of the points `few` (which are its first frame), for all points of the same rigid object; what is seen of a point is
/// what is seen of the nearest of the few.
fn carried(flow: &Flow3d, few: &[Point3<f64>], all: &[Point3<f64>]) -> Result<Flow3d> {
    let gap = |point: &Point3<f64>, i: usize| (few[i] - point).norm_squared();
    let nearest: Vec<usize> = all
        .iter()
        .map(|p| (0..few.len()).min_by(|&i, &j| gap(p, i).total_cmp(&gap(p, j))).unwrap_or(0))
        .collect();
    let (mut positions, mut visible) = (all.to_vec(), vec![1f32; all.len()]);
    for t in 1..flow.frames() {
        let motion = fit_rigid(few, flow.at(t), None)?.pose;
        positions.extend(all.iter().map(|p| motion * p));
        visible.extend(nearest.iter().map(|&i| flow.visibility_at(t)[i]));
    }
    Ok(Flow3d::new(Frame::World, all.len(), positions, visible)?)
}

/// The network's numbers [B, N, 3 T] and logits [B, N, T] as flows with the present as frame 0.
pub(super) fn read_flows(
    motion: &candle_core::Tensor,
    visibility: &candle_core::Tensor,
    codes: &[&QueryCode],
) -> Result<Vec<Flow3d>> {
    let (_, n, numbers) = motion.dims3()?;
    let frames = numbers / 3;
    let values = motion.detach().flatten_all()?.to_vec1::<f32>()?;
    let logits = visibility.detach().flatten_all()?.to_vec1::<f32>()?;
    let one = |(row, code): (usize, &&QueryCode)| -> Result<Flow3d> {
        let mut positions = code.present().to_vec();
        positions.extend(code.decode(&values[row * n * numbers..][..n * numbers])?);
        let seen = &logits[row * n * frames..][..n * frames];
        let mut visible = vec![1f32; n];
        for t in 0..frames {
            visible.extend((0..n).map(|i| sigmoid(seen[i * frames + t]) as f32));
        }
        Ok(Flow3d::new(Frame::World, n, positions, visible)?)
    };
    codes.iter().enumerate().map(one).collect()
}

impl Predictor for FlowModel {
    fn predict(
        &self,
        query: &FlowQuery,
        samples: usize,
        seed: u64,
    ) -> efference_rollout::flow::Result<Vec<Flow3d>> {
        self.flows(query, None, &self.spec.sampler, samples, seed).map_err(|error| match error {
            Error::Net(error) if matches!(*error, efference_nets::Error::Query { .. }) => {
                efference_rollout::flow::Error::Query { why: error.to_string() }
            }
            error => efference_rollout::flow::Error::Predictor(Box::new(error)),
        })
    }
}

fn corrupt(path: &Path, why: String) -> Error {
    CheckpointError::Corrupt { path: path.into(), why }.into()
}
