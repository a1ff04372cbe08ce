//! Flows as JSON lines: one object per scene, readable without any viewer.

use std::path::Path;

use efference_geometry::{Flow3d, Isometry3, Point3};
use serde_json::{Map, Value, json};

use super::record::FlowSink;
use super::{FlowScene, GraspState, PREDICTED, TimedPose, point_colors};
use crate::error::Result;
use crate::jsonl::JsonLines;

/// Writes `{"kind":"flow",…}` lines. Positions are [frame][point][x, y, z] in metres, poses `[x, y, z, qw, qx, qy, qz]`,
/// pictures and clouds are left out.
pub(crate) struct FlowLines {
    lines: JsonLines,
}

impl FlowLines {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self { lines: JsonLines::open(path, false)? })
    }
}

impl FlowSink for FlowLines {
    fn scene(&mut self, s: &FlowScene) -> Result<()> {
        let k = s.camera.intrinsics;
        let predictions: Vec<Value> = (0..s.predictions.len()).map(|k| prediction(s, k)).collect();
        let grasps: Vec<Value> = s
            .grasps
            .iter()
            .map(|g| {
                let state = match g.state {
                    GraspState::Rejected => "rejected",
                    GraspState::Possible => "possible",
                    GraspState::Chosen => "chosen",
                };
                json!({"pose": pose(&g.pose), "opening_m": round(g.opening_m), "state": state})
            })
            .collect();
        let curves: Map<String, Value> =
            s.curves.iter().map(|c| (c.name.clone(), c.values.iter().map(|v| round(*v)).collect())).collect();
        let phases: Vec<Value> =
            s.phases.iter().map(|p| json!({"frame": p.frame, "phase": p.name})).collect();
        self.lines.line(&json!({
            "kind": "flow", "name": s.name, "instruction": s.instruction, "seed": s.seed, "round": s.round,
            "first_frame": s.first_frame, "frame_s": s.frame_s, "success": s.success, "chosen": s.chosen,
            "camera": {
                "size": [k.width, k.height], "fx_fy_cx_cy": [k.fx, k.fy, k.cx, k.cy], "axes": "OpenCv",
                "pose": pose(&s.camera.world_from_camera),
            },
            "colors": colors(s, 1.0), "predicted_colors": colors(s, PREDICTED),
            "points": points(&s.points), "truth": s.truth.as_ref().map(flow), "predictions": predictions,
            "grasps": grasps, "plan": timed(&s.plan), "executed": timed(&s.executed), "curves": curves,
            "phases": phases, "notes": s.notes,
        }))
    }

    fn finish(&mut self) -> Result<()> {
        self.lines.sync()
    }
}

fn prediction(s: &FlowScene, k: usize) -> Value {
    let p = &s.predictions[k];
    let fit = p.fit.as_ref().map(|fit| {
        json!({
            "motion": fit.poses.iter().map(pose).collect::<Vec<_>>(),
            "rms_m": fit.rms_m.iter().map(|v| round(*v)).collect::<Vec<_>>(),
            "inliers": fit.inliers,
        })
    });
    let verdicts: Vec<Value> = p
        .verdicts
        .iter()
        .map(|v| json!({"judge": v.judge, "accepted": v.accepted, "score": v.score, "reason": v.reason}))
        .collect();
    let errors = s.errors(k).map(|e| e.mean_cm.iter().map(|v| round(*v)).collect::<Vec<_>>());
    json!({"flow": flow(&p.flow), "fit": fit, "verdicts": verdicts, "error_cm": errors})
}

fn colors(s: &FlowScene, share: f64) -> Vec<String> {
    point_colors(&s.points, share).into_iter().map(crate::theme::hex).collect()
}

fn flow(flow: &Flow3d) -> Value {
    let positions: Vec<Value> = (0..flow.frames()).map(|t| points(flow.at(t))).collect();
    let visibility: Vec<Value> = (0..flow.frames())
        .map(|t| flow.visibility_at(t).iter().map(|v| round(f64::from(*v))).collect())
        .collect();
    json!({"positions": positions, "visibility": visibility})
}

fn points(points: &[Point3<f64>]) -> Value {
    points.iter().map(|p| json!([round(p.x), round(p.y), round(p.z)])).collect()
}

fn pose(pose: &Isometry3<f64>) -> Value {
    let (t, q) = (pose.translation.vector, pose.rotation.quaternion());
    json!([t.x, t.y, t.z, q.w, q.i, q.j, q.k].map(round))
}

fn timed(poses: &[TimedPose]) -> Vec<Value> {
    poses.iter().map(|p| json!({"frame": round(p.frame), "pose": pose(&p.pose)})).collect()
}

/// Six decimals: micrometres are enough to look at, and the file stays small. Not finite becomes `null`.
fn round(x: f64) -> Option<f64> {
    x.is_finite().then(|| (x * 1e6).round() / 1e6)
}
