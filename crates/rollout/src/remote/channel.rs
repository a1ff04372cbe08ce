//! One WebSocket connection on which nothing can wait for ever or grow without bound.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use super::Address;
use super::array::get;
use super::error::{RemoteError, Result, shorten};

/// Largest message that is read. Actions are kilobytes; this leaves room for what servers send along.
pub(super) const MAX_MESSAGE: usize = 8 << 20;

/// How deep a message may be nested.
const MAX_DEPTH: usize = 32;

/// A TCP stream whose every read and write ends by `until`, even when the peer sends one byte at a time.
#[derive(Debug)]
struct Timed {
    tcp: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A read that ran into the socket's time limit says `WouldBlock`, which tungstenite would take for "try again".
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(self.left()?))?;
        self.tcp.read(buffer).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(self.left()?))?;
        self.tcp.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Channel {
    socket: WebSocket<Timed>,
}

/// What arrives.
pub(super) enum Incoming {
    /// A MessagePack value.
    Value(rmpv::Value),
    /// A text frame: openpi's servers report their errors so.
    Text(String),
}

impl Channel {
    /// Connects and shakes hands.
    pub(super) fn connect(address: &Address, limit: Duration) -> Result<Self> {
        let until = Instant::now() + limit;
        let host_port = address.host_port();
        let failed = |source| RemoteError::Connect { address: host_port.clone(), source };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut connected = None;
        for socket in (address.host.as_str(), address.port).to_socket_addrs().map_err(failed)? {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&socket, left) {
                Ok(tcp) => {
                    connected = Some(tcp);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let tcp = connected.ok_or(last).map_err(failed)?;
        // Small messages go out at once.
        tcp.set_nodelay(true).map_err(failed)?;
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        let url = format!("ws://{host_port}{}", address.path);
        match tungstenite::client::client_with_config(url, Timed { tcp, until }, Some(config)) {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(error) => {
                let protocol = address.scheme.name();
                let why = shorten(&error.to_string());
                let why = if Instant::now() >= until { "it did not answer in time".into() } else { why };
                Err(RemoteError::Handshake { address: host_port, protocol, why })
            }
        }
    }

    /// Sends a value as one binary message.
    pub(super) fn send(&mut self, value: &rmpv::Value, limit: Duration) -> Result<()> {
        self.answer_pings()?;
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value)
            .map_err(|e| RemoteError::Garbage { why: format!("the question could not be written: {e}") })?;
        self.socket.get_mut().until = Instant::now() + limit;
        self.socket
            .send(Message::Binary(bytes.into()))
            .map_err(|error| ended(error, "take the observation", limit))
    }

    /// The next message; pings are answered on the way.
    pub(super) fn receive(&mut self, limit: Duration) -> Result<Incoming> {
        self.socket.get_mut().until = Instant::now() + limit;
        loop {
            match self.socket.read().map_err(|error| ended(error, "answer", limit))? {
                Message::Binary(bytes) => return decode(&bytes).map(Incoming::Value),
                Message::Text(text) => return Ok(Incoming::Text(text.to_string())),
                Message::Close(frame) => {
                    let why = frame.map_or("no reason given".into(), |f| format!("{} {}", f.code, f.reason));
                    return Err(RemoteError::Closed { why: shorten(&why) });
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Servers ping while the simulation runs; who does not answer for a while is cut off.
    pub(super) fn answer_pings(&mut self) -> Result<()> {
        const GLANCE: Duration = Duration::from_millis(1);
        let mut byte = [0];
        loop {
            let tcp = &self.socket.get_ref().tcp;
            let waiting = tcp.set_read_timeout(Some(GLANCE)).and_then(|()| tcp.peek(&mut byte));
            match waiting {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(());
                }
                Err(e) => return Err(RemoteError::Closed { why: e.to_string() }),
                Ok(0) => return Err(RemoteError::Closed { why: "it hung up between two questions".into() }),
                Ok(_) => {}
            }
            self.socket.get_mut().until = Instant::now() + Duration::from_secs(1);
            let message = self.socket.read();
            match message.map_err(|error| ended(error, "finish a message", Duration::from_secs(1)))? {
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Close(_) => {
                    return Err(RemoteError::Closed { why: "it said goodbye between two questions".into() });
                }
                Message::Text(text) => return Err(RemoteError::Server { text: shorten(&text) }),
                Message::Binary(bytes) => return Err(unasked(&bytes)),
            }
        }
    }
}

/// A message that answers nothing: using it for the next question would shift all later answers by one. vla-eval's
/// servers report so that an episode could not be started.
fn unasked(bytes: &[u8]) -> RemoteError {
    let value = decode(bytes).unwrap_or(rmpv::Value::Nil);
    let error =
        get(&value, "payload").and_then(|payload| get(payload, "error")).and_then(rmpv::Value::as_str);
    match error {
        Some(text) => RemoteError::Server { text: shorten(text) },
        None => RemoteError::Garbage { why: "a message came that nobody had asked for".into() },
    }
}

fn decode(bytes: &[u8]) -> Result<rmpv::Value> {
    let mut rest = bytes;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, MAX_DEPTH)
        .map_err(|e| RemoteError::Garbage { why: format!("no MessagePack: {e}") })?;
    if !rest.is_empty() {
        return Err(RemoteError::Garbage { why: format!("{} bytes behind the message", rest.len()) });
    }
    Ok(value)
}

fn ended(error: tungstenite::Error, what: &'static str, limit: Duration) -> RemoteError {
    match error {
        tungstenite::Error::Io(e) if e.kind() == io::ErrorKind::TimedOut => {
            RemoteError::Timeout { what, limit }
        }
        tungstenite::Error::Capacity(_) => RemoteError::TooLarge { limit: MAX_MESSAGE },
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            RemoteError::Closed { why: "without a goodbye".into() }
        }
        tungstenite::Error::Protocol(e) => RemoteError::Garbage { why: e.to_string() },
        other => RemoteError::Closed { why: shorten(&other.to_string()) },
    }
}
