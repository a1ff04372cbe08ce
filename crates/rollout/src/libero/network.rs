//! Our own networks as players, all workers asking one network together.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use efference_nets::{Choice, Draw};
use serde_json::{Value, json};

use super::episode::EpisodeError;
use super::policy::{EvalPolicy, PolicyError, PolicySource, Start, View};
use super::simulator::Camera;
use crate::policy::{Look, VlaPolicy};
use crate::seeds::{Purpose, seed_for};
use crate::trajectory::Prompt;

/// What a checkpoint's results depend on besides its weights.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// 0 takes the most likely action.
    pub temperature: f64,
    /// What is stored about the checkpoint: where it came from, its step, its statistics.
    pub about: Value,
}

type Answer = Result<Choice, String>;

struct Request {
    look: Look,
    draw: Draw,
    answer: SyncSender<Answer>,
}

/// A network behind a desk: who comes while it computes waits, and is served together with all others who wait. On the CPU
/// a row has the same bits alone and in a batch, so who waits with whom changes nothing.
pub struct Network {
    policy: VlaPolicy,
    settings: NetworkSettings,
    waiting: Mutex<Vec<Request>>,
    turn: Mutex<()>,
}

impl Network {
    /// Takes the network for the time of an evaluation.
    pub fn new(policy: VlaPolicy, settings: NetworkSettings) -> Self {
        Self { policy, settings, waiting: Mutex::default(), turn: Mutex::default() }
    }

    fn choose(&self, look: Look, draw: Draw) -> Answer {
        let (answer, mine) = sync_channel(1);
        lock(&self.waiting).push(Request { look, draw, answer });
        let turn = lock(&self.turn);
        // Whoever had the turn before may have served this one, too.
        if let Ok(answer) = mine.try_recv() {
            return answer;
        }
        let batch = std::mem::take(&mut *lock(&self.waiting));
        let (answers, (looks, draws)): (Vec<_>, (Vec<_>, Vec<_>)) =
            batch.into_iter().map(|r| (r.answer, (r.look, r.draw))).unzip();
        let choices =
            self.policy.sample(&looks, self.settings.temperature, &draws).map_err(|e| e.to_string());
        drop(turn);
        match choices {
            // Nobody listens who was stopped meanwhile.
            Ok(choices) => answers.iter().zip(choices).for_each(|(to, choice)| drop(to.send(Ok(choice)))),
            Err(why) => answers.iter().for_each(|to| drop(to.send(Err(why.clone())))),
        }
        mine.recv().unwrap_or_else(|_| Err("the network gave fewer answers than it was asked for".into()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PolicySource for Network {
    fn open(&self) -> Box<dyn EvalPolicy + '_> {
        Box::new(Player { network: self, prompt: None, seed: 0, queries: 0 })
    }

    fn settings(&self) -> Value {
        json!({
            "kind": "network",
            "temperature": self.settings.temperature,
            "chunk": self.policy.chunk(),
            "image_size": self.policy.image_size(),
            "action_statistics": serde_json::to_value(&self.policy.action_stats).unwrap_or_default(),
            "proprio_statistics": serde_json::to_value(&self.policy.proprio_stats).unwrap_or_default(),
            "about": self.settings.about,
        })
    }
}

struct Player<'n> {
    network: &'n Network,
    prompt: Option<Arc<Prompt>>,
    seed: u64,
    queries: u64,
}

impl EvalPolicy for Player<'_> {
    fn start(&mut self, start: &Start<'_>) -> Result<(), PolicyError> {
        let prompt = self.network.policy.prompt(start.instruction);
        self.prompt = Some(prompt.map_err(|e| PolicyError::Failed { why: e.to_string() })?);
        self.seed = seed_for(start.seed, Purpose::Actions, &[start.task as u64, start.episode as u64]);
        self.queries = 0;
        Ok(())
    }

    fn act(&mut self, view: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError> {
        let failed = |why: String| EpisodeError::from(PolicyError::Failed { why });
        let policy = &self.network.policy;
        let prompt = self.prompt.clone().ok_or_else(|| failed("no episode was started".into()))?;
        let cameras = [Camera::Scene, Camera::Hand];
        let cameras = cameras.get(..policy.net.config().num_images).ok_or_else(|| {
            failed(format!("the network looks at {} cameras, LIBERO has 2", policy.net.config().num_images))
        })?;
        let side = policy.image_size() as u32;
        let mut pixels = Vec::new();
        for &camera in cameras {
            let picture = view.picture(camera)?;
            if picture.dimensions() != (side, side) {
                let (w, h) = picture.dimensions();
                let why = format!(
                    "the protocol's pictures are {w} x {h} pixels, the network reads {side} x {side}"
                );
                return Err(failed(why));
            }
            pixels.extend_from_slice(picture.as_raw());
        }
        let look = Look { pixels, proprio: view.state()?.map(|x| x as f32), prompt };
        let draw = Draw::Tokens(seed_for(self.seed, Purpose::Actions, &[self.queries]));
        self.queries += 1;
        let choice = self.network.choose(look, draw).map_err(failed)?;
        Ok(policy.decode_chunk(&choice.ids).into_iter().map(|action| action.map(f64::from)).collect())
    }
}
