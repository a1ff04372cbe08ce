//! LIBERO as LeRobot data sets, format versions 2.0, 2.1 and 3.0, with pictures inside the tables.
//!
//! ```text
//! meta/info.json             codebase_version, fps, total_episodes, features {NAME: {dtype, shape}}
//! meta/tasks.jsonl (2.x)     {"task_index": 0, "task": "pick up …"} per line
//! meta/tasks.parquet (3.0)   columns task_index and the text (`task`, or the table's index `__index_level_0__`)
//! data/chunk-000/*.parquet   one row per step: episode_index, frame_index, task_index, state, action, pictures;
//!                            one episode per file (2.x) or several (3.0)
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use image::{ImageReader, Limits, RgbImage};
use serde_json::Value;

use super::tables::{Rows, Table};
use super::{CAMERAS, Recording};
use crate::robomimic::{ImportError, Result};

/// Names that LIBERO sets give to the state, the action, and the two cameras in the order of [`CAMERAS`].
const STATE: [&str; 2] = ["observation.state", "state"];
const ACTION: [&str; 2] = ["action", "actions"];
const PICTURES: [&[&str]; 2] = [
    &["observation.images.image", "observation.images.agentview", "observation.image", "image"],
    &[
        "observation.images.wrist_image",
        "observation.images.image2",
        "observation.images.robot0_eye_in_hand",
        "observation.wrist_image",
        "wrist_image",
    ],
];
/// Description files that are larger are not read.
const MAX_META_BYTES: u64 = 64 << 20;
const MAX_SIDE_PX: u32 = 4096;
/// Steps of one episode; LIBERO's longest have about 500.
const MAX_STEPS: usize = 20_000;

/// An open data set; episodes are read in order.
pub struct LeRobotSet {
    dir: PathBuf,
    fps: f64,
    episodes: usize,
    tasks: BTreeMap<i64, String>,
    columns: Columns,
    tables: Vec<PathBuf>,
}

#[derive(Clone)]
struct Columns {
    state: String,
    action: String,
    pictures: [String; 2],
    reward: Option<String>,
}

impl LeRobotSet {
    /// Whether the folder claims to be one: it has a `meta/info.json`.
    pub fn is_at(dir: &Path) -> bool {
        dir.join("meta/info.json").is_file()
    }

    /// Reads the descriptions; the tables stay on disk.
    ///
    /// # Errors
    /// [`ImportError::LeRobot`], [`ImportError::Video`], [`ImportError::Read`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let path = dir.join("meta/info.json");
        let wrong = |problem: String| ImportError::LeRobot { path: path.clone(), problem };
        let info: Value = serde_json::from_slice(&read_small(&path)?).map_err(|e| wrong(e.to_string()))?;
        let version = info["codebase_version"].as_str().unwrap_or("none");
        let tasks = match version {
            "v2.0" | "v2.1" => tasks_jsonl(&dir.join("meta/tasks.jsonl"))?,
            "v3.0" => tasks_table(&dir.join("meta/tasks.parquet"))?,
            other => {
                return Err(wrong(format!(
                    "`codebase_version` is {other}; this program reads v2.0, v2.1 and v3.0"
                )));
            }
        };
        let fps = info["fps"].as_f64().filter(|fps| fps.is_finite() && *fps > 0.0);
        let fps = fps.ok_or_else(|| wrong("`fps` is no positive number".into()))?;
        let episodes = info["total_episodes"].as_u64();
        let episodes = episodes.ok_or_else(|| wrong("`total_episodes` is no whole number".into()))? as usize;
        let columns = columns(&info, &path)?;
        let tables = tables(&dir.join("data"))?;
        if tables.is_empty() {
            let problem = "there is no data/chunk-*/*.parquet; copy the data set again".into();
            return Err(ImportError::LeRobot { path: dir, problem });
        }
        Ok(Self { dir, fps, episodes, tasks, columns, tables })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of episodes, as the description says.
    pub fn episodes(&self) -> usize {
        self.episodes
    }

    /// The episodes in order. The last item is an error when there are fewer than the description says.
    pub fn iter(&self) -> Recordings<'_> {
        let tables = self.tables.iter().collect();
        Recordings {
            set: self,
            tables,
            table: None,
            growing: None,
            ready: VecDeque::new(),
            done: 0,
            over: false,
        }
    }

    fn wanted(&self) -> Vec<&str> {
        let Columns { state, action, pictures, reward } = &self.columns;
        let mut wanted = vec!["episode_index", "frame_index", "task_index", state, action];
        wanted.extend(pictures.iter().map(String::as_str));
        wanted.extend(reward.as_deref());
        wanted
    }
}

/// Iterator over the episodes of a set.
pub struct Recordings<'a> {
    set: &'a LeRobotSet,
    tables: VecDeque<&'a PathBuf>,
    table: Option<Table>,
    growing: Option<(i64, Recording)>,
    ready: VecDeque<Recording>,
    done: usize,
    over: bool,
}

impl Iterator for Recordings<'_> {
    type Item = Result<Recording>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.advance();
        self.over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

impl Recordings<'_> {
    fn advance(&mut self) -> Result<Option<Recording>> {
        loop {
            if let Some(recording) = self.ready.pop_front() {
                self.done += 1;
                return Ok(Some(recording));
            }
            if let Some(table) = &mut self.table {
                if let Some(batch) = table.next()? {
                    let path = table.path.clone();
                    self.take(&Rows { path: &path, batch: &batch })?;
                } else {
                    self.table = None;
                }
                continue;
            }
            if let Some(path) = self.tables.pop_front() {
                self.table = Some(Table::open(path, &self.set.wanted())?);
                continue;
            }
            if let Some((_, last)) = self.growing.take() {
                self.ready.push_back(last);
                continue;
            }
            if self.done < self.set.episodes {
                let problem = format!(
                    "meta/info.json promises {} episodes, the tables hold {}; copy the data set again",
                    self.set.episodes, self.done
                );
                return Err(ImportError::LeRobot { path: self.set.dir.clone(), problem });
            }
            return Ok(None);
        }
    }

    fn take(&mut self, rows: &Rows<'_>) -> Result<()> {
        let Columns { state, action, pictures, reward } = &self.set.columns;
        let episode = rows.integers("episode_index")?;
        let frame = rows.integers("frame_index")?;
        let task = rows.integers("task_index")?;
        let states = rows.vectors::<8>(state)?;
        let actions = rows.vectors::<7>(action)?;
        let rewards = reward.as_deref().map(|name| rows.numbers(name)).transpose()?;
        let encoded = [rows.pictures(&pictures[0])?, rows.pictures(&pictures[1])?];
        for row in 0..rows.batch.num_rows() {
            if self.growing.as_ref().is_none_or(|(index, _)| *index != episode[row]) {
                let new = self.start(rows, episode[row], task[row])?;
                self.ready.extend(self.growing.replace((episode[row], new)).map(|(_, done)| done));
            }
            let Some((_, recording)) = &mut self.growing else { continue };
            let steps = recording.actions.len();
            if frame[row] != steps as i64 || steps >= MAX_STEPS {
                let problem = format!(
                    "episode {} has frame {} where {steps} is due (at most {MAX_STEPS}); the table is out of order",
                    episode[row], frame[row]
                );
                return Err(rows.error("frame_index", problem));
            }
            recording.actions.push(actions[row]);
            recording.proprio.push(states[row]);
            // The public sets keep successes only: without a column of rewards the last step has it.
            recording.rewards.iter_mut().for_each(|r| *r *= f32::from(rewards.is_some()));
            recording.rewards.push(rewards.as_ref().map_or(1.0, |r| r[row]));
            for ((camera, column), encoded) in CAMERAS.iter().zip(pictures).zip(&encoded) {
                let picture = decode(&encoded[row]).map_err(|problem| ImportError::Picture {
                    path: rows.path.into(),
                    at: column.clone(),
                    row,
                    problem,
                })?;
                recording.cameras.entry((*camera).to_owned()).or_default().push(picture);
            }
        }
        Ok(())
    }

    fn start(&self, rows: &Rows<'_>, episode: i64, task: i64) -> Result<Recording> {
        let Some(instruction) = self.set.tasks.get(&task) else {
            let known = self.set.tasks.len();
            return Err(rows.error(
                "task_index",
                format!("episode {episode} has task {task}; the {known} known tasks do not include it"),
            ));
        };
        Ok(Recording {
            name: format!("episode {episode}"),
            task: instruction.trim().replace(' ', "_"),
            instruction: instruction.trim().into(),
            control_hz: self.set.fps,
            actions: Vec::new(),
            proprio: Vec::new(),
            rewards: Vec::new(),
            states: None,
            cameras: BTreeMap::new(),
        })
    }
}

/// PNG or JPEG bytes.
fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE_PX), Some(MAX_SIDE_PX));
    reader.limits(limits);
    Ok(reader.decode().map_err(|e| e.to_string())?.into_rgb8())
}

/// Finds the columns among the features.
fn columns(info: &Value, path: &Path) -> Result<Columns> {
    let wrong = |problem: String| ImportError::LeRobot { path: path.into(), problem };
    let features = info["features"].as_object().ok_or_else(|| wrong("`features` is no table".into()))?;
    let find = |what: &str, names: &[&str]| {
        names.iter().find(|name| features.contains_key(**name)).map(|name| (*name).to_owned()).ok_or_else(
            || {
                let there: Vec<&str> = features.keys().map(String::as_str).collect();
                wrong(format!(
                    "no feature for {what} (one of {}); there is: {}",
                    names.join(", "),
                    there.join(", ")
                ))
            },
        )
    };
    let shaped = |name: &str, wanted: u64| {
        let got = &features[name]["shape"];
        match got.as_array().map(Vec::as_slice) {
            Some([n]) if n.as_u64() == Some(wanted) => Ok(()),
            _ => Err(wrong(format!("feature `{name}` has shape {got}, LIBERO's has [{wanted}]"))),
        }
    };
    let (state, action) = (find("the state", &STATE)?, find("the action", &ACTION)?);
    shaped(&state, 8)?;
    shaped(&action, 7)?;
    let pictures =
        [find("the camera over the table", PICTURES[0])?, find("the camera in the hand", PICTURES[1])?];
    for feature in &pictures {
        match features[feature]["dtype"].as_str() {
            Some("image") => {}
            Some("video") => return Err(ImportError::Video { path: path.into(), feature: feature.clone() }),
            other => {
                let other = other.unwrap_or("nothing");
                return Err(wrong(format!("feature `{feature}` has dtype {other}, expected `image`")));
            }
        }
    }
    let reward = features.contains_key("next.reward").then(|| "next.reward".to_owned());
    Ok(Columns { state, action, pictures, reward })
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let read = |source| ImportError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(read)?;
    file.take(MAX_META_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_META_BYTES {
        let problem = format!("longer than {MAX_META_BYTES} bytes");
        return Err(ImportError::LeRobot { path: path.into(), problem });
    }
    Ok(bytes)
}

fn tasks_jsonl(path: &Path) -> Result<BTreeMap<i64, String>> {
    let wrong = |line: usize, problem: &str| ImportError::LeRobot {
        path: path.into(),
        problem: format!("line {line}: {problem}"),
    };
    let mut tasks = BTreeMap::new();
    for (i, line) in BufReader::new(read_small(path)?.as_slice()).lines().enumerate() {
        let line = line.map_err(|e| wrong(i + 1, &e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Value = serde_json::from_str(&line).map_err(|e| wrong(i + 1, &e.to_string()))?;
        match (row["task_index"].as_i64(), row["task"].as_str()) {
            (Some(index), Some(task)) => tasks.insert(index, task.to_owned()),
            _ => return Err(wrong(i + 1, "expected {\"task_index\": number, \"task\": text}")),
        };
    }
    Ok(tasks)
}

fn tasks_table(path: &Path) -> Result<BTreeMap<i64, String>> {
    let (text, mut table) = match Table::open(path, &["task_index", "task"]) {
        Ok(table) => ("task", table),
        // pandas keeps the text as the table's index.
        Err(e) => match Table::open(path, &["task_index", "__index_level_0__"]) {
            Ok(table) => ("__index_level_0__", table),
            Err(_) => return Err(e),
        },
    };
    let mut tasks = BTreeMap::new();
    while let Some(batch) = table.next()? {
        let rows = Rows { path, batch: &batch };
        tasks.extend(rows.integers("task_index")?.into_iter().zip(rows.texts(text)?));
    }
    Ok(tasks)
}

/// All tables in the order of their names, which is the order of the episodes.
fn tables(data: &Path) -> Result<Vec<PathBuf>> {
    let list = |dir: &Path| -> Result<Vec<PathBuf>> {
        let read = |source| ImportError::Read { path: dir.into(), source };
        let entries = fs::read_dir(dir).map_err(read)?;
        let mut paths: Vec<PathBuf> =
            entries.map(|e| e.map(|e| e.path())).collect::<std::result::Result<_, _>>().map_err(read)?;
        paths.sort();
        Ok(paths)
    };
    let mut tables = Vec::new();
    for chunk in list(data)?.into_iter().filter(|path| path.is_dir()) {
        tables.extend(list(&chunk)?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "parquet")));
    }
    Ok(tables)
}
