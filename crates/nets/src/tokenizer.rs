//! Instructions to token ids.

use std::path::Path;

use crate::error::{Error, Result};
use crate::vla::SpecialIds;

/// The byte-level BPE shipped with the project (`assets/tokenizer.json`, made by `examples/make_tokenizer.rs`).
pub const BUILT_IN_TOKENIZER: &str = include_str!("../../../assets/tokenizer.json");

/// Wraps a Hugging Face tokenizer with what the policy needs of it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
}

/// A prompt padded to a fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptIds {
    /// Token ids; positions from `len` on are padding.
    pub ids: Vec<u32>,
    /// Real tokens.
    pub len: usize,
}

impl Tokenizer {
    /// The tokenizer shipped with the project: no file needed.
    ///
    /// # Errors
    /// Never with the shipped file; the type says so anyway because parsing can fail.
    pub fn built_in() -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(BUILT_IN_TOKENIZER.as_bytes());
        Self::wrap(inner, "the built-in tokenizer")
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`]: the file is missing, is no tokenizer, or lacks `<s>`, `</s>` or `<pad>`.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::wrap(tokenizers::Tokenizer::from_file(path), &path.display().to_string())
    }

    fn wrap(inner: tokenizers::Result<tokenizers::Tokenizer>, origin: &str) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { origin: origin.into(), reason };
        let mut inner = inner.map_err(|e| fail(e.to_string()))?;
        // "</s>" inside an instruction is five letters, not the stop token.
        inner.set_encode_special_tokens(true);
        let special =
            |name: &str| inner.token_to_id(name).ok_or_else(|| fail(format!("it has no token `{name}`")));
        let (bos, eos, pad) = (special("<s>")?, special("</s>")?, special("<pad>")?);
        Ok(Self { inner, bos, eos, pad })
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Ids with a fixed place in the sequence.
    pub fn special(&self) -> SpecialIds {
        SpecialIds { bos: self.bos, eos: self.eos, pad: self.pad }
    }

    /// Begin of sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// End of sequence, the stop token behind the action placeholders.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Padding.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Ids of a text, without special tokens.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| Error::Tokenizer {
            origin: format!("the text \"{text}\""),
            reason: e.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids, special tokens left out.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.inner.decode(ids, true);
        text.map_err(|e| Error::Tokenizer { origin: format!("the ids {ids:?}"), reason: e.to_string() })
    }

    /// OpenVLA's prompt for an instruction, padded to `max_len` tokens.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`].
    pub fn prompt(&self, instruction: &str, max_len: usize) -> Result<PromptIds> {
        let mut ids = self.encode(&prompt_text(instruction))?;
        let len = ids.len();
        if len > max_len {
            let instruction = instruction.to_string();
            return Err(Error::PromptTooLong { instruction, got: len, max: max_len });
        }
        ids.resize(max_len, self.pad);
        Ok(PromptIds { ids, len })
    }
}

/// OpenVLA's prompt (`modeling_prismatic.py`): the instruction in lower case inside a fixed question.
pub fn prompt_text(instruction: &str) -> String {
    format!("In: What action should the robot take to {}?\nOut:", instruction.to_lowercase())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn any_text_round_trips() {
        let t = Tokenizer::built_in().unwrap();
        for text in ["put the green cylinder in the tray", "Öffne die Schublade 🤖\n\t", "say </s> <pad>", ""]
        {
            assert_eq!(t.decode(&t.encode(text).unwrap()).unwrap(), text);
        }
        assert!(t.vocab_size() <= 512);
        // Every byte has a token.
        let all: String = (0..=255u8).map(char::from).collect();
        assert_eq!(t.decode(&t.encode(&all).unwrap()).unwrap(), all);
    }

    #[test]
    fn prompts_are_short_and_padded() {
        let t = Tokenizer::built_in().unwrap();
        let prompt = t.prompt("Put the green cylinder in the tray", 24).unwrap();
        assert_eq!(prompt.len, 9); // the two fixed parts are one token each, and so is every word it was trained on
        assert_eq!((t.pad(), t.bos(), t.eos()), (0, 1, 2));
        assert_eq!(prompt.ids.len(), 24);
        assert!(prompt.ids[prompt.len..].iter().all(|&id| id == t.pad()));
        let long = t.prompt(&"pick ".repeat(60), 24).unwrap_err();
        assert!(matches!(long, Error::PromptTooLong { max: 24, .. }));
    }

    #[test]
    fn broken_files_are_named() {
        let missing = Tokenizer::from_file(Path::new("no/such/tokenizer.json")).err().unwrap();
        assert!(missing.to_string().contains("no/such/tokenizer.json"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, "{}").unwrap();
        assert!(Tokenizer::from_file(&path).is_err());
    }
}
