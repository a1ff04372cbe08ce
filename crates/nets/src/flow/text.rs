//! Instructions to rows of a small table: hashed words and pairs of neighbouring words.
//!
//! Instructions of one set use a few dozen words, far fewer than any language model knows, and unseen wording shares most
//! words with seen wording. Hashing needs no vocabulary file, so sets can be mixed.

/// The row that stands for no instruction: what classifier-free guidance compares with.
pub const NO_TEXT: u32 = 0;

/// Words read of an instruction; the rest is left out.
const MOST_WORDS: usize = 32;

/// Rows of the instruction in a table of `vocabulary` rows, [`NO_TEXT`] alone for an empty one. Case and punctuation do
/// not matter.
#[must_use]
pub fn text_ids(instruction: &str, vocabulary: usize) -> Vec<u32> {
    let lower = instruction.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).take(MOST_WORDS).collect();
    let rows = vocabulary.saturating_sub(1).max(1) as u64;
    let row = |text: &[&str]| 1 + (hash(text) % rows) as u32;
    let mut ids: Vec<u32> = words.iter().map(|word| row(&[word])).collect();
    ids.extend(words.windows(2).map(row));
    if ids.is_empty() { vec![NO_TEXT] } else { ids }
}

/// FNV-1a over the words with a separator: the same on every machine.
fn hash(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([b' ']));
    let folded =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    // The low bits of FNV are weak, and the remainder takes those.
    folded ^ (folded >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_pairs_fall_into_the_table_whatever_their_case() {
        let ids = text_ids("Pour the tea, into the BOWL!", 512);
        assert_eq!(ids, text_ids("pour the tea into the bowl", 512));
        assert_eq!(ids.len(), 6 + 5);
        assert!(ids.iter().all(|&id| (1..512).contains(&id)));
        assert_eq!(ids[1], ids[4], "the same word is the same row");
        assert_ne!(text_ids("cup on bowl", 512), text_ids("bowl on cup", 512));
        assert_eq!(text_ids(" ,. ", 512), [NO_TEXT]);
        assert_eq!(text_ids(&"word ".repeat(100), 512).len(), 32 + 31);
    }
}
