//! Rows of a table by id, and images cut into patches.

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::op::{Op, View, apply1};
use crate::{Result, check};

pub(crate) struct Embedding {
    pub(crate) ids: Vec<u32>,
    pub(crate) dims: Vec<usize>,
}

impl Op<1> for Embedding {
    const NAME: &'static str = "embedding";

    fn forward<T: Float>(&self, [table]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        let d = table.width();
        let row = |&id: &u32| &table.data[id as usize * d..][..d];
        (self.ids.iter().flat_map(row).copied().collect(), self.dims.as_slice().into())
    }

    fn backward<T: Float>(
        &self,
        [table]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let d = table.width();
        let mut sums = vec![T::ZERO; table.data.len()];
        // In the order of the ids, so the sum of a repeated id has the same bits every time.
        for (&id, grad) in self.ids.iter().zip(grad.data.chunks_exact(d)) {
            for (sum, &g) in sums[id as usize * d..][..d].iter_mut().zip(grad) {
                *sum += g;
            }
        }
        [Some(sums)]
    }
}

/// Rows of `table` [V, D] at `ids` [..] (u32): [.., D]. Gradients of repeated ids add up.
///
/// # Errors
/// Another rank or dtype, an id outside the table.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    const OP: &str = "embedding";
    check::float(OP, "table", table)?;
    check::rank(OP, "table", table, 2, "[V, D]")?;
    let d = check::last_dim(OP, "table", table)?;
    let rows = check::ids(OP, ids, table.dims()[0])?;
    let dims = [ids.dims(), &[d]].concat();
    Ok(apply1(Embedding { ids: rows, dims }, table)?)
}

pub(crate) struct Patchify {
    pub(crate) patch: usize,
}

impl Patchify {
    /// For every run of `patch` pixels: where it starts in the image and in the patches, of one image.
    fn runs(&self, s: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (p, side) = (self.patch, s / self.patch);
        (0..3 * s * side).map(move |at| {
            let (channel, y, column) = (at / (s * side), at / side % s, at % side);
            let from = (channel * s + y) * s + column * p;
            let to = ((y / p * side + column) * 3 + channel) * p * p + y % p * p;
            (from, to)
        })
    }
}

impl Op<1> for Patchify {
    const NAME: &'static str = "patchify";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        let (s, p) = (x.dims[3], self.patch);
        let mut out = vec![T::ZERO; x.data.len()];
        let image = 3 * s * s;
        out.par_chunks_mut(image).zip(x.data.par_chunks(image)).for_each(|(out, x)| {
            self.runs(s).for_each(|(from, to)| out[to..to + p].copy_from_slice(&x[from..from + p]));
        });
        (out, (x.dims[0], (s / p) * (s / p), 3 * p * p).into())
    }

    fn backward<T: Float>(
        &self,
        [x]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let (s, p) = (x.dims[3], self.patch);
        let mut dx = vec![T::ZERO; x.data.len()];
        let image = 3 * s * s;
        dx.par_chunks_mut(image).zip(grad.data.par_chunks(image)).for_each(|(dx, grad)| {
            self.runs(s).for_each(|(from, to)| dx[from..from + p].copy_from_slice(&grad[to..to + p]));
        });
        [Some(dx)]
    }
}

/// Square images [B, 3, S, S] cut into patches of `patch` px: [B, (S/patch)^2, 3 * patch * patch], patches in rows from
/// the top, numbers of a patch in the order of a convolution's weight (channel, row, column).
///
/// # Errors
/// Another shape or dtype, a patch that does not divide S.
pub fn patchify(images: &Tensor, patch: usize) -> Result<Tensor> {
    const OP: &str = "patchify";
    check::float(OP, "images", images)?;
    check::rank(OP, "images", images, 4, "[B, 3, S, S]")?;
    let (b, _, s, _) = images.dims4()?;
    check::dims(OP, "images", images, &[b, 3, s, s], "[B, 3, S, S]")?;
    let divides = patch > 0 && s > 0 && s.is_multiple_of(patch);
    check::value(OP, "patch", patch, divides, &format!("a divisor of the image side {s}"))?;
    Ok(apply1(Patchify { patch }, images)?)
}
