//! The `.rrd` file: append whole messages, survive a full disk and a killed process.

use super::layout::Layout;
use super::{OrEncode, ROLLOUTS};
use crate::error::{Error, Result};
use crate::output::Output;
use rerun::external::re_build_info::CrateVersion;
use rerun::external::re_log_encoding::{Decoder, EncodeError, Encoder, EncodingOptions};
use rerun::external::re_log_types::StoreKind;
use rerun::log::LogMsg;
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The encoder owns its writer; this handle lets us reach the file as well.
#[derive(Clone)]
struct Shared(Arc<Mutex<Output>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

pub(super) struct RrdFile {
    out: Shared,
    /// `None` after the end or a failed write.
    encoder: Option<Encoder<Shared>>,
}

impl RrdFile {
    /// Creates or empties `path`.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let out = Shared(Arc::new(Mutex::new(Output::create(path)?)));
        let encoder =
            Encoder::new_eager(CrateVersion::LOCAL, EncodingOptions::PROTOBUF_COMPRESSED, out.clone());
        let mut file = Self { out, encoder: None };
        match encoder {
            Ok(mut encoder) => {
                // The table of contents grows with the square of the number of entities and would soon be most of
                // the file; the viewer reads the messages themselves.
                encoder.do_not_emit_footer();
                file.encoder = Some(encoder);
            }
            Err(e) => return Err(file.fail(e)),
        }
        Ok(file)
    }

    /// Writes `messages`. After an error the file ends with the last whole message and takes no more.
    pub(super) fn append(&mut self, messages: &[LogMsg]) -> Result<()> {
        for message in messages {
            let Some(encoder) = &mut self.encoder else { return Ok(()) };
            let written = encoder.append(message);
            if let Err(e) = written.and_then(|_| self.out.lock().commit().map_err(EncodeError::Write)) {
                return Err(self.fail(e));
            }
        }
        Ok(())
    }

    /// Waits until everything is on the disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        let synced = self.out.lock().sync();
        synced.map_err(|e| self.fail(EncodeError::Write(e)))
    }

    /// Closes the file. One that was not closed (after a kill) can be read all the same.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        if let Err(e) = encoder.finish() {
            return Err(self.fail(e));
        }
        self.encoder = None;
        self.sync()
    }

    fn fail(&mut self, error: EncodeError) -> Error {
        // Taking the writer out keeps the encoder from writing its end mark when dropped.
        if let Some(encoder) = self.encoder.take() {
            drop(encoder.into_inner());
        }
        let mut out = self.out.lock();
        out.roll_back();
        match error {
            EncodeError::Write(source) => out.write_error(source),
            other => Error::Encode { what: out.path().display().to_string(), reason: other.to_string() },
        }
    }

    #[cfg(test)]
    pub(super) fn set_capacity_bytes(&self, bytes: u64) {
        self.out.lock().capacity_bytes = Some(bytes);
    }
}

/// Continues the recording at `path`: what is whole in it is copied to a new file that takes its place, because
/// the old one may end inside a message or with a table of contents that is no longer true.
/// Gives no layout if there is nothing to continue.
pub(super) fn resume(path: &Path) -> Result<(RrdFile, Option<Layout>)> {
    let resume = |reason: String| Error::Resume { path: path.into(), reason };
    let (messages, broken) = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((RrdFile::create(path)?, None)),
        Err(e) => return Err(resume(e.to_string())),
        Ok(file) => read_whole(file),
    };
    let Some(layout) = messages.iter().rev().find_map(Layout::load) else {
        // Killed before its first flush; or no recording of ours, which must not be overwritten.
        let is_ours =
            messages.iter().all(|m| m.store_id().application_id().as_str().starts_with("efference"));
        return match broken {
            None if is_ours => Ok((RrdFile::create(path)?, None)),
            Some(reason) if messages.is_empty() => Err(resume(reason)),
            Some(_) if is_ours => Ok((RrdFile::create(path)?, None)),
            _ => Err(resume(format!("it holds no recording `{ROLLOUTS}`"))),
        };
    };
    // Layouts are written anew; old ones would only pile up.
    let kept: Vec<LogMsg> =
        messages.into_iter().filter(|m| m.store_id().kind() == StoreKind::Recording).collect();
    let temporary = path.with_extension("rrd.tmp");
    let mut file = RrdFile::create(&temporary)?;
    file.append(&kept)?;
    file.sync()?;
    fs::rename(&temporary, path).map_err(|e| resume(e.to_string()))?;
    file.out.lock().set_path(path);
    Ok((file, Some(layout)))
}

/// The messages up to the first broken one, and what is broken.
pub(super) fn read_whole(file: File) -> (Vec<LogMsg>, Option<String>) {
    let mut messages = Vec::new();
    for message in Decoder::<LogMsg>::decode_lazy(BufReader::new(file)) {
        match message {
            Ok(message) => messages.push(message),
            Err(e) => return (messages, Some(e.to_string())),
        }
    }
    (messages, None)
}

/// All messages of a whole file.
#[cfg(test)]
pub(super) fn read(path: &Path) -> Vec<LogMsg> {
    let (messages, broken) = read_whole(File::open(path).expect("the file is there"));
    assert_eq!(broken, None);
    messages
}

impl Layout {
    /// The layout saved in `message`, if it is that message.
    fn load(message: &LogMsg) -> Option<Self> {
        let LogMsg::ArrowMsg(_, arrow) = message else { return None };
        let chunk = rerun::log::Chunk::from_arrow_msg(arrow).encode("chunk").ok()?;
        Self::from_chunk(&chunk)
    }
}
