//! `efference data video`: what a tracker and a depth network saw in real videos.

use std::path::PathBuf;

use efference_data::RgbImage;
use efference_data::flow::FlowWriter;
use efference_data::flow::video::{VideoClip, VideoError, VideoNetworks, VideoOptions};
use efference_geometry::video::VideoFlowOptions;
use efference_nets::onnx::{DepthMeaning, DepthNet, TrackNet};
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::count;
use crate::ui::Ui;

/// Make episodes of object flow from real videos, given their point tracks and depth or networks that see them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each FILE is a safetensors file of one video: `tracks` F32 [T, N, 2] in pixels and `visibility` F32, U8 or BOOL [T, N] \
(what CoTracker gives), `depth` F32 [T, H, W] in metres, `image` U8 [H, W, 3], the first picture; optionally `object` U8 \
[N], 1 for the tracks of the object. Metadata: `instruction`, `task`, and `fx`, `fy`, `cx`, `cy` in pixels (without them an \
angle of view of 55 degrees is assumed). Without `object` it is found by how the tracks move. Videos that show no moving \
object are passed over.

What is missing, networks in ONNX files can see: give `video` U8 [T, H, W, 3] in place of `image`, or as FILE a folder of \
pictures with the metadata in `clip.json`. A depth network takes [B, 3, H, W] with ImageNet's means and gives [B, H, W] or \
[B, 1, H, W]; a tracker takes a video [1, T, 3, H, W] of 0 to 255 and queries [1, N, 3] (picture, x, y) and gives tracks [1, \
T, N, 2] and visibility [1, T, N]. `cargo xtask onnx` fetches ONNX Runtime.")]
pub(crate) struct Args {
    /// Files of tracks and depth
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// ONNX file of a network that sees the depth of a picture
    #[arg(long, value_name = "ONNX")]
    depth_net: Option<PathBuf>,
    /// What its numbers are: `metres` (times the scale) or `disparity` (the scale divided by them)
    #[arg(long, value_name = "MEANING", default_value = "metres", value_parser = meaning)]
    depth_meaning: DepthMeaning,
    /// Scale of its numbers
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    depth_scale: f64,
    /// ONNX file of a network that tracks points
    #[arg(long, value_name = "ONNX")]
    track_net: Option<PathBuf>,
    /// Points a side that it tracks
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::builder::RangedU64ValueParser::<u64>::new().range(2..=256))]
    grid: u64,
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

fn meaning(text: &str) -> std::result::Result<DepthMeaning, String> {
    match text {
        "metres" => Ok(DepthMeaning::Metres),
        "disparity" => Ok(DepthMeaning::Disparity),
        _ => Err("`metres` or `disparity`".into()),
    }
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let depth_net = args.depth_net.as_ref();
    let depth_net =
        depth_net.map(|file| DepthNet::load(file, args.depth_meaning, args.depth_scale)).transpose()?;
    let track_net = args.track_net.as_ref().map(|file| TrackNet::load(file)).transpose()?;
    let depth = |pictures: &[RgbImage]| match &depth_net {
        Some(net) => net.depth(pictures).map_err(|e| e.to_string()),
        None => Err("there is none".into()),
    };
    let tracks = |pictures: &[RgbImage]| match &track_net {
        Some(net) => {
            let tracks = net.follow(pictures, args.grid as usize).map_err(|e| e.to_string())?;
            Ok((tracks.points, tracks.places, tracks.visibility))
        }
        None => Err("there is none".into()),
    };
    let networks = VideoNetworks {
        depth: depth_net.is_some().then_some(&depth as _),
        tracks: track_net.is_some().then_some(&tracks as _),
    };
    let flow = VideoFlowOptions { future_frames: args.frames as usize, ..VideoFlowOptions::default() };
    let options = VideoOptions { flow, moving_camera: args.moving_camera, ..VideoOptions::default() };
    let recipe = json!({ "video": { "frames": args.frames, "moving_camera": args.moving_camera } });
    let mut writer = FlowWriter::append_to(&args.out, &recipe)?;
    let (mut made, mut passed) = (0, 0);
    for file in &args.files {
        let episode = match VideoClip::read_with(file, &networks)?.episode(&options) {
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
