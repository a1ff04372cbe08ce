//! The JSON lines sink: scalars and poses, one object per line, readable without any viewer.
//!
//! `{"kind":"training","update":3,"values":{"loss":0.5}}` and `{"kind":"episode","stage":…}`. Poses are
//! `[x, y, z, qw, qx, qy, qz]`; numbers that are not finite become `null`.

use crate::episode::{EpisodeRecord, Pose};
use crate::error::{Error, Result};
use crate::output::Output;
use crate::recorder::Sink;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

pub(crate) struct JsonLines {
    out: Output,
}

impl JsonLines {
    /// Starts `path`, or continues it behind its last whole line.
    pub(crate) fn open(path: &Path, resume: bool) -> Result<Self> {
        let out = if resume {
            let old = match fs::read(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
                other => other.map_err(|source| Error::Create { path: path.into(), source })?,
            };
            let whole_bytes = old.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
            Output::append(path, whole_bytes as u64)?
        } else {
            Output::create(path)?
        };
        Ok(Self { out })
    }

    /// Brings everything to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.out.sync().map_err(|e| self.out.write_error(e))
    }

    /// Writes one whole line.
    pub(crate) fn line(&mut self, value: &Value) -> Result<()> {
        let line = format!("{value}\n");
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.commit());
        written.map_err(|e| {
            self.out.roll_back();
            self.out.write_error(e)
        })
    }
}

fn pose(p: &Pose) -> Value {
    let (t, q) = (p.translation.vector, p.rotation.quaternion());
    json!([t.x, t.y, t.z, q.w, q.i, q.j, q.k].map(round))
}

/// Six decimals: micrometres are enough to look at, and the file stays small.
fn round(x: f32) -> Option<f64> {
    x.is_finite().then(|| (f64::from(x) * 1e6).round() / 1e6)
}

fn rounded(xs: &[f32]) -> Vec<Option<f64>> {
    xs.iter().copied().map(round).collect()
}

fn poses(ps: &[Pose]) -> Vec<Value> {
    ps.iter().map(pose).collect()
}

impl Sink for JsonLines {
    fn episode(&mut self, e: &EpisodeRecord) -> Result<()> {
        let signals: Map<String, Value> =
            e.signals.iter().map(|s| (s.name.clone(), json!(rounded(&s.values)))).collect();
        let moving = e.scene.iter().filter(|g| g.poses.len() > 1);
        let scene: Map<String, Value> = moving.map(|g| (g.name.clone(), json!(poses(&g.poses)))).collect();
        let cameras: Map<String, Value> = e
            .cameras
            .iter()
            .map(|c| {
                let k = c.intrinsics;
                let image_frames: Vec<usize> = c.frames.iter().map(|(frame, _)| *frame).collect();
                let value = json!({
                    "size": [k.width, k.height], "fx_fy_cx_cy": [k.fx, k.fy, k.cx, k.cy],
                    "axes": format!("{:?}", c.axes), "poses": poses(&c.poses), "image_frames": image_frames,
                });
                (c.name.clone(), value)
            })
            .collect();
        let points = |points: &[[f32; 3]]| points.iter().map(|p| rounded(p)).collect::<Vec<_>>();
        let plans: Vec<Value> =
            e.plans.iter().map(|p| json!({"frame": p.frame, "points": points(&p.points)})).collect();
        self.line(&json!({
            "kind": "episode", "stage": e.stage, "name": e.name, "instruction": e.instruction, "seed": e.seed,
            "update": e.update, "control_hz": e.control_hz, "success": e.success, "progress": e.progress,
            "gripper": poses(&e.gripper), "rewards": rounded(&e.rewards), "signals": signals, "plans": plans,
            "scene": scene, "cameras": cameras,
        }))
    }

    fn training(&mut self, update: u64, values: &[(&str, f64)]) -> Result<()> {
        let values: Map<String, Value> = values.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        self.line(&json!({"kind": "training", "update": update, "values": values}))
    }

    fn summary(&mut self, markdown: &str) -> Result<()> {
        self.line(&json!({"kind": "summary", "markdown": markdown}))
    }

    fn flush(&mut self) -> Result<()> {
        self.sync()
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lines(path: &Path) -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn a_torn_line_is_cut_off_when_continuing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording.jsonl");
        JsonLines::open(&path, true).unwrap().training(1, &[("loss", 0.5), ("kl", f64::NAN)]).unwrap();
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(br#"{"kind":"trai"#);
        fs::write(&path, torn).unwrap();

        JsonLines::open(&path, true).unwrap().training(2, &[("loss", 0.25)]).unwrap();
        let got = lines(&path);
        assert_eq!(got.len(), 2);
        assert_eq!(got[0]["values"], json!({"loss": 0.5, "kl": null}));
        assert_eq!(got[1]["update"], 2);

        JsonLines::open(&path, false).unwrap();
        assert!(lines(&path).is_empty(), "a new recording starts empty");
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording.jsonl");
        let mut sink = JsonLines::open(&path, false).unwrap();
        sink.out.capacity_bytes = Some(100);
        sink.training(1, &[("loss", 0.5)]).unwrap();
        let error = (2..9).find_map(|update| sink.training(update, &[("loss", 0.5)]).err()).unwrap();
        assert!(matches!(&error, Error::Write { path: p, .. } if *p == path), "{error}");
        assert_eq!(lines(&path).len(), 1);
    }
}
