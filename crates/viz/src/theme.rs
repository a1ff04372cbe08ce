//! Colours shared by charts, report and recordings, so that one thing looks the same everywhere.

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// Text and axes on a light ground.
pub const INK: Rgb = [0x1F, 0x2A, 0x37];
/// Secondary text.
pub const MUTED: Rgb = [0x6B, 0x76, 0x84];
/// Grid lines.
pub const GRID: Rgb = [0xE5, 0xE9, 0xEE];
/// Ground of charts that stand alone.
pub const PAPER: Rgb = [0xFF, 0xFF, 0xFF];
/// A successful episode.
pub const SUCCESS: Rgb = [0x2E, 0x9E, 0x6B];
/// A failed episode.
pub const FAILURE: Rgb = [0xD9, 0x5D, 0x39];
/// What the policy intends to do.
pub const PLAN: Rgb = [0x4C, 0xC9, 0xF0];

/// Series colours, in order; distinguishable with the common colour-vision deficiencies and on both light
/// and dark ground (after Okabe and Ito).
pub const SERIES: [Rgb; 7] = [
    [0x2F, 0x6F, 0xB3],
    [0xD9, 0x82, 0x2B],
    [0x2E, 0x9E, 0x7B],
    [0xB3, 0x44, 0x6C],
    [0x7A, 0x5B, 0xBF],
    [0x3F, 0xA9, 0xC9],
    [0x8C, 0x8C, 0x8C],
];

/// Colour of series number `i`, going round after the last.
#[must_use]
pub fn series(i: usize) -> Rgb {
    SERIES[i % SERIES.len()]
}

/// `#RRGGBB`, upper case, as plotters writes it.
#[must_use]
pub fn hex([r, g, b]: Rgb) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}
