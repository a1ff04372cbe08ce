//! Films as files.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use image::RgbImage;

use super::MovieOptions;
use crate::error::{Error, Result};

/// File formats of films.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Gif,
    Mp4,
}

impl Format {
    /// By the ending of the file's name.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        match ending.as_str() {
            "png" | "apng" => Ok(Self::Png),
            "gif" => Ok(Self::Gif),
            "mp4" => Ok(Self::Mp4),
            _ => Err(film(path, "films are .png (animated), .gif or .mp4")),
        }
    }
}

/// A film that is being written; pictures all have the size of the first.
pub(super) struct Film {
    path: PathBuf,
    options: MovieOptions,
    /// The latest picture, not yet written: only then it is known whether it is the last.
    latest: RgbImage,
    to: Writer,
}

enum Writer {
    /// Pictures are kept: the number of them stands in the head of the file.
    Png(Vec<RgbImage>),
    Gif {
        encoder: Box<gif::Encoder<BufWriter<File>>>,
        palette: Palette,
        shown: Option<Vec<u8>>,
    },
    Mp4(Child),
}

impl Film {
    /// `first` and last picture tell which colours the film needs.
    pub(super) fn start(
        path: &Path,
        format: Format,
        first: RgbImage,
        last: &RgbImage,
        options: &MovieOptions,
    ) -> Result<Self> {
        let to = match format {
            Format::Png => Writer::Png(Vec::new()),
            Format::Gif => {
                let palette = Palette::of(&[&first, last]);
                let (w, h) = (first.width() as u16, first.height() as u16);
                let out = BufWriter::new(create(path)?);
                let encoder = gif::Encoder::new(out, w, h, &palette.colors);
                let mut encoder = encoder.map_err(|e| film(path, e))?;
                encoder.set_repeat(gif::Repeat::Infinite).map_err(|e| film(path, e))?;
                Writer::Gif { encoder: Box::new(encoder), palette, shown: None }
            }
            Format::Mp4 => Writer::Mp4(ffmpeg("ffmpeg", path, first.dimensions(), options)?),
        };
        Ok(Self { path: path.into(), options: *options, latest: first, to })
    }

    /// The next picture.
    pub(super) fn add(&mut self, picture: RgbImage) -> Result<()> {
        let written = std::mem::replace(&mut self.latest, picture);
        self.write(written, 1.0 / f64::from(self.options.fps))
    }

    fn write(&mut self, picture: RgbImage, seconds: f64) -> Result<()> {
        let path = &self.path;
        match &mut self.to {
            Writer::Png(pictures) => pictures.push(picture),
            Writer::Gif { encoder, palette, shown } => {
                let now = palette.indices(&picture);
                let frame = gif_frame(&picture, &now, shown.as_deref(), seconds);
                encoder.write_frame(&frame).map_err(|e| film(path, e))?;
                *shown = Some(now);
            }
            Writer::Mp4(child) => {
                // A film knows no long pictures: the last one is repeated.
                let times = (seconds * f64::from(self.options.fps)).round().max(1.0) as usize;
                let Some(pipe) = child.stdin.as_mut() else {
                    return Err(film(path, "ffmpeg takes no input"));
                };
                for _ in 0..times {
                    // A broken pipe: ffmpeg has ended and says why at the end.
                    match pipe.write_all(picture.as_raw()) {
                        Err(e) if e.kind() == ErrorKind::BrokenPipe => break,
                        other => other.map_err(|e| film(path, e))?,
                    }
                }
            }
        }
        Ok(())
    }

    /// The last picture, which stays for a while, and the end.
    pub(super) fn finish(mut self) -> Result<()> {
        let latest = std::mem::take(&mut self.latest);
        let hold_s = self.options.hold_s.max(1.0 / f64::from(self.options.fps));
        self.write(latest, hold_s)?;
        match self.to {
            Writer::Png(pictures) => apng(&self.path, &pictures, &self.options),
            Writer::Gif { encoder, .. } => {
                let out = encoder.into_inner().map_err(|e| film(&self.path, e))?;
                out.into_inner().map(drop).map_err(|e| film(&self.path, e.error()))
            }
            Writer::Mp4(mut child) => {
                drop(child.stdin.take());
                let output = child.wait_with_output().map_err(|e| film(&self.path, e))?;
                if output.status.success() {
                    return Ok(());
                }
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("nothing").to_owned();
                Err(film(&self.path, format!("ffmpeg ended with {} and said: {said}", output.status)))
            }
        }
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|source| Error::Create { path: path.into(), source })
}

fn film(path: &Path, reason: impl ToString) -> Error {
    Error::Film { path: path.into(), reason: reason.to_string() }
}

fn ffmpeg(program: &str, path: &Path, (w, h): (u32, u32), options: &MovieOptions) -> Result<Child> {
    let mut command = Command::new(program);
    command.args([
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        &format!("{w}x{h}"),
    ]);
    command.args(["-r", &options.fps.to_string(), "-i", "-", "-an", "-c:v", "libx264", "-crf", "18"]);
    command.args(["-pix_fmt", "yuv420p", "-movflags", "+faststart"]).arg(path);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            film(path, format!("no `{program}` on PATH: install it, or write a .gif or .png instead"))
        }
        _ => film(path, e),
    })
}

/// An animated PNG: the first picture whole, then what changes.
fn apng(path: &Path, pictures: &[RgbImage], options: &MovieOptions) -> Result<()> {
    let fail = |e: png::EncodingError| film(path, e);
    let Some(first) = pictures.first() else { return Ok(()) };
    let (w, h) = first.dimensions();
    let mut encoder = png::Encoder::new(BufWriter::new(create(path)?), w, h);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_animated(pictures.len() as u32, 0).map_err(fail)?;
    encoder.set_frame_delay(1, options.fps as u16).map_err(fail)?;
    encoder.set_blend_op(png::BlendOp::Source).map_err(fail)?;
    let mut writer = encoder.write_header().map_err(fail)?;
    for (i, picture) in pictures.iter().enumerate() {
        if i + 1 == pictures.len() {
            let hold_ms = (1000.0 * options.hold_s).clamp(1.0, 60_000.0) as u16;
            writer.set_frame_delay(hold_ms, 1000).map_err(fail)?;
        }
        let [x, y, fw, fh] = match i {
            0 => [0, 0, w, h],
            _ => changed(&pictures[i - 1], picture),
        };
        if i > 0 {
            writer.set_frame_dimension(fw, fh).map_err(fail)?;
            writer.set_frame_position(x, y).map_err(fail)?;
        }
        let part = image::imageops::crop_imm(picture, x, y, fw, fh).to_image();
        writer.write_image_data(part.as_raw()).map_err(fail)?;
    }
    writer.finish().map_err(fail)
}

/// The smallest rectangle (left, top, width, height) outside of which two pictures of one size agree; one pixel if they
/// agree everywhere.
fn changed(before: &RgbImage, now: &RgbImage) -> [u32; 4] {
    let (mut low, mut high) = ([u32::MAX; 2], [0; 2]);
    for ((x, y, a), b) in before.enumerate_pixels().zip(now.pixels()) {
        if a != b {
            low = [low[0].min(x), low[1].min(y)];
            high = [high[0].max(x + 1), high[1].max(y + 1)];
        }
    }
    if low[0] == u32::MAX { [0, 0, 1, 1] } else { [low[0], low[1], high[0] - low[0], high[1] - low[1]] }
}

/// What changes since `shown`, as a frame; unchanged pixels in it are transparent.
fn gif_frame<'a>(picture: &RgbImage, now: &[u8], shown: Option<&[u8]>, seconds: f64) -> gif::Frame<'a> {
    let (w, h) = (picture.width() as usize, picture.height() as usize);
    let is_new = |i: usize| shown.is_none_or(|before| before[i] != now[i]);
    let (mut low, mut high) = ([usize::MAX; 2], [0; 2]);
    for i in (0..w * h).filter(|i| is_new(*i)) {
        low = [low[0].min(i % w), low[1].min(i / w)];
        high = [high[0].max(i % w + 1), high[1].max(i / w + 1)];
    }
    if low[0] == usize::MAX {
        (low, high) = ([0; 2], [1; 2]);
    }
    let rows = (low[1]..high[1]).flat_map(|y| (low[0]..high[0]).map(move |x| y * w + x));
    let buffer: Vec<u8> = rows.map(|i| if is_new(i) { now[i] } else { Palette::CLEAR }).collect();
    gif::Frame {
        delay: (100.0 * seconds).round().clamp(2.0, 60_000.0) as u16,
        dispose: gif::DisposalMethod::Keep,
        transparent: Some(Palette::CLEAR),
        left: low[0] as u16,
        top: low[1] as u16,
        width: (high[0] - low[0]) as u16,
        height: (high[1] - low[1]) as u16,
        buffer: buffer.into(),
        ..gif::Frame::default()
    }
}

/// One table of colours for the whole film, so that what stands still stays the same.
struct Palette {
    /// Red, green, blue of 256 colours; the last one stands for "as before".
    colors: Vec<u8>,
    quantizer: color_quant::NeuQuant,
}

impl Palette {
    const CLEAR: u8 = 255;

    /// Of the colours of these pictures.
    fn of(pictures: &[&RgbImage]) -> Self {
        let pixels = pictures.iter().flat_map(|picture| picture.pixels());
        let rgba: Vec<u8> = pixels.flat_map(|p| [p.0[0], p.0[1], p.0[2], 255]).collect();
        let quantizer = color_quant::NeuQuant::new(3, 255, &rgba);
        let mut colors = quantizer.color_map_rgb();
        colors.resize(3 * 256, 0);
        Self { colors, quantizer }
    }

    fn indices(&self, picture: &RgbImage) -> Vec<u8> {
        let index =
            |p: &image::Rgb<u8>| self.quantizer.index_of(&[p.0[0], p.0[1], p.0[2], 255]).min(254) as u8;
        let mut known: std::collections::HashMap<[u8; 3], u8> = std::collections::HashMap::new();
        picture.pixels().map(|p| *known.entry(p.0).or_insert_with(|| index(p))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn picture(shade: u8) -> RgbImage {
        RgbImage::from_fn(96, 48, |x, y| {
            // A square that moves over a ground that does not.
            let inside = (u32::from(shade)..u32::from(shade) + 18).contains(&x) && (15..27).contains(&y);
            image::Rgb(if inside { [220, 30, 30] } else { [2 * x as u8, 4 * y as u8, 90] })
        })
    }

    fn write(path: &Path) -> Result<()> {
        let options = MovieOptions { fps: 10, hold_s: 0.5, ..MovieOptions::default() };
        let mut film = Film::start(path, Format::of(path)?, picture(2), &picture(14), &options)?;
        for i in [2, 8, 14] {
            film.add(picture(i))?;
        }
        film.finish()
    }

    #[test]
    fn an_animated_png_shows_every_picture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        write(&path).unwrap();
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        assert_eq!(reader.info().animation_control().unwrap().num_frames, 4);
        let mut canvas = RgbImage::new(96, 48);
        for i in [2, 2, 8, 14] {
            let mut part = vec![0; reader.output_buffer_size().unwrap()];
            let size = reader.next_frame(&mut part).unwrap();
            let at = *reader.info().frame_control().unwrap();
            let part =
                RgbImage::from_raw(size.width, size.height, part[..size.buffer_size()].to_vec()).unwrap();
            image::imageops::replace(&mut canvas, &part, i64::from(at.x_offset), i64::from(at.y_offset));
            assert_eq!(canvas, picture(i));
        }
        let last = *reader.info().frame_control().unwrap();
        assert_eq!((last.delay_num, last.delay_den), (500, 1000));
    }

    #[test]
    fn a_gif_shows_every_picture_in_nearly_its_colours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gif");
        write(&path).unwrap();
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut reader = options.read_info(File::open(&path).unwrap()).unwrap();
        let mut canvas = RgbImage::new(96, 48);
        let mut delays = Vec::new();
        for i in [2, 2, 8, 14] {
            let frame = reader.read_next_frame().unwrap().unwrap();
            delays.push(frame.delay);
            for (n, rgba) in frame.buffer.chunks(4).enumerate().filter(|(_, rgba)| rgba[3] > 0) {
                let (x, y) = (n % usize::from(frame.width), n / usize::from(frame.width));
                let (x, y) = (x as u32 + u32::from(frame.left), y as u32 + u32::from(frame.top));
                canvas.put_pixel(x, y, image::Rgb([rgba[0], rgba[1], rgba[2]]));
            }
            let off = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
            let wanted = picture(i);
            let mean =
                canvas.as_raw().iter().zip(wanted.as_raw()).map(off).sum::<f64>() / f64::from(3 * 96 * 48);
            assert!(mean < 6.0, "picture {i} is off by {mean}");
        }
        assert!(reader.read_next_frame().unwrap().is_none());
        assert_eq!(delays, [10, 10, 10, 50]);
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&dir.path().join("a.avi")).unwrap_err().to_string();
        assert!(error.contains("a.avi") && error.contains(".gif"), "{error}");
        assert!(matches!(write(&dir.path().join("no/a.gif")), Err(Error::Create { .. })));
        let options = MovieOptions::default();
        let error = ffmpeg("no-such-ffmpeg", &dir.path().join("a.mp4"), (32, 16), &options).unwrap_err();
        assert!(error.to_string().contains("no `no-such-ffmpeg` on PATH"), "{error}");
        // A program that refuses: its last words are passed on.
        let mut child = Command::new("sh");
        child.args(["-c", "echo cannot encode >&2; exit 3"]);
        child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let to = Writer::Mp4(child.spawn().unwrap());
        let film = Film { path: "a.mp4".into(), options, latest: picture(2), to };
        let error = film.finish().unwrap_err().to_string();
        assert!(error.contains("cannot encode") && error.contains('3'), "{error}");
    }
}
