//! Per-token numbers of a batch in f64: the form in which statistics are computed.

use candle_core::{CpuStorage, DType, Storage, Tensor};

use crate::error::{Error, Result};

/// [B, T] numbers, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// B.
    pub rows: usize,
    /// T.
    pub cols: usize,
    /// [B * T].
    pub values: Vec<f64>,
}

impl Table {
    /// From rows of one length.
    ///
    /// # Errors
    /// Rows of different lengths.
    pub fn from_rows(rows: &[Vec<f64>]) -> Result<Self> {
        let cols = rows.first().map_or(0, Vec::len);
        match rows.iter().find(|r| r.len() != cols) {
            None => Ok(Self { rows: rows.len(), cols, values: rows.concat() }),
            Some(odd) => {
                let expected = format!("{cols} columns, like the first row");
                Err(Error::Shape { name: "row", got: vec![odd.len()], expected })
            }
        }
    }

    /// From a [B, T] tensor of any float or integer type.
    ///
    /// # Errors
    /// Another rank.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = tensor.dims2()?;
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(x)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        {
            let values = x[start..end].iter().map(|&x| f64::from(x)).collect();
            return Ok(Self { rows, cols, values });
        }
        drop(storage);
        let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        Ok(Self { rows, cols, values })
    }

    /// One number per row, repeated T times and multiplied by `mask`.
    ///
    /// # Errors
    /// `per_row` has another length.
    pub fn broadcast(per_row: &[f64], mask: &Table) -> Result<Self> {
        if per_row.len() != mask.rows {
            let expected = format!("[{}], one per row of the mask", mask.rows);
            return Err(Error::Shape { name: "per_row", got: vec![per_row.len()], expected });
        }
        let values = per_row.iter().flat_map(|&a| std::iter::repeat_n(a, mask.cols));
        let values = values.zip(&mask.values).map(|(a, m)| a * m).collect();
        Ok(Self { values, ..*mask })
    }

    /// Row `i`, [T].
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.cols..(i + 1) * self.cols]
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.cols.max(1))
    }

    /// Sum of each row, [B].
    pub fn row_sums(&self) -> Vec<f64> {
        (0..self.rows).map(|i| self.row(i).iter().sum()).collect()
    }

    /// The rows `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&i| self.row(i).iter().copied()).collect();
        Self { rows: rows.len(), cols: self.cols, values }
    }

    /// The same shape with `value` everywhere.
    pub fn filled(&self, value: f64) -> Self {
        Self { values: vec![value; self.values.len()], ..*self }
    }

    /// As a [B, T] tensor like `like` in type and device.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn to_tensor(&self, like: &Tensor) -> Result<Tensor> {
        let shape = (self.rows, self.cols);
        if like.dtype() == DType::F32 {
            let values: Vec<f32> = self.values.iter().map(|&v| v as f32).collect();
            return Ok(Tensor::from_vec(values, shape, like.device())?);
        }
        Ok(Tensor::from_slice(&self.values, shape, like.device())?.to_dtype(like.dtype())?)
    }

    /// Refuses another shape than `other`'s.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `name`.
    pub fn same_shape(&self, name: &'static str, other: &Table) -> Result<()> {
        if (self.rows, self.cols) == (other.rows, other.cols) {
            return Ok(());
        }
        let expected = format!("[{}, {}]", other.rows, other.cols);
        Err(Error::Shape { name, got: vec![self.rows, self.cols], expected })
    }
}
