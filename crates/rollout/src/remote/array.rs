//! NumPy arrays inside MessagePack, as policy servers write them.
//!
//! Both protocols wrap an array in a map with its bytes, its dtype string (`<f4`) and its shape. openpi's keys are binary
//! strings, vla-eval's are texts; either is read here. Sizes are checked against the bytes that are there, so a wrong
//! shape costs no memory.

use rmpv::Value;

use super::error::{RemoteError, Result};

/// How map keys of an array are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// As MessagePack binary (openpi).
    Binary,
    /// As MessagePack text (vla-eval).
    Text,
}

impl Keys {
    fn key(self, name: &str) -> Value {
        match self {
            Self::Binary => Value::Binary(name.as_bytes().to_vec()),
            Self::Text => Value::from(name),
        }
    }

    fn array(self, data: Vec<u8>, dtype: &str, shape: &[usize]) -> Value {
        let shape = shape.iter().map(|&n| Value::from(n as u64)).collect();
        Value::Map(vec![
            (self.key("__ndarray__"), Value::Boolean(true)),
            (self.key("data"), Value::Binary(data)),
            (self.key("dtype"), Value::from(dtype)),
            (self.key("shape"), Value::Array(shape)),
        ])
    }

    /// An RGB picture, [H, W, 3] bytes, top row first.
    pub(super) fn image(self, image: &image::RgbImage) -> Value {
        let shape = [image.height() as usize, image.width() as usize, 3];
        self.array(image.as_raw().clone(), "|u1", &shape)
    }

    /// A vector of f64.
    pub(super) fn vector(self, numbers: &[f64]) -> Value {
        let data = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.array(data, "<f8", &[numbers.len()])
    }
}

/// Numbers with a shape.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// The value of a key that is text or binary.
pub(super) fn get<'v>(map: &'v Value, name: &str) -> Option<&'v Value> {
    let is = |key: &Value| match key {
        Value::String(text) => text.as_bytes() == name.as_bytes(),
        Value::Binary(bytes) => bytes == name.as_bytes(),
        _ => false,
    };
    map.as_map()?.iter().find(|(key, _)| is(key)).map(|(_, value)| value)
}

/// An array in any of the forms that servers use: wrapped bytes, or (nested) lists of numbers.
pub(super) fn array(value: &Value) -> Result<Array> {
    let wrong = |why: String| RemoteError::Actions { why };
    if get(value, "__ndarray__").is_some() {
        return wrapped(value).map_err(wrong);
    }
    if value.is_array() {
        let mut array = Array { shape: Vec::new(), data: Vec::new() };
        nested(value, 0, &mut array).map_err(wrong)?;
        return Ok(array);
    }
    Err(wrong(format!("expected an array, got {}", kind(value))))
}

/// Most dimensions an array may have.
const MAX_DIMS: usize = 8;

fn nested(value: &Value, depth: usize, out: &mut Array) -> std::result::Result<(), String> {
    if let Some(items) = value.as_array() {
        match out.shape.get(depth) {
            None if depth < MAX_DIMS && out.data.is_empty() => out.shape.push(items.len()),
            Some(&n) if n == items.len() => {}
            _ => return Err("its lists have different lengths".into()),
        }
        return items.iter().try_for_each(|item| nested(item, depth + 1, out));
    }
    let number = match value {
        Value::F32(x) => f64::from(*x),
        Value::F64(x) => *x,
        Value::Integer(i) => i.as_f64().unwrap_or(f64::NAN),
        other if get(other, "__ndarray__").is_some() => {
            // A list of row arrays.
            let row = wrapped(other)?;
            let [n] = row.shape[..] else { return Err("a list of arrays that are no vectors".into()) };
            match out.shape.get(depth) {
                None if out.data.is_empty() => out.shape.push(n),
                Some(&m) if m == n => {}
                _ => return Err("its rows have different lengths".into()),
            }
            out.data.extend(row.data);
            return Ok(());
        }
        other => return Err(format!("{} where a number should be", kind(other))),
    };
    if depth != out.shape.len() {
        return Err("its lists have different depths".into());
    }
    out.data.push(number);
    Ok(())
}

fn wrapped(value: &Value) -> std::result::Result<Array, String> {
    let field = |name: &str| get(value, name).ok_or_else(|| format!("an array without `{name}`"));
    let bytes = field("data")?.as_slice().ok_or("an array whose `data` are no bytes")?;
    let dtype = field("dtype")?;
    let dtype = dtype.as_str().or_else(|| dtype.as_slice().and_then(|b| std::str::from_utf8(b).ok()));
    let dtype = dtype.ok_or("an array whose `dtype` is no text")?;
    let shape = field("shape")?.as_array().ok_or("an array whose `shape` is no list")?;
    if shape.len() > MAX_DIMS {
        return Err(format!("an array with {} dimensions", shape.len()));
    }
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let shape: Vec<usize> =
        shape.iter().map(size).collect::<Option<_>>().ok_or("an array whose `shape` holds no sizes")?;
    let (read, width) = reader(dtype).ok_or_else(|| format!("an array of dtype `{dtype}`"))?;
    let count = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
    let needed = count.and_then(|n| n.checked_mul(width));
    if needed != Some(bytes.len()) {
        return Err(format!("an array of shape {shape:?} and dtype `{dtype}` with {} bytes", bytes.len()));
    }
    Ok(Array { shape, data: bytes.chunks_exact(width).map(read).collect() })
}

type Read = fn(&[u8]) -> f64;

/// How to read one number of this dtype, and its bytes.
fn reader(dtype: &str) -> Option<(Read, usize)> {
    macro_rules! number {
        ($t:ty, $from:ident) => {{
            fn read(bytes: &[u8]) -> f64 {
                let mut buffer = [0; size_of::<$t>()];
                buffer.copy_from_slice(bytes);
                <$t>::$from(buffer) as f64
            }
            Some((read as Read, size_of::<$t>()))
        }};
    }
    match dtype {
        "|b1" | "|u1" => number!(u8, from_le_bytes),
        "|i1" => number!(i8, from_le_bytes),
        "<i2" => number!(i16, from_le_bytes),
        "<u2" => number!(u16, from_le_bytes),
        "<i4" => number!(i32, from_le_bytes),
        "<u4" => number!(u32, from_le_bytes),
        "<i8" => number!(i64, from_le_bytes),
        "<u8" => number!(u64, from_le_bytes),
        "<f4" => number!(f32, from_le_bytes),
        "<f8" => number!(f64, from_le_bytes),
        ">f4" => number!(f32, from_be_bytes),
        ">f8" => number!(f64, from_be_bytes),
        _ => None,
    }
}

/// A word for what a value is.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Boolean(_) => "a flag",
        Value::Integer(_) | Value::F32(_) | Value::F64(_) => "a number",
        Value::String(_) => "a text",
        Value::Binary(_) => "bytes",
        Value::Array(_) => "a list",
        Value::Map(_) => "a map",
        Value::Ext(..) => "an extension",
    }
}

/// MessagePack to JSON for what is only stored: arrays and bytes become a note of their size.
pub(super) fn to_json(value: &Value) -> serde_json::Value {
    use serde_json::{Map, json};
    match value {
        Value::Nil => serde_json::Value::Null,
        Value::Boolean(b) => json!(b),
        Value::Integer(i) => i.as_i64().map_or_else(|| json!(i.as_u64()), |i| json!(i)),
        Value::F32(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::String(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        Value::Binary(bytes) => json!(format!("{} bytes", bytes.len())),
        Value::Array(items) => items.iter().map(to_json).collect(),
        Value::Map(_) if get(value, "__ndarray__").is_some() => match wrapped(value) {
            Ok(array) if array.data.len() <= 64 => json!(array.data),
            Ok(array) => json!(format!("array of shape {:?}", array.shape)),
            Err(why) => json!(why),
        },
        Value::Map(pairs) => {
            let name = |key: &Value| match key {
                Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Value::String(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
                other => other.to_string(),
            };
            serde_json::Value::Object(
                pairs.iter().map(|(key, value)| (name(key), to_json(value))).collect::<Map<_, _>>(),
            )
        }
        Value::Ext(kind, bytes) => json!(format!("extension {kind}, {} bytes", bytes.len())),
    }
}
