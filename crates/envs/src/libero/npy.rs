//! Reads a matrix of little-endian float64 from a `.npy` file.

use efference_data::npy::{self, NpyArray};

/// Rows and columns, and the numbers row by row.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub numbers: Vec<f64>,
}

/// Parses a whole file. The message of an error is the rest of a sentence that starts with the file's name.
pub(crate) fn parse(bytes: &[u8]) -> Result<Matrix, String> {
    let NpyArray { kind, shape, numbers } = npy::parse(bytes)?;
    if kind != "<f8" {
        return Err(format!("holds numbers of type '{kind}', expected '<f8' (little-endian float64)"));
    }
    let [rows, columns] = shape[..] else {
        return Err(format!("has the shape {shape:?}, expected two sides"));
    };
    if let Some(place) = numbers.iter().position(|number| !number.is_finite()) {
        let (row, column) = (place / columns, place % columns);
        return Err(format!("holds {} in row {row}, column {column}", numbers[place]));
    }
    Ok(Matrix { rows, columns, numbers })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAGIC: &[u8] = b"\x93NUMPY";

    fn file(header: &str, numbers: &[f64]) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
        numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes
    }

    const GOOD: &str = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }";

    #[test]
    fn rows_come_back() {
        let matrix = parse(&file(GOOD, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.5])).unwrap();
        assert_eq!((matrix.rows, matrix.columns), (2, 3));
        assert_eq!(matrix.numbers, [1.0, 2.0, 3.0, 4.0, 5.0, 6.5]);
    }

    #[test]
    fn damage_is_told() {
        let good = file(GOOD, &[0.0; 6]);
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len} bytes");
        }
        let cases = [
            (file(GOOD, &[0.0, 0.0, 0.0, 0.0, f64::NAN, 0.0]), "holds NaN in row 1, column 1"),
            (file(&GOOD.replace("<f8", "<f4"), &[0.0; 6]), "'<f4'"),
            (file(&GOOD.replace("False", "True"), &[0.0; 6]), "by columns"),
            (file(&GOOD.replace("(2, 3)", "(6,)"), &[0.0; 6]), "two sides"),
            (file(&GOOD.replace("(2, 3)", "(99999999999, 99999999999)"), &[0.0; 6]), "cut off"),
            (b"PK\x03\x04".to_vec(), "no .npy file"),
        ];
        for (bytes, words) in cases {
            let message = parse(&bytes).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
