//! The index of a folder of episodes: one JSON file that names its format and version.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::store::INDEX;

/// Longer indices are not read.
const MAX_BYTES: u64 = 256 << 20;

/// The index of `dir`, if it is of this format and version; `None` if there is no index.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, format: &str, version: u64) -> Result<Option<T>> {
    let path = dir.join(INDEX);
    let wrong = |problem: String| Error::Index { path: path.clone(), problem };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    let mut text = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut text);
    let read = read.map_err(|source| Error::Read { path: path.clone(), source })?;
    if read as u64 > MAX_BYTES {
        return Err(wrong(format!("it is longer than {MAX_BYTES} bytes")));
    }
    // Format and version first: another version's entries may have other fields.
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if json.get("format").and_then(|f| f.as_str()) != Some(format) {
        return Err(wrong(format!("its `format` is not \"{format}\"")));
    }
    let got = json.get("version").and_then(serde_json::Value::as_u64);
    let got = got.ok_or_else(|| wrong("`version` is missing".into()))?;
    if got != version {
        return Err(Error::Version { path, got, expected: version });
    }
    Ok(Some(serde_json::from_value(json).map_err(|e| wrong(e.to_string()))?))
}

/// Refuses a name that is not that of a file of the folder itself, such as `../x` or an absolute path.
pub(crate) fn check_name(dir: &Path, name: &str) -> Result<()> {
    if Path::new(name).file_name() == Some(name.as_ref()) {
        return Ok(());
    }
    Err(Error::Index { path: dir.join(INDEX), problem: format!("`{name}` is not a plain file name") })
}
