//! Reads arrays of numbers from `.npy` files (format of NumPy, versions 1 to 3).

/// An array, row by row (the last index runs fastest).
#[derive(Clone, Debug, PartialEq)]
pub struct NpyArray {
    /// How NumPy names the type of the numbers in the file, such as `<f4`.
    pub kind: String,
    /// Entries along each axis.
    pub shape: Vec<usize>,
    /// The numbers; they may be NaN or infinite.
    pub numbers: Vec<f64>,
}

const MAGIC: &[u8] = b"\x93NUMPY";

/// Parses a whole file of little-endian f32 or f64, or of bytes or truth values (0 and 1), stored by rows.
///
/// # Errors
/// The rest of a sentence that starts with the file's name.
pub fn parse(bytes: &[u8]) -> Result<NpyArray, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("is no .npy file: its first bytes are not NumPy's")?;
    let (header, data) = header(rest).ok_or("ends inside its header")?;
    let header = std::str::from_utf8(header).map_err(|_| "has a header that is no text")?;
    let kind = value(header, "descr").ok_or("has a header without `descr`")?;
    let kind = kind.trim_matches(['\'', '"']);
    let size = match kind {
        "<f8" => 8,
        "<f4" => 4,
        "|u1" | "|b1" => 1,
        _ => {
            return Err(format!(
                "holds numbers of type '{kind}', expected '<f8' or '<f4' (little-endian float64 or float32), '|u1' or '|b1'"
            ));
        }
    };
    if value(header, "fortran_order") != Some("False") {
        return Err("is stored by columns (`fortran_order`), expected by rows".to_owned());
    }
    let shape = value(header, "shape").ok_or("has a header without `shape`")?;
    let sides = shape.trim_matches(['(', ')']).split(',').map(str::trim).filter(|side| !side.is_empty());
    let sides: Vec<usize> =
        sides.map(str::parse).collect::<Result<_, _>>().map_err(|_| format!("has the shape {shape}"))?;
    let expected = sides.iter().try_fold(size, |product: usize, side| product.checked_mul(*side));
    if expected != Some(data.len()) {
        return Err(format!(
            "says {sides:?} but holds {} bytes of numbers: it is cut off or damaged",
            data.len()
        ));
    }
    // The length of the file bounds what is allocated here.
    let numbers = match size {
        8 => data.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        4 => data.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect(),
        _ => data.iter().map(|byte| f64::from(*byte)).collect(),
    };
    Ok(NpyArray { kind: kind.to_owned(), shape: sides, numbers })
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

    fn file(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn arrays_of_each_type_come_back() {
        let floats: Vec<u8> = [1.5f32, -2.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let array = parse(&file("<f4", "(3, 1, 1)", &floats)).unwrap();
        assert_eq!((array.shape, array.numbers), (vec![3, 1, 1], vec![1.5, -2.0, 4.0]));
        let array = parse(&file("|b1", "(2,)", &[1, 0])).unwrap();
        assert_eq!((array.kind.as_str(), array.numbers), ("|b1", vec![1.0, 0.0]));
        assert_eq!(parse(&file("<f8", "()", &7.0f64.to_le_bytes())).unwrap().numbers, [7.0]);
    }

    #[test]
    fn damage_is_told() {
        for (bytes, words) in [
            (file("<i8", "(1,)", &[0; 8]), "'<i8'"),
            (file("<f4", "(2,)", &[0; 7]), "cut off"),
            (file("<f4", "(99999999999, 99999999999)", &[0; 8]), "cut off"),
            (file("<f4", "(x,)", &[0; 8]), "the shape"),
            (b"PK".to_vec(), "no .npy file"),
            (MAGIC.to_vec(), "ends inside"),
        ] {
            let message = parse(&bytes).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
