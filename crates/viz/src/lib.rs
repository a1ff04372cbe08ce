//! What a person looks at: rerun recordings, curves, reports.
