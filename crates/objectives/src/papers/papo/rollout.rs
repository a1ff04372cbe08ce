//! Around the loss: masked images and rewards.

use crate::error::{Error, Result};

/// Which patches of an image are black: squares of `patch` pixels from the top left, rows then columns, cropped at
/// the right and bottom edge. `draws` are uniform in [0, 1), one per patch; below `black_prob` (0.6) a patch is
/// black. Returns rows, columns and flags.
///
/// # Errors
/// No pixels or patch size, or fewer draws than patches.
pub fn random_patches(
    (height, width): (usize, usize),
    patch: usize,
    black_prob: f64,
    draws: &[f64],
) -> Result<(usize, usize, Vec<bool>)> {
    if height == 0 || width == 0 || patch == 0 {
        let reason = format!("{height} x {width} pixels in patches of {patch}");
        return Err(Error::Invalid { what: "image", reason });
    }
    let (rows, cols) = (height.div_ceil(patch), width.div_ceil(patch));
    if draws.len() < rows * cols {
        let expected = format!("[{}], one per patch", rows * cols);
        return Err(Error::Shape { name: "draws", got: vec![draws.len()], expected });
    }
    Ok((rows, cols, draws.iter().take(rows * cols).map(|&u| u < black_prob).collect()))
}

/// The other masking strategy: the `ratio` most salient patches are black, the earlier one at a tie. `saliency`
/// [patches], for instance a vision encoder's self-attention. Reconstructed from the paper's words; random patches
/// do better there.
pub fn salient_patches(saliency: &[f64], ratio: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..saliency.len()).collect();
    order.sort_by(|&a, &b| saliency[b].total_cmp(&saliency[a]));
    let mut black = vec![false; saliency.len()];
    let count = (saliency.len() as f64 * ratio).round() as usize;
    order.iter().take(count).for_each(|&i| black[i] = true);
    black
}

/// Blackens patches (see [`random_patches`]) of an image [height, width, channels]; returns how many pixels became
/// black.
///
/// # Errors
/// The image is not `height * width * channels` long; what [`random_patches`] refuses.
pub fn blacken(
    image: &mut [u8],
    (height, width, channels): (usize, usize, usize),
    patch: usize,
    black_prob: f64,
    draws: &[f64],
) -> Result<usize> {
    if image.len() != height * width * channels {
        let expected = format!("[{}], height * width * channels", height * width * channels);
        return Err(Error::Shape { name: "image", got: vec![image.len()], expected });
    }
    let (_, cols, black) = random_patches((height, width), patch, black_prob, draws)?;
    let mut pixels = 0;
    for (i, pixel) in image.chunks_exact_mut(channels.max(1)).enumerate() {
        let (y, x) = (i / width, i % width);
        if black[y / patch * cols + x / patch] {
            pixel.fill(0);
            pixels += 1;
        }
    }
    Ok(pixels)
}

/// 1 when the whole response is `<think>..</think>..\boxed{..}..`, after space around `<`, `>` and `/` is gone;
/// else 0.
pub fn format_score(response: &str) -> f64 {
    let text = tighten(response);
    let after = |text: &str, mark: &str| text.find(mark).map(|at| text[at + mark.len()..].to_string());
    let matches = text
        .strip_prefix("<think>")
        .and_then(|rest| after(rest, "</think>"))
        .and_then(|rest| after(&rest, "\\boxed{"))
        .is_some_and(|rest| rest.contains('}'));
    f64::from(u8::from(matches))
}

/// (1 - weight) accuracy + weight format; the authors' weight is 0.1.
pub fn overall_score(accuracy: f64, format: f64, format_weight: f64) -> f64 {
    (1.0 - format_weight) * accuracy + format_weight * format
}

/// The text without white space next to `<`, `>` or `/`.
fn tighten(text: &str) -> String {
    let mark = |c: Option<char>| matches!(c, Some('<' | '>' | '/'));
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.trim_start();
        let space = &rest[..rest.len() - word.len()];
        if !mark(out.chars().next_back()) && !mark(word.chars().next()) {
            out.push_str(space);
        }
        let end = word.find(char::is_whitespace).unwrap_or(word.len());
        out.push_str(&word[..end]);
        rest = &word[end..];
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_most_salient_patches_are_black() {
        assert_eq!(salient_patches(&[0.1, 0.9, 0.5, 0.9, 0.0], 0.6), [false, true, true, true, false]);
        assert!(random_patches((14, 29), 14, 0.5, &[0.0; 2]).is_err());
    }

    proptest! {
        #[test]
        fn tightening_is_idempotent_and_keeps_what_is_not_space(text in "[<>/ab \\n]{0,24}") {
            let once = tighten(&text);
            prop_assert_eq!(&tighten(&once), &once);
            let solid = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(solid(&once), solid(&text));
        }
    }
}
