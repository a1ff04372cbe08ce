//! Singular values and vectors of 3x3 matrices.

use nalgebra::{Matrix3, Vector3};

/// `m = u diag(s) v^T` up to the signs of the third vectors: `u` and `v` are both rotations here, and `s[2]` has the sign
/// of det m, which is what rigid fits need.
pub(super) struct SignedSvd {
    pub u: Matrix3<f64>,
    /// Falling in magnitude; only the last may be negative.
    pub s: Vector3<f64>,
    pub v: Matrix3<f64>,
}

/// Jacobi from one side: columns are turned in pairs until they are orthogonal. Small singular values come out with the
/// accuracy of large ones, and three columns need no more than a handful of sweeps.
pub(super) fn signed_svd(m: &Matrix3<f64>) -> SignedSvd {
    let mut a = [m.column(0).into_owned(), m.column(1).into_owned(), m.column(2).into_owned()];
    let mut v = [Vector3::x(), Vector3::y(), Vector3::z()];
    for _ in 0..30 {
        let mut turned = false;
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            let (aa, bb, ab) = (a[i].norm_squared(), a[j].norm_squared(), a[i].dot(&a[j]));
            // Written so that NaN ends the sweeps.
            let orthogonal = ab.abs() <= f64::EPSILON * (aa * bb).sqrt();
            if orthogonal || !ab.is_finite() {
                continue;
            }
            turned = true;
            let zeta = (bb - aa) / (2.0 * ab);
            let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
            let c = 1.0 / (1.0 + t * t).sqrt();
            let s = c * t;
            for w in [&mut a, &mut v] {
                let (p, q) = (w[i], w[j]);
                w[i] = p * c - q * s;
                w[j] = p * s + q * c;
            }
        }
        if !turned {
            break;
        }
    }
    let mut order = [0, 1, 2];
    let norms = [a[0].norm(), a[1].norm(), a[2].norm()];
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let [i, j, k] = order;
    let u1 = a[i].try_normalize(0.0).unwrap_or_else(Vector3::x);
    // What rounding left of the first direction in a tiny second column is taken out; any direction across serves where
    // nothing else is in it.
    let across = u1.cross(&Vector3::ith(u1.iamin(), 1.0)).normalize();
    let second = a[j] - u1 * u1.dot(&a[j]);
    let u2 = second.try_normalize(1e-14 * norms[i]).unwrap_or(across);
    let u3 = u1.cross(&u2);
    let v3 = v[i].cross(&v[j]);
    let s3 = norms[k].copysign(u3.dot(&(m * v3)));
    SignedSvd {
        u: Matrix3::from_columns(&[u1, u2, u3]),
        s: Vector3::new(norms[i], norms[j], s3),
        v: Matrix3::from_columns(&[v[i], v[j], v3]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_matrix_is_put_together_again(entries in prop::array::uniform9(-10.0..10.0f64), rank in 1..=3usize) {
            let mut m = Matrix3::from_row_slice(&entries);
            if rank < 3 {
                let row = m.row(0).into_owned();
                m.set_row(2, &(row * 2.0));
            }
            if rank < 2 {
                let row = m.row(0).into_owned();
                m.set_row(1, &(row * -0.5));
            }
            let SignedSvd { u, s, v } = signed_svd(&m);
            prop_assert!((u * Matrix3::from_diagonal(&s) * v.transpose() - m).norm() < 1e-12 * (1.0 + m.norm()));
            prop_assert!((u.determinant() - 1.0).abs() < 1e-9 && (v.determinant() - 1.0).abs() < 1e-9);
            prop_assert!(s[0] >= s[1] && s[1] >= s[2].abs());
        }
    }

    #[test]
    fn zero_and_nan_end() {
        let zero = signed_svd(&Matrix3::zeros());
        assert_eq!(zero.s, Vector3::zeros());
        assert!((zero.u.determinant() - 1.0).abs() < 1e-12);
        signed_svd(&Matrix3::repeat(f64::NAN));
    }
}
