//! What a recording holds, read back with the viewer's own library.

use super::{OrEncode, file};
use crate::error::{Error, Result};
use crate::recorder::Contents;
use rerun::external::re_log_types::StoreKind;
use rerun::log::{Chunk, LogMsg};
use std::fs::File;
use std::path::Path;

/// See [`crate::contents`].
pub(crate) fn contents(path: &Path) -> Result<Contents> {
    let opened = File::open(path).map_err(|_| Error::NoRecording { path: path.into() })?;
    let (messages, broken) = file::read_whole(opened);
    if let (true, Some(reason)) = (messages.is_empty(), broken) {
        return Err(Error::Encode { what: path.display().to_string(), reason });
    }
    count(&messages)
}

pub(super) fn count(messages: &[LogMsg]) -> Result<Contents> {
    let mut recordings = Contents::new();
    for message in messages {
        let (id, LogMsg::ArrowMsg(_, arrow)) = (message.store_id(), message) else { continue };
        if id.kind() == StoreKind::Recording {
            let chunk = Chunk::from_arrow_msg(arrow).encode("chunk")?;
            let rows = recordings.entry(id.application_id().as_str().to_owned()).or_default();
            *rows.entry(chunk.entity_path().to_string()).or_insert(0) +=
                if chunk.is_static() { 0 } else { chunk.num_rows() };
        }
    }
    Ok(recordings)
}
