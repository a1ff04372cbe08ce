//! Paraphrases of instructions.

/// Ways to begin a request; `{}` is the request.
const FRAMES: [&str; 6] =
    ["{}", "please {}", "could you {}", "your task is to {}", "i would like you to {}", "now {}"];

/// Words, and what may stand for them: the first of those that an instruction holds are replaced.
const SYNONYMS: [(&str, [&str; 3]); 9] = [
    ("pick up", ["grab", "lift", "take"]),
    ("place it", ["set it", "put it down", "put it"]),
    ("put both", ["place both", "set both", "move both"]),
    ("put", ["place", "set", "move"]),
    ("turn on", ["switch on", "start", "activate"]),
    ("turn off", ["switch off", "stop", "deactivate"]),
    ("open", ["pull open", "slide open", "get open"]),
    ("close", ["shut", "push shut", "fully close"]),
    ("push", ["slide", "shove", "move"]),
];

/// Paraphrase `k` of an instruction: another beginning and other verbs, never another object or place. There are 24, with
/// number 0 the instruction itself; larger numbers start again.
pub fn paraphrase(instruction: &str, k: usize) -> String {
    let (frame, verbs) = (k % FRAMES.len(), (k / FRAMES.len()) % 4);
    let mut request = instruction.to_owned();
    if let Some(which) = verbs.checked_sub(1) {
        request = replaced(&request, which);
    }
    FRAMES[frame].replace("{}", &request)
}

/// One pass from left to right, so that what was put in is not replaced again.
fn replaced(text: &str, which: usize) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let mut out: Vec<&str> = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let found = SYNONYMS.iter().find(|(from, _)| {
            let from: Vec<&str> = from.split(' ').collect();
            words[at..].starts_with(&from)
        });
        match found {
            Some((from, to)) => {
                out.push(to[which]);
                at += from.split(' ').count();
            }
            None => {
                out.push(words[at]);
                at += 1;
            }
        }
    }
    out.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_beginnings_change_and_nothing_else() {
        let text = "put the bowl in the bottom drawer of the cabinet and close it";
        assert_eq!(paraphrase(text, 0), text);
        assert_eq!(paraphrase(text, 1), format!("please {text}"));
        let shut = "place the bowl in the bottom drawer of the cabinet and shut it";
        assert_eq!((paraphrase(text, 6), paraphrase(text, 7)), (shut.into(), format!("please {shut}")));
        assert_eq!(
            paraphrase("pick up the milk and place it in the basket", 6),
            "grab the milk and set it in the basket"
        );
        // `closer` is no `close`.
        assert_eq!(paraphrase("the closer one", 6), "the closer one");
        assert_eq!(paraphrase(text, 24), text);
    }

    #[test]
    fn all_paraphrases_differ() {
        let all: std::collections::BTreeSet<String> =
            (0..24).map(|k| paraphrase("turn on the stove", k)).collect();
        assert_eq!(all.len(), 24);
    }
}
