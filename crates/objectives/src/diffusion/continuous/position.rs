//! Sine-cosine embeddings of positions on a grid, for transformers over images and volumes.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which exponents the frequencies of the 3D embedding have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frequencies {
    /// 10000^(-k / (n - 1)), as in 2D.
    #[default]
    Falling,
    /// 10000^(k / dim): what a lost term in a division makes of it in released code. They GROW with k; weights trained
    /// that way need it.
    Growing,
}

const BASE: f64 = 10_000.0;

/// Rows of `dim` numbers for the cells of an h x w grid, row by row: sin x, cos x, sin y, cos y with dim / 4 frequencies
/// each.
///
/// # Errors
/// [`Error::Setting`]: `dim` is not a multiple of 4, or below 8.
pub fn grid_embedding_2d(h: usize, w: usize, dim: usize) -> Result<Vec<Vec<f64>>> {
    let omega = frequencies(dim, 4, Frequencies::Falling)?;
    let cells = (0..h).flat_map(|y| (0..w).map(move |x| [x, y]));
    Ok(cells.map(|cell| waves(&cell, &omega)).collect())
}

/// Rows for the cells of a d x h x w grid, ordered by z, then y, then x: sin x, cos x, sin y, cos y, sin z, cos z with
/// dim / 6 frequencies each.
///
/// # Errors
/// [`Error::Setting`]: `dim` is not a multiple of 6, or below 12.
pub fn grid_embedding_3d(
    (h, w, d): (usize, usize, usize),
    dim: usize,
    frequency: Frequencies,
) -> Result<Vec<Vec<f64>>> {
    let omega = frequencies(dim, 6, frequency)?;
    let cells = (0..d).flat_map(|z| (0..h).flat_map(move |y| (0..w).map(move |x| [x, y, z])));
    Ok(cells.map(|cell| waves(&cell, &omega)).collect())
}

fn frequencies(dim: usize, parts: usize, frequency: Frequencies) -> Result<Vec<f64>> {
    let n = dim / parts;
    if n < 2 || !dim.is_multiple_of(parts) {
        let expected = if parts == 4 { "a multiple of 4, 8 or more" } else { "a multiple of 6, 12 or more" };
        return Err(Error::Setting { name: "dim", got: dim as f64, expected });
    }
    let exponent = |k: usize| match frequency {
        Frequencies::Falling => -(k as f64) / (n - 1) as f64,
        Frequencies::Growing => k as f64 / dim as f64,
    };
    Ok((0..n).map(|k| BASE.powf(exponent(k))).collect())
}

fn waves(cell: &[usize], omega: &[f64]) -> Vec<f64> {
    let angles = |&at: &usize| omega.iter().map(move |w| at as f64 * w);
    cell.iter().flat_map(|at| angles(at).map(f64::sin).chain(angles(at).map(f64::cos))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cells_differ_and_a_flat_volume_starts_like_the_plane() {
        let plane = grid_embedding_2d(2, 3, 8).unwrap();
        assert_eq!((plane.len(), plane[0].len()), (6, 8));
        assert!((0..6).all(|i| (0..i).all(|j| plane[i] != plane[j])));
        let volume = grid_embedding_3d((2, 3, 1), 12, Frequencies::Falling).unwrap();
        assert!(plane.iter().zip(&volume).all(|(a, b)| a[..] == b[..8]));
        assert!(
            grid_embedding_2d(1, 1, 6).is_err()
                && grid_embedding_3d((1, 1, 1), 6, Frequencies::Falling).is_err()
        );
    }
}
