//! Task files: LIBERO's dialect of BDDL, the behaviour domain definition language.
//!
//! A file is one bracketed expression, `(define (problem NAME) (:section ..) ..)`; `;` starts a comment, upper and lower
//! case are the same. [`parse`] reads a text into a [`Task`], [`Task`]'s `Display` writes it back.
//!
//! ```
//! # fn main() -> Result<(), efference_envs::libero::bddl::Error> {
//! use efference_envs::libero::bddl;
//!
//! let task = bddl::parse(
//!     "(define (problem P) (:domain robosuite) (:language Close the drawer) (:regions)
//!        (:fixtures cabinet_1 - wooden_cabinet) (:objects) (:obj_of_interest cabinet_1)
//!        (:init (Open cabinet_1)) (:goal (And (Close cabinet_1))))",
//! )?;
//! assert_eq!(task.language, "close the drawer");
//! assert_eq!(task.goal[0].words(), ["close", "cabinet_1"]);
//! assert_eq!(bddl::parse(&task.to_string())?, task);
//! # Ok(())
//! # }
//! ```

mod error;
mod number;
mod parser;
mod printer;
mod task;
mod tree;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use error::{Error, Place};
pub use task::{Fact, Region, Task, Typed};

/// The longest text that is parsed, in bytes; the benchmark's longest file has 4400.
pub const MAX_BYTES: usize = 1 << 20;

/// The deepest nesting of brackets that is parsed; the benchmark's files reach 6.
pub const MAX_DEPTH: usize = 32;

/// Reads a task from its text.
///
/// # Errors
/// [`Error::Syntax`] with line, column, what was expected and what stands there; [`Error::TooLong`].
pub fn parse(text: &str) -> Result<Task, Error> {
    if text.len() > MAX_BYTES {
        return Err(Error::TooLong { bytes: text.len() as u64 });
    }
    Ok(parser::task(&tree::read(text)?)?)
}

/// Reads a task from a file.
///
/// # Errors
/// As [`parse`], with the file's name in front; [`Error::Read`] if it is not there or no text.
pub fn read(path: impl AsRef<Path>) -> Result<Task, Error> {
    let path = path.as_ref();
    let failed = |source| Error::Read { path: path.into(), source };
    let in_file = |error: Error| Error::InFile { path: path.into(), source: Box::new(error) };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > MAX_BYTES as u64 {
        return Err(in_file(Error::TooLong { bytes }));
    }
    let mut text = String::new();
    file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    parse(&text).map_err(in_file)
}
