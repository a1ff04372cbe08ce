//! From noise to flows: deterministic or random chains, guidance, and the projection onto rigid motions.

use candle_core::Tensor;
use efference_geometry::Point3;
use efference_geometry::rigid::rigid_projection;
use efference_nets::flow::{Context, PointFlowNet, QueryCode};
use efference_objectives::diffusion::continuous::{Integrator, guide};
use rayon::prelude::*;

use super::config::SamplerConfig;
use super::process::{Moment, Process, embed, fresh};
use super::random::Gaussian;
use crate::error::Result;

/// A walk from noise to a clean sample.
pub(super) struct Chain {
    /// Samples before and after every step, the noise first; [B, N, 3 T] each.
    pub states: Vec<Tensor>,
    /// Places on the path, as many as states.
    pub path: Vec<Moment>,
    /// Standard deviation of the fresh noise of every step.
    pub stds: Vec<f64>,
    /// Logits of visibility at the last call of the network, [B, N, T].
    pub visibility: Tensor,
}

impl Chain {
    /// The clean end.
    pub fn last(&self) -> &Tensor {
        &self.states[self.states.len() - 1]
    }
}

/// Asks a network.
pub(super) struct Sampler<'a> {
    pub net: &'a PointFlowNet,
    pub process: &'a Process,
    pub config: &'a SamplerConfig,
}

/// The network's answer with guidance: motion and visibility.
struct Ask<'a> {
    net: &'a PointFlowNet,
    context: &'a Context,
    /// Without text, where guidance is wanted.
    without: Option<Context>,
    guidance: f64,
}

impl Ask<'_> {
    fn at(&self, x: &Tensor, time: f64) -> Result<(Tensor, Tensor)> {
        let times = vec![time; x.dims()[0]];
        let time = embed(&times, PointFlowNet::TIME_WIDTH, x.device())?;
        let with = self.net.forward(self.context, x, &time)?;
        let Some(without) = &self.without else { return Ok((with.motion, with.visibility)) };
        let without = self.net.forward(without, x, &time)?;
        Ok((guide(&without.motion, &with.motion, self.guidance)?, with.visibility))
    }
}

impl Sampler<'_> {
    /// Walks from noise to clean. A row's noise and fresh noise come from its own stream in `random`, so a row is the
    /// same whatever stands beside it. `codes`, one per row, are needed for the rigid projection.
    pub fn walk(
        &self,
        context: &Context,
        random: &mut [Gaussian],
        codes: Option<&[&QueryCode]>,
    ) -> Result<Chain> {
        let (b, n) = context.dims();
        let numbers = 3 * self.net.config().frames;
        let device = self.net.device();
        let mut draw = || -> Result<Tensor> {
            let rows: Vec<f32> = random.iter_mut().flat_map(|random| random.normals(n * numbers)).collect();
            Ok(Tensor::from_vec(rows, (b, n, numbers), &device)?)
        };
        let path = self.process.path(self.config.steps)?;
        let steps = path.len() - 1;
        let guided = self.config.guidance != 1.0;
        let ask = Ask {
            net: self.net,
            context,
            without: guided.then(|| context.without_text()).transpose()?,
            guidance: self.config.guidance,
        };
        let heun = self.config.integration() == Integrator::Heun;
        let mut states = vec![(draw()? * self.config.temperature)?];
        let (mut stds, mut visibility) = (Vec::with_capacity(steps), None);
        for i in 0..steps {
            let (now, next, x) = (&path[i], &path[i + 1], &states[i]);
            let (answer, seen) = ask.at(x, now.time)?;
            let (mut clean, mut noise) = self.process.split(x, &answer, now)?;
            if heun && i + 1 < steps {
                // The velocity of the straight path is noise less clean; the mean of both ends' velocities counts.
                let velocity = (&noise - &clean)?;
                let there = (x - (&velocity * (now.sigma - next.sigma))?)?;
                let (end, end_noise) = self.process.split(&there, &ask.at(&there, next.time)?.0, next)?;
                let velocity = ((velocity + (end_noise - end)?)? * 0.5)?;
                clean = (x - (&velocity * now.sigma)?)?;
                noise = (x + (&velocity * now.alpha)?)?;
            }
            if let Some(codes) = codes.filter(|_| self.config.rigid && 2 * i + 2 >= steps) {
                clean = project(&clean, &seen, codes)?;
            }
            let std = fresh(self.config.eta, now, next);
            let rest = (next.sigma * next.sigma - std * std).max(0.0).sqrt();
            let mut after = ((&clean * next.alpha)? + (noise * rest)?)?;
            if std > 0.0 {
                after = (after + (draw()? * std)?)?;
            }
            states.push(after);
            stds.push(std);
            visibility = Some(seen);
        }
        let visibility = match visibility {
            Some(seen) => seen,
            // A path has at least one step.
            None => ask.at(&states[0], path[0].time)?.1,
        };
        Ok(Chain { states, path, stds, visibility })
    }

    /// Mean of the step from state `i` of a chain as the network gives it now: what a random step scatters around.
    pub fn mean(&self, context: &Context, chain: &Chain, i: usize) -> Result<Tensor> {
        let (now, next, x) = (&chain.path[i], &chain.path[i + 1], &chain.states[i]);
        let times = vec![now.time; x.dims()[0]];
        let time = embed(&times, PointFlowNet::TIME_WIDTH, x.device())?;
        let answer = self.net.forward(context, x, &time)?.motion;
        let (clean, noise) = self.process.split(x, &answer, now)?;
        let rest = (next.sigma * next.sigma - chain.stds[i] * chain.stds[i]).max(0.0).sqrt();
        Ok(((clean * next.alpha)? + (noise * rest)?)?)
    }
}

/// Each row's estimate, frame by frame, replaced by the present moved rigidly as near as it gets; points count by the
/// probability that they are seen.
fn project(clean: &Tensor, visibility: &Tensor, codes: &[&QueryCode]) -> Result<Tensor> {
    let (b, n, numbers) = clean.dims3()?;
    let frames = numbers / 3;
    let values = clean.detach().flatten_all()?.to_vec1::<f32>()?;
    let seen = visibility.detach().flatten_all()?.to_vec1::<f32>()?;
    let rows: Vec<Vec<f32>> = (0..b)
        .into_par_iter()
        .map(|row| {
            let code = codes[row];
            let moved = code.decode(&values[row * n * numbers..][..n * numbers])?;
            let logits = &seen[row * n * frames..][..n * frames];
            let mut rigid: Vec<Point3<f64>> = Vec::with_capacity(moved.len());
            for t in 0..frames {
                let weight = |i: usize| sigmoid(logits[i * frames + t]).max(0.05);
                let weights: Vec<f64> = (0..n).map(weight).collect();
                let (points, fit) = rigid_projection(code.present(), &moved[t * n..][..n], Some(&weights))?;
                // Too few points to tell a rotation: the estimate stays.
                rigid.extend(if fit.degenerate { moved[t * n..][..n].to_vec() } else { points });
            }
            Ok(code.encode(code.present(), &rigid)?)
        })
        .collect::<Result<_>>()?;
    Ok(Tensor::from_vec(rows.concat(), (b, n, numbers), clean.device())?)
}

pub(super) fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + f64::from(-x).exp())
}
