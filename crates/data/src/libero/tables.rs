//! Columns of parquet tables, checked.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::robomimic::{ImportError, Result};

/// Rows that are decoded at a time: pictures of 256 px make these a few megabytes.
const BATCH_ROWS: usize = 64;
/// A column chunk that claims more is not believed.
const MAX_CHUNK_BYTES: i64 = 2 << 30;

/// An open table; only the wanted columns are decoded.
pub(super) struct Table {
    pub(super) path: PathBuf,
    rows: ParquetRecordBatchReader,
}

impl Table {
    /// Opens the columns `wanted` of `path`.
    pub(super) fn open(path: &Path, wanted: &[&str]) -> Result<Self> {
        let file = File::open(path).map_err(|source| ImportError::Read { path: path.into(), source })?;
        // The decoder asserts in places where it meets damage; what it says is as good as an error.
        let open = || -> std::result::Result<ParquetRecordBatchReader, String> {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
            for group in builder.metadata().row_groups() {
                for chunk in group.columns() {
                    if !(0..=MAX_CHUNK_BYTES).contains(&chunk.uncompressed_size()) {
                        let name = chunk.column_path().string();
                        return Err(format!(
                            "column `{name}` claims {} bytes in one row group",
                            chunk.uncompressed_size()
                        ));
                    }
                }
            }
            let fields = builder.schema().fields();
            for name in wanted {
                if !fields.iter().any(|f| f.name() == name) {
                    let there: Vec<&str> = fields.iter().map(|f| f.name().as_str()).collect();
                    return Err(format!("it has no column `{name}`; there is: {}", there.join(", ")));
                }
            }
            let roots: Vec<usize> = fields
                .iter()
                .enumerate()
                .filter(|(_, f)| wanted.contains(&f.name().as_str()))
                .map(|(i, _)| i)
                .collect();
            let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
            builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(|e| e.to_string())
        };
        let rows = contained(open).map_err(|problem| ImportError::LeRobot { path: path.into(), problem })?;
        Ok(Self { path: path.into(), rows })
    }

    /// The next rows; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>> {
        let next = || self.rows.next().transpose().map_err(|e| e.to_string());
        contained(next).map_err(|problem| ImportError::LeRobot { path: self.path.clone(), problem })
    }
}

/// A panic of the decoder on damaged bytes becomes an error.
fn contained<T>(run: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("the table is damaged ({})", said.unwrap_or_default()))
    })
}

/// A batch with its file, to be named in errors.
pub(super) struct Rows<'a> {
    pub(super) path: &'a Path,
    pub(super) batch: &'a RecordBatch,
}

impl Rows<'_> {
    pub(super) fn error(&self, column: &str, problem: impl Into<String>) -> ImportError {
        ImportError::Column { path: self.path.into(), column: column.into(), problem: problem.into() }
    }

    fn column(&self, name: &str) -> Result<&ArrayRef> {
        let column = self.batch.column_by_name(name).ok_or_else(|| self.error(name, "it is not there"))?;
        match column.null_count() {
            0 => Ok(column),
            n => Err(self.error(name, format!("{n} of {} values are missing", column.len()))),
        }
    }

    /// One whole number per row.
    pub(super) fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let column = self.column(name)?;
        match column.data_type() {
            DataType::Int64 => Ok(column.as_primitive::<Int64Type>().values().to_vec()),
            DataType::Int32 => {
                Ok(column.as_primitive::<Int32Type>().values().iter().map(|&x| i64::from(x)).collect())
            }
            other => Err(self.error(name, format!("holds {other}, expected whole numbers"))),
        }
    }

    /// One text per row.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>> {
        let column = self.column(name)?;
        let owned = |text: Option<&str>| text.unwrap_or_default().to_owned();
        match column.data_type() {
            DataType::Utf8 => Ok(column.as_string::<i32>().iter().map(owned).collect()),
            DataType::LargeUtf8 => Ok(column.as_string::<i64>().iter().map(owned).collect()),
            other => Err(self.error(name, format!("holds {other}, expected text"))),
        }
    }

    /// One number per row; booleans are 0 and 1.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        let column = self.column(name)?;
        self.floats(name, column)
    }

    /// Rows of `N` numbers.
    pub(super) fn vectors<const N: usize>(&self, name: &str) -> Result<Vec<[f32; N]>> {
        let column = self.column(name)?;
        let lists: Vec<ArrayRef> = match column.data_type() {
            DataType::FixedSizeList(..) => column.as_fixed_size_list().iter().flatten().collect(),
            DataType::List(_) => column.as_list::<i32>().iter().flatten().collect(),
            DataType::LargeList(_) => column.as_list::<i64>().iter().flatten().collect(),
            other => return Err(self.error(name, format!("holds {other}, expected lists of {N} numbers"))),
        };
        lists
            .iter()
            .enumerate()
            .map(|(row, list)| {
                let values = self.floats(name, list)?;
                let got = values.len();
                <[f32; N]>::try_from(values)
                    .map_err(|_| self.error(name, format!("row {row} has {got} numbers, expected {N}")))
            })
            .collect()
    }

    fn floats(&self, name: &str, array: &ArrayRef) -> Result<Vec<f32>> {
        if array.null_count() > 0 {
            return Err(self.error(name, "a number is missing"));
        }
        let values: Vec<f32> = match array.data_type() {
            DataType::Float32 => array.as_primitive::<Float32Type>().values().to_vec(),
            DataType::Float64 => {
                array.as_primitive::<Float64Type>().values().iter().map(|&x| x as f32).collect()
            }
            DataType::Int64 => array.as_primitive::<Int64Type>().values().iter().map(|&x| x as f32).collect(),
            DataType::Boolean => array.as_boolean().values().iter().map(f32::from).collect(),
            other => return Err(self.error(name, format!("holds {other}, expected numbers"))),
        };
        match values.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(self.error(name, format!("holds {x}; the recording is damaged"))),
            None => Ok(values),
        }
    }

    /// The encoded pictures of a column {bytes, path}, or of a column of bytes.
    pub(super) fn pictures(&self, name: &str) -> Result<Vec<Vec<u8>>> {
        let column = self.column(name)?;
        let bytes = match column.data_type() {
            DataType::Struct(_) => column.as_struct().column_by_name("bytes").ok_or_else(|| {
                self.error(name, "has no field `bytes`: its pictures are not inside the table")
            })?,
            _ => column,
        };
        if bytes.null_count() > 0 {
            let problem = "its pictures lie in files beside the table; embed them (Hugging Face `datasets` does when it writes parquet)";
            return Err(self.error(name, problem));
        }
        let owned = |bytes: Option<&[u8]>| bytes.unwrap_or_default().to_vec();
        match bytes.data_type() {
            DataType::Binary => Ok(bytes.as_binary::<i32>().iter().map(owned).collect()),
            DataType::LargeBinary => Ok(bytes.as_binary::<i64>().iter().map(owned).collect()),
            other => Err(self.error(name, format!("holds {other}, expected encoded pictures"))),
        }
    }
}
