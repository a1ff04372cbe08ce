//! One episode to and from the bytes of one safetensors file. The layout is in [`crate::store`].

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngDecoder, PngEncoder};
use image::{ColorType, ExtendedColorType, ImageDecoder, ImageEncoder, Limits, RgbImage};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::episode::{ACTION_DIM, Episode, EpisodeMeta, PROPRIO_DIM, States, is_camera_name};
use crate::error::{Error, Result};
use crate::store::FORMAT_VERSION;

/// Key of our JSON text in the safetensors header.
const HEADER_KEY: &str = "efference.episode";
/// Pictures larger than this on a side are refused before memory is taken for them.
const MAX_SIDE_PX: u32 = 8192;

#[derive(Serialize, Deserialize)]
struct Header {
    format_version: u64,
    meta: EpisodeMeta,
    /// (width, height) in pixels of each camera.
    cameras: BTreeMap<String, (u32, u32)>,
}

/// The bytes of the file that holds `episode`; equal episodes give equal bytes.
///
/// # Errors
/// [`Error::Invalid`] if the episode contradicts itself.
pub fn encode(episode: &Episode) -> Result<Vec<u8>> {
    let what = || format!("episode of task `{}`", episode.meta.task);
    episode.validate().map_err(|problem| Error::Invalid { what: what(), problem })?;
    let (steps, frames) = (episode.steps(), episode.frames());

    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = vec![
        ("proprio".into(), Dtype::F32, vec![steps, PROPRIO_DIM], le_bytes(episode.proprio.as_flattened())),
        ("actions".into(), Dtype::F32, vec![steps, ACTION_DIM], le_bytes(episode.actions.as_flattened())),
        ("rewards".into(), Dtype::F32, vec![steps], le_bytes(&episode.rewards)),
        ("frame_steps".into(), Dtype::U32, vec![frames], le_bytes(&episode.frame_steps)),
    ];
    if let Some(states) = &episode.states {
        tensors.push(("states".into(), Dtype::F64, vec![steps, states.width], le_bytes(&states.values)));
    }
    let mut sizes = BTreeMap::new();
    for (camera, pictures) in &episode.cameras {
        sizes.insert(camera.clone(), pictures.first().map_or((0, 0), RgbImage::dimensions));
        let pngs: Vec<Vec<u8>> = pictures.par_iter().map(png_encode).collect::<Result<_>>()?;
        let mut offsets = vec![0_i64];
        offsets.extend(pngs.iter().scan(0, |end, png| {
            *end += png.len() as i64;
            Some(*end)
        }));
        let blob = pngs.concat();
        tensors.push((format!("camera.{camera}.png"), Dtype::U8, vec![blob.len()], blob));
        tensors.push((format!("camera.{camera}.offsets"), Dtype::I64, vec![frames + 1], le_bytes(&offsets)));
    }

    let header = Header { format_version: FORMAT_VERSION, meta: episode.meta.clone(), cameras: sizes };
    let broken = |problem: String| Error::Header { path: what().into(), problem };
    let header = serde_json::to_string(&header).map_err(|e| broken(e.to_string()))?;
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| broken(e.to_string()))?;
    let header = HashMap::from([(HEADER_KEY.to_string(), header)]);
    safetensors::serialize(views, Some(header)).map_err(|e| broken(e.to_string()))
}

/// The episode in `bytes`; `path` is named in errors.
///
/// # Errors
/// [`Error::Header`], [`Error::Version`], [`Error::NoField`], [`Error::Field`], [`Error::Offset`],
/// [`Error::Picture`], [`Error::Invalid`]: whatever the bytes are, never a panic.
pub fn decode(bytes: &[u8], path: &Path) -> Result<Episode> {
    let file = File::<Header>::open(bytes, path, HEADER_KEY, FORMAT_VERSION)?;
    if let Some(name) = file.header.cameras.keys().find(|name| !is_camera_name(name)) {
        let problem = format!("`{name}` is not a camera name");
        return Err(Error::Header { path: path.into(), problem });
    }
    let (steps, actions) = file.rows::<ACTION_DIM>("actions", None)?;
    let (_, proprio) = file.rows::<PROPRIO_DIM>("proprio", Some(steps))?;
    let rewards = file.values("rewards", Dtype::F32, &[Some(steps)])?.1;
    let frame_steps: Vec<u32> = file.values("frame_steps", Dtype::U32, &[None])?.1;
    let states = match file.tensors.tensor("states") {
        Err(_) => None,
        Ok(_) => {
            let (shape, values) = file.values("states", Dtype::F64, &[Some(steps), None])?;
            Some(States { width: shape[1], values })
        }
    };
    let mut cameras = BTreeMap::new();
    for (camera, &size) in &file.header.cameras {
        cameras.insert(camera.clone(), file.pictures(camera, size, frame_steps.len())?);
    }
    let episode = Episode { meta: file.header.meta, cameras, frame_steps, proprio, actions, rewards, states };
    episode
        .validate()
        .map_err(|problem| Error::Invalid { what: format!("`{}`", path.display()), problem })?;
    Ok(episode)
}

/// A parsed file: the header is checked, the tensors are still bytes.
pub(crate) struct File<'a, H> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    pub(crate) header: H,
}

impl<'a, H: DeserializeOwned> File<'a, H> {
    /// `key`: of our JSON text in the safetensors header; `version`: the one that its `format_version` must be.
    pub(crate) fn open(bytes: &'a [u8], path: &'a Path, key: &str, version: u64) -> Result<Self> {
        let broken = |problem: String| Error::Header { path: path.into(), problem };
        let (_, layout) = SafeTensors::read_metadata(bytes).map_err(|e| broken(e.to_string()))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| broken(e.to_string()))?;
        let text = layout.metadata().as_ref().and_then(|m| m.get(key));
        let text = text.ok_or_else(|| broken(format!("its header has no `{key}`")))?;
        // The version first: another version's header may have other fields.
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|e| broken(format!("`{key}`: {e}")))?;
        let got = json.get("format_version").and_then(serde_json::Value::as_u64);
        let got = got.ok_or_else(|| broken(format!("`{key}` has no `format_version`")))?;
        if got != version {
            return Err(Error::Version { path: path.into(), got, expected: version });
        }
        let header = serde_json::from_value(json).map_err(|e| broken(format!("`{key}`: {e}")))?;
        Ok(Self { path, tensors, header })
    }

    /// A tensor of the given type whose shape fits `pattern` (`None`: any length).
    pub(crate) fn tensor(
        &self,
        field: &str,
        dtype: Dtype,
        pattern: &[Option<usize>],
    ) -> Result<TensorView<'a>> {
        let missing = |_| Error::NoField { path: self.path.into(), field: field.into() };
        let tensor = self.tensors.tensor(field).map_err(missing)?;
        let shape = tensor.shape();
        let fits =
            shape.len() == pattern.len() && pattern.iter().zip(shape).all(|(p, s)| p.is_none_or(|p| p == *s));
        if tensor.dtype() == dtype && fits {
            return Ok(tensor);
        }
        let wanted: Vec<_> = pattern.iter().map(|p| p.map_or("any".to_string(), |n| n.to_string())).collect();
        Err(Error::Field {
            path: self.path.into(),
            field: field.into(),
            got: format!("{:?} {shape:?}", tensor.dtype()),
            expected: format!("{dtype:?} [{}]", wanted.join(", ")),
        })
    }

    /// Shape and numbers of a tensor.
    pub(crate) fn values<N: Number>(
        &self,
        field: &str,
        dtype: Dtype,
        pattern: &[Option<usize>],
    ) -> Result<(Vec<usize>, Vec<N>)> {
        let tensor = self.tensor(field, dtype, pattern)?;
        let values = tensor.data().chunks_exact(size_of::<N>()).map(N::from_le).collect();
        Ok((tensor.shape().to_vec(), values))
    }

    /// An f32 tensor \[T, W\] as rows.
    fn rows<const W: usize>(&self, field: &str, steps: Option<usize>) -> Result<(usize, Vec<[f32; W]>)> {
        let (shape, values) = self.values::<f32>(field, Dtype::F32, &[steps, Some(W)])?;
        Ok((shape[0], values.as_chunks::<W>().0.to_vec()))
    }

    fn pictures(&self, camera: &str, size: (u32, u32), frames: usize) -> Result<Vec<RgbImage>> {
        let blob = self.tensor(&format!("camera.{camera}.png"), Dtype::U8, &[None])?.data();
        let field = format!("camera.{camera}.offsets");
        let offsets: Vec<i64> = self.values(&field, Dtype::I64, &[Some(frames + 1)])?.1;
        let mut ends = Vec::with_capacity(offsets.len());
        for (entry, &got) in offsets.iter().enumerate() {
            let end = usize::try_from(got).ok().filter(|&end| {
                let in_order = ends.last().map_or(end == 0, |&previous| previous <= end);
                in_order && end <= blob.len() && (entry < frames || end == blob.len())
            });
            let Some(end) = end else {
                return Err(Error::Offset { path: self.path.into(), field, entry, got, bytes: blob.len() });
            };
            ends.push(end);
        }
        let decode = |(frame, piece): (usize, &[usize])| {
            png_decode(&blob[piece[0]..piece[1]], size).map_err(|problem| Error::Picture {
                path: self.path.into(),
                camera: camera.into(),
                frame,
                problem,
            })
        };
        // All of them first: which error is reported must not depend on the threads.
        let decoded: Vec<Result<RgbImage>> = ends.par_windows(2).enumerate().map(decode).collect();
        decoded.into_iter().collect()
    }
}

/// A number stored in little-endian order.
pub(crate) trait Number: Copy {
    fn from_le(bytes: &[u8]) -> Self;
    fn extend_le(self, out: &mut Vec<u8>);
}

macro_rules! number {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn from_le(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$t>()];
                array.copy_from_slice(bytes);
                <$t>::from_le_bytes(array)
            }
            fn extend_le(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
number!(f32, f64, u32, i64);

pub(crate) fn le_bytes<N: Number>(values: &[N]) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_of_val(values));
    values.iter().for_each(|v| v.extend_le(&mut out));
    out
}

fn png_encode(image: &RgbImage) -> Result<Vec<u8>> {
    png_encode_raw(image, image.dimensions(), ExtendedColorType::Rgb8)
}

/// `pixels` as the image crate wants them: rows from the top, 16-bit numbers in the machine's order.
pub(crate) fn png_encode_raw(pixels: &[u8], size: (u32, u32), colour: ExtendedColorType) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, size.0, size.1, colour)
        .map_err(|e| Error::Header { path: "a PNG picture".into(), problem: e.to_string() })?;
    Ok(out)
}

fn png_decode(bytes: &[u8], size: (u32, u32)) -> Result<RgbImage, String> {
    let pixels = png_decode_raw(bytes, size, ColorType::Rgb8)?;
    RgbImage::from_raw(size.0, size.1, pixels).ok_or_else(|| "pixels missing".to_string())
}

/// Decodes after looking at type and size, so that a wrong header cannot claim memory.
pub(crate) fn png_decode_raw(bytes: &[u8], size: (u32, u32), colour: ColorType) -> Result<Vec<u8>, String> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE_PX);
    limits.max_image_height = Some(MAX_SIDE_PX);
    let decoder =
        PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(|e| format!("not a PNG: {e}"))?;
    let (got, found) = (decoder.dimensions(), decoder.color_type());
    if got != size {
        return Err(format!("{}x{} px, the camera has {}x{} px", got.0, got.1, size.0, size.1));
    }
    if found != colour {
        return Err(format!("{found:?} pixels, expected {colour:?}"));
    }
    let mut pixels = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut pixels).map_err(|e| format!("broken PNG: {e}"))?;
    Ok(pixels)
}
