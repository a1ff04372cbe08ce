//! Replays the parts of `tests/golden/eval_libero.json` that this module computes.

use std::collections::BTreeMap;

use image::RgbImage;
use image::imageops::rotate180;

use super::images::{CROP_AREA, centre_crop, lanczos3};

/// Numbers by name, in row-major order.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// The outputs of a case; `None` for functions of other crates.
///
/// # Errors
/// Names the input that is absent or has a wrong length.
pub fn replay(function: &str, inputs: &Numbers) -> Option<Result<Numbers, String>> {
    match function {
        "quat2axisangle" => Some(turns(inputs)),
        "image_pipeline" => Some(pictures(inputs)),
        _ => None,
    }
}

fn input<'a>(inputs: &'a Numbers, name: &str) -> Result<&'a [f64], String> {
    inputs.get(name).map(Vec::as_slice).ok_or_else(|| format!("the case has no usable `inputs.{name}`"))
}

fn turns(inputs: &Numbers) -> Result<Numbers, String> {
    let (quaternions, rest) = input(inputs, "quat_xyzw")?.as_chunks::<4>();
    if !rest.is_empty() {
        return Err("`inputs.quat_xyzw` is no list of four numbers each".into());
    }
    let turns = quaternions.iter().flat_map(|&q| efference_envs::libero::axis_angle(q)).collect();
    Ok(Numbers::from([("axis_angle".to_owned(), turns)]))
}

/// LIBERO's array turned by 180 degrees, Lanczos3 to 21 pixels, centre crop. (The case's parameters do not come through;
/// 21 and 0.9 are the file's.)
fn pictures(inputs: &Numbers) -> Result<Numbers, String> {
    const SIDE: u32 = 21;
    let numbers = input(inputs, "image_hwc_u8")?;
    let side = ((numbers.len() / 3) as f64).sqrt() as u32;
    let bytes = numbers.iter().map(|&x| x as u8).collect();
    let picture =
        RgbImage::from_raw(side, side, bytes).filter(|p| p.as_raw().len() == numbers.len() && side > 0);
    let picture = picture.ok_or("`inputs.image_hwc_u8` is no square picture")?;
    let resized = lanczos3(&rotate180(&picture), SIDE);
    let cropped = centre_crop(&resized, SIDE, CROP_AREA);
    let bytes = resized.as_raw().iter().map(|&x| f64::from(x)).collect();
    Ok(Numbers::from([("resized_u8".to_owned(), bytes), ("cropped_0_1".to_owned(), cropped)]))
}
