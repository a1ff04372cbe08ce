//! What a file or a folder tells of a video; what is missing, networks may see in its pictures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use efference_geometry::Intrinsics;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{USUAL_FOV_DEG, VideoClip, VideoError};
use crate::RgbImage;

/// Tracks of a video: number of points, places [T, N] in pixels, visibility [T, N].
pub type VideoTracks = (usize, Vec<[f64; 2]>, Vec<f32>);

/// From all pictures of a video to its depth [T, H, W] in metres.
pub type DepthOf<'a> = dyn Fn(&[RgbImage]) -> Result<Vec<f32>, String> + 'a;

/// From all pictures of a video to its tracks.
pub type TracksOf<'a> = dyn Fn(&[RgbImage]) -> Result<VideoTracks, String> + 'a;

/// Who is asked for what a file does not tell.
#[derive(Clone, Copy, Default)]
pub struct VideoNetworks<'a> {
    /// For depth.
    pub depth: Option<&'a DepthOf<'a>>,
    /// For tracks.
    pub tracks: Option<&'a TracksOf<'a>>,
}

/// The description of a folder of pictures.
const NOTES: &str = "clip.json";
/// Most pictures of a folder.
const MOST_PICTURES: usize = 4096;

/// As far as it is told.
struct Told {
    notes: HashMap<String, String>,
    /// All pictures, or the first only.
    pictures: Vec<RgbImage>,
    tracks: Option<VideoTracks>,
    /// Sizes [T, H, W] and metres.
    depth: Option<([usize; 3], Vec<f32>)>,
    object: Option<Vec<bool>>,
}

impl VideoClip {
    /// Reads a file in the format of this module, without the help of networks.
    ///
    /// # Errors
    /// [`VideoError::Read`], [`VideoError::Format`].
    pub fn read(path: &Path) -> Result<Self, VideoError> {
        Self::read_with(path, &VideoNetworks::default())
    }

    /// Reads a file in the format of this module, or a folder of pictures; what is not told there, `networks` are asked for.
    ///
    /// # Errors
    /// [`VideoError::Read`], [`VideoError::Format`]; [`VideoError::Network`] for what a network says.
    pub fn read_with(path: &Path, networks: &VideoNetworks<'_>) -> Result<Self, VideoError> {
        let told = if path.is_dir() { folder(path)? } else { file(path)? };
        told.clip(path, networks)
    }
}

fn malformed(path: &Path) -> impl Fn(String) -> VideoError {
    move |problem| VideoError::Format { path: path.to_owned(), problem }
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> VideoError {
    move |source| VideoError::Read { path: path.to_owned(), source }
}

fn file(path: &Path) -> Result<Told, VideoError> {
    let bytes = std::fs::read(path).map_err(unreadable(path))?;
    told_by(&bytes).map_err(malformed(path))
}

/// Pictures in the order of their names, and [`NOTES`].
fn folder(path: &Path) -> Result<Told, VideoError> {
    let notes_file = path.join(NOTES);
    let text = std::fs::read(&notes_file).map_err(unreadable(&notes_file))?;
    let values: HashMap<String, serde_json::Value> =
        serde_json::from_slice(&text).map_err(|e| malformed(&notes_file)(e.to_string()))?;
    let word = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let notes = values.into_iter().map(|(name, value)| (name, word(value))).collect();
    let entries = std::fs::read_dir(path).map_err(unreadable(path))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| {
        let ending = file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        ["png", "jpg", "jpeg"].contains(&ending.as_str())
    });
    files.sort();
    if files.is_empty() || files.len() > MOST_PICTURES {
        let problem = format!("{} pictures (.png, .jpg); 1 to {MOST_PICTURES} can be read", files.len());
        return Err(malformed(path)(problem));
    }
    let picture = |file: &PathBuf| {
        let read = image::ImageReader::open(file).map_err(unreadable(file))?;
        let picture = read.with_guessed_format().map_err(unreadable(file))?.decode();
        picture.map(|p| p.into_rgb8()).map_err(|e| malformed(file)(e.to_string()))
    };
    let pictures = files.iter().map(picture).collect::<Result<Vec<_>, _>>()?;
    Ok(Told { notes, pictures, tracks: None, depth: None, object: None })
}

fn told_by(bytes: &[u8]) -> Result<Told, String> {
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let notes = head.metadata().clone().unwrap_or_default();
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let floats = |name: &str| -> Result<Option<Numbers>, String> {
        let Ok(tensor) = file.tensor(name) else { return Ok(None) };
        let values = match tensor.dtype() {
            Dtype::F32 => {
                let (four, _) = tensor.data().as_chunks::<4>();
                four.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            Dtype::U8 | Dtype::BOOL => tensor.data().iter().map(|b| f32::from(*b)).collect(),
            other => return Err(format!("`{name}` has type {other:?}; F32, U8 or BOOL is needed")),
        };
        Ok(Some((tensor.shape().to_vec(), values)))
    };
    let shaped =
        |name: &str, shape: &[usize], wanted: &str| format!("`{name}` has shape {shape:?}, not {wanted}");

    let tracks = match (floats("tracks")?, floats("visibility")?) {
        (None, _) => None,
        (Some(_), None) => return Err("there are `tracks` but no `visibility`".into()),
        (Some((shape, tracks)), Some((seen, visibility))) => {
            let [frames, points, 2] = shape[..] else { return Err(shaped("tracks", &shape, "[T, N, 2]")) };
            if seen != [frames, points] {
                return Err(shaped("visibility", &seen, &format!("[{frames}, {points}]")));
            }
            let places = tracks.as_chunks::<2>().0.iter().map(|p| p.map(f64::from)).collect();
            Some((points, places, visibility))
        }
    };
    let depth = match floats("depth")? {
        None => None,
        Some((shape, values)) => {
            let [t, h, w] = shape[..] else { return Err(shaped("depth", &shape, "[T, H, W]")) };
            Some(([t, h, w], values))
        }
    };
    let pictures = match (file.tensor("video"), file.tensor("image")) {
        (Ok(video), _) => {
            let [_, height, width, 3] = *video.shape() else {
                return Err(shaped("video", video.shape(), "[T, H, W, 3]"));
            };
            pictures(&video, height, width).ok_or_else(|| shaped("video", video.shape(), "U8"))?
        }
        (Err(_), Ok(image)) => {
            let [height, width, 3] = *image.shape() else {
                return Err(shaped("image", image.shape(), "[H, W, 3]"));
            };
            pictures(&image, height, width).ok_or_else(|| shaped("image", image.shape(), "U8"))?
        }
        (Err(_), Err(e)) => return Err(format!("`image`: {e}, and there is no `video`")),
    };
    let object = floats("object")?.map(|(_, marks)| marks.into_iter().map(|m| m > 0.0).collect());
    Ok(Told { notes, pictures, tracks, depth, object })
}

/// Sizes and values of a tensor.
type Numbers = (Vec<usize>, Vec<f32>);

/// The pictures one after the other of a tensor of bytes.
fn pictures(tensor: &TensorView<'_>, height: usize, width: usize) -> Option<Vec<RgbImage>> {
    let size = (u32::try_from(width).ok()?, u32::try_from(height).ok()?);
    if tensor.dtype() != Dtype::U8 || height * width == 0 {
        return None;
    }
    let one = |bytes: &[u8]| RgbImage::from_raw(size.0, size.1, bytes.to_vec());
    tensor.data().chunks_exact(3 * height * width).map(one).collect()
}

impl Told {
    fn clip(self, path: &Path, networks: &VideoNetworks<'_>) -> Result<VideoClip, VideoError> {
        let malformed = malformed(path);
        let Some(image) = self.pictures.first().cloned() else {
            return Err(malformed("there is no picture".into()));
        };
        let (width, height) = (image.width() as usize, image.height() as usize);
        if self.pictures.iter().any(|p| p.dimensions() != image.dimensions()) {
            return Err(malformed("the pictures have different sizes".into()));
        }
        let asked =
            |what: &'static str| move |problem| VideoError::Network { path: path.to_owned(), what, problem };
        let alone = |what: &str, network: &str| {
            malformed(format!("it has no `{what}`, and no network that sees them ({network})"))
        };
        let (points, tracks, visibility) = match (self.tracks, networks.tracks) {
            (Some(tracks), _) => tracks,
            (None, Some(ask)) => ask(&self.pictures).map_err(asked("tracks"))?,
            (None, None) => return Err(alone("tracks", "--track-net")),
        };
        let frames = tracks.len().checked_div(points).unwrap_or(0);
        let (shape, depth_m) = match (self.depth, networks.depth) {
            (Some(depth), _) => depth,
            (None, Some(ask)) => {
                let depth = ask(&self.pictures).map_err(asked("depth"))?;
                ([self.pictures.len(), height, width], depth)
            }
            (None, None) => return Err(alone("depth", "--depth-net")),
        };
        if shape != [frames, height, width] || depth_m.len() != frames * height * width {
            let problem = format!(
                "`depth` is {shape:?} for {frames} frames of tracks and pictures of {width} x {height}; both, and the \
                 `image` or `video`, must agree"
            );
            return Err(malformed(problem));
        }
        if let Some(marks) = &self.object
            && marks.len() != points
        {
            return Err(malformed(format!("`object` has {} marks for {points} points", marks.len())));
        }
        let word = |name: &str| -> Result<String, VideoError> {
            let text = self.notes.get(name).map(|text| text.trim().to_lowercase());
            let text = text.filter(|text| !text.is_empty());
            text.ok_or_else(|| malformed(format!("the metadata has no `{name}`")))
        };
        Ok(VideoClip {
            instruction: word("instruction")?,
            task: word("task")?,
            intrinsics: intrinsics(&self.notes, width, height).map_err(&malformed)?,
            image,
            frames,
            tracks,
            visibility,
            depth_m,
            object: self.object,
        })
    }
}

fn intrinsics(notes: &HashMap<String, String>, width: usize, height: usize) -> Result<Intrinsics, String> {
    let names = ["fx", "fy", "cx", "cy"];
    if !names.iter().any(|name| notes.contains_key(*name)) {
        return Intrinsics::from_fovx_deg(USUAL_FOV_DEG, width, height).map_err(|e| e.to_string());
    }
    let number = |name: &str| {
        let text = notes.get(name).ok_or_else(|| format!("the metadata has no `{name}`"))?;
        text.trim().parse::<f64>().map_err(|_| format!("`{name}` is `{text}`, which is no number"))
    };
    let [fx, fy, cx, cy] = [number("fx")?, number("fy")?, number("cx")?, number("cy")?];
    if !(fx > 0.0 && fy > 0.0 && [fx, fy, cx, cy].iter().all(|x| x.is_finite())) {
        return Err("fx and fy must be above 0, and all four finite".into());
    }
    Ok(Intrinsics { fx, fy, cx, cy, width, height })
}
