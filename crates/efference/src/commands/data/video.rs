//! `efference data video`: what a tracker and a depth network say of real videos becomes episodes.

use std::path::PathBuf;

use efference_data::flow::FlowWriter;
use efference_data::flow::video::{VideoClip, VideoOptions};
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::count;
use crate::ui::Ui;

/// Add real videos to a set of flows, from a tracker's points and a depth video
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A clip is a safetensors file: `tracks` F32 [T, N, 2] (pixel x, y of points spread over the picture, as CoTracker gives \
them), `visibility` [T, N], `depth` F32 [T, H, W] in metres, `image` U8 [H, W, 3], optionally `object` [N]; metadata \
`instruction`, `task`, optionally `fx`, `fy`, `cx`, `cy`. The object is found among the points: not what moves at once (a \
hand or gripper), and of the rest what ends farthest. The world of the episode has its origin in the camera, x along its \
view, z up.")]
pub(crate) struct Args {
    /// Folder of the set; made, or added to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Take the motion of the background out of the object's
    #[arg(long)]
    moving_camera: bool,
    /// Clips, one file each
    #[arg(value_name = "FILE", required = true)]
    clips: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let options = VideoOptions { moving_camera: args.moving_camera, ..VideoOptions::default() };
    let recipe = json!({ "video": { "moving_camera": args.moving_camera } });
    let mut writer = FlowWriter::append_to(&args.out, &recipe)?;
    let mut refused = 0;
    for path in &args.clips {
        match VideoClip::read(path).and_then(|clip| clip.episode(&options)) {
            Ok(episode) => {
                let (points, frames) = (episode.flow.points(), episode.flow.frames());
                ui.line(format!("{}: {} over {frames} frames", path.display(), count(points, "point")));
                ui.object(&json!({ "clip": path, "points": points, "frames": frames }));
                writer.append(Some(&episode))?;
            }
            Err(error) => {
                refused += 1;
                ui.line(format!("{}: {error}", path.display()));
                ui.object(&json!({ "clip": path, "refused": error.to_string() }));
            }
        }
    }
    writer.flush()?;
    ui.line(format!("{} in {}", count(writer.entries().len(), "episode"), args.out.display()));
    match refused {
        0 => Ok(()),
        n => Err(Failure::new(format!("{n} of {} gave no episode", count(args.clips.len(), "clip")))),
    }
}
