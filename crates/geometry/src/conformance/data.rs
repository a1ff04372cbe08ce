//! The paper's data pipeline and its code of a flow.

use super::{Case, Outcome, Run, indices, marks, outputs, text};
use crate::spline::BSpline;
use crate::tracks::{MovingObjectOptions, PixelTracks, movement_interval, moving_object, moving_points};
use crate::{UvdCodec, farthest_points, uniform_frames};

/// Half the side of the authors' horizontal bounds, metres: part of what they store with every sample, and never used on
/// the horizontal channels, which hold pixels.
const HORIZONTAL_BOUND_M: f64 = 0.8;

pub(super) fn function(name: &str) -> Option<Run> {
    Some(match name {
        "encode_flow" => encode,
        "decode_flow" => decode,
        "uniform_frame_indices" => frames,
        "calculate_movement" => movement,
        "filter_moving_points" => filter,
        "moving_object_detect" => detect,
        "farthest_point_sampling" => farthest,
        "bspline_fit" => spline,
        _ => return None,
    })
}

fn codec(case: &Case) -> Result<UvdCodec, String> {
    let codec = UvdCodec {
        depth_min_m: case.param("depth_min")?,
        depth_max_m: case.param("depth_max")?,
        clip: case.params.get("clip").is_none_or(|clip| clip.as_bool() != Some(false)),
    };
    codec.checked().map_err(text)
}

fn encode(case: &Case) -> Outcome {
    let codec = codec(case)?;
    let grid: usize = case.param("grid_size")?;
    let ([t, c, h, w], space) = case.tensor::<4>("points_3d")?;
    let ([_, c2, gh, gw], uv) = case.tensor::<4>("uv_vis_01")?;
    if c != 3
        || c2 != 3
        || (gh, gw) != (grid, grid)
        || h < grid
        || w < grid
        || uv.len() != t * 3 * grid * grid
    {
        return Err("points_3d and uv_vis_01 have no shapes that fit".into());
    }
    let (down, right) = (h / grid, w / grid);
    let mut flow = vec![0.0; uv.len()];
    let mut latent = vec![1.0; t * 4 * grid * grid];
    let place =
        |frame: usize, channel: usize, i: usize, j: usize| ((frame * 3 + channel) * grid + i) * grid + j;
    for frame in 0..t {
        for i in 0..grid {
            for j in 0..grid {
                let z = space[((frame * 3 + 2) * h + i * down) * w + j * right];
                let code = codec.encode(uv[place(frame, 0, i, j)], uv[place(frame, 1, i, j)], z);
                for (channel, x) in code.into_iter().enumerate() {
                    flow[place(frame, channel, i, j)] = x;
                    latent[((channel * t + frame) * grid + i) * grid + j] = x;
                }
            }
        }
    }
    let levels: usize = case.param("pos3d_grid")?;
    let first = case.points("first_points_3d")?;
    let pixels = case.rows::<2>("first_points_px224")?;
    let points = first.iter().zip(&pixels).flat_map(|(p, [u, v])| [*u, *v, codec.depth_level(p.z, levels)]);
    let side = 2.0 * HORIZONTAL_BOUND_M;
    Ok(outputs([
        ("flow_minus1_1", flow),
        ("first_frame_point", points.collect()),
        ("norm_scale", vec![side, side, codec.depth_max_m - codec.depth_min_m]),
        ("norm_offset", vec![-HORIZONTAL_BOUND_M, -HORIZONTAL_BOUND_M, codec.depth_min_m]),
        ("latent_4ch_bcfhw", latent),
    ]))
}

fn decode(case: &Case) -> Outcome {
    let codec = codec(case)?;
    let size: f64 = case.param("image_size")?;
    let ([batch, channels, t, h, w], latent) = case.tensor::<5>("latent_bcfhw")?;
    if channels < 3 {
        return Err("inputs.latent_bcfhw has fewer than 3 channels".into());
    }
    let mut video = vec![0.0; batch * t * 3 * h * w];
    let mut decoded = Vec::with_capacity(video.len());
    for b in 0..batch {
        for frame in 0..t {
            for pixel in 0..h * w {
                let at = |c: usize| latent[((b * channels + c) * t + frame) * h * w + pixel];
                let [u, v, z] = codec.decode([at(0), at(1), at(2)]);
                let z01 = (z - codec.depth_min_m) / (codec.depth_max_m - codec.depth_min_m);
                for (c, x) in [u, v, z01].into_iter().enumerate() {
                    video[((b * t + frame) * 3 + c) * h * w + pixel] = x;
                }
                decoded.extend([u * size, v * size, z]);
            }
        }
    }
    Ok(outputs([("video_01", video), ("uv_px_depth_m", decoded)]))
}

fn frames(case: &Case) -> Outcome {
    let mut all = Vec::new();
    for [len, n] in case.rows::<2>("len_and_n")? {
        all.extend(uniform_frames(len as usize, n as usize).map_err(text)?);
    }
    Ok(outputs([("indices", indices(&all))]))
}

/// Frames, numbers per point, and the pixels of an input [frames, points, 2 or more].
fn tracks(case: &Case) -> Result<(usize, usize, Vec<[f64; 2]>), String> {
    let ([frames, _, channels], numbers) = case.tensor::<3>("tracks")?;
    if channels < 2 {
        return Err("inputs.tracks has fewer than 2 numbers per point".into());
    }
    Ok((frames, channels, numbers.chunks_exact(channels).map(|p| [p[0], p[1]]).collect()))
}

fn movement(case: &Case) -> Outcome {
    let (frames, _, positions) = tracks(case)?;
    let tracks = PixelTracks::new(&positions, frames).map_err(text)?;
    let interval: usize = case.param("interval")?;
    let interval_of = |threshold: f64| match movement_interval(&tracks, threshold, interval) {
        Some((start, end)) => [start as f64, end as f64],
        None => [0.0, -1.0],
    };
    let all = case.param_numbers("thresholds")?.into_iter().flat_map(interval_of);
    Ok(outputs([("start_end", all.collect())]))
}

fn filter(case: &Case) -> Outcome {
    let (frames, channels, positions) = tracks(case)?;
    let numbers = case.numbers("tracks")?;
    let tracks = PixelTracks::new(&positions, frames).map_err(text)?;
    let (kept, n) = (moving_points(&tracks), tracks.points());
    let mut out = Vec::new();
    for t in 0..frames {
        for &i in &kept {
            out.extend_from_slice(&numbers[(t * n + i) * channels..][..channels]);
        }
    }
    Ok(outputs([("kept", out)]))
}

fn detect(case: &Case) -> Outcome {
    let (frames, _, positions) = tracks(case)?;
    let tracks = PixelTracks::new(&positions, frames).map_err(text)?;
    let options = MovingObjectOptions {
        early_frame: case.param("early_frame")?,
        early_px: case.param("early_px")?,
        min_max_move_px: case.param("min_max_move_px")?,
        move_fraction: case.param("move_fraction")?,
        max_area_fraction: case.param("max_area_fraction")?,
        width: case.param("W")?,
        height: case.param("H")?,
    };
    let found = moving_object(&tracks, &options).map_err(text)?;
    let among = found.moving.iter().zip(&found.early_static).filter(|(_, still)| **still).map(|(m, _)| *m);
    Ok(outputs([
        ("moving_mask_among_static", marks(among)),
        ("early_static_mask", marks(found.early_static.iter().copied())),
        ("bbox_xyxy", found.box_xyxy.map_or_else(Vec::new, |b| b.to_vec())),
        ("rejected_small_motion", marks([found.too_still])),
        ("rejected_area", marks([found.too_large])),
    ]))
}

fn farthest(case: &Case) -> Outcome {
    let chosen = farthest_points(&case.points("points")?, case.param("k")?, case.param("start")?);
    Ok(outputs([("indices", indices(&chosen.map_err(text)?))]))
}

fn spline(case: &Case) -> Outcome {
    let samples: Vec<Vec<f64>> = case.rows::<3>("track")?.into_iter().map(|p| p.to_vec()).collect();
    let spline =
        BSpline::fit(&samples, case.param("control_points")?, case.param("degree")?).map_err(text)?;
    let last = samples.len().saturating_sub(1).max(1) as f64;
    let times: Vec<f64> = (0..samples.len()).map(|i| i as f64 / last).collect();
    let reconstructed = times.iter().flat_map(|x| spline.at(*x)).collect();
    Ok(outputs([
        ("knots", spline.knots().to_vec()),
        ("basis", spline.basis(&times).transpose().as_slice().to_vec()),
        ("control_points", spline.control_points().concat()),
        ("reconstructed", reconstructed),
    ]))
}
