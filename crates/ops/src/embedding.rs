//! Rows of a table by id.

use candle_core::{Shape, Tensor};
use rayon::prelude::*;

use crate::float::Float;
use crate::matmul::build;
use crate::op::{Op, View, apply1};
use crate::{Result, check};

/// Elements per task: about 64 KiB of f32.
const CHUNK: usize = 1 << 14;

pub(crate) struct Embedding {
    pub(crate) ids: Vec<u32>,
    pub(crate) dims: Vec<usize>,
}

/// The positions at which every id stands, grouped by id and in their order: those of id i are
/// `positions[starts[i]..starts[i + 1]]`.
fn by_id(ids: &[u32], vocab: usize) -> (Vec<usize>, Vec<usize>) {
    let mut starts = vec![0; vocab + 1];
    ids.iter().for_each(|&id| starts[id as usize + 1] += 1);
    for i in 0..vocab {
        starts[i + 1] += starts[i];
    }
    let (mut next, mut positions) = (starts.clone(), vec![0; ids.len()]);
    for (at, &id) in ids.iter().enumerate() {
        positions[next[id as usize]] = at;
        next[id as usize] += 1;
    }
    (starts, positions)
}

impl Op<1> for Embedding {
    const NAME: &'static str = "embedding";

    #[allow(unsafe_code)]
    fn forward<T: Float>(&self, [table]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        let d = table.width();
        let block = (CHUNK / d).max(1);
        let shape = self.dims.as_slice().into();
        // SAFETY: one row of `out` per id, and each is written whole.
        let data = unsafe {
            build(self.ids.len() * d, |out| {
                out.par_chunks_mut(block * d).zip(self.ids.par_chunks(block)).for_each(|(out, ids)| {
                    for (out, &id) in out.chunks_exact_mut(d).zip(ids) {
                        let row = &table.data[id as usize * d..][..d];
                        out.iter_mut().zip(row).for_each(|(out, &x)| {
                            out.write(x);
                        });
                    }
                });
            })
        };
        (data, shape)
    }

    fn backward<T: Float>(
        &self,
        [table]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        let d = table.width();
        let vocab = table.data.len() / d;
        let (starts, positions) = by_id(&self.ids, vocab);
        let block = (CHUNK / d).max(1);
        // A row of the table belongs to one task and takes its gradients in the order of the ids, so the sum of a
        // repeated id has the same bits on any number of threads.
        let mut sums = vec![T::ZERO; vocab * d];
        sums.par_chunks_mut(block * d).enumerate().for_each(|(i, sums)| {
            let first = i * block;
            let last = first + sums.len() / d;
            if starts[first] == starts[last] {
                return;
            }
            for (id, sum) in (first..last).zip(sums.chunks_exact_mut(d)) {
                for &at in &positions[starts[id]..starts[id + 1]] {
                    let grad = &grad.data[at * d..][..d];
                    sum.iter_mut().zip(grad).for_each(|(sum, &g)| *sum += g);
                }
            }
        });
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
