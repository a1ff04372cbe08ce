//! `efference data video`: what a tracker and a depth network saw in real videos.

use std::path::PathBuf;

use efference_data::flow::FlowWriter;
use efference_data::flow::video::{VideoClip, VideoError, VideoOptions};
use efference_geometry::video::VideoFlowOptions;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::count;
use crate::ui::Ui;

/// Make episodes of object flow from real videos, given their point tracks and depth
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each FILE is a safetensors file of one video: `tracks` F32 [T, N, 2] in pixels and `visibility` F32, U8 or BOOL [T, N] \
(what CoTracker gives), `depth` F32 [T, H, W] in metres, `image` U8 [H, W, 3], the first picture; optionally `object` U8 \
[N], 1 for the tracks of the object. Metadata: `instruction`, `task`, and `fx`, `fy`, `cx`, `cy` in pixels (without them an \
angle of view of 55 degrees is assumed). Without `object` it is found by how the tracks move. Videos that show no moving \
object are passed over.")]
pub(crate) struct Args {
    /// Files of tracks and depth
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Folder of the set; made, or gone on with if the same settings made it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Future frames of a flow
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::builder::RangedU64ValueParser::<u64>::new().range(1..=1000))]
    frames: u64,
    /// Take the motion of the background out: the camera moves
    #[arg(long)]
    moving_camera: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let flow = VideoFlowOptions { future_frames: args.frames as usize, ..VideoFlowOptions::default() };
    let options = VideoOptions { flow, moving_camera: args.moving_camera, ..VideoOptions::default() };
    let recipe = json!({ "video": { "frames": args.frames, "moving_camera": args.moving_camera } });
    let mut writer = FlowWriter::append_to(&args.out, &recipe)?;
    let (mut made, mut passed) = (0, 0);
    for file in &args.files {
        let episode = match VideoClip::read(file)?.episode(&options) {
            Ok(episode) => Some(episode),
            Err(error @ (VideoError::Rejected { .. } | VideoError::Geometry(_))) => {
                ui.line(format!("passed over: {}: {error}", file.display()));
                None
            }
            Err(error) => return Err(Failure::from(error).doing(file.display())),
        };
        made += usize::from(episode.is_some());
        passed += usize::from(episode.is_none());
        writer.append(episode.as_ref())?;
    }
    writer.flush()?;
    let held = writer.entries().len();
    ui.line(format!(
        "{} made, {passed} passed over; {held} in {}",
        count(made, "episode"),
        args.out.display()
    ));
    ui.object(&json!({ "episodes": held, "made": made, "passed_over": passed }));
    if made == 0 {
        return Err(Failure::new("no video gave an episode"));
    }
    Ok(())
}
