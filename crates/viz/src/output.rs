//! A file that always ends with a whole message: after a failed write it is cut back to the last good end.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An output file and how much of it is good.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    path: PathBuf,
    good_bytes: u64,
    /// Tests set it to play a full disk.
    #[cfg(test)]
    pub(crate) capacity_bytes: Option<u64>,
}

impl Output {
    /// Creates or empties `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|source| Error::Create { path: path.into(), source })?;
        Ok(Self::new(file, path, 0))
    }

    /// Opens `path` (created when missing) to write on behind its first `good_bytes`; the rest is cut off.
    pub(crate) fn append(path: &Path, good_bytes: u64) -> Result<Self> {
        let create = |source| Error::Create { path: path.into(), source };
        let mut file = File::options().write(true).create(true).truncate(false).open(path).map_err(create)?;
        file.set_len(good_bytes).map_err(create)?;
        file.seek(SeekFrom::End(0)).map_err(create)?;
        Ok(Self::new(file, path, good_bytes))
    }

    fn new(file: File, path: &Path, good_bytes: u64) -> Self {
        Self {
            file,
            path: path.into(),
            good_bytes,
            #[cfg(test)]
            capacity_bytes: None,
        }
    }

    #[cfg(feature = "rerun")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file was renamed.
    #[cfg(feature = "rerun")]
    pub(crate) fn set_path(&mut self, path: &Path) {
        self.path = path.into();
    }

    /// Everything written so far is whole.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        self.good_bytes = self.file.stream_position()?;
        Ok(())
    }

    /// Cuts a half-written message off. Its own failure changes nothing: readers stop at the broken end.
    pub(crate) fn roll_back(&mut self) {
        let _ = self.file.set_len(self.good_bytes);
        let _ = self.file.seek(SeekFrom::Start(self.good_bytes));
    }

    /// Waits until the data is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The error to return for `source` on this file.
    pub(crate) fn write_error(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(capacity) = self.capacity_bytes {
            let room = capacity.saturating_sub(self.file.stream_position()?) as usize;
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            return self.file.write(&bytes[..room.min(bytes.len())]);
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
