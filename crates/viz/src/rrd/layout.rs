//! What is in the recording, as far as the arrangement on the screen needs to know. Saved inside the file, so
//! that a resumed run can extend the arrangement.

use super::training::History;
use crate::episode::{EpisodeRecord, Pose};
use nalgebra::{Point3, Vector3};
use rerun::log::Chunk;
use rerun::{RecordingStream, TextDocument};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Entity of the run's card.
pub(super) const CARD: &str = "card";
/// Property of the recording that holds the layout as JSON.
pub(super) const PROPERTY: &str = "layout";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) stages: Vec<Stage>,
    /// Names of the training curves in order of appearance.
    pub(super) curves: Vec<String>,
    /// What the curves were so far, for the drawing beside the episodes.
    #[serde(default)]
    pub(super) history: BTreeMap<String, History>,
    /// Text of the run's card; empty for none.
    pub(super) card: String,
    /// Control rate of the first episode, the speed of playing.
    pub(super) control_hz: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stage {
    pub(super) title: String,
    pub(super) episodes: Vec<Slot>,
}

/// Where an episode lies and how to look at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Slot {
    /// Root entity, `/stage/name`.
    pub(super) path: String,
    pub(super) name: String,
    pub(super) success: bool,
    /// Training step, if the stage holds this task more than once.
    #[serde(default)]
    pub(super) again_at: Option<u64>,
    pub(super) cameras: Vec<CameraSlot>,
    /// Position of the spectator and the point it looks at, metres in the world.
    pub(super) eye: [f32; 3],
    pub(super) target: [f32; 3],
    pub(super) has_plans: bool,
    /// Length of the gripper's way over the ground, metres.
    #[serde(default)]
    pub(super) way_m: f32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CameraSlot {
    pub(super) name: String,
    pub(super) is_moving: bool,
}

impl Layout {
    /// Makes room for an episode and gives its root entity.
    pub(super) fn add(&mut self, e: &EpisodeRecord) -> String {
        if self.stages.is_empty() {
            self.control_hz = e.control_hz;
        }
        let at = self.stages.iter().position(|stage| stage.title == e.stage).unwrap_or_else(|| {
            self.stages.push(Stage { title: e.stage.clone(), episodes: Vec::new() });
            self.stages.len() - 1
        });
        let stage = &mut self.stages[at];
        // The same task again (a later look during training) must not be drawn over the first one.
        let base = format!("/{}/{}", part(&e.stage), part(&e.name));
        let with_update = format!("{base}_update_{}", e.update);
        let numbered = (2..).map(|i| format!("{with_update}_{i}"));
        let path = [base.clone(), with_update.clone()]
            .into_iter()
            .chain(numbered)
            .find(|path| stage.episodes.iter().all(|slot| slot.path != *path))
            .unwrap_or_else(|| base.clone());
        let (eye, target) = spectator(e);
        stage.episodes.push(Slot {
            path: path.clone(),
            name: e.name.clone(),
            success: e.success,
            again_at: (path != base).then_some(e.update),
            cameras: e
                .cameras
                .iter()
                .map(|c| CameraSlot { name: part(&c.name), is_moving: c.poses.len() > 1 })
                .collect(),
            eye,
            target,
            has_plans: !e.plans.is_empty(),
            way_m: e.gripper.windows(2).map(|w| (position(&w[1]) - position(&w[0])).xy().norm()).sum(),
        });
        path
    }

    /// How much there is to show: episodes, curves, and the card.
    pub(super) fn shown(&self) -> usize {
        let episodes: usize = self.stages.iter().map(|stage| stage.episodes.len()).sum();
        episodes + self.curves.len() + usize::from(!self.card.is_empty())
    }

    /// Entity of a training curve, and whether this is its first point.
    pub(super) fn curve(&mut self, name: &str) -> (String, bool) {
        let is_new = !self.curves.iter().any(|known| known == name);
        if is_new {
            self.curves.push(name.into());
        }
        (curve_path(name), is_new)
    }

    /// Keeps a point for the drawing, if its curve can be there.
    pub(super) fn remember(&mut self, name: &str, update: u64, value: f64) -> bool {
        // The first ranks are success, reward, loss and KL.
        let is_drawn = plot_of(name).1 <= 3;
        if is_drawn {
            self.history.entry(name.to_owned()).or_default().push(update, value);
        }
        is_drawn
    }

    /// Names and points of the curves in a plot, in order of appearance.
    pub(super) fn curves_of(&self, title: &str) -> impl Iterator<Item = (&str, &History)> {
        let names = self.curves.iter().filter(move |name| plot_of(name).0 == title);
        names.filter_map(|name| Some((name.as_str(), self.history.get(name)?)))
    }

    /// Place of a curve among those in the same plot, for its colour.
    pub(super) fn curve_color(&self, name: &str) -> usize {
        let plot = plot_of(name).0;
        self.curves
            .iter()
            .filter(|other| plot_of(other).0 == plot)
            .position(|other| other == name)
            .unwrap_or(0)
    }

    /// Training plots: title and root entity, the important ones first.
    pub(super) fn plots(&self) -> Vec<(String, String)> {
        let mut plots: Vec<(usize, String)> = Vec::new();
        for name in &self.curves {
            let (title, rank) = plot_of(name);
            if !plots.iter().any(|(_, known)| *known == title) {
                plots.push((rank, title));
            }
        }
        plots.sort_by_key(|(rank, _)| *rank);
        plots
            .into_iter()
            .map(|(_, title)| (format!("/curves/{}", part(&title)), title))
            .map(|(p, t)| (t, p))
            .collect()
    }

    /// Writes the layout into the recording.
    pub(super) fn save(&self, rec: &RecordingStream) -> Result<(), String> {
        let json = serde_json::to_string(self).map_err(|e| e.to_string())?;
        rec.send_property(PROPERTY, &TextDocument::new(json)).map_err(|e| e.to_string())
    }

    /// Reads what [`Layout::save`] wrote.
    pub(super) fn from_chunk(chunk: &Chunk) -> Option<Self> {
        if !chunk.entity_path().to_string().ends_with(&format!("__properties/{PROPERTY}")) {
            return None;
        }
        let text = chunk.iter_slices::<String>(TextDocument::descriptor_text().component).last()?;
        serde_json::from_str(text.first()?.as_str()).ok()
    }
}

impl Slot {
    /// `✓ pick up the red cube`, `✗ pick up the red cube @40`.
    pub(super) fn label(&self) -> String {
        let at = self.again_at.map_or(String::new(), |update| format!(" @{update}"));
        format!("{} {}{at}", if self.success { '✓' } else { '✗' }, self.name)
    }
}

/// Text as one part of an entity path.
pub(super) fn part(text: &str) -> String {
    let clean = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let part: String = text.trim().chars().map(clean).collect();
    if part.is_empty() { "_".into() } else { part }
}

fn curve_path(name: &str) -> String {
    format!("/curves/{}/{}", part(&plot_of(name).0), part(name))
}

/// Title of the plot a training curve belongs to, by the words of its name, and its rank on the screen.
fn plot_of(name: &str) -> (String, usize) {
    const PLOTS: [(&str, &[&str]); 12] = [
        ("Success", &["success"]),
        ("Clip fraction", &["clip"]),
        ("Gradient norm", &["grad"]),
        ("Entropy", &["entropy"]),
        ("KL", &["kl"]),
        ("Learning rate", &["lr", "learning"]),
        ("Tokens per second", &["tokens"]),
        ("Speed", &["per"]),
        ("Loss", &["loss", "nll"]),
        ("Reward", &["reward", "return", "progress", "advantage"]),
        ("Time", &["secs", "seconds", "ms"]),
        ("Episode length", &["episode", "length"]),
    ];
    // A better order on the screen than for matching: "clip" must be found before "loss", but is shown later.
    const RANK: [usize; 12] = [0, 5, 6, 4, 3, 7, 10, 9, 2, 1, 11, 8];
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).collect();
    let hit = PLOTS.iter().position(|(_, keys)| {
        keys.iter().any(|key| words.iter().any(|w| w == key || (key.len() > 3 && w.starts_with(key))))
    });
    match hit {
        Some(i) => (PLOTS[i].0.into(), RANK[i]),
        None => (name.split('/').next().unwrap_or(name).into(), PLOTS.len()),
    }
}

/// A view point that shows where the gripper works: beside the first fixed camera, a little above, so that the 3D
/// view and the camera image are easy to relate.
fn spectator(e: &EpisodeRecord) -> ([f32; 3], [f32; 3]) {
    let points: Vec<Point3<f32>> =
        e.gripper.iter().map(position).filter(|p| p.iter().all(|c| c.is_finite())).collect();
    let Some(first) = points.first() else { return ([1.0, -1.0, 1.0], [0.0; 3]) };
    let (low, high) = points.iter().fold((*first, *first), |(low, high), p| (low.inf(p), high.sup(p)));
    let target = nalgebra::center(&low, &high);
    let radius = (0.5 * (high - low).norm()).clamp(0.27, 3.0);
    let fixed = e.cameras.iter().find(|c| c.poses.len() == 1).and_then(|c| c.poses.first());
    let towards = fixed.map_or(Vector3::new(1.0, -1.0, 0.0), |pose| position(pose) - target);
    let azimuth = towards.y.atan2(towards.x) + 0.6;
    let elevation = 0.5_f32;
    let direction =
        Vector3::new(elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin());
    ((target + 3.3 * radius * direction).into(), target.into())
}

fn position(pose: &Pose) -> Point3<f32> {
    pose.translation.vector.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_find_their_plot() {
        let plot = |name| plot_of(name).0;
        assert_eq!(plot("eval/success_rate"), "Success");
        assert_eq!(plot("clip_frac_lower"), "Clip fraction");
        assert_eq!(plot("approx_kl"), "KL");
        assert_eq!(plot("sparkle"), "sparkle");
        assert_eq!(plot("lr"), "Learning rate");
        assert_eq!(plot("env_steps_per_sec"), "Speed");
        assert_eq!(plot("speed/tokens_per_s"), "Tokens per second");
        assert_eq!(plot("episode_steps"), "Episode length");
        assert_eq!(plot("sft/nll"), "Loss");
        assert_eq!(plot("reward_mean"), "Reward");
        let mut layout = Layout::default();
        for name in ["lr", "loss", "success/pick", "success/place"] {
            layout.curve(name);
        }
        let titles: Vec<String> = layout.plots().into_iter().map(|(title, _)| title).collect();
        assert_eq!(titles, ["Success", "Loss", "Learning rate"]);
        assert_eq!(layout.curve_color("success/place"), 1);
        assert_eq!(layout.curve("loss"), ("/curves/Loss/loss".into(), false));
    }

    #[test]
    fn repeated_episodes_get_their_own_place() {
        let mut layout = Layout::default();
        let e = EpisodeRecord {
            stage: "during RL".into(),
            name: "pick/red".into(),
            update: 7,
            ..Default::default()
        };
        let paths: Vec<String> = (0..4).map(|_| layout.add(&e)).collect();
        let expected =
            ["", "_update_7", "_update_7_2", "_update_7_3"].map(|s| format!("/during_RL/pick_red{s}"));
        assert_eq!(paths, expected);
        let labels: Vec<String> = layout.stages[0].episodes.iter().map(Slot::label).collect();
        assert_eq!(labels[..2], ["✗ pick/red", "✗ pick/red @7"]);
    }
}
