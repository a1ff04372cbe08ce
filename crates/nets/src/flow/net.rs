//! The network.

use candle_core::{D, Device, Tensor};
use efference_ops as ops;
use efference_ops::Activation;

use super::block::{DitBlock, FinalLayer};
use super::code::{CAMERA_NUMBERS, GOAL_NUMBERS, POINT_NUMBERS, QueryCode, WHOLE};
use super::config::FlowNetConfig;
use super::eyes::{Eyes, FINE, PLACE, fine_places};
use super::picture::SCENE_CHANNELS;
use super::text::NO_TEXT;
use crate::error::{Error, Result};
use crate::layers::{Linear, fan_in};
use crate::params::{Init, ParamPath};

/// Numbers of a timestep's embedding.
const TIME: usize = 256;

/// Queries of equally many points, as tensors.
#[derive(Clone, Debug)]
pub struct FlowBatch {
    points: Tensor,           // [B, N, POINT_NUMBERS]
    whole: Tensor,            // [B, N, WHOLE]
    spread: Tensor,           // [B, 1]
    sampling: Option<Tensor>, // [B, N, S] bilinear weights over the cells
    scene: Option<Tensor>,    // [B, C, side, side]
    places: Option<Tensor>,   // [B, P, PLACE] of the fine cells
    words: Tensor,            // [B, L] u32
    word_weights: Tensor,     // [B, 1, L], 1 / number of words
    camera: Tensor,           // [B, CAMERA_NUMBERS]
    goal: Option<Tensor>,     // [B, 1, GOAL_NUMBERS]
}

/// What the network makes of queries before any noise: the same for every step of a sampler.
#[derive(Clone, Debug)]
pub struct Context {
    points: Tensor,        // [B, N, D]
    whole: Tensor,         // [B, N, WHOLE]
    spread: Tensor,        // [B, 1]
    scene: Option<Tensor>, // [B, S + K, D], the goal's token included
    camera: Tensor,        // [B, D]
    text: Tensor,          // [B, D]
    no_text: Tensor,       // [1, D]
}

/// The network's answer.
#[derive(Clone, Debug)]
pub struct FlowOutput {
    /// Noise, clean sample or a mixture of both, as it was trained: [B, N, 3 T].
    pub motion: Tensor,
    /// Logits of being seen by the camera, [B, N, T].
    pub visibility: Tensor,
}

/// The point-token diffusion transformer. Names: see [`PointFlowNet::new`].
#[derive(Clone)]
pub struct PointFlowNet {
    config: FlowNetConfig,
    trajectory: Linear,
    whole: Mlp,
    place: Mlp,
    eyes: Option<Eyes>,
    words: Tensor, // [V, D]
    time: Mlp,
    camera: Mlp,
    goal: Option<Mlp>,
    blocks: Vec<DitBlock>,
    last: FinalLayer,
    last_whole: FinalLayer,
}

/// Linear, GELU, linear.
#[derive(Clone)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(path: &mut ParamPath<'_>, inputs: usize, width: usize) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(path.pp("fc1"), inputs, width, true, fan_in(inputs))?,
            fc2: Linear::new(path.pp("fc2"), width, width, true, fan_in(width))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.fc1.forward_act(x, Activation::GeluTanh)?)
    }
}

impl FlowBatch {
    /// Puts queries of equally many points, read with `config`, side by side on `device`.
    ///
    /// # Errors
    /// [`Error::Query`]: no queries, or of different sizes.
    pub fn new(config: &FlowNetConfig, codes: &[QueryCode], device: &Device) -> Result<Self> {
        let uneven = || Error::Query { reason: "queries of a batch need equally many points".into() };
        let (b, n) = (codes.len(), codes.first().map_or(0, QueryCode::points));
        if b == 0 || codes.iter().any(|code| code.points() != n) {
            return Err(uneven());
        }
        let cells = config.cells();
        let (mut features, mut sampling, mut scene) = (Vec::new(), Vec::new(), Vec::new());
        let (mut camera, mut goal, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let (mut whole, mut spread) = (Vec::new(), Vec::new());
        for code in codes {
            features.extend_from_slice(&code.features);
            whole.extend_from_slice(&code.whole);
            spread.push(code.spread);
            camera.extend_from_slice(&code.camera_numbers);
            goal.extend_from_slice(code.goal.as_deref().unwrap_or_default());
            if config.picture {
                scene.extend_from_slice(&code.scene);
                fine_places(&code.scene, config.image_size, &mut places);
                code.places.iter().for_each(|place| bilinear(*place, cells, &mut sampling));
            }
        }
        let longest = codes.iter().map(|code| code.words.len()).max().unwrap_or(1);
        let (mut words, mut word_weights) = (Vec::new(), Vec::new());
        for code in codes {
            let padding = longest - code.words.len();
            words.extend(code.words.iter().copied().chain(std::iter::repeat_n(NO_TEXT, padding)));
            let share = 1.0 / code.words.len() as f32;
            word_weights.extend(std::iter::repeat_n(share, code.words.len()));
            word_weights.extend(std::iter::repeat_n(0.0, padding));
        }
        let side = config.image_size;
        let picture = config.picture;
        let dims = (b, SCENE_CHANNELS, side, side);
        let fine = (b, (side / FINE) * (side / FINE), PLACE);
        Ok(Self {
            points: Tensor::from_vec(features, (b, n, POINT_NUMBERS), device)?,
            whole: Tensor::from_vec(whole, (b, n, WHOLE), device)?,
            spread: Tensor::from_vec(spread, (b, 1), device)?,
            sampling: picture
                .then(|| Tensor::from_vec(sampling, (b, n, cells * cells), device))
                .transpose()?,
            scene: picture.then(|| Tensor::from_vec(scene, dims, device)).transpose()?,
            places: picture.then(|| Tensor::from_vec(places, fine, device)).transpose()?,
            words: Tensor::from_vec(words, (b, longest), device)?,
            word_weights: Tensor::from_vec(word_weights, (b, 1, longest), device)?,
            camera: Tensor::from_vec(camera, (b, CAMERA_NUMBERS), device)?,
            goal: config.goal.then(|| Tensor::from_vec(goal, (b, 1, GOAL_NUMBERS), device)).transpose()?,
        })
    }

    /// Queries B.
    #[must_use]
    pub fn len(&self) -> usize {
        self.points.dims()[0]
    }

    /// Never: a batch has a query.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Points N of each.
    #[must_use]
    pub fn points(&self) -> usize {
        self.points.dims()[1]
    }
}

/// Appends the weights of the cells around a place (0 to 1 across the picture); outside, the nearest cells.
fn bilinear([x, y]: [f64; 2], cells: usize, out: &mut Vec<f32>) {
    let last = cells - 1;
    let split = |share: f64| {
        let at = (share * cells as f64 - 0.5).clamp(0.0, last as f64);
        let low = (at.floor() as usize).min(last);
        (low, (low + 1).min(last), (at - low as f64) as f32)
    };
    let ((x0, x1, fx), (y0, y1, fy)) = (split(x), split(y));
    let start = out.len();
    out.resize(start + cells * cells, 0.0);
    for (row, wy) in [(y0, 1.0 - fy), (y1, fy)] {
        for (column, wx) in [(x0, 1.0 - fx), (x1, fx)] {
            out[start + row * cells + column] += wx * wy;
        }
    }
}

impl Context {
    /// Every query `k` times, copies side by side.
    ///
    /// # Errors
    /// No memory.
    pub fn repeat(&self, k: usize) -> Result<Self> {
        let copies = |x: &Tensor| -> Result<Tensor> {
            let mut dims = x.dims().to_vec();
            dims.insert(1, k);
            let wide = x.unsqueeze(1)?.broadcast_as(dims)?.contiguous()?;
            Ok(wide.flatten(0, 1)?)
        };
        Ok(Self {
            points: copies(&self.points)?,
            whole: copies(&self.whole)?,
            spread: copies(&self.spread)?,
            scene: self.scene.as_ref().map(copies).transpose()?,
            camera: copies(&self.camera)?,
            text: copies(&self.text)?,
            no_text: self.no_text.clone(),
        })
    }

    /// The same scenes without an instruction, for guidance.
    ///
    /// # Errors
    /// No memory.
    pub fn without_text(&self) -> Result<Self> {
        let text = self.no_text.broadcast_as(self.text.dims())?.contiguous()?;
        Ok(Self { text, ..self.clone() })
    }

    /// [B, N] of the queries.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        (self.points.dims()[0], self.points.dims()[1])
    }
}

impl PointFlowNet {
    /// Creates or finds the weights below `path`: `trajectory`, `whole`, `place`, `eyes.…`, `embed_tokens`, `time`,
    /// `camera`, `goal`, `blocks.N.…`, `last`, `last_whole`.
    ///
    /// # Errors
    /// Sizes that make no network; a weight of another shape has that name already.
    pub fn new(path: &mut ParamPath<'_>, config: &FlowNetConfig) -> Result<Self> {
        config.validate()?;
        let (d, t) = (config.width, config.frames);
        let mut blocks = path.pp("blocks");
        let blocks = (0..config.layers)
            .map(|i| DitBlock::new(&mut blocks.pp(&i.to_string()), d, config.heads))
            .collect::<Result<_>>()?;
        Ok(Self {
            trajectory: Linear::new(path.pp("trajectory"), 3 * t, d, true, fan_in(3 * t))?,
            whole: Mlp::new(&mut path.pp("whole"), WHOLE * 3 * t + 1, d)?,
            place: Mlp::new(&mut path.pp("place"), POINT_NUMBERS, d)?,
            eyes: config.picture.then(|| Eyes::new(&mut path.pp("eyes"), config)).transpose()?,
            words: path.pp("embed_tokens").get("weight", &[config.vocabulary, d], Init::Normal(1.0))?,
            time: Mlp::new(&mut path.pp("time"), TIME, d)?,
            camera: Mlp::new(&mut path.pp("camera"), CAMERA_NUMBERS, d)?,
            goal: config.goal.then(|| Mlp::new(&mut path.pp("goal"), GOAL_NUMBERS, d)).transpose()?,
            blocks,
            last: FinalLayer::new(&mut path.pp("last"), d, 4 * t)?,
            last_whole: FinalLayer::new(&mut path.pp("last_whole"), d, WHOLE * 3 * t)?,
            config: config.clone(),
        })
    }

    /// Width of a timestep's embedding.
    pub const TIME_WIDTH: usize = TIME;

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &FlowNetConfig {
        &self.config
    }

    /// Where its weights live.
    #[must_use]
    pub fn device(&self) -> Device {
        self.words.device().clone()
    }

    /// Everything that does not depend on the noise.
    ///
    /// # Errors
    /// A batch made for another shape of network.
    pub fn context(&self, batch: &FlowBatch) -> Result<Context> {
        let mut points = self.place.forward(&batch.points)?; // [B, N, D]
        let mut scene = Vec::new();
        if let Some(eyes) = &self.eyes {
            let (Some(image), Some(sampling), Some(places)) = (&batch.scene, &batch.sampling, &batch.places)
            else {
                return Err(Error::Query { reason: "this network needs a picture with depth".into() });
            };
            let (tokens, found) = eyes.forward(image, places)?; // [B, S, D], [B, K, D]
            points = (points + sampling.matmul(&tokens)?)?;
            scene.extend([tokens, found]);
        }
        if let Some(goal) = &self.goal {
            let Some(numbers) = &batch.goal else {
                return Err(Error::Query { reason: "this network needs a goal point".into() });
            };
            scene.push(goal.forward(numbers)?); // [B, 1, D]
        }
        let scene = if scene.is_empty() { None } else { Some(Tensor::cat(&scene, 1)?) };
        let words = ops::embedding(&self.words, &batch.words)?; // [B, L, D]
        let text = batch.word_weights.matmul(&words)?.squeeze(1)?; // [B, D]
        let nothing = Tensor::from_vec(vec![NO_TEXT], 1, batch.words.device())?;
        Ok(Context {
            points,
            whole: batch.whole.clone(),
            spread: batch.spread.clone(),
            scene,
            camera: self.camera.forward(&batch.camera)?,
            text,
            no_text: ops::embedding(&self.words, &nothing)?,
        })
    }

    /// The answer for noisy trajectories `noisy` [B, N, 3 T] at timesteps given by their embeddings `time`
    /// [B, [`Self::TIME_WIDTH`]].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, context: &Context, noisy: &Tensor, time: &Tensor) -> Result<FlowOutput> {
        let (b, n) = context.dims();
        let numbers = 3 * self.config.frames;
        if noisy.dims() != [b, n, numbers] {
            let expected = format!("[{b}, {n}, {numbers}]");
            return Err(Error::Input { name: "noisy", got: noisy.dims().to_vec(), expected });
        }
        if time.dims() != [b, TIME] {
            let expected = format!("[{b}, {TIME}]");
            return Err(Error::Input { name: "time", got: time.dims().to_vec(), expected });
        }
        let whole = self.whole_motion(context, noisy)?.unsqueeze(1)?; // [B, 1, D]
        let points = (self.trajectory.forward(noisy)? + &context.points)?.broadcast_add(&whole)?; // [B, N, D]
        let mut x = match &context.scene {
            None => points,
            Some(scene) => Tensor::cat(&[&points, scene], 1)?, // [B, N + S, D]
        };
        let condition = ((self.time.forward(time)? + &context.text)? + &context.camera)?; // [B, D]
        let activated = ops::silu(&condition)?;
        for block in &self.blocks {
            x = block.forward(&x, &activated)?;
        }
        let points = if context.scene.is_some() { x.narrow(1, 0, n)?.contiguous()? } else { x };
        let out = self.last.forward(&points, &activated)?; // [B, N, 4 T]
        let middle = points.mean_keepdim(1)?; // [B, 1, D]
        let whole = self.last_whole.forward(&middle, &activated)?.reshape((b, WHOLE, numbers))?;
        let whole = context.whole.matmul(&whole)?; // [B, N, 3 T]
        Ok(FlowOutput {
            motion: (out.narrow(D::Minus1, 0, numbers)?.contiguous()? + whole)?,
            visibility: out.narrow(D::Minus1, numbers, self.config.frames)?.contiguous()?,
        })
    }

    /// What noisy trajectories say about the motion of the whole object, [B, D]: their sums over points, times 1 and times
    /// each coordinate. Independent noise averages out in them, so that they tell where an object goes and how it turns
    /// while single trajectories are still noise; a token of one point cannot know.
    fn whole_motion(&self, context: &Context, noisy: &Tensor) -> Result<Tensor> {
        let (_, n) = context.dims();
        let sums = context.whole.transpose(1, 2)?.contiguous()?.matmul(noisy)?; // [B, WHOLE, 3 T]
        let sums = (sums * (n as f64).sqrt().recip())?.flatten_from(1)?;
        self.whole.forward(&Tensor::cat(&[&sums, &context.spread], 1)?)
    }
}
