//! Colours by name, and instructions by template.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{FlowTask, is_eval_seed};

/// Name and colour, each in 0..=1.
pub(crate) type Colour = (&'static str, [f32; 3]);

pub(crate) const COLOURS: [Colour; 10] = [
    ("red", [0.82, 0.16, 0.16]),
    ("orange", [0.93, 0.52, 0.14]),
    ("yellow", [0.94, 0.78, 0.16]),
    ("green", [0.22, 0.60, 0.30]),
    ("teal", [0.10, 0.58, 0.60]),
    ("blue", [0.18, 0.38, 0.78]),
    ("purple", [0.48, 0.30, 0.66]),
    ("pink", [0.88, 0.42, 0.60]),
    ("white", [0.92, 0.92, 0.89]),
    ("gray", [0.36, 0.38, 0.42]),
];

/// Wordings of each family; the last is never used for training seeds. `{o}` and `{t}` are the colours of object and
/// target.
const fn templates(task: FlowTask) -> [&'static str; 5] {
    match task {
        FlowTask::Pour => [
            "pour from the {o} cup into the {t} bowl",
            "lift the {o} cup and tilt it over the {t} bowl",
            "pour the {o} cup out into the {t} bowl",
            "pour into the {t} bowl",
            "empty the {o} cup over the {t} bowl",
        ],
        FlowTask::Insert => [
            "insert the {o} peg into the {t} holder",
            "put the {o} peg into the {t} holder",
            "stand the {o} peg upright in the {t} holder",
            "insert the peg",
            "place the {o} peg inside the {t} holder",
        ],
        FlowTask::Hang => [
            "hang the {o} ring on the peg",
            "hang the {o} ring on the {t} stand",
            "put the {o} ring over the peg of the {t} stand",
            "hang up the ring",
            "slide the {o} ring onto the peg",
        ],
        FlowTask::Drawer => [
            "open the drawer",
            "pull the {o} drawer open",
            "open the drawer of the {t} cabinet",
            "pull the drawer open by its handle",
            "slide the {o} drawer out of the cabinet",
        ],
        FlowTask::Push => [
            "push the {o} block onto the {t} mark",
            "push the {o} block to the mark",
            "slide the {o} block onto the {t} mark",
            "push the block",
            "move the {o} block over to the {t} mark",
        ],
    }
}

/// Evaluation seeds use the held-out wording once in four.
pub(crate) fn instruction(
    task: FlowTask,
    seed: u64,
    object: &str,
    target: &str,
    rng: &mut ChaCha8Rng,
) -> String {
    let all = templates(task);
    let held_out = rng.random_bool(0.25) && is_eval_seed(seed);
    let known = all[..4].choose(rng).copied().unwrap_or(all[0]);
    let template = if held_out { all[4] } else { known };
    template.replace("{o}", object).replace("{t}", target)
}
