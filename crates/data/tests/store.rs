//! The episode folder: what goes in comes out, every kind of damage is named, a kill loses nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{episode, file, filled};
use efference_data::{
    Episode, EpisodeMeta, EpisodeStore, EpisodeWriter, Error, OnCorrupt, Source, States, codec,
};
use image::{Rgb, RgbImage};
use proptest::prelude::*;

#[test]
fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let blind = Episode { cameras: BTreeMap::new(), frame_steps: vec![], states: None, ..episode(3, 9) };
    {
        let mut writer = EpisodeWriter::create(dir.path().join("new/store")).unwrap();
        writer.append(&episode(7, 1)).unwrap();
        writer.append(&blind).unwrap();
    }
    let store = EpisodeStore::open(dir.path().join("new/store")).unwrap();
    assert_eq!((store.len(), store.entries()[0].steps, store.entries()[0].frames), (2, 7, 4));
    assert_eq!(store.entries()[1].meta, blind.meta);
    let (loaded, skipped) = store.load_all(OnCorrupt::Error).unwrap();
    assert_eq!(loaded, [episode(7, 1), blind]);
    assert!(skipped.is_empty());
    assert!(matches!(store.load(2), Err(Error::NoEpisode { index: 2, episodes: 2, .. })));
}

#[test]
fn one_writer_at_a_time_and_no_silent_mixing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = EpisodeWriter::create(dir.path()).unwrap();
    assert!(matches!(EpisodeWriter::append_to(dir.path()), Err(Error::Busy { .. })));
    writer.append(&episode(2, 0)).unwrap();
    drop(writer);
    assert!(matches!(EpisodeWriter::create(dir.path()), Err(Error::AlreadyThere { episodes: 1, .. })));
    let mut writer = EpisodeWriter::append_to(dir.path()).unwrap();
    assert_eq!(writer.entries().len(), 1);
    let bad = Episode { rewards: vec![], ..episode(2, 1) };
    assert!(matches!(writer.append(&bad), Err(Error::Invalid { .. })));
    assert_eq!(writer.append(&episode(2, 1)).unwrap(), 1);
    assert_eq!(EpisodeStore::open(dir.path()).unwrap().load(1).unwrap(), episode(2, 1));
}

/// A kill between any two system calls of `append` leaves one of these three kinds of file.
#[test]
fn a_kill_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2);
    let half = &codec::encode(&episode(4, 2)).unwrap()[..100];
    fs::write(dir.path().join(".episode_00002.safetensors.0.4294967295-1.tmp"), half).unwrap(); // in its write
    fs::write(file(dir.path(), 2), codec::encode(&episode(9, 77)).unwrap()).unwrap(); // before the index
    fs::write(dir.path().join(".index.json.1.4294967295-1.tmp"), b"{\"format\": \"effe").unwrap(); // during it
    let (loaded, _) = EpisodeStore::open(dir.path()).unwrap().load_all(OnCorrupt::Error).unwrap();
    assert_eq!(loaded, [episode(4, 0), episode(4, 1)]);

    let mut writer = EpisodeWriter::append_to(dir.path()).unwrap();
    writer.append(&episode(4, 2)).unwrap();
    drop(writer);
    assert_eq!(EpisodeStore::open(dir.path()).unwrap().load(2).unwrap(), episode(4, 2));
    let is_temporary = |e: fs::DirEntry| efference_data::atomic::is_temporary(&e.file_name());
    assert!(!fs::read_dir(dir.path()).unwrap().any(|e| is_temporary(e.unwrap())));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    for below in ["file", "file/store"] {
        let e = EpisodeWriter::create(dir.path().join(below)).unwrap_err();
        assert!(matches!(e, Error::Write(efference_data::atomic::Error::NotAFolder { .. })), "{e:?}");
    }
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"x");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_valid_episode_survives(
        rows in prop::collection::vec(
            (prop::array::uniform7(-1e30f32..1e30), prop::array::uniform8(-9f32..9.), any::<bool>()), 1..20),
        pixels in prop::collection::vec(any::<u8>(), 64),
        (w, h) in (1u32..20, 1u32..20),
        (cameras, width) in (0usize..3, 0usize..4),
        (seed, text) in (any::<u64>(), "\\PC{0,40}"),
    ) {
        let steps = rows.len();
        let keep = |t: &usize| cameras > 0 && rows[*t].2;
        let frame_steps: Vec<u32> = (0..steps).filter(keep).map(|t| t as u32).collect();
        let picture = |f: usize| RgbImage::from_fn(w, h, |x, y| {
            let at = |k: u32| pixels[(x * 31 + y * 17 + k + f as u32) as usize % pixels.len()];
            Rgb([at(0), at(1), at(2)])
        });
        let frames: Vec<RgbImage> = (0..frame_steps.len()).map(picture).collect();
        let values = (0..steps * width).map(|i| (i as f64).sqrt()).collect();
        let before = Episode {
            meta: EpisodeMeta {
                task: text.clone(), instruction: text.clone(), seed, success: seed % 2 == 0,
                source: Source::Human, mujoco_version: text.clone(), control_hz: 12.5,
                extra: BTreeMap::from([(text.clone(), text)]),
            },
            cameras: (0..cameras).map(|c| (format!("cam_{c}"), frames.clone())).collect(),
            frame_steps,
            proprio: rows.iter().map(|r| r.1).collect(),
            actions: rows.iter().map(|r| r.0).collect(),
            rewards: rows.iter().map(|r| f32::from(u8::from(r.2))).collect(),
            states: (width > 0).then_some(States { width, values }),
        };
        let bytes = codec::encode(&before).unwrap();
        prop_assert_eq!(&codec::encode(&before).unwrap(), &bytes, "equal episodes give equal bytes");
        prop_assert_eq!(codec::decode(&bytes, Path::new("x")).unwrap(), before);
    }

    #[test]
    fn no_bytes_make_it_panic(position: usize, value: u8, cut: usize) {
        let mut bytes = codec::encode(&episode(4, 0)).unwrap();
        let (position, cut) = (position % bytes.len(), cut % bytes.len());
        bytes[position] = value;
        let _ = codec::decode(&bytes, Path::new("x"));
        prop_assert!(codec::decode(&bytes[..cut], Path::new("x")).is_err());
    }
}
