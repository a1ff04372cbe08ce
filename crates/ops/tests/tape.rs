//! `value_and_grad` gives what candle's own backward pass gives: through our operations, through candle's between them,
//! and where tensors and variables are used several times.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use efference_ops as ops;

fn var(dims: &[usize], seed: usize) -> Var {
    let n: usize = dims.iter().product();
    let data: Vec<f64> = (0..n).map(|i| ((i * 37 + seed * 101) % 97) as f64 / 48.0 - 1.0).collect();
    Var::from_vec(data, dims, &Device::Cpu).unwrap()
}

struct Net {
    x: Var,
    w: Var,
    b: Var,
    norm: Var,
    table: Var,
    unused: Var,
}

impl Net {
    fn new() -> Self {
        Self {
            x: var(&[2, 5, 8], 1),
            w: var(&[8, 8], 2),
            b: var(&[8], 3),
            norm: var(&[8], 4),
            table: var(&[11, 8], 5),
            unused: var(&[3], 6),
        }
    }

    fn vars(&self) -> [&Var; 5] {
        [&self.x, &self.w, &self.b, &self.norm, &self.table]
    }

    /// A residual block with the weight used three times (once cut and turned by candle), an embedding read twice, and
    /// candle's operations before, between and behind ours.
    fn loss(&self) -> ops::Result<Tensor> {
        let ids = Tensor::new(&[[1u32, 4, 4, 0, 10], [3, 3, 2, 1, 9]], &Device::Cpu)?;
        let x = (self.x.as_tensor() * 0.5)?;
        let x = ops::add(&x, &ops::embedding(&self.table, &ids)?)?;
        let h = ops::rms_norm(&x, &self.norm, 1e-6)?;
        let q = ops::linear(&h, &self.w, Some(&self.b))?;
        let k = ops::linear(&h.narrow(1, 1, 3)?, &self.w, None)?;
        let seen = ops::attention_tokens(&q, &k, &k, (2, 1), &ops::AttentionMask::Full, None, 0.4);
        assert!(seen.is_err(), "k is as wide as all heads");
        let seen = ops::attention_tokens(&q, &k, &k, (2, 2), &ops::AttentionMask::Full, None, 0.4)?;
        let (sum, normed) = ops::add_rms_norm(&x, &seen, &self.norm, 1e-6)?;
        let cut = self.w.narrow(0, 2, 4)?.t()?;
        let tail = normed.flatten_to(1)?.matmul(&cut)?.tanh()?;
        let logits = ops::linear(&sum, &self.table, None)?.flatten_to(1)?;
        let scores = ops::token_scores(&logits, &ids.flatten_all()?, 0.7)?;
        let part = (scores.log_probs.sum_all()? + (scores.entropy.sqr()?.sum_all()? * 0.3)?)?;
        Ok((part + tail.sum_all()?)?)
    }
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn gradients_are_candles() {
    let net = Net::new();
    let by_candle = net.loss().unwrap();
    let wanted = by_candle.backward().unwrap();
    let (loss, got) = ops::value_and_grad(|| net.loss()).unwrap();
    assert_eq!(flat(&loss), flat(&by_candle));
    for var in net.vars() {
        let (got, wanted) = (flat(got.get(var).unwrap()), flat(wanted.get(var).unwrap()));
        assert!(wanted.iter().any(|g| g.abs() > 1e-3));
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!((got - wanted).abs() <= 1e-12 * (1.0 + wanted.abs()), "{got} {wanted}");
        }
    }
    assert!(got.get(&net.unused).is_none());
    let again = ops::value_and_grad(|| net.loss()).unwrap().1;
    assert!(net.vars().iter().all(|var| flat(again.get(var).unwrap()) == flat(got.get(var).unwrap())));
}

#[test]
fn what_leaves_the_scope_is_a_constant_and_errors_leave_no_tape() {
    let net = Net::new();
    let mut kept = None;
    let (loss, _) = ops::value_and_grad(|| {
        let loss = net.loss()?;
        kept = Some(loss.detach());
        Ok::<_, ops::Error>(loss)
    })
    .unwrap();
    assert!(!loss.track_op() && !kept.unwrap().track_op());
    let failed = ops::value_and_grad(|| {
        net.loss()?;
        ops::linear(&net.x, &net.norm, None)
    });
    assert!(failed.is_err());
    // Outside of a scope candle's graph is whole again.
    assert!(net.loss().unwrap().backward().unwrap().get(&net.w).is_some());
    // Without gradients nothing is written down.
    let (_, grads) = ops::value_and_grad(|| ops::no_grad(|| ops::linear(&net.x, &net.w, None))).unwrap();
    assert!(grads.get(&net.w).is_none());
}
