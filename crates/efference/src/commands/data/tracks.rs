//! `efference data tracks`: a tracker's points in a real video become an episode.

use std::f64::consts::FRAC_PI_2;
use std::path::{Path, PathBuf};

use efference_data::flow::FlowWriter;
use efference_data::flow::tracker::{Clip, TrackerOptions, episode};
use efference_data::npy::{self, NpyArray};
use efference_geometry::{Camera, Intrinsics, Isometry3, UnitQuaternion};
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::count;
use crate::ui::Ui;

/// Add a real video to a set of flows, from a tracker's points and a depth video
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Tracks are pixel x, pixel y, visible (0 or 1) of points spread over the picture, as CoTracker gives them, in pixels of the \
picture. The object is found among them: not what moves at once (a hand or gripper), and of the rest what ends farthest. The \
world of the episode has its origin in the camera, x along its view, z up.")]
pub(crate) struct Args {
    /// Folder of the set; made, or added to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Tracks, float32 or float64 [T, N, 3]
    #[arg(long, value_name = "NPY")]
    tracks: PathBuf,
    /// Depth of every frame along the optical axis in metres, float32 or float64 [T, H, W]
    #[arg(long, value_name = "NPY")]
    depth: PathBuf,
    /// First picture, H x W, PNG or JPEG
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// What is done in the video
    #[arg(long, value_name = "TEXT")]
    instruction: String,
    /// Family of the task, for tables
    #[arg(long, value_name = "ID", default_value = "video")]
    task: String,
    /// Horizontal angle of view in degrees; 55 is what the paper assumes for videos of unknown cameras
    #[arg(long, value_name = "DEG", default_value_t = 55.0)]
    fov: f64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let image = image::open(&args.image).map_err(|e| Failure::from(e).doing(args.image.display()))?.to_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    if !(args.fov > 0.0 && args.fov < 180.0) {
        return Err(Failure::usage(format!("--fov is {}; give degrees between 0 and 180", args.fov)));
    }
    let tracks = read(&args.tracks)?;
    let [frames, points, 3] = tracks.shape[..] else {
        let what = format!("`{}` has the shape {:?}", args.tracks.display(), tracks.shape);
        return Err(Failure::new(what).help("tracks are [frames, points, 3]: pixel x, pixel y, visible"));
    };
    let depth = read(&args.depth)?;
    if depth.shape != [frames, height, width] {
        let what = format!("`{}` has the shape {:?}", args.depth.display(), depth.shape);
        let help = format!("tracks and picture ask for [{frames}, {height}, {width}]");
        return Err(Failure::new(what).help(help));
    }
    let places: Vec<[f64; 2]> = tracks.numbers.as_chunks::<3>().0.iter().map(|p| [p[0], p[1]]).collect();
    let visible: Vec<bool> = tracks.numbers.as_chunks::<3>().0.iter().map(|p| p[2] > 0.5).collect();
    let depth_m: Vec<f32> = depth.numbers.iter().map(|d| *d as f32).collect();
    let f = 0.5 * width as f64 / (0.5 * args.fov.to_radians()).tan();
    let (cx, cy) = (0.5 * width as f64, 0.5 * height as f64);
    // The camera's z, x, y are the world's x, -y, -z.
    let level = UnitQuaternion::from_euler_angles(-FRAC_PI_2, 0.0, -FRAC_PI_2);
    let camera = Camera {
        intrinsics: Intrinsics { fx: f, fy: f, cx, cy, width, height },
        world_from_camera: Isometry3::from_parts(Default::default(), level),
    };
    let clip = Clip {
        instruction: &args.instruction,
        task: &args.task,
        camera,
        image: &image,
        tracks_px: &places,
        visible: &visible,
        depth_m: &depth_m,
        frames,
    };
    let made = episode(&clip, &TrackerOptions::default())?;
    let mut writer = FlowWriter::append_to(&args.out, &json!({ "tracks": true }))?;
    writer.append(Some(&made))?;
    writer.flush()?;
    let held = writer.entries().len();
    ui.line(format!("{} of {points} points are on the object", made.flow.points()));
    ui.line(format!("{} in {}", count(held, "episode"), args.out.display()));
    ui.object(&json!({ "points": made.flow.points(), "episodes": held }));
    Ok(())
}

fn read(path: &Path) -> Result<NpyArray> {
    let bytes =
        std::fs::read(path).map_err(|e| Failure::from(e).doing(format!("reading {}", path.display())))?;
    npy::parse(&bytes).map_err(|problem| Failure::new(format!("`{}` {problem}", path.display())))
}
