//! Episodes from real videos: a tracker's tracks and a depth video in one safetensors file, or the pictures alone and
//! networks that see tracks and depth in them.
//!
//! | tensor | type, shape | meaning |
//! |---|---|---|
//! | `tracks` | F32 [T, N, 2] | pixel x, y of each point in each frame (CoTracker's `pred_tracks`) |
//! | `visibility` | F32 or U8 or BOOL [T, N] | 0 to 1 (CoTracker's `pred_visibility`) |
//! | `depth` | F32 [T, H, W] | metres along the optical axis; 0, NaN and infinity are holes |
//! | `image` | U8 [H, W, 3] | the first picture, RGB |
//! | `video` | U8 [T, H, W, 3] | all pictures: in place of `image`, and of `tracks` or `depth` where a network sees them |
//! | `object` | U8 or BOOL [N] | optional: which tracks are the object's; found by how they move without it |
//!
//! Metadata: `instruction`, `task`, and optionally `fx`, `fy`, `cx`, `cy` in pixels (a horizontal angle of view of 55 degrees
//! is assumed without them, as in 3DFlowAction: lengths are then only as right as that guess).
//!
//! Instead of a file, a folder of pictures in the order of their names, with the metadata in `clip.json`.

mod file;

use std::path::PathBuf;

use efference_geometry::tracks::{MovingObject, MovingObjectOptions, PixelTracks, moving_object};
use efference_geometry::video::{TrackedVideo, VideoFlowOptions, flow_of_video};
use efference_geometry::{Camera, CameraAxes, Frame, Intrinsics, Isometry3, UnitQuaternion, Vector3};

use super::episode::{Invalid, MAX_DEPTH_M};
use super::{FlowEpisode, FlowSource};
use crate::RgbImage;

pub use file::{DepthOf, TracksOf, VideoNetworks, VideoTracks};

/// Angle of view of a camera that nobody knows, degrees.
const USUAL_FOV_DEG: f64 = 55.0;

/// Why a video gives no episode.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not in the format of this module.
    #[error("`{}`: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A network that was asked for tracks or depth failed.
    #[error("`{}`: the network gave no {what}: {problem}", path.display())]
    Network {
        /// The video.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// What it says.
        problem: String,
    },
    /// The tracks do not show an object that is moved.
    #[error("no moving object: {why}")]
    Rejected {
        /// In words.
        why: &'static str,
    },
    /// Tracks and depth give no flow.
    #[error("no flow: {0}")]
    Geometry(#[from] efference_geometry::Error),
    /// The episode contradicts itself.
    #[error("the episode is not valid: {0}")]
    Invalid(#[from] Invalid),
}

/// How an episode is made of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoOptions {
    /// Which points belong to the object that moves; pixels of the 256x256 picture that the authors' numbers are for, scaled
    /// to the video. Sizes are ignored.
    pub object: MovingObjectOptions,
    /// Frames, and what counts as seen.
    pub flow: VideoFlowOptions,
    /// Whether the motion of the background is taken out of the object's.
    pub moving_camera: bool,
    /// Where the camera is: OpenCV axes, world z up.
    pub world_from_camera: Isometry3<f64>,
}

impl Default for VideoOptions {
    /// A camera at rest at the origin that looks level along x.
    fn default() -> Self {
        // x right, y down, z forward to x forward, y left, z up.
        let level = UnitQuaternion::from_basis_unchecked(&[-Vector3::y(), -Vector3::z(), Vector3::x()]);
        Self {
            object: MovingObjectOptions::default(),
            flow: VideoFlowOptions::default(),
            moving_camera: false,
            world_from_camera: Isometry3::from_parts(nalgebra::Translation3::identity(), level),
        }
    }
}

/// A video as a tracker and a depth network leave it.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoClip {
    /// What is done, in lower case.
    pub instruction: String,
    /// Family of the task.
    pub task: String,
    /// The first picture.
    pub image: RgbImage,
    /// Of the pictures.
    pub intrinsics: Intrinsics,
    /// Number of them.
    pub frames: usize,
    /// [frames, points], pixels.
    pub tracks: Vec<[f64; 2]>,
    /// [frames, points]: 0 to 1.
    pub visibility: Vec<f32>,
    /// [frames, height, width], metres.
    pub depth_m: Vec<f32>,
    /// Which points are the object's, if somebody knows.
    pub object: Option<Vec<bool>>,
}

impl VideoClip {
    /// Finds the object, unless the clip says what it is; lifts its tracks; puts it into the world.
    ///
    /// # Errors
    /// All but [`VideoError::Read`] and [`VideoError::Format`].
    pub fn episode(&self, options: &VideoOptions) -> Result<FlowEpisode, VideoError> {
        let k = self.intrinsics;
        let tracks = PixelTracks::new(&self.tracks, self.frames)?;
        let found = self.moving(&tracks, &options.object)?;
        let chosen = |mark: &[bool]| (0..mark.len()).filter(|&i| mark[i]).collect::<Vec<usize>>();
        let object = chosen(&found.moving);
        if object.is_empty() {
            return Err(VideoError::Rejected { why: "no track belongs to it" });
        }
        let still: Vec<bool> = found.early_static.iter().zip(&found.moving).map(|(s, m)| *s && !m).collect();
        let background = options.moving_camera.then(|| chosen(&still));
        let video =
            TrackedVideo { intrinsics: k, tracks, visibility: &self.visibility, depth_m: &self.depth_m };
        let lifted = flow_of_video(&video, &object, background.as_deref(), &options.flow)?;
        let camera = Camera::new(k, options.world_from_camera, CameraAxes::OpenCv);
        let depth = |d: &f32| if (0.0..=MAX_DEPTH_M).contains(d) { *d } else { 0.0 };
        let pixels: Vec<[f64; 2]> = lifted.points.iter().map(|&i| tracks.at(0, i)).collect();
        let episode = FlowEpisode {
            instruction: self.instruction.clone(),
            task: self.task.clone(),
            source: FlowSource::Tracker,
            seed: 0,
            image: self.image.clone(),
            depth_m: self.depth_m.iter().take(k.width * k.height).map(depth).collect(),
            mask: hull_mask(&pixels, k.width, k.height),
            flow: lifted.flow.transformed(Frame::World, &camera.world_from_camera),
            camera,
            poses: Vec::new(),
        };
        episode.validate()?;
        Ok(episode)
    }

    fn moving(&self, tracks: &PixelTracks, usual: &MovingObjectOptions) -> Result<MovingObject, VideoError> {
        let (width, height) = (self.intrinsics.width, self.intrinsics.height);
        let scale = width.max(height) as f64 / 256.0;
        let options = MovingObjectOptions {
            early_frame: usual.early_frame.min(self.frames.saturating_sub(1)),
            early_px: usual.early_px * scale,
            min_max_move_px: usual.min_max_move_px * scale,
            width,
            height,
            ..*usual
        };
        let mut found = moving_object(tracks, &options)?;
        match &self.object {
            Some(marks) if marks.len() == found.moving.len() => found.moving.clone_from(marks),
            Some(marks) => {
                let (what, got, want) = ("object", marks.len(), found.moving.len());
                return Err(efference_geometry::Error::Length { what, got, want }.into());
            }
            None if found.too_still => return Err(VideoError::Rejected { why: "nothing moves far enough" }),
            None if found.too_large => {
                return Err(VideoError::Rejected { why: "what moves fills too much of the picture" });
            }
            None => {}
        }
        Ok(found)
    }
}

/// 255 in the convex hull of the points, and in the pixels of the points: all that is known of the object's outline.
fn hull_mask(points: &[[f64; 2]], width: usize, height: usize) -> Vec<u8> {
    let mut mask = vec![0; width * height];
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    let turn =
        |a: [f64; 2], b: [f64; 2], c: [f64; 2]| (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
    // Andrew's monotone chain, one side and then the other.
    let side = |all: &mut dyn Iterator<Item = [f64; 2]>| {
        let mut chain: Vec<[f64; 2]> = Vec::new();
        for p in all {
            while let [.., a, b] = chain[..] {
                if turn(a, b, p) > 0.0 {
                    break;
                }
                chain.pop();
            }
            chain.push(p);
        }
        chain.pop();
        chain
    };
    let mut hull = side(&mut sorted.iter().copied());
    hull.extend(side(&mut sorted.iter().rev().copied()));
    for row in 0..height {
        for column in 0..width {
            let p = [column as f64 + 0.5, row as f64 + 0.5];
            let inside = hull.len() > 2
                && (0..hull.len()).all(|i| turn(hull[i], hull[(i + 1) % hull.len()], p) >= 0.0);
            mask[row * width + column] = if inside { 255 } else { 0 };
        }
    }
    for [u, v] in points {
        if *u >= 0.0 && *v >= 0.0 && *u < width as f64 && *v < height as f64 {
            mask[*v as usize * width + *u as usize] = 255;
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use efference_geometry::Point3;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::flow::check;

    const SIDE: usize = 96;
    const FRAMES: usize = 12;
    const POINTS: usize = 36;

    /// A flat object of 16 points that is lifted, before a wall of 20.
    fn clip() -> VideoClip {
        let intrinsics = Intrinsics::from_fovx_deg(USUAL_FOV_DEG, SIDE, SIDE).unwrap();
        let mut depth_m = vec![f32::NAN; FRAMES * SIDE * SIDE];
        let mut tracks = Vec::new();
        for t in 0..FRAMES {
            // At rest at first: what moves at once is taken for the gripper.
            let lift = 0.03 * (t as f64 - 5.0).max(0.0);
            for i in 0..POINTS {
                let p = if i < 16 {
                    Point3::new(-0.1 + 0.04 * (i % 4) as f64, 0.05 + 0.04 * (i / 4) as f64 - lift, 0.8)
                } else {
                    let k = i - 16;
                    Point3::new(-0.6 + 0.3 * (k % 5) as f64, -0.6 + 0.4 * (k / 5) as f64, 1.6)
                };
                let [u, v, d] = intrinsics.project(&p).unwrap();
                let pixel = &mut depth_m[(t * SIDE + v as usize) * SIDE + u as usize];
                *pixel = if pixel.is_nan() { d as f32 } else { *pixel };
                tracks.push([u, v]);
            }
        }
        VideoClip {
            instruction: "lift the card".into(),
            task: "lift".into(),
            image: RgbImage::new(SIDE as u32, SIDE as u32),
            intrinsics,
            frames: FRAMES,
            tracks,
            visibility: vec![1.0; FRAMES * POINTS],
            depth_m,
            object: None,
        }
    }

    fn bytes(clip: &VideoClip, spoil: &str) -> Vec<u8> {
        let f32s = |x: &mut dyn Iterator<Item = f32>| x.flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let tracks = f32s(&mut clip.tracks.iter().flatten().map(|x| *x as f32));
        let visibility = f32s(&mut clip.visibility.iter().copied());
        let depth = f32s(&mut clip.depth_m.iter().copied());
        let image = clip.image.as_raw();
        let wide = if spoil == "image" { SIDE + 1 } else { SIDE };
        let image = [image.as_slice(), &vec![0; 3 * SIDE * (wide - SIDE)]].concat();
        let all = [
            ("tracks", Dtype::F32, vec![FRAMES, POINTS, 2], &tracks),
            ("visibility", Dtype::F32, vec![FRAMES, POINTS], &visibility),
            ("depth", Dtype::F32, vec![FRAMES, SIDE, SIDE], &depth),
            ("image", Dtype::U8, vec![SIDE, wide, 3], &image),
        ];
        let views = all
            .iter()
            .filter(|t| t.0 != spoil || spoil == "image")
            .map(|(name, kind, shape, data)| (*name, TensorView::new(*kind, shape.clone(), data).unwrap()));
        let mut notes = HashMap::from([("task".to_owned(), "lift".to_owned())]);
        if spoil != "instruction" {
            notes.insert("instruction".into(), "Lift the card ".into());
        }
        if spoil == "fx" {
            notes.insert("fx".into(), "wide".into());
        }
        safetensors::serialize(views, Some(notes)).unwrap()
    }

    #[test]
    fn a_file_of_tracks_and_depth_becomes_an_episode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clip.safetensors");
        std::fs::write(&path, bytes(&clip(), "")).unwrap();
        let read = VideoClip::read(&path).unwrap();
        assert_eq!((read.instruction.as_str(), read.frames), ("lift the card", FRAMES));
        let episode = read.episode(&VideoOptions::default()).unwrap();
        assert_eq!((episode.flow.points(), episode.flow.frames()), (16, 9));
        let (first, last) = (episode.flow.at(0), episode.flow.at(8));
        for (a, b) in first.iter().zip(last) {
            // Up by 18 cm in a world whose z is up; 80 cm before the camera.
            assert!(
                (b - a - Vector3::new(0.0, 0.0, 0.18)).norm() < 1e-5 && (a.x - 0.8).abs() < 1e-6,
                "{a} {b}"
            );
        }
        assert_eq!(check(&episode).problems(FlowSource::Tracker), []);
        assert!(episode.mask.iter().filter(|m| **m == 255).count() > 100);
        let steady = VideoOptions { moving_camera: true, ..VideoOptions::default() };
        let same = read.episode(&steady).unwrap();
        assert!((same.flow.at(8)[0] - last[0]).norm() < 1e-5);
        let mut told = read.clone();
        told.object = Some((0..POINTS).map(|i| i < 4).collect());
        assert_eq!(told.episode(&VideoOptions::default()).unwrap().flow.points(), 4);
    }

    #[test]
    fn networks_see_what_is_not_told_in_a_file_or_in_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clip.safetensors");
        let (whole, frames) = (clip(), FRAMES);
        let depth = |pictures: &[RgbImage]| {
            assert_eq!(pictures.len(), frames);
            Ok(whole.depth_m.clone())
        };
        let tracks = |_: &[RgbImage]| Ok((POINTS, whole.tracks.clone(), whole.visibility.clone()));
        let both = VideoNetworks { depth: Some(&depth), tracks: Some(&tracks) };

        let folder = dir.path().join("frames");
        std::fs::create_dir(&folder).unwrap();
        let notes = r#"{"instruction": "Lift the card", "task": "lift"}"#;
        std::fs::write(folder.join("clip.json"), notes).unwrap();
        for t in 0..FRAMES {
            RgbImage::new(SIDE as u32, SIDE as u32).save(folder.join(format!("{t:03}.png"))).unwrap();
        }
        let same = |read: &VideoClip| {
            assert_eq!((&read.instruction, &read.tracks), (&whole.instruction, &whole.tracks));
            assert_eq!(read.depth_m.len(), whole.depth_m.len());
        };
        same(&VideoClip::read_with(&folder, &both).unwrap());
        // A file without depth and with one picture: the network is asked about one, and one map is not enough.
        std::fs::write(&path, bytes(&clip(), "depth")).unwrap();
        let one = |pictures: &[RgbImage]| Ok(vec![1.0; pictures.len() * SIDE * SIDE]);
        let error = VideoClip::read_with(&path, &VideoNetworks { depth: Some(&one), ..both }).unwrap_err();
        assert!(error.to_string().contains("must agree"), "{error}");
        std::fs::write(&path, bytes(&clip(), "tracks")).unwrap();
        same(&VideoClip::read_with(&path, &both).unwrap());
        let failing = |_: &[RgbImage]| Err("no memory".to_owned());
        let networks = VideoNetworks { tracks: Some(&failing), ..both };
        let error = VideoClip::read_with(&folder, &networks).unwrap_err();
        assert!(matches!(error, VideoError::Network { what: "tracks", .. }), "{error}");
        std::fs::write(folder.join("000.png"), b"no picture").unwrap();
        assert!(matches!(VideoClip::read_with(&folder, &both), Err(VideoError::Format { .. })));
    }

    #[test]
    fn what_is_no_clip_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clip.safetensors");
        let parse = |spoil: &str| {
            std::fs::write(&path, bytes(&clip(), spoil)).unwrap();
            VideoClip::read(&path).unwrap_err().to_string()
        };
        for (spoil, word) in [
            ("tracks", "`tracks`"),
            ("depth", "`depth`"),
            ("image", "`image`"),
            ("instruction", "`instruction`"),
            ("fx", "`wide`"),
        ] {
            assert!(parse(spoil).contains(word), "{spoil}: {}", parse(spoil));
        }
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(VideoClip::read(&path), Err(VideoError::Format { .. })));
        assert!(matches!(VideoClip::read("none".as_ref()), Err(VideoError::Read { .. })));
        let refused = |spoil: &dyn Fn(&mut VideoClip)| {
            let mut clip = clip();
            spoil(&mut clip);
            clip.episode(&VideoOptions::default()).unwrap_err()
        };
        let still = refused(&|clip| {
            let first = clip.tracks[..POINTS].to_vec();
            clip.tracks = first.repeat(FRAMES);
        });
        assert!(matches!(still, VideoError::Rejected { .. }), "{still}");
        let blind = refused(&|clip| clip.depth_m.fill(f32::INFINITY));
        assert!(matches!(blind, VideoError::Geometry(_)), "{blind}");
        let short = refused(&|clip| clip.visibility.truncate(3));
        assert!(matches!(short, VideoError::Geometry(_)), "{short}");
        let nobody = refused(&|clip| clip.object = Some(vec![false; POINTS]));
        assert!(matches!(nobody, VideoError::Rejected { .. }), "{nobody}");
    }
}
