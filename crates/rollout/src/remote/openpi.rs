//! openpi's protocol: one observation, one answer.

use rmpv::Value;

use super::array::{Keys, kind, to_json};
use super::channel::Incoming;
use super::client::{Question, RemotePolicy};
use super::error::{RemoteError, Result, shorten};

/// The server speaks first: its metadata.
pub(super) fn greet(policy: &mut RemotePolicy) -> Result<()> {
    let limit = policy.limits.connect;
    let address = policy.address.host_port();
    let handshake = |why: String| RemoteError::Handshake { address, protocol: "openpi", why };
    match policy.open()?.receive(limit) {
        Ok(Incoming::Value(metadata)) if metadata.is_map() => policy.metadata = to_json(&metadata),
        Ok(Incoming::Value(other)) => return Err(handshake(format!("its greeting is {}", kind(&other)))),
        Ok(Incoming::Text(text)) => return Err(RemoteError::Server { text: shorten(&text) }),
        Err(RemoteError::Timeout { .. }) => {
            return Err(handshake("it sends no metadata after the connection".into()));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// The keys are those of openpi's LIBERO client.
pub(super) fn ask(policy: &mut RemotePolicy, question: &Question) -> Result<Value> {
    let keys = Keys::Binary;
    let wrist = question.wrist.as_ref().map_or(Value::Nil, |image| keys.image(image));
    let observation = Value::Map(vec![
        (Value::from("observation/image"), keys.image(&question.image)),
        (Value::from("observation/wrist_image"), wrist),
        (Value::from("observation/state"), keys.vector(&question.state)),
        (Value::from("prompt"), Value::from(question.instruction.as_str())),
    ]);
    let limit = policy.limits.answer;
    let channel = policy.open()?;
    channel.send(&observation, limit)?;
    match channel.receive(limit)? {
        Incoming::Value(answer) => Ok(answer),
        Incoming::Text(text) => Err(RemoteError::Server { text: shorten(&text) }),
    }
}
