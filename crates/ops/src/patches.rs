//! Images and videos cut into patches, so that a convolution whose kernel equals its stride is a linear layer.

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::op::{Op, View, apply1};
use crate::{Result, check};

/// Cuts [B, C, T, H, W] into patches of `patch` (time, rows, columns).
pub(crate) struct Patches {
    pub(crate) patch: [usize; 3],
    /// The result's [N, C pt ph pw] without the batch.
    pub(crate) tokens: usize,
    /// [C, T, H, W]
    pub(crate) size: [usize; 4],
}

impl Patches {
    pub(crate) fn new(patch: [usize; 3], size: [usize; 4]) -> Self {
        let tokens = (0..3).map(|axis| size[axis + 1] / patch[axis]).product();
        Self { patch, tokens, size }
    }

    /// For every run of `patch[2]` pixels of one sample: where it starts in the sample and in the patches.
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let ([pt, ph, pw], [c, t, h, w]) = (self.patch, self.size);
        let (rows, columns, volume) = (h / ph, w / pw, pt * ph * pw);
        (0..c * t * h * columns).map(move |at| {
            let (column, y) = (at % columns, at / columns % h);
            let (frame, channel) = (at / (columns * h) % t, at / (columns * h * t));
            let patch = (frame / pt * rows + y / ph) * columns + column;
            let from = ((channel * t + frame) * h + y) * w + column * pw;
            let to = (patch * c + channel) * volume + (frame % pt * ph + y % ph) * pw;
            (from, to)
        })
    }

    /// Moves every run of every sample, from pixels to patches or back.
    fn move_runs<T: Float>(&self, x: &[T], back: bool) -> Vec<T> {
        let mut out = vec![T::ZERO; x.len()];
        let (sample, run) = (self.size.iter().product::<usize>().max(1), self.patch[2]);
        out.par_chunks_mut(sample).zip(x.par_chunks(sample)).for_each(|(out, x)| {
            for (pixels, patches) in self.runs() {
                let (from, to) = if back { (patches, pixels) } else { (pixels, patches) };
                out[to..to + run].copy_from_slice(&x[from..from + run]);
            }
        });
        out
    }
}

impl Op<1> for Patches {
    const NAME: &'static str = "patches";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        let width = self.size[0] * self.patch.iter().product::<usize>();
        (self.move_runs(x.data, false), (x.dims[0], self.tokens, width).into())
    }

    fn backward<T: Float>(
        &self,
        _args: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [Some(self.move_runs(grad.data, true))]
    }
}

fn divides(op: &'static str, arg: &'static str, patch: &[usize], size: &[usize]) -> Result<()> {
    let whole = patch.iter().zip(size).all(|(&p, &n)| p > 0 && n > 0 && n.is_multiple_of(p));
    check::value(op, arg, format!("{patch:?}"), whole, &format!("divisors of the size {size:?}"))
}

/// Images [B, C, H, W] cut into patches of `patch` = (rows, columns) px: [B, (H/rows) (W/columns), C rows columns],
/// patches in rows from the top, numbers of a patch in the order of a convolution's weight (channel, row, column): with
/// [`crate::linear`] and that weight as [O, C rows columns] it is a convolution whose stride is its kernel.
///
/// # Errors
/// Another rank or dtype, an empty axis, a patch that does not divide the image.
pub fn patches2d(images: &Tensor, patch: (usize, usize)) -> Result<Tensor> {
    image_patches("patches2d", images, patch)
}

fn image_patches(op: &'static str, images: &Tensor, (ph, pw): (usize, usize)) -> Result<Tensor> {
    check::float(op, "images", images)?;
    check::rank(op, "images", images, 4, "[B, C, H, W]")?;
    let (_, c, h, w) = images.dims4()?;
    check::value(op, "images", format!("{:?}", images.dims()), c > 0, "at least one channel")?;
    divides(op, "patch", &[ph, pw], &[h, w])?;
    Ok(apply1(Patches::new([1, ph, pw], [c, 1, h, w]), images)?)
}

/// Videos [B, C, T, H, W] cut into tubelets of `patch` = (frames, rows, columns): [B, N, C frames rows columns] with
/// N = (T/frames) (H/rows) (W/columns), tokens in the order time, row, column, numbers of a tubelet in the order of a
/// 3D convolution's weight (channel, frame, row, column).
///
/// # Errors
/// Another rank or dtype, an empty axis, a tubelet that does not divide the video.
pub fn patches3d(video: &Tensor, patch: (usize, usize, usize)) -> Result<Tensor> {
    const OP: &str = "patches3d";
    check::float(OP, "video", video)?;
    check::rank(OP, "video", video, 5, "[B, C, T, H, W]")?;
    let (_, c, t, h, w) = video.dims5()?;
    check::value(OP, "video", format!("{:?}", video.dims()), c > 0, "at least one channel")?;
    let patch = [patch.0, patch.1, patch.2];
    divides(OP, "patch", &patch, &[t, h, w])?;
    Ok(apply1(Patches::new(patch, [c, t, h, w]), video)?)
}

/// [`patches2d`] with square patches of `patch` px.
///
/// # Errors
/// As [`patches2d`].
pub fn patchify(images: &Tensor, patch: usize) -> Result<Tensor> {
    image_patches("patchify", images, (patch, patch))
}
