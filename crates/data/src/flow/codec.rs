//! One flow episode to and from bytes. The layout is in [`super::store`].

use std::collections::HashMap;
use std::path::Path;

use efference_geometry::{Camera, Flow3d, Frame, Isometry3, Point3};
use image::{ColorType, ExtendedColorType, RgbImage};
use nalgebra::{Quaternion, Translation3, UnitQuaternion};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::store::FORMAT_VERSION;
use super::{FlowEpisode, FlowSource};
use crate::codec::{File, le_bytes, png_decode_raw, png_encode_raw};
use crate::error::{Error, Result};

/// Depth pictures are stored in this unit, metres.
pub const DEPTH_UNIT_M: f32 = 0.0005;
/// Key of our JSON text in the safetensors header.
const HEADER_KEY: &str = "efference.flow";
/// Pictures larger than this on a side are refused before memory is taken for them.
const MAX_SIDE_PX: usize = 8192;

#[derive(Serialize, Deserialize)]
struct Header {
    format_version: u64,
    instruction: String,
    task: String,
    source: FlowSource,
    seed: u64,
    camera: Camera,
}

/// The bytes that hold `episode`; equal episodes give equal bytes. Depth is rounded to [`DEPTH_UNIT_M`], positions to
/// f32, visibility to 1/255.
///
/// # Errors
/// [`Error::InvalidFlow`] if the episode contradicts itself.
pub fn encode(episode: &FlowEpisode) -> Result<Vec<u8>> {
    let what = || format!("flow of task `{}`", episode.task);
    episode.validate().map_err(|problem| Error::InvalidFlow { what: what(), problem })?;
    let (frames, points) = (episode.flow.frames(), episode.flow.points());
    let size = episode.image.dimensions();
    let depth: Vec<u8> = episode
        .depth_m
        .iter()
        .flat_map(|d| ((d / DEPTH_UNIT_M).round().min(65535.0) as u16).to_ne_bytes())
        .collect();
    let positions: Vec<f32> = (0..frames)
        .flat_map(|t| episode.flow.at(t))
        .flat_map(|p| [p.x as f32, p.y as f32, p.z as f32])
        .collect();
    let visibility: Vec<u8> =
        (0..frames).flat_map(|t| episode.flow.visibility_at(t)).map(|v| (255.0 * v).round() as u8).collect();
    let poses: Vec<f64> = episode
        .poses
        .iter()
        .flat_map(|p| {
            let (t, q) = (p.translation, p.rotation);
            [t.x, t.y, t.z, q.w, q.i, q.j, q.k]
        })
        .collect();
    let png = |pixels: &[u8], colour| png_encode_raw(pixels, size, colour);
    let image = png(&episode.image, ExtendedColorType::Rgb8)?;
    let depth = png(&depth, ExtendedColorType::L16)?;
    let mask = png(&episode.mask, ExtendedColorType::L8)?;
    let tensors = [
        ("image.png", Dtype::U8, vec![image.len()], image),
        ("depth.png", Dtype::U8, vec![depth.len()], depth),
        ("mask.png", Dtype::U8, vec![mask.len()], mask),
        ("positions", Dtype::F32, vec![frames, points, 3], le_bytes(&positions)),
        ("visibility", Dtype::U8, vec![frames, points], visibility),
        ("poses", Dtype::F64, vec![episode.poses.len(), 7], le_bytes(&poses)),
    ];
    let header = Header {
        format_version: FORMAT_VERSION,
        instruction: episode.instruction.clone(),
        task: episode.task.clone(),
        source: episode.source,
        seed: episode.seed,
        camera: episode.camera.clone(),
    };
    let broken = |problem: String| Error::Header { path: what().into(), problem };
    let header = serde_json::to_string(&header).map_err(|e| broken(e.to_string()))?;
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()
        .map_err(|e| broken(e.to_string()))?;
    let header = HashMap::from([(HEADER_KEY.to_string(), header)]);
    safetensors::serialize(views, Some(header)).map_err(|e| broken(e.to_string()))
}

/// The episode in `bytes`; `path` is named in errors.
///
/// # Errors
/// [`Error::Header`], [`Error::Version`], [`Error::NoField`], [`Error::Field`], [`Error::Picture`],
/// [`Error::InvalidFlow`]: whatever the bytes are, never a panic.
pub fn decode(bytes: &[u8], path: &Path) -> Result<FlowEpisode> {
    let file = File::<Header>::open(bytes, path, HEADER_KEY, FORMAT_VERSION)?;
    let broken = |problem: String| Error::Header { path: path.into(), problem };
    let (width, height) = (file.header.camera.intrinsics.width, file.header.camera.intrinsics.height);
    if !(1..=MAX_SIDE_PX).contains(&width) || !(1..=MAX_SIDE_PX).contains(&height) {
        return Err(broken(format!("its camera has pictures of {width}x{height} px")));
    }
    let size = (width as u32, height as u32);
    let picture = |field: &str, colour| {
        let png = file.tensor(field, Dtype::U8, &[None])?.data();
        png_decode_raw(png, size, colour).map_err(|problem| Error::Picture {
            path: path.into(),
            camera: field.into(),
            frame: 0,
            problem,
        })
    };
    let image = RgbImage::from_raw(size.0, size.1, picture("image.png", ColorType::Rgb8)?);
    let image = image.ok_or_else(|| broken("its image lacks pixels".into()))?;
    let depth_m = picture("depth.png", ColorType::L16)?
        .as_chunks::<2>()
        .0
        .iter()
        .map(|d| f32::from(u16::from_ne_bytes(*d)) * DEPTH_UNIT_M)
        .collect();
    let mask = picture("mask.png", ColorType::L8)?;
    let (shape, positions) = file.values::<f32>("positions", Dtype::F32, &[None, None, Some(3)])?;
    let (frames, points) = (shape[0], shape[1]);
    let visibility = file.tensor("visibility", Dtype::U8, &[Some(frames), Some(points)])?;
    let visibility = visibility.data().iter().map(|v| f32::from(*v) / 255.0).collect();
    let positions = positions
        .as_chunks::<3>()
        .0
        .iter()
        .map(|[x, y, z]| Point3::new(f64::from(*x), f64::from(*y), f64::from(*z)))
        .collect();
    let flow = Flow3d::new(Frame::World, points, positions, visibility).map_err(|e| broken(e.to_string()))?;
    let poses = file.values::<f64>("poses", Dtype::F64, &[None, Some(7)])?.1;
    let poses = poses
        .as_chunks::<7>()
        .0
        .iter()
        .map(|[x, y, z, w, i, j, k]| {
            // As stored, bit for bit, if it is a rotation; else it would be one that nobody meant.
            let q = Quaternion::new(*w, *i, *j, *k);
            let unit = (q.norm() - 1.0).abs() < 1e-6;
            let turn = UnitQuaternion::new_unchecked(q);
            unit.then(|| Isometry3::from_parts(Translation3::new(*x, *y, *z), turn))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| broken("`poses` holds a quaternion that is not of length 1".into()))?;
    let q = file.header.camera.world_from_camera.rotation.quaternion();
    if (q.norm() - 1.0).abs() > 1e-6 || !q.norm().is_finite() {
        return Err(broken("its camera's quaternion is not of length 1".into()));
    }
    let Header { instruction, task, source, seed, camera, .. } = file.header;
    let episode = FlowEpisode { instruction, task, source, seed, camera, image, depth_m, mask, flow, poses };
    episode
        .validate()
        .map_err(|problem| Error::InvalidFlow { what: format!("`{}`", path.display()), problem })?;
    Ok(episode)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::episode::tests::episode;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_stored_comes_back() {
        let first = episode(11, 4);
        let bytes = encode(&first).unwrap();
        let once = decode(&bytes, Path::new("x")).unwrap();
        assert_eq!(
            (&once.instruction, &once.image, &once.mask),
            (&first.instruction, &first.image, &first.mask)
        );
        assert_eq!(once.poses, first.poses);
        for t in 0..4 {
            assert_eq!(once.flow.visibility_at(t), first.flow.visibility_at(t));
            for (a, b) in once.flow.at(t).iter().zip(first.flow.at(t)) {
                assert!((a - b).norm() < 1e-7);
            }
        }
        // Rounded once, it stays.
        assert_eq!(encode(&once).unwrap(), bytes);
        let blind = FlowEpisode { poses: vec![], ..episode(2, 2) };
        assert!(decode(&encode(&blind).unwrap(), Path::new("x")).unwrap().poses.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_bytes_are_an_error_or_an_episode_never_a_panic(
            place in 0.0..1.0f64, value: u8, cut in 0.0..1.0f64,
        ) {
            let mut bytes = encode(&episode(3, 3)).unwrap();
            let end = bytes.len() - 1;
            bytes[(place * end as f64) as usize] = value;
            if let Ok(episode) = decode(&bytes, Path::new("x")) {
                prop_assert!(episode.validate().is_ok());
            }
            prop_assert!(decode(&bytes[..(cut * end as f64) as usize], Path::new("x")).is_err());
        }
    }
}
