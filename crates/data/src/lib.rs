//! Episode storage and readers of other people's demonstration files.
