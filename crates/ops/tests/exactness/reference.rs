//! The formulas, as plain loops.

use crate::tape::{X, sum};

/// 2 / sqrt(2 pi) and the cubic coefficient of the tanh form of GELU.
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

pub fn gelu_tanh(x: X) -> X {
    let u = (x + x * x * x * CUBIC) * ROOT;
    x * 0.5 * u.one_plus_tanh()
}

pub fn gelu_erf(x: X) -> X {
    x * 0.5 * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0)
}

pub fn silu(x: X) -> X {
    x * x.sigmoid()
}

/// x [rows, i], weight [o, i], bias [o] or empty.
pub fn linear(x: &[X], weight: &[X], bias: &[X], i: usize) -> Vec<X> {
    let o = weight.len() / i;
    let mut y = Vec::new();
    for row in x.chunks(i) {
        for out in 0..o {
            let products = (0..i).map(|p| row[p] * weight[out * i + p]);
            y.push(sum(bias.get(out).copied().into_iter().chain(products)));
        }
    }
    y
}

pub fn layer_norm(x: &[X], weight: &[X], bias: &[X], eps: f64) -> Vec<X> {
    let d = weight.len();
    let mut y = Vec::new();
    for row in x.chunks(d) {
        let mean = sum(row.iter().copied()) * (1.0 / d as f64);
        let off: Vec<X> = row.iter().map(|&x| x - mean).collect();
        let variance = sum(off.iter().map(|x| x.square())) * (1.0 / d as f64);
        let deviation = (variance + eps).sqrt();
        y.extend((0..d).map(|i| off[i] / deviation * weight[i] + bias[i]));
    }
    y
}

pub fn rms_norm(x: &[X], weight: &[X], eps: f64) -> Vec<X> {
    let d = weight.len();
    let mut y = Vec::new();
    for row in x.chunks(d) {
        let square = sum(row.iter().map(|x| x.square())) * (1.0 / d as f64);
        let root = (square + eps).sqrt();
        y.extend((0..d).map(|i| row[i] / root * weight[i]));
    }
    y
}

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub b: usize,
    pub h: usize,
    pub hkv: usize,
    pub tq: usize,
    pub tk: usize,
    pub d: usize,
}

/// softmax(q k^T scale) v over the keys that `sees(b, i, j)`; zeros for a query that sees none.
pub fn attention(
    [q, k, v]: [&[X]; 3],
    s: Heads,
    scale: f64,
    sees: &dyn Fn(usize, usize, usize) -> bool,
) -> Vec<X> {
    let mut out = Vec::new();
    for b in 0..s.b {
        for h in 0..s.h {
            let kv = b * s.hkv + h / (s.h / s.hkv);
            for i in 0..s.tq {
                let q = &q[((b * s.h + h) * s.tq + i) * s.d..][..s.d];
                let seen: Vec<usize> = (0..s.tk).filter(|&j| sees(b, i, j)).collect();
                let scores: Vec<X> = seen
                    .iter()
                    .map(|j| sum((0..s.d).map(|c| q[c] * k[(kv * s.tk + j) * s.d + c])) * scale)
                    .collect();
                // A constant shift changes nothing and keeps exp finite.
                let top = scores.iter().fold(f64::NEG_INFINITY, |top, x| top.max(x.value));
                let weights: Vec<X> = scores.iter().map(|&x| (x + -top).exp()).collect();
                let total = sum(weights.iter().copied());
                for c in 0..s.d {
                    let terms =
                        seen.iter().zip(&weights).map(|(j, &w)| w / total * v[(kv * s.tk + j) * s.d + c]);
                    out.push(sum(terms));
                }
            }
        }
    }
    out
}

/// Log-probability of the id, entropy, and mean over the row of log-probabilities.
pub struct Scores {
    pub log_prob: X,
    pub entropy: X,
    pub mean: X,
}

/// Of one row of logits under softmax(x inverse); logits of -infinity are impossible.
pub fn scores(row: &[X], id: usize, inverse: f64) -> Scores {
    let impossible = X::constant(f64::NEG_INFINITY);
    let top = row.iter().fold(f64::NEG_INFINITY, |top, x| top.max(x.value)) * inverse;
    if top == f64::NEG_INFINITY {
        return Scores { log_prob: impossible, entropy: X::constant(0.0), mean: impossible };
    }
    let possible = row.iter().filter(|x| x.value > f64::NEG_INFINITY);
    let off: Vec<X> = possible.map(|&x| x * inverse + -top).collect();
    let weights: Vec<X> = off.iter().map(|x| x.exp()).collect();
    let total = sum(weights.iter().copied());
    let log_total = total.ln();
    let log_prob =
        if row[id].value == f64::NEG_INFINITY { impossible } else { row[id] * inverse + -top - log_total };
    // weights of 0 add nothing even where the logit is huge
    let terms = weights.iter().zip(&off).filter(|(w, _)| w.value > 0.0).map(|(&w, &z)| w / total * z);
    let entropy = log_total - sum(terms);
    let mean = sum(off.iter().map(|&z| z - log_total)) * (1.0 / row.len() as f64);
    Scores { log_prob, entropy, mean }
}

/// Cross entropy against the distribution `t`: sum of t (log sum exp x - x).
pub fn soft_cross_entropy(row: &[X], t: &[f64]) -> X {
    let top = row.iter().fold(f64::NEG_INFINITY, |top, x| top.max(x.value));
    let off: Vec<X> = row.iter().map(|&x| x + -top).collect();
    let log_total = sum(off.iter().map(|x| x.exp())).ln();
    sum(off.iter().zip(t).filter(|(_, t)| **t > 0.0).map(|(&z, &t)| (log_total - z) * t))
}

/// Rotate-half: pair (i, i + Dh/2) of every row of x [tokens, Dh] turned by `angle(token, i)`.
pub fn rotate_half(x: &[X], d: usize, angle: &dyn Fn(usize, usize) -> f64) -> Vec<X> {
    let half = d / 2;
    let mut y = Vec::new();
    for (token, x) in x.chunks(d).enumerate() {
        for i in 0..d {
            let (sin, cos) = angle(token, i % half).sin_cos();
            let (sin, cos) = (X::rounded(sin), X::rounded(cos));
            y.push(if i < half { x[i] * cos - x[i + half] * sin } else { x[i] * cos + x[i - half] * sin });
        }
    }
    y
}

/// x cos + (-x_1, x_0, -x_3, x_2, ...) sin, every element with its own angle; `None` leaves it.
pub fn rotate_neighbours(x: &[X], d: usize, angle: &dyn Fn(usize, usize) -> Option<f64>) -> Vec<X> {
    let mut y = Vec::new();
    for (token, x) in x.chunks(d).enumerate() {
        for i in 0..d {
            let Some(angle) = angle(token, i) else {
                y.push(x[i]);
                continue;
            };
            let (sin, cos) = angle.sin_cos();
            let other = if i % 2 == 0 { -x[i + 1] } else { x[i - 1] };
            y.push(x[i] * X::rounded(cos) + other * X::rounded(sin));
        }
    }
    y
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub b: usize,
    pub c: usize,
    pub o: usize,
    pub image: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
}

pub fn conv2d(x: &[X], weight: &[X], bias: &[X], s: Conv) -> Vec<X> {
    let ([h, w], [kh, kw]) = (s.image, s.kernel);
    let size = |axis: usize| (s.image[axis] + 2 * s.padding[axis] - s.kernel[axis]) / s.stride[axis] + 1;
    let mut y = Vec::new();
    for b in 0..s.b {
        for o in 0..s.o {
            for row in 0..size(0) {
                for column in 0..size(1) {
                    let mut terms: Vec<X> = bias.get(o).copied().into_iter().collect();
                    for c in 0..s.c {
                        for i in 0..kh {
                            for j in 0..kw {
                                let at_row = (row * s.stride[0] + i) as isize - s.padding[0] as isize;
                                let at_column = (column * s.stride[1] + j) as isize - s.padding[1] as isize;
                                if (0..h as isize).contains(&at_row) && (0..w as isize).contains(&at_column) {
                                    let at = ((b * s.c + c) * h + at_row as usize) * w + at_column as usize;
                                    terms.push(x[at] * weight[((o * s.c + c) * kh + i) * kw + j]);
                                }
                            }
                        }
                    }
                    y.push(sum(terms));
                }
            }
        }
    }
    y
}

/// [B, C, T, H, W] cut into tubelets.
pub fn patches(x: &[X], [b, c, t, h, w]: [usize; 5], [pt, ph, pw]: [usize; 3]) -> Vec<X> {
    let mut y = Vec::new();
    for b in 0..b {
        for (t0, h0, w0) in grid([t / pt, h / ph, w / pw]) {
            for c0 in 0..c {
                for (dt, dh, dw) in grid([pt, ph, pw]) {
                    let (frame, row, column) = (t0 * pt + dt, h0 * ph + dh, w0 * pw + dw);
                    y.push(x[(((b * c + c0) * t + frame) * h + row) * w + column]);
                }
            }
        }
    }
    y
}

fn grid([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}
