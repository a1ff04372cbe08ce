//! Reads a matrix of little-endian float64 from a `.npy` file (format of NumPy, versions 1 to 3).

/// Rows and columns, and the numbers row by row.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub numbers: Vec<f64>,
}

const MAGIC: &[u8] = b"\x93NUMPY";

/// Parses a whole file. The message of an error is the rest of a sentence that starts with the file's name.
pub(crate) fn parse(bytes: &[u8]) -> Result<Matrix, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("is no .npy file: its first bytes are not NumPy's")?;
    let (header, data) = header(rest).ok_or("ends inside its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "has a header that is no text")?;
    let kind = value(header, "descr").ok_or("has a header without `descr`")?;
    if kind.trim_matches(['\'', '"']) != "<f8" {
        return Err(format!("holds numbers of type {kind}, expected '<f8' (little-endian float64)"));
    }
    if value(header, "fortran_order") != Some("False") {
        return Err("is stored by columns (`fortran_order`), expected by rows".to_owned());
    }
    let shape = value(header, "shape").ok_or("has a header without `shape`")?;
    let sides = shape.trim_matches(['(', ')']).split(',').map(str::trim).filter(|side| !side.is_empty());
    let sides: Vec<usize> =
        sides.map(str::parse).collect::<Result<_, _>>().map_err(|_| format!("has the shape {shape}"))?;
    let [rows, columns] = sides[..] else {
        return Err(format!("has the shape {shape}, expected two sides"));
    };
    let expected = rows.checked_mul(columns).and_then(|count| count.checked_mul(8));
    if expected != Some(data.len()) {
        return Err(format!(
            "says [{rows}, {columns}] but holds {} bytes of numbers: it is cut off or damaged",
            data.len()
        ));
    }
    // The length of the file bounds what is allocated here.
    let (numbers, _) = data.as_chunks::<8>();
    let numbers: Vec<f64> = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    if let Some(place) = numbers.iter().position(|number| !number.is_finite()) {
        let (row, column) = (place / columns, place % columns);
        return Err(format!("holds {} in row {row}, column {column}", numbers[place]));
    }
    Ok(Matrix { rows, columns, numbers })
}

/// Splits what follows the magic bytes into header text and data.
fn header(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let (version, rest) = rest.split_at_checked(2)?;
    let (len, rest) = if version[0] == 1 {
        let (len, rest) = rest.split_first_chunk::<2>()?;
        (u16::from_le_bytes(*len) as usize, rest)
    } else {
        let (len, rest) = rest.split_first_chunk::<4>()?;
        (u32::from_le_bytes(*len) as usize, rest)
    };
    rest.split_at_checked(len)
}

/// The text of one entry of the header, which is a Python dictionary of plain values.
fn value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let start = header.find(&format!("'{key}'"))? + key.len() + 2;
    let text = header[start..].trim_start().strip_prefix(':')?.trim_start();
    let end = if text.starts_with('(') { text.find(')')? + 1 } else { text.find([',', '}'])? };
    Some(text[..end].trim())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
