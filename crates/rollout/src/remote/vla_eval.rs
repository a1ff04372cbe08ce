//! vla-eval's protocol: typed messages with sequence numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use rmpv::Value;

use super::array::{Keys, get, kind, to_json};
use super::channel::Incoming;
use super::client::{EpisodeStart, Question, RemotePolicy};
use super::error::{RemoteError, Result, shorten};

const PROTOCOL_VERSION: u64 = 1;

/// Which parts of an observation a server asks for in its `hello` (`observation_params`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub wrist: bool,
    state: bool,
    /// Axis-angle of the quaternion as it is; without this the one with w >= 0.
    quat_as_is: bool,
}

fn message(policy: &mut RemotePolicy, kind: &str, payload: Value) -> Value {
    policy.seq += 1;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    Value::Map(vec![
        (Value::from("type"), Value::from(kind)),
        (Value::from("payload"), payload),
        (Value::from("seq"), Value::from(policy.seq)),
        (Value::from("timestamp"), Value::from(now)),
    ])
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(key, value)| (Value::from(key), value)).collect())
}

/// Both sides say hello; the server's tells what it wants to see and what its actions mean.
pub(super) fn greet(policy: &mut RemotePolicy) -> Result<()> {
    let limit = policy.limits.connect;
    let address = policy.address.host_port();
    let handshake =
        |why: String| RemoteError::Handshake { address: address.clone(), protocol: "vla-eval", why };
    let payload = map([
        ("harness_version", Value::from(concat!("efference ", env!("CARGO_PKG_VERSION")))),
        ("protocol_version", Value::from(PROTOCOL_VERSION)),
        ("benchmark", Value::from("libero")),
    ]);
    let hello = message(policy, "hello", payload);
    let channel = policy.open()?;
    channel.send(&hello, limit).map_err(|error| match error {
        RemoteError::Garbage { .. } => handshake("it speaks before it is spoken to".into()),
        other => other,
    })?;
    let reply = match channel.receive(limit) {
        Ok(Incoming::Value(reply)) => reply,
        Ok(Incoming::Text(_)) => return Err(handshake("it answers in text".into())),
        Err(RemoteError::Timeout { .. }) => return Err(handshake("it does not say hello".into())),
        Err(error) => return Err(error),
    };
    match get(&reply, "type").and_then(Value::as_str) {
        Some("hello") => {}
        Some(other) => return Err(handshake(format!("it answers hello with `{}`", shorten(other)))),
        None => return Err(handshake(format!("its hello is {} without a type", kind(&reply)))),
    }
    let payload = get(&reply, "payload").unwrap_or(&Value::Nil);
    policy.metadata = to_json(payload);
    policy.wants = wants(payload)?;
    Ok(())
}

/// What the server asks for; refuses what changes the meaning of an action and cannot be had here.
fn wants(hello: &Value) -> Result<Wants> {
    let mut wants = Wants::default();
    let mut needs = Vec::new();
    let params = get(hello, "observation_params").and_then(Value::as_map);
    for (key, value) in params.into_iter().flatten() {
        let (key, on) = (key.as_str().unwrap_or_default(), value.as_bool() == Some(true));
        match key {
            "send_wrist_image" => wants.wrist = on,
            "send_state" => wants.state = on,
            "quat_no_antipodal" => wants.quat_as_is = on,
            // The evaluation's own settings; a server may repeat them.
            "seed" | "env_seed" | "suite" | "num_steps_wait" | "max_steps" => {}
            _ if !on => {}
            other => needs.push(format!("the observation setting `{}`", shorten(other))),
        }
    }
    // What the controller takes; `raw` says nothing and is let through.
    const ACTION: [(&str, &[&str]); 3] = [
        ("position", &["delta_xyz", "raw"]),
        ("rotation", &["axis_angle", "raw"]),
        ("gripper", &["binary_close_positive", "raw"]),
    ];
    let spec = get(hello, "action_spec");
    for (part, accepted) in ACTION {
        let format = spec.and_then(|spec| get(spec, part)).and_then(|part| get(part, "format"));
        if let Some(format) = format.and_then(Value::as_str)
            && !accepted.contains(&format)
        {
            needs.push(format!(
                "actions whose {part} is `{}` (LIBERO takes `{}`)",
                shorten(format),
                accepted[0]
            ));
        }
    }
    if needs.is_empty() { Ok(wants) } else { Err(RemoteError::Needs { needs }) }
}

pub(super) fn start(policy: &mut RemotePolicy, start: &EpisodeStart) -> Result<()> {
    let task = map([
        ("name", Value::from(start.instruction.as_str())),
        ("suite", Value::from(start.suite.as_str())),
        ("task_id", Value::from(start.task as u64)),
        ("episode_idx", Value::from(start.episode as u64)),
    ]);
    let message = message(policy, "episode_start", map([("task", task)]));
    let limit = policy.limits.answer;
    policy.open()?.send(&message, limit)
}

pub(super) fn ask(policy: &mut RemotePolicy, question: &Question) -> Result<Value> {
    let keys = Keys::Text;
    let mut images = vec![(Value::from("agentview"), keys.image(&question.image))];
    if let Some(wrist) = question.wrist.as_ref().filter(|_| policy.wants.wrist) {
        images.push((Value::from("wrist"), keys.image(wrist)));
    }
    let mut observation = vec![
        (Value::from("images"), Value::Map(images)),
        (Value::from("task_description"), Value::from(question.instruction.as_str())),
    ];
    if policy.wants.state {
        let as_is = policy.wants.quat_as_is;
        let state = if as_is { &question.state } else { &question.state_half_turn };
        observation.push((Value::from("states"), keys.vector(state)));
    }
    let message = message(policy, "observation", Value::Map(observation));
    let (asked, limit) = (policy.seq, policy.limits.answer);
    let channel = policy.open()?;
    channel.send(&message, limit)?;
    let Incoming::Value(answer) = channel.receive(limit)? else {
        return Err(RemoteError::Garbage { why: "a text message".into() });
    };
    let payload = get(&answer, "payload").cloned().unwrap_or(Value::Nil);
    match get(&answer, "type").and_then(Value::as_str) {
        Some("action") => {}
        Some("error") => {
            let text = get(&payload, "error")
                .and_then(Value::as_str)
                .map_or_else(|| payload.to_string(), str::to_owned);
            return Err(RemoteError::Server { text: shorten(&text) });
        }
        other => {
            let why =
                format!("a message of type `{}` instead of an action", shorten(other.unwrap_or("none")));
            return Err(RemoteError::Garbage { why });
        }
    }
    let seq = get(&answer, "seq").and_then(Value::as_u64);
    if seq != Some(asked) {
        let seq = seq.map_or("no number".into(), |seq| seq.to_string());
        return Err(RemoteError::Garbage { why: format!("it answers question {seq}, asked was {asked}") });
    }
    Ok(payload)
}

pub(super) fn end(policy: &mut RemotePolicy, success: bool, steps: usize) -> Result<()> {
    let metrics = map([("success", Value::Boolean(success))]);
    let payload = map([("metrics", metrics), ("steps", Value::from(steps as u64))]);
    let message = message(policy, "episode_end", payload);
    let limit = policy.limits.answer;
    policy.open()?.send(&message, limit)
}
