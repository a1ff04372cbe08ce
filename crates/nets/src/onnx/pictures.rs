//! Pictures of a video as planes of numbers, in another size if a network wants that.

use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Luma, RgbImage};

/// Appends the planes red, green, blue of a picture, each (byte / 255 - mean) / std, in the size (height, width).
pub(super) fn planes(
    picture: &RgbImage,
    (height, width): (usize, usize),
    mean: [f32; 3],
    std: [f32; 3],
    out: &mut Vec<f32>,
) {
    let same = (picture.width() as usize, picture.height() as usize) == (width, height);
    let resized = (!same).then(|| resize(picture, width as u32, height as u32, FilterType::Triangle));
    let bytes = resized.as_ref().unwrap_or(picture).as_raw();
    for channel in 0..3 {
        let value = |pixel: &[u8]| (f32::from(pixel[channel]) / 255.0 - mean[channel]) / std[channel];
        out.extend(bytes.chunks_exact(3).map(value));
    }
}

/// Numbers from 0 up [height, width] in another size, linear in between; what is negative or not finite counts as 0.
pub(super) fn map_to(mut values: Vec<f32>, from: (usize, usize), to: (usize, usize)) -> Option<Vec<f32>> {
    if from == to {
        return (values.len() == from.0 * from.1).then_some(values);
    }
    values.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.0);
    // Pictures of floats end at 1, so the largest number is 1 while it is resized.
    let top = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    values.iter_mut().for_each(|x| *x /= top);
    let map: ImageBuffer<Luma<f32>, Vec<f32>> =
        ImageBuffer::from_raw(u32::try_from(from.1).ok()?, u32::try_from(from.0).ok()?, values)?;
    let mut out =
        resize(&map, u32::try_from(to.1).ok()?, u32::try_from(to.0).ok()?, FilterType::Triangle).into_raw();
    out.iter_mut().for_each(|x| *x *= top);
    Some(out)
}

/// Whether the sizes that a file fixes are sensible: they are allocated.
pub(super) fn sensible(dims: &[Option<usize>]) -> bool {
    dims.iter().flatten().all(|side| (1..=4096).contains(side))
}

/// The size of all pictures (height, width), if they are alike and there are some.
pub(super) fn common_size(pictures: &[RgbImage]) -> Option<(usize, usize)> {
    let size = |p: &RgbImage| (p.height() as usize, p.width() as usize);
    let first = size(pictures.first()?);
    (first.0 > 0 && first.1 > 0 && pictures.iter().all(|p| size(p) == first)).then_some(first)
}
