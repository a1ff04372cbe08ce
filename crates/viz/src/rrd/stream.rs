//! A recording stream whose messages we collect ourselves.

use super::OrEncode;
use crate::error::Result;
use rerun::components::Timestamp;
use rerun::external::re_log_types::StoreId;
use rerun::log::LogMsg;
use rerun::sink::CallbackSink;
use rerun::{RecordingStream, RecordingStreamBuilder};
use std::sync::{Arc, Mutex, PoisonError};

/// One recording (or layout) and its messages that are not yet written.
pub(super) struct Stream {
    pub(super) rec: RecordingStream,
    pending: Arc<Mutex<Vec<LogMsg>>>,
}

impl Stream {
    /// The recording `run_id` of application `application`, shown as `title`.
    pub(super) fn new(application: &'static str, run_id: &str, title: &str) -> Result<Self> {
        let stream =
            Self::collect(RecordingStreamBuilder::new(application).recording_id(run_id), application)?;
        stream.rec.send_recording_name(title).encode(application)?;
        stream.rec.send_recording_start_time(Timestamp::now()).encode(application)?;
        Ok(stream)
    }

    /// More messages for the store `id`.
    pub(super) fn of_store(id: &StoreId) -> Result<Self> {
        Self::collect(RecordingStreamBuilder::from_store_id(id), "layout")
    }

    fn collect(builder: RecordingStreamBuilder, what: &str) -> Result<Self> {
        // Asked for in the program: the RERUN environment variable must not turn it off.
        let rec = builder.enabled(true).send_properties(false).buffered().encode(what)?;
        rec.set_log_time_enabled(false);
        rec.set_log_tick_enabled(false);
        let pending = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&pending);
        rec.set_sink(Box::new(CallbackSink::new(move |messages| {
            to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(messages);
        })));
        Ok(Self { rec, pending })
    }

    /// All messages since the last call, in order.
    pub(super) fn take(&self, what: &str) -> Result<Vec<LogMsg>> {
        self.rec.flush_blocking().encode(what)?;
        Ok(std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
