//! A batch of noisy scenes and the loss on it.

use candle_core::{Device, Tensor};
use efference_nets::flow::{FlowBatch, FlowNetConfig, FlowOutput, PointFlowNet, QueryCode};
use efference_objectives::diffusion::continuous::squared_error;
use efference_rollout::{Purpose, seed_for};
use rayon::prelude::*;

use super::config::FlowConfig;
use super::process::{Process, embed};
use super::random::Gaussian;
use super::scene::{Jitter, Scene};
use super::source::Scenes;
use crate::error::Result;

/// What an update learns from.
pub(super) struct NoisyBatch {
    pub queries: FlowBatch,
    /// [B, N, 3 T]
    pub noisy: Tensor,
    /// [B, N, 3 T]
    pub target: Tensor,
    /// [B, time width]
    pub time: Tensor,
    /// [B, N, T]: 1 where the camera sees the point.
    pub visible: Tensor,
}

/// Several scenes with their true motions, as tensors.
pub(super) struct CleanBatch {
    pub queries: FlowBatch,
    /// [B, N, 3 T]
    pub motion: Tensor,
    /// [B, N, T]
    pub visible: Tensor,
}

/// Puts scenes with chosen points side by side; `disturb` is the noise on the first frame.
pub(super) fn clean(
    net: &FlowNetConfig,
    scenes: Vec<(Scene, Gaussian)>,
    points: usize,
    text_drop: f64,
    disturb: Jitter,
    device: &Device,
) -> Result<CleanBatch> {
    let n = scenes.iter().map(|(scene, _)| scene.flow.points()).fold(points, usize::min);
    let one = |(scene, mut random): (Scene, Gaussian)| -> Result<(QueryCode, Vec<f32>, Vec<f32>)> {
        let chosen = random.choose(n, scene.flow.points());
        let mut code = scene.code(net, &chosen, disturb, &mut random)?;
        if random.uniform(0.0, 1.0) < text_drop {
            code.drop_text();
        }
        let (motion, visible) = scene.answer(&code, &chosen)?;
        Ok((code, motion, visible))
    };
    let parts: Vec<_> = scenes.into_par_iter().map(one).collect::<Result<_>>()?;
    let b = parts.len();
    let (mut codes, mut motion, mut visible) = (Vec::with_capacity(b), Vec::new(), Vec::new());
    for (code, m, v) in parts {
        codes.push(code);
        motion.extend(m);
        visible.extend(v);
    }
    Ok(CleanBatch {
        queries: FlowBatch::new(net, &codes, device)?,
        motion: Tensor::from_vec(motion, (b, n, 3 * net.frames), device)?,
        visible: Tensor::from_vec(visible, (b, n, net.frames), device)?,
    })
}

/// The batch of update `step`: a function of the run's seed and the step alone.
pub(super) fn noisy(
    config: &FlowConfig,
    net: &FlowNetConfig,
    scenes: &Scenes,
    process: &Process,
    step: u64,
    device: &Device,
) -> Result<NoisyBatch> {
    let train = &config.train;
    let mut random = Gaussian::new(seed_for(config.run.seed, Purpose::DataOrder, &[step]));
    let (least, most) = (train.points_min as f64, train.points_max as f64 + 1.0);
    let points = (random.uniform(least, most) as usize).clamp(train.points_min, train.points_max);
    let drawn: Vec<(Scene, Gaussian)> =
        (0..train.batch as u64).into_par_iter().map(|slot| scenes.draw(step, slot)).collect::<Result<_>>()?;
    let jitter = Jitter { px: config.data.jitter_px, depth_m: config.data.jitter_depth_m };
    with_noise(clean(net, drawn, points, train.text_drop, jitter, device)?, process, &mut random)
}

/// Adds noise of random strength to the motions of a batch.
pub(super) fn with_noise(batch: CleanBatch, process: &Process, random: &mut Gaussian) -> Result<NoisyBatch> {
    let CleanBatch { queries, motion, visible } = batch;
    let device = motion.device();
    let noise = Tensor::from_vec(random.normals(motion.elem_count()), motion.dims(), device)?;
    let pair = process.pair(&motion, &noise, random)?;
    let time = embed(&pair.times, PointFlowNet::TIME_WIDTH, device)?;
    Ok(NoisyBatch { queries, noisy: pair.noisy, target: pair.target, time, visible })
}

/// Mean squared error of the motion, and the cross entropy of visibility.
pub(super) struct Losses {
    pub motion: Tensor,
    pub visibility: Tensor,
}

pub(super) fn losses(net: &PointFlowNet, batch: &NoisyBatch) -> Result<Losses> {
    let context = net.context(&batch.queries)?;
    let FlowOutput { motion, visibility } = net.forward(&context, &batch.noisy, &batch.time)?;
    Ok(Losses {
        motion: squared_error(&motion, &batch.target)?,
        visibility: cross_entropy(&visibility, &batch.visible)?,
    })
}

/// Mean of log(1 + exp(x)) - x y over logits x and truths y, without overflow.
fn cross_entropy(logits: &Tensor, truth: &Tensor) -> Result<Tensor> {
    let tail = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok((((logits.relu()? - (logits * truth)?)? + tail)?).mean_all()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_cross_entropy_is_that_of_a_sigmoid_also_far_out() {
        let logits = [-200.0f32, -1.0, 0.0, 2.0, 200.0];
        let truth = [0.0f32, 1.0, 1.0, 0.0, 1.0];
        let tensor = |x: &[f32]| Tensor::from_slice(x, 5, &Device::Cpu).unwrap();
        let got = cross_entropy(&tensor(&logits), &tensor(&truth)).unwrap().to_scalar::<f32>().unwrap();
        let p = |x: f64| 1.0 / (1.0 + (-x).exp());
        let want = -(p(-1.0).ln() + 0.5f64.ln() + (1.0 - p(2.0)).ln()) / 5.0;
        assert!((f64::from(got) - want).abs() < 1e-6, "{got} {want}");
    }
}
