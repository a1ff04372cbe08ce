//! Few points that stand for many, and few frames that stand for many.

use nalgebra::Point3;

use crate::rigid::finite;
use crate::{Error, Result};

/// Indices of `k` points, each as far as possible from those before it; ties go to the lower index. At most as many as there
/// are points.
///
/// # Errors
/// No such start, or a point that is not finite.
pub fn farthest_points(points: &[Point3<f64>], k: usize, start: usize) -> Result<Vec<usize>> {
    finite("points", points)?;
    if k == 0 {
        return Ok(Vec::new());
    }
    if start >= points.len() {
        return Err(Error::Range { what: "start", value: start as f64, range: "below the points" });
    }
    let k = k.min(points.len());
    let mut chosen = Vec::with_capacity(k);
    let mut distance = vec![f64::INFINITY; points.len()];
    let mut next = start;
    loop {
        chosen.push(next);
        if chosen.len() == k {
            return Ok(chosen);
        }
        // A point that was chosen is never the farthest again, even among copies of itself.
        distance[next] = f64::NEG_INFINITY;
        let (mut best, mut far) = (next, f64::NEG_INFINITY);
        for (i, point) in points.iter().enumerate() {
            distance[i] = distance[i].min((point - points[next]).norm_squared());
            if distance[i] > far {
                (best, far) = (i, distance[i]);
            }
        }
        next = best;
    }
}

/// `n` frames of `len`, evenly spread from the first to the last, rounded down; frames repeat where there are too few.
///
/// # Errors
/// No frames to choose from.
pub fn uniform_frames(len: usize, n: usize) -> Result<Vec<usize>> {
    let Some(last) = len.checked_sub(1) else {
        return Err(Error::Range { what: "frames", value: 0.0, range: "at least 1" });
    };
    // NumPy's linspace: i times the step, the end exactly.
    let step = last as f64 / n.saturating_sub(1).max(1) as f64;
    let frame = |i: usize| if i + 1 == n && n > 1 { last } else { (i as f64 * step).floor() as usize };
    Ok((0..n).map(frame).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nalgebra::Vector3;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sampled_points_are_different_and_no_other_is_farther(
            all in prop::collection::vec(prop::array::uniform3(-1.0..1.0f64), 3..30), k in 1..8usize,
        ) {
            let points: Vec<_> = all.iter().map(|p| Point3::from(Vector3::from(*p))).collect();
            let chosen = farthest_points(&points, k, 1).unwrap();
            prop_assert_eq!(chosen.len(), k.min(points.len()));
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), chosen.len());
            let gap = |i: usize, among: &[usize]| {
                among.iter().map(|&j| (points[i] - points[j]).norm()).fold(f64::INFINITY, f64::min)
            };
            for n in 1..chosen.len() {
                let own = gap(chosen[n], &chosen[..n]);
                prop_assert!((0..points.len()).all(|i| gap(i, &chosen[..n]) <= own + 1e-12));
            }
        }

        #[test]
        fn frames_are_in_order_from_the_first_to_the_last(len in 1..300usize, n in 2..40usize) {
            let frames = uniform_frames(len, n).unwrap();
            prop_assert!(frames.is_sorted() && frames[0] == 0 && frames[n - 1] == len - 1 && frames.len() == n);
        }
    }

    #[test]
    fn odd_requests() {
        let same = [Point3::origin(); 4];
        assert_eq!(farthest_points(&same, 9, 0).unwrap(), [0, 1, 2, 3]);
        assert_eq!(farthest_points(&same, 0, 7).unwrap(), [0usize; 0]);
        assert!(farthest_points(&same, 1, 4).is_err() && farthest_points(&[], 1, 0).is_err());
        assert!(farthest_points(&[Point3::new(f64::NAN, 0.0, 0.0)], 1, 0).is_err());
        assert_eq!(uniform_frames(9, 1).unwrap(), [0]);
        assert!(uniform_frames(0, 3).is_err() && uniform_frames(3, 0).unwrap().is_empty());
    }
}
