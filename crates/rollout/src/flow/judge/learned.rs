//! A judge learned from final states that a simulator calls good or bad.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{D, Tensor};
use efference_geometry::{Camera, Point3, Vector3};
use efference_nets::ParamStore;
use efference_ops::{self as ops, AdamW, AdamWConfig, Grads, ParamGroup, Schedule, clip_grad_norm};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::network::{CHANNELS, Network, SIDE, as_values, batch, fresh};
use super::{Judge, JudgeError, JudgeQuestion, Verdict};
use crate::flow::{Error, FinalPicture, Result};

/// Half the side of the window round the moved object that the network sees, metres.
const REACH_M: f64 = 0.18;

/// A final state and whether it is good.
#[derive(Clone, Debug)]
pub struct JudgeSample {
    instruction: String,
    /// [CHANNELS, SIDE, SIDE].
    picture: Vec<u8>,
    accept: bool,
    /// Samples of a scene are held out together.
    scene: u64,
}

impl JudgeSample {
    /// From a picture; `None` when the moved object is not seen in it.
    #[must_use]
    pub fn new(instruction: &str, picture: &FinalPicture, camera: &Camera, accept: bool) -> Option<Self> {
        let picture = encode(picture, camera)?;
        Some(Self { instruction: instruction.to_owned(), picture, accept, scene: 0 })
    }

    /// The scene it belongs to: samples of one scene are either all trained on or all held out.
    #[must_use]
    pub fn of_scene(self, scene: u64) -> Self {
        Self { scene, ..self }
    }

    /// Whether the state is good.
    #[must_use]
    pub fn accept(&self) -> bool {
        self.accept
    }
}

/// What the network sees, in a window of constant size in metres round the moved object's middle: colours, the place of
/// each pixel relative to that middle in world axes (which makes it independent of where the camera stands), and which pixels
/// are the moved object. Beyond the picture everything is in the middle of its range.
fn encode(picture: &FinalPicture, camera: &Camera) -> Option<Vec<u8>> {
    let (w, h) = (picture.rgb.width() as usize, picture.rgb.height() as usize);
    let place = |i: usize| {
        let d = picture.depth_m[i];
        (d > 0.0).then(|| camera.lift((i % w) as f64 + 0.5, (i / w) as f64 + 0.5, f64::from(d)))
    };
    let object: Vec<_> = (0..w * h).filter(|&i| picture.moved[i]).filter_map(place).collect();
    if object.is_empty() {
        return None;
    }
    let middle = object.iter().fold(Vector3::zeros(), |sum, p| sum + p.coords) / object.len() as f64;
    let [u, v, depth] = camera.project(&Point3::from(middle))?;
    let pixels = 2.0 * REACH_M * camera.intrinsics.fx / depth / SIDE as f64;
    let mut out = vec![128; CHANNELS * SIDE * SIDE];
    for cell in 0..SIDE * SIDE {
        let across = |k: usize| ((k as f64 + 0.5) - 0.5 * SIDE as f64) * pixels;
        let (x, y) = ((u + across(cell % SIDE)).floor(), (v + across(cell / SIDE)).floor());
        if x < 0.0 || y < 0.0 || x >= w as f64 || y >= h as f64 {
            continue;
        }
        let (x, y) = (x as usize, y as usize);
        let i = y * w + x;
        let colour = picture.rgb.get_pixel(x as u32, y as u32).0;
        let near: [f64; 3] =
            place(i).map_or([0.0; 3], |p| (p.coords - middle).map(|v| (v / REACH_M).clamp(-1.0, 1.0)).into());
        for c in 0..3 {
            out[c * SIDE * SIDE + cell] = colour[c];
            out[(3 + c) * SIDE * SIDE + cell] = (127.5 + 127.5 * near[c]).round() as u8;
        }
        out[6 * SIDE * SIDE + cell] = if picture.moved[i] { 255 } else { 0 };
    }
    Some(out)
}

/// The same state seen in another light and turned about the vertical: whether it is good does not depend on that.
fn varied(picture: &[u8], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut values = as_values(picture);
    let cells = SIDE * SIDE;
    let mut colours = [0, 1, 2];
    colours.shuffle(rng);
    let gain = rng.random_range(0.8..1.2f32);
    let before = values[..3 * cells].to_vec();
    for (to, from) in colours.into_iter().enumerate() {
        for cell in 0..cells {
            values[to * cells + cell] = ((before[from * cells + cell] + 1.0) * gain - 1.0).min(1.0);
        }
    }
    let (sin, cos) = rng.random_range(0.0..std::f32::consts::TAU).sin_cos();
    for cell in 0..cells {
        let (x, y) = (values[3 * cells + cell], values[4 * cells + cell]);
        values[3 * cells + cell] = cos * x - sin * y;
        values[4 * cells + cell] = sin * x + cos * y;
    }
    values
}

/// How a judge is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeTraining {
    /// Of the initial weights and the order of samples.
    pub seed: u64,
    /// Times every sample is seen, at least 1.
    pub epochs: usize,
    /// Samples per update, at least 1.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Share of a weight removed per update at learning rate 1.
    pub weight_decay: f64,
    /// Share of the samples that are kept for the report, in (0, 1).
    pub held_out: f64,
}

impl Default for JudgeTraining {
    fn default() -> Self {
        Self { seed: 0, epochs: 12, batch: 32, lr: 1e-3, weight_decay: 0.02, held_out: 0.1 }
    }
}

/// How good a trained judge is, on samples it has not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainReport {
    /// Samples trained on.
    pub trained: usize,
    /// Samples of the report.
    pub held_out: usize,
    /// Share of good ones among the held-out samples.
    pub good_share: f64,
    /// Share judged rightly at score 0.5.
    pub accuracy: f64,
    /// Share of good states that are accepted.
    pub recall: f64,
    /// Share of accepted states that are good.
    pub precision: f64,
    /// Mean training loss of the last epoch, nats.
    pub loss: f64,
}

/// Trains a judge. The same samples and options give the same weights, on any number of threads.
///
/// # Errors
/// [`Error::Setting`] for options out of range, or fewer than two samples on either side of the split;
/// [`JudgeError::Network`] when a computation failed.
pub fn train_judge(samples: &[JudgeSample], options: &JudgeTraining) -> Result<(LearnedJudge, TrainReport)> {
    let bad = |setting, value: String, range| Err(Error::Setting { setting, value, range });
    if options.epochs == 0 || options.batch == 0 {
        return bad("epochs and batch", "0".into(), "at least 1");
    }
    if !(options.held_out > 0.0 && options.held_out < 1.0) {
        return bad("held_out", options.held_out.to_string(), "between 0 and 1, both excluded");
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    // Whole scenes are held out; without scenes, single samples.
    let scenes: BTreeSet<u64> = samples.iter().map(|s| s.scene).collect();
    let key = |i: usize| if scenes.len() > 1 { samples[i].scene } else { i as u64 };
    let mut keys: Vec<u64> = (0..samples.len()).map(key).collect::<BTreeSet<u64>>().into_iter().collect();
    keys.shuffle(&mut rng);
    keys.truncate((keys.len() as f64 * options.held_out).ceil() as usize);
    let keys: BTreeSet<u64> = keys.into_iter().collect();
    let (report, training): (Vec<usize>, Vec<usize>) =
        (0..samples.len()).partition(|i| keys.contains(&key(*i)));
    if report.len() < 2 || training.len() < 2 {
        return bad("samples", samples.len().to_string(), "enough for training and a report");
    }
    let held_out = report.len();
    let mut training: Vec<&JudgeSample> = training.into_iter().map(|i| &samples[i]).collect();

    let (store, network) = fresh(options.seed).map_err(JudgeError::from)?;
    let loss = fit(&store, &network, &mut training, options, &mut rng).map_err(JudgeError::from)?;
    let judge = LearnedJudge { store, network, threshold: 0.5 };
    let mut counts = [[0usize; 2]; 2];
    for sample in report.into_iter().map(|i| &samples[i]) {
        let accept = judge.score(&sample.instruction, &sample.picture)? >= judge.threshold;
        counts[usize::from(sample.accept)][usize::from(accept)] += 1;
    }
    let share = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
    let [[right_no, false_yes], [false_no, right_yes]] = counts;
    let report = TrainReport {
        trained: training.len(),
        held_out,
        good_share: share(right_yes + false_no, held_out),
        accuracy: share(right_yes + right_no, held_out),
        recall: share(right_yes, right_yes + false_no),
        precision: share(right_yes, right_yes + false_yes),
        loss,
    };
    Ok((judge, report))
}

fn fit(
    store: &ParamStore,
    network: &Network,
    training: &mut [&JudgeSample],
    options: &JudgeTraining,
    rng: &mut ChaCha8Rng,
) -> efference_nets::Result<f64> {
    let groups = ParamGroup::split(store.trainable(), options.weight_decay, ParamStore::decays);
    let mut optimizer = AdamW::new(groups, AdamWConfig::default())?;
    let updates = training.len().div_ceil(options.batch) * options.epochs;
    let warmup_steps = (updates as u64 / 20).min(50);
    let schedule = Schedule::Cosine { warmup_steps, total_steps: updates as u64 + 1, final_factor: 0.02 };
    let (mut step, mut last) = (0, 0.0);
    for _ in 0..options.epochs {
        training.shuffle(rng);
        last = 0.0;
        for samples in training.chunks(options.batch) {
            let pictures: Vec<Vec<f32>> = samples.iter().map(|s| varied(&s.picture, rng)).collect();
            let texts: Vec<&str> = samples.iter().map(|s| s.instruction.as_str()).collect();
            let [pictures, words] = batch(pictures, &texts)?;
            let ids: Vec<u32> = samples.iter().map(|s| u32::from(s.accept)).collect();
            let ids = Tensor::new(ids, store.device())?;
            let (loss, grads) = ops::value_and_grad(|| {
                let logits = network.forward(&pictures, &words)?;
                Ok::<_, efference_nets::Error>(ops::cross_entropy(&logits, &ids, None)?.mean_all()?)
            })?;
            let mut grads = Grads::from_store(grads, store.trainable())?;
            clip_grad_norm(&mut grads, 1.0)?;
            optimizer.step(&grads, options.lr * schedule.factor(step))?;
            last += f64::from(loss.to_scalar::<f32>()?) * samples.len() as f64 / training.len() as f64;
            step += 1;
        }
    }
    Ok(last)
}

/// Scores the rendered picture of the final state. Accepts at a score of 0.5 or more.
pub struct LearnedJudge {
    store: ParamStore,
    network: Network,
    threshold: f64,
}

impl LearnedJudge {
    /// From weights that [`LearnedJudge::save`] wrote.
    ///
    /// # Errors
    /// [`JudgeError::Network`]: the file cannot be read, is damaged or holds other weights.
    pub fn load(path: &Path) -> Result<Self> {
        let (store, network) = fresh(0).map_err(JudgeError::from)?;
        store.load(path).map_err(JudgeError::from)?;
        Ok(Self { store, network, threshold: 0.5 })
    }

    /// As [`LearnedJudge::load`], from bytes; `name` is for messages.
    ///
    /// # Errors
    /// As [`LearnedJudge::load`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let (store, network) = fresh(0).map_err(JudgeError::from)?;
        store.load_bytes(Path::new(name), bytes).map_err(JudgeError::from)?;
        Ok(Self { store, network, threshold: 0.5 })
    }

    /// Accepts at this score or more, 0 to 1.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Writes the weights (safetensors, f32), atomically.
    ///
    /// # Errors
    /// [`JudgeError::Network`]: the system refused.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(self.store.save(path).map_err(JudgeError::from)?)
    }

    fn score(&self, instruction: &str, picture: &[u8]) -> Result<f64> {
        let run = || {
            let [pictures, words] = batch(vec![as_values(picture)], &[instruction])?;
            let logits = ops::no_grad(|| self.network.forward(&pictures, &words))?;
            let [no, yes]: [f32; 2] = logits.squeeze(D::Minus2)?.to_vec1()?.try_into().unwrap_or([0.0; 2]);
            Ok::<_, efference_nets::Error>(1.0 / (1.0 + f64::from(no - yes).exp()))
        };
        Ok(run().map_err(JudgeError::from)?)
    }
}

impl Judge for LearnedJudge {
    fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict> {
        let mut shared: &Self = self;
        shared.judge(question)
    }

    fn name(&self) -> &'static str {
        "learned"
    }
}

/// Many threads may ask one judge.
impl Judge for &LearnedJudge {
    fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict> {
        let Some(picture) = encode(question.picture, question.camera) else {
            let reason = "the object is not seen in the final state".into();
            return Ok(Verdict { accept: false, score: 0.0, reason });
        };
        let score = self.score(question.instruction, &picture)?;
        let accept = score >= self.threshold;
        Ok(Verdict { accept, score, reason: format!("score {score:.2}") })
    }

    fn name(&self) -> &'static str {
        "learned"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flow::draw_final;
    use crate::flow::picture::tests::wall_and_square;
    use efference_geometry::Isometry3;

    /// "near" is good when the square ends well before the wall, "far" when close to it: picture and words are needed.
    fn samples(n: usize) -> Vec<JudgeSample> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (query, mask) = wall_and_square();
        (0..n)
            .map(|i| {
                let near = rng.random_bool(0.5);
                let z = if near { rng.random_range(-0.1..0.1) } else { rng.random_range(0.38..0.45) };
                let motion =
                    Isometry3::translation(rng.random_range(-0.1..0.1), rng.random_range(-0.1..0.1), z);
                let picture = draw_final(&query, &mask, &motion).unwrap();
                let (words, wanted) =
                    if i % 2 == 0 { ("far from the wall", true) } else { ("close to it", false) };
                JudgeSample::new(words, &picture, &query.camera, near == wanted).unwrap()
            })
            .collect()
    }

    #[test]
    fn it_learns_to_tell_good_from_bad_and_survives_a_round_trip() {
        let samples = samples(320);
        let options = JudgeTraining { epochs: 6, held_out: 0.25, lr: 2e-3, ..JudgeTraining::default() };
        let (judge, report) = train_judge(&samples, &options).unwrap();
        assert!(report.accuracy > 0.9, "{report:?}");
        assert!((0.3..0.7).contains(&report.good_share), "{report:?}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("judge.safetensors");
        judge.save(&path).unwrap();
        let again = LearnedJudge::load(&path).unwrap();
        let sample = &samples[0];
        let score = |j: &LearnedJudge| j.score(&sample.instruction, &sample.picture).unwrap();
        assert_eq!(score(&judge), score(&again));
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(LearnedJudge::load(&path), Err(Error::Judge(JudgeError::Network(_)))));
    }

    #[test]
    fn training_is_reproducible_and_bad_options_are_refused() {
        let samples = samples(24);
        let options = JudgeTraining { epochs: 1, held_out: 0.2, ..JudgeTraining::default() };
        let bytes =
            |options: &JudgeTraining| train_judge(&samples, options).unwrap().0.store.to_bytes().unwrap();
        assert!(bytes(&options) == bytes(&options));
        assert!(bytes(&options) != bytes(&JudgeTraining { seed: 1, ..options }));
        for bad in [
            JudgeTraining { epochs: 0, ..options },
            JudgeTraining { held_out: 1.0, ..options },
            JudgeTraining { held_out: f64::NAN, ..options },
        ] {
            assert!(matches!(train_judge(&samples, &bad), Err(Error::Setting { .. })));
        }
        assert!(matches!(train_judge(&samples[..2], &options), Err(Error::Setting { .. })));
    }

    #[test]
    fn what_is_not_seen_is_not_accepted() {
        let (query, mask) = wall_and_square();
        let motion = Isometry3::translation(0.0, 0.0, 1.0);
        let picture = draw_final(&query, &mask, &motion).unwrap();
        let (store, network) = fresh(0).unwrap();
        let mut judge = LearnedJudge { store, network, threshold: 0.0 };
        let camera = &query.camera;
        let verdict = judge
            .judge(&JudgeQuestion { instruction: "x", picture: &picture, camera, motion: &motion })
            .unwrap();
        assert!(!verdict.accept);
    }
}
