//! What can go wrong with networks, weights and tokenizers.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed.
    #[error("tensor operation")]
    Tensor(#[from] candle_core::Error),
    /// A fused operation failed.
    #[error("fused operation")]
    Op(#[from] efference_ops::Error),
    /// A setting of the network's shape makes no sense.
    #[error("network setting `{field}` is {got}: {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it must be.
        expected: String,
    },
    /// ONNX Runtime cannot be loaded.
    #[error(
        "ONNX Runtime cannot be loaded: {reason}\n  hint: `cargo xtask onnx` fetches it; another one can be named in ORT_DYLIB_PATH"
    )]
    OnnxRuntime {
        /// Why.
        reason: String,
    },
    /// A network in an ONNX file cannot be used, or failed.
    #[error("`{}`: {reason}", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The weights file cannot be read.
    #[error("cannot read weights from `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The weights cannot be written.
    #[error("cannot write weights to `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The weights file is larger than any this network could have written.
    #[error("`{}` has {bytes} bytes, weights of this network take at most {most}: it belongs to a larger network", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Largest accepted size.
        most: u64,
    },
    /// A weight is infinite or not a number.
    #[error("tensor `{name}` in `{}` holds numbers that are not finite: the training that wrote it had failed; use an earlier checkpoint", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The weights file is not a whole safetensors file.
    #[error("`{}` is not a valid safetensors file ({reason}); it may be truncated: copy it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// Tensors that the network needs are not in the file, or the file holds others.
    #[error("`{}` holds weights of another network: {}", path.display(), names(missing, unexpected))]
    Names {
        /// The file.
        path: PathBuf,
        /// Names the network has and the file has not.
        missing: Vec<String>,
        /// Names the file has and the network has not.
        unexpected: Vec<String>,
    },
    /// Tensors have another shape than the network's.
    #[error("`{}` holds weights of another shape of network: {}", path.display(), shapes(tensors))]
    Shape {
        /// The file.
        path: PathBuf,
        /// All tensors that differ: name, shape in the file, shape in the network.
        tensors: Vec<(String, Vec<usize>, Vec<usize>)>,
    },
    /// A tensor has a type that holds no weights.
    #[error("tensor `{name}` in `{}` has type {got}; weights are F32, F16 or BF16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Type in the file.
        got: String,
    },
    /// A tensor of another shape than the function's documentation says.
    #[error("`{name}` is {got:?}, expected {expected}")]
    Input {
        /// Argument.
        name: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What is documented.
        expected: String,
    },
    /// A scene that cannot be given to the flow generator.
    #[error("the query cannot be answered: {reason}")]
    Query {
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer file is missing or broken.
    #[error("cannot load a tokenizer from {origin}: {reason}")]
    Tokenizer {
        /// File, or "the built-in tokenizer".
        origin: String,
        /// Why.
        reason: String,
    },
    /// An instruction is longer than the network reads.
    #[error(
        "the prompt for \"{instruction}\" takes {got} tokens, the network reads {max}; shorten the instruction or raise `max_prompt_len`"
    )]
    PromptTooLong {
        /// The instruction.
        instruction: String,
        /// Tokens it takes.
        got: usize,
        /// Tokens there is room for.
        max: usize,
    },
}

/// How many names a message lists; one wrong width changes most tensors of a network.
const SHOWN: usize = 3;

fn few(texts: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let more = texts.len().saturating_sub(SHOWN);
    let text = texts.take(SHOWN).collect::<Vec<_>>().join(separator);
    if more == 0 { text } else { format!("{text} and {more} more") }
}

fn names(missing: &[String], unexpected: &[String]) -> String {
    let list = |label: &str, names: &[String]| {
        let names = few(names.iter().map(|name| format!("`{name}`")), ", ");
        if names.is_empty() { None } else { Some(format!("{label} {names}")) }
    };
    let parts = [list("it lacks", missing), list("it also has", unexpected)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn shapes(tensors: &[(String, Vec<usize>, Vec<usize>)]) -> String {
    few(tensors.iter().map(|(name, got, needed)| format!("`{name}` is {got:?}, needed is {needed:?}")), "; ")
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
