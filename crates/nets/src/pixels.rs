//! Camera bytes to network input.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::vla::expect;

/// `images` [B * I] of [S, S, 3] bytes, top row first, to [B, I, 3, S, S] in [-1, 1] (SigLIP: mean 0.5, standard
/// deviation 0.5). `per_row` is I, `size` is S.
///
/// # Errors
/// An image of another size, or a number of images that is no multiple of `per_row`.
pub fn pixels_from_rgb(images: &[&[u8]], per_row: usize, size: usize, device: &Device) -> Result<Tensor> {
    let plane = size * size;
    let rows = images.len().checked_div(per_row).unwrap_or(0);
    let fits = per_row > 0 && rows * per_row == images.len() && images.iter().all(|i| i.len() == 3 * plane);
    let got = [images.len(), images.iter().map(|i| i.len()).find(|&n| n != 3 * plane).unwrap_or(3 * plane)];
    expect("images", &got, fits, &format!("a multiple of {per_row} images of {} bytes", 3 * plane))?;
    let mut values = vec![0f32; images.len() * 3 * plane];
    values.par_chunks_mut((3 * plane).max(1)).zip(images).for_each(|(out, image)| {
        for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
            for (value, pixel) in out.iter_mut().zip(image.chunks_exact(3)) {
                *value = f32::from(pixel[channel]) / 127.5 - 1.0;
            }
        }
    });
    Ok(Tensor::from_vec(values, (rows, per_row, 3, size, size), device)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn channels_become_planes_and_bytes_become_numbers() {
        // Two images of 2 x 2: red rises along the pixels, green is 0, blue is 255.
        let image = |from: u8| (0..4u8).flat_map(|i| [from + 51 * i, 0, 255]).collect::<Vec<u8>>();
        let (a, b) = (image(0), image(102));
        let x = pixels_from_rgb(&[&a, &b], 2, 2, &Device::Cpu).unwrap();
        assert_eq!(x.dims(), [1, 2, 3, 2, 2]);
        let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let close = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6);
        assert!(close(&x[..4], &[-1.0, -0.6, -0.2, 0.2]), "{x:?}");
        assert!(close(&x[4..12], &[-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]));
        assert!(close(&x[12..16], &[-0.2, 0.2, 0.6, 1.0]));
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let image = vec![0u8; 12];
        assert!(pixels_from_rgb(&[&image, &image, &image], 2, 2, &Device::Cpu).is_err());
        assert!(pixels_from_rgb(&[&image], 1, 3, &Device::Cpu).is_err());
        assert!(pixels_from_rgb(&[&image], 0, 2, &Device::Cpu).is_err());
    }
}
