//! Trains the byte-level BPE that the project ships: `cargo run --release -p efference-nets --example make_tokenizer`.
//!
//! Byte-level: any text can be written, whatever it was trained on. The small corpus below only decides which words
//! become single tokens, so that a prompt stays short.

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    SplitDelimiterBehavior, TokenizerBuilder, TokenizerImpl,
};

const VOCABULARY: usize = 512;

fn corpus() -> Vec<String> {
    let colours = ["red", "green", "blue", "yellow", "white", "black", "orange", "purple", "grey", "brown"];
    let things = [
        "cube", "block", "cylinder", "tray", "mark", "drawer", "button", "bowl", "plate", "mug", "box",
        "basket", "cabinet", "stove", "bottle", "can", "handle", "lid", "ball", "book",
    ];
    let mut text = Vec::new();
    let mut say = |instruction: String| {
        text.push(format!("In: What action should the robot take to {instruction}?\nOut:"));
    };
    for thing in things {
        for colour in colours {
            say(format!("pick up the {colour} {thing}"));
            say(format!("move to the {colour} {thing}"));
            say(format!("put the {colour} {thing} in the tray"));
            say(format!("push the {colour} {thing} onto the mark"));
            say(format!("stack the {colour} {thing} on the {} block", colours[thing.len() % colours.len()]));
        }
        for verb in
            ["open", "close", "press", "lift", "turn on", "turn off", "move to", "push", "pull", "reach"]
        {
            say(format!("{verb} the {thing}"));
        }
        for place in ["left", "right", "front", "back", "top", "middle", "bottom"] {
            say(format!("put the {thing} on the {place} of the {}", things[place.len() % things.len()]));
        }
    }
    text
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // In this order, so that `<s>` and `</s>` have the ids of Llama's vocabulary, 1 and 2.
    let special = ["<pad>", "<s>", "</s>"].map(|t| AddedToken::from(t, true));
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.to_vec())
        .build();
    // The fixed parts of the prompt and every word with its space are pieces; nothing merges across pieces.
    let pieces = Split::new(
        SplitPattern::Regex(r"In: What action should the robot take to|\?\nOut:| ?\w+|\s+|[^\s\w]+".into()),
        SplitDelimiterBehavior::Isolated,
        false,
    )?;
    let byte_level = ByteLevel::new(false, false, false);
    let steps =
        Sequence::new(vec![PreTokenizerWrapper::Split(pieces), PreTokenizerWrapper::ByteLevel(byte_level)]);
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(steps)))
        .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level)))
        .build()?;
    tokenizer.train(&mut trainer, corpus().into_iter())?;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tokenizer.json");
    tokenizer.save(&path, true)?;
    println!("{} tokens in {}", tokenizer.get_vocab_size(true), path.display());
    Ok(())
}
