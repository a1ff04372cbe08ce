//! A server of the tests' own, mostly for bad answers. Good ones were checked by hand against openpi-client 0.1.2 and
//! vla-eval 0.8.0 (docs/notes.md).

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use image::RgbImage;
use rmpv::Value;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use super::array::{Keys, array, get};
use super::{Address, EpisodeStart, Limits, Question, RemoteError, RemotePolicy};

const LIMITS: Limits = Limits { connect: Duration::from_secs(5), answer: Duration::from_millis(300) };

fn map(pairs: Vec<(&str, Value)>) -> Value {
    Value::Map(pairs.into_iter().map(|(k, v)| (Value::from(k), v)).collect())
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, value).unwrap();
    out
}

fn wrapped(data: Vec<u8>, dtype: &str, shape: &[u64], keys: Keys) -> Value {
    let key = |name: &str| match keys {
        Keys::Binary => Value::Binary(name.as_bytes().to_vec()),
        Keys::Text => Value::from(name),
    };
    Value::Map(vec![
        (key("__ndarray__"), Value::Boolean(true)),
        (key("data"), Value::Binary(data)),
        (key("dtype"), Value::from(dtype)),
        (key("shape"), Value::Array(shape.iter().map(|&n| Value::from(n)).collect())),
    ])
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn chunk(numbers: &[f32], shape: &[u64]) -> Value {
    map(vec![("actions", wrapped(floats(numbers), "<f4", shape, Keys::Binary))])
}

/// Serves every connection with `play` on a thread of its own.
fn server(play: impl Fn(WebSocket<TcpStream>) + Send + Sync + Clone + 'static) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let handle = std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let play = play.clone();
            std::thread::spawn(move || {
                let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
                if let Ok(socket) = tungstenite::accept_with_config(stream, Some(config)) {
                    play(socket);
                }
            });
        }
    });
    (port, handle)
}

/// An openpi server that greets and then answers each question with what `answer` makes of it.
fn openpi(answer: impl Fn(&mut WebSocket<TcpStream>, Value) + Send + Sync + Clone + 'static) -> RemotePolicy {
    let (port, _) = server(move |mut socket| {
        socket.send(Message::Binary(bytes(&map(vec![("robot", Value::from("panda"))])).into())).unwrap();
        while let Ok(message) = socket.read() {
            if let Message::Binary(data) = message {
                answer(&mut socket, rmpv::decode::read_value(&mut &data[..]).unwrap());
            }
        }
    });
    RemotePolicy::new(format!("openpi://127.0.0.1:{port}").parse().unwrap(), LIMITS)
}

fn replies(value: Value) -> impl Fn(&mut WebSocket<TcpStream>, Value) + Send + Sync + Clone + 'static {
    move |socket, _| {
        let _ = socket.send(Message::Binary(bytes(&value).into()));
    }
}

fn question() -> Question {
    Question {
        image: RgbImage::from_fn(4, 3, |x, y| image::Rgb([x as u8, y as u8, 7])),
        wrist: Some(RgbImage::new(4, 3)),
        state: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5],
        state_half_turn: [9.0; 8],
        instruction: "put it there".into(),
    }
}

fn start() -> EpisodeStart {
    EpisodeStart { suite: "libero_goal".into(), task: 7, instruction: "put it there".into(), episode: 3 }
}

fn ask(policy: &mut RemotePolicy) -> Result<Vec<[f64; 7]>, RemoteError> {
    policy.start_episode(&start())?;
    policy.ask(&question())
}

#[test]
fn a_chunk_comes_back_as_it_was_sent_and_the_question_has_the_right_keys() {
    let mut policy = openpi(|socket, asked| {
        let image = array(get(&asked, "observation/image").unwrap()).unwrap();
        assert_eq!((image.shape, &image.data[..6]), (vec![3, 4, 3], &[0.0, 0.0, 7.0, 1.0, 0.0, 7.0][..]));
        let state = array(get(&asked, "observation/state").unwrap()).unwrap();
        assert_eq!((state.shape, state.data[7]), (vec![8], 7.5));
        assert_eq!(get(&asked, "prompt").unwrap().as_str(), Some("put it there"));
        assert!(get(&asked, "observation/wrist_image").is_some());
        let numbers: Vec<f32> = (0..14).map(|i| i as f32 / 8.0).collect();
        socket.send(Message::Ping(vec![1].into())).unwrap();
        socket.send(Message::Binary(bytes(&chunk(&numbers, &[2, 7])).into())).unwrap();
    });
    let actions = ask(&mut policy).unwrap();
    assert_eq!((actions.len(), actions[1]), (2, [0.875, 1.0, 1.125, 1.25, 1.375, 1.5, 1.625]));
    assert_eq!(policy.metadata()["server"]["robot"], "panda");
    assert_eq!(policy.ask(&question()).unwrap(), actions);
}

#[test]
fn lists_vectors_and_other_dtypes_are_read() {
    let row = Value::Array((0..7).map(|i| Value::from(f64::from(i))).collect());
    let lists = map(vec![("actions", Value::Array(vec![row.clone(), row.clone()]))]);
    assert_eq!(ask(&mut openpi(replies(lists))).unwrap()[1][6], 6.0);
    assert_eq!(ask(&mut openpi(replies(map(vec![("action", row)])))).unwrap().len(), 1);
    let doubles: Vec<u8> = (0..7).flat_map(|i| (f64::from(i) / 3.0).to_be_bytes()).collect();
    let doubles = map(vec![("actions", wrapped(doubles, ">f8", &[7], Keys::Text))]);
    assert_eq!(ask(&mut openpi(replies(doubles))).unwrap()[0][1], 1.0 / 3.0);
}

/// The text of the error that an answer leads to.
fn refusal(answer: Value) -> String {
    let error = ask(&mut openpi(replies(answer))).unwrap_err();
    assert!(matches!(error, RemoteError::Actions { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn unusable_actions_are_named() {
    let mut numbers = vec![0.0; 14];
    numbers[9] = f32::NAN;
    let text = refusal(chunk(&numbers, &[2, 7]));
    assert!(text.contains("number 2 of action 1 is NaN"), "{text}");
    numbers[9] = f32::INFINITY;
    assert!(refusal(chunk(&numbers, &[2, 7])).contains("is inf"));
    assert!(refusal(chunk(&[0.0; 12], &[2, 6])).contains("got [2, 6]"));
    assert!(refusal(chunk(&[0.0; 14], &[1, 2, 7])).contains("got [1, 2, 7]"));
    assert!(refusal(chunk(&[], &[0, 7])).contains("got [0, 7]"));
    assert!(refusal(map(vec![("action_chunk", Value::Nil)])).contains("no `actions` but `action_chunk`"));
    assert!(refusal(Value::from(3)).contains("is a number"));
    assert!(refusal(map(vec![("actions", Value::from("left"))])).contains("got a text"));
    // A shape that promises more than there is; its product overflows, too.
    assert!(refusal(chunk(&[0.0; 7], &[1 << 40, 7])).contains("with 28 bytes"));
    assert!(refusal(chunk(&[0.0; 7], &[u64::MAX, u64::MAX])).contains("with 28 bytes"));
    let objects = map(vec![("actions", wrapped(vec![0; 7], "|O", &[7], Keys::Binary))]);
    assert!(refusal(objects).contains("dtype `|O`"));
    let ragged = Value::Array(vec![Value::Array(vec![1.into()]), Value::Array(vec![1.into(), 2.into()])]);
    assert!(refusal(map(vec![("actions", ragged)])).contains("different lengths"));
}

#[test]
fn silence_ends_at_the_limit_and_the_late_answer_is_not_used() {
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let mut policy = openpi(move |socket, _| {
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(600));
            let _ = socket.send(Message::Binary(bytes(&chunk(&[1.0; 7], &[1, 7])).into()));
        } else {
            let _ = socket.send(Message::Binary(bytes(&chunk(&[2.0; 7], &[1, 7])).into()));
        }
    });
    let begun = Instant::now();
    let error = ask(&mut policy).unwrap_err();
    assert!(matches!(error, RemoteError::Timeout { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(ask(&mut policy).unwrap(), [[2.0; 7]]);
}

/// One byte at a time keeps every single read short; the whole answer still has to come in time.
#[test]
fn a_trickle_ends_at_the_limit() {
    let mut policy = openpi(|socket, _| {
        let tcp = socket.get_mut();
        // A frame header that announces 1000 bytes.
        let _ = tcp.write_all(&[0x82, 126, 0x03, 0xe8]);
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(50));
            let _ = tcp.write_all(&[0xc0]);
        }
    });
    let begun = Instant::now();
    let error = ask(&mut policy).unwrap_err();
    assert!(matches!(error, RemoteError::Timeout { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
}

#[test]
fn endings_and_garbage_are_told_apart() {
    let mut closes = openpi(|socket, _| {
        let _ = socket.close(None);
        let _ = socket.flush();
    });
    assert!(matches!(ask(&mut closes).unwrap_err(), RemoteError::Closed { .. }));
    let mut hangs_up = openpi(|socket, _| {
        let _ = socket.get_mut().shutdown(std::net::Shutdown::Both);
    });
    assert!(matches!(ask(&mut hangs_up).unwrap_err(), RemoteError::Closed { .. }));
    let mut fails = openpi(|socket, _| {
        let text = "Traceback (most recent call last):\n  File \"x.py\"\nValueError: bad \u{7}image";
        let _ = socket.send(Message::Text(text.into()));
    });
    let error = ask(&mut fails).unwrap_err();
    assert!(matches!(&error, RemoteError::Server { text } if text == "ValueError: bad image"), "{error:?}");
    let sends = |data: Vec<u8>| {
        ask(&mut openpi(move |socket, _| {
            let _ = socket.send(Message::Binary(data.clone().into()));
        }))
        .unwrap_err()
    };
    assert!(matches!(sends(vec![0xc1, 1, 2]), RemoteError::Garbage { .. }));
    assert!(matches!(sends(vec![]), RemoteError::Garbage { .. }));
    // Announces 4 GiB of bytes, an array of 4 billion, and nesting without end.
    assert!(matches!(sends(vec![0xc6, 0xff, 0xff, 0xff, 0xff, 0]), RemoteError::Garbage { .. }));
    assert!(matches!(sends(vec![0xdd, 0xff, 0xff, 0xff, 0xff]), RemoteError::Garbage { .. }));
    assert!(matches!(sends(vec![0x91; 100_000]), RemoteError::Garbage { .. }));
    // Noise instead of a frame.
    let mut noise = openpi(|socket, _| {
        let _ = socket.get_mut().write_all(&[0xff; 64]);
    });
    assert!(matches!(ask(&mut noise).unwrap_err(), RemoteError::Garbage { .. }));
}

#[test]
fn a_huge_message_is_not_read() {
    // Announced in the header of a frame: 1 TiB.
    let mut announced = openpi(|socket, _| {
        let mut header = vec![0x82, 127];
        header.extend((1u64 << 40).to_be_bytes());
        let _ = socket.get_mut().write_all(&header);
        std::thread::sleep(Duration::from_millis(100));
    });
    assert!(matches!(ask(&mut announced).unwrap_err(), RemoteError::TooLarge { .. }));
    let mut sent = openpi(|socket, _| {
        let _ = socket.send(Message::Binary(vec![0; 9 << 20].into()));
    });
    assert!(matches!(ask(&mut sent).unwrap_err(), RemoteError::TooLarge { .. }));
}

#[test]
fn nobody_there_and_another_protocol() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut policy = RemotePolicy::new(format!("openpi://127.0.0.1:{free}").parse().unwrap(), LIMITS);
    let error = policy.connect().unwrap_err();
    assert!(matches!(error, RemoteError::Connect { .. }), "{error:?}");
    // An HTTP server.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        }
    });
    let mut policy = RemotePolicy::new(format!("vla-eval://127.0.0.1:{port}").parse().unwrap(), LIMITS);
    let error = policy.connect().unwrap_err();
    assert!(matches!(error, RemoteError::Handshake { .. }), "{error:?}");
    // A server that accepts and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let limits = Limits { connect: Duration::from_millis(200), ..LIMITS };
    let mut policy = RemotePolicy::new(format!("openpi://127.0.0.1:{port}").parse().unwrap(), limits);
    assert!(policy.connect().unwrap_err().to_string().contains("in time"));
}

/// A vla-eval server with this hello, which answers every observation with what `answer` makes of its number.
fn vla_eval(
    hello: Value,
    answer: impl Fn(u64, &Value) -> Value + Send + Sync + Clone + 'static,
) -> RemotePolicy {
    let (port, _) = server(move |mut socket| {
        while let Ok(message) = socket.read() {
            let Message::Binary(data) = message else { continue };
            let asked = rmpv::decode::read_value(&mut &data[..]).unwrap();
            let seq = get(&asked, "seq").unwrap().as_u64().unwrap();
            let payload = get(&asked, "payload").unwrap();
            assert!(get(&asked, "timestamp").unwrap().is_f64());
            let reply = match get(&asked, "type").unwrap().as_str().unwrap() {
                "hello" => typed("hello", hello.clone(), seq),
                "observation" => answer(seq, payload),
                "episode_start" => {
                    let task = get(payload, "task").unwrap();
                    assert_eq!(get(task, "task_id").unwrap().as_u64(), Some(7));
                    continue;
                }
                _ => continue,
            };
            socket.send(Message::Binary(bytes(&reply).into())).unwrap();
        }
    });
    RemotePolicy::new(format!("vla-eval://127.0.0.1:{port}").parse().unwrap(), LIMITS)
}

fn typed(kind: &str, payload: Value, seq: u64) -> Value {
    map(vec![
        ("type", kind.into()),
        ("payload", payload),
        ("seq", seq.into()),
        ("timestamp", Value::from(1.5)),
    ])
}

#[test]
fn vla_eval_sends_what_the_server_asks_for() {
    let params = |names: &[&str]| {
        let on = names.iter().map(|&name| (name, Value::Boolean(true))).collect();
        map(vec![("observation_params", map(on))])
    };
    let hello = params(&["send_state", "send_wrist_image", "quat_no_antipodal"]);
    let mut policy = vla_eval(hello, |seq, asked| {
        let images = get(asked, "images").unwrap();
        assert!(get(images, "wrist").is_some());
        let state = array(get(asked, "states").unwrap()).unwrap();
        typed(
            "action",
            map(vec![("actions", wrapped(floats(&[state.data[1] as f32; 7]), "<f4", &[7], Keys::Text))]),
            seq,
        )
    });
    assert_eq!(ask(&mut policy).unwrap(), [[1.0; 7]]);
    policy.end_episode(true, 12);
    let mut policy = vla_eval(params(&["send_state"]), |seq, asked| {
        assert!(get(get(asked, "images").unwrap(), "wrist").is_none());
        let state = array(get(asked, "states").unwrap()).unwrap();
        typed(
            "action",
            map(vec![("actions", wrapped(floats(&[state.data[1] as f32; 7]), "<f4", &[7], Keys::Text))]),
            seq,
        )
    });
    assert_eq!(ask(&mut policy).unwrap(), [[9.0; 7]]);
    let mut policy = vla_eval(params(&["absolute_action"]), |seq, _| typed("action", Value::Nil, seq));
    let error = ask(&mut policy).unwrap_err();
    assert!(error.to_string().contains("absolute_action"), "{error}");
    let euler = map(vec![("rotation", map(vec![("format", "euler_xyz".into())]))]);
    let mut policy = vla_eval(map(vec![("action_spec", euler)]), |seq, _| typed("action", Value::Nil, seq));
    let error = ask(&mut policy).unwrap_err();
    assert!(error.to_string().contains("euler_xyz"), "{error}");
}

#[test]
fn vla_eval_errors_and_shifted_answers_are_refused() {
    fn error(answer: impl Fn(u64, &Value) -> Value + Send + Sync + Clone + 'static) -> RemoteError {
        ask(&mut vla_eval(map(vec![]), answer)).unwrap_err()
    }
    let failed =
        error(|seq, _| typed("error", map(vec![("error", "observation_failed: KeyError".into())]), seq));
    assert!(matches!(&failed, RemoteError::Server { text } if text.contains("KeyError")), "{failed:?}");
    let action = || map(vec![("actions", Value::Array(vec![Value::from(0.0); 7]))]);
    let shifted = error(move |seq, _| typed("action", action(), seq - 1));
    assert!(matches!(shifted, RemoteError::Garbage { .. }), "{shifted:?}");
    let other = error(|seq, _| typed("episode_end", Value::Nil, seq));
    assert!(matches!(other, RemoteError::Garbage { .. }), "{other:?}");
}

#[test]
fn addresses() {
    let ok = |text: &str| text.parse::<Address>().unwrap().to_string();
    assert_eq!(ok("openpi://localhost:8000"), "openpi://localhost:8000");
    assert_eq!(ok("vla-eval://10.0.0.1"), "vla-eval://10.0.0.1:8000");
    assert_eq!(ok("openpi://[::1]:9/ws"), "openpi://[::1]:9/ws");
    for bad in [
        "localhost:8000",
        "http://x",
        "openpi://",
        "openpi://x:0",
        "openpi://x:99999",
        "openpi://a b:1",
        "openpi://[::1",
        "openpi://::1",
    ] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
}

/// A server that went away between two episodes and came back costs none.
#[test]
fn a_lost_connection_between_episodes_is_made_anew() {
    let mut policy = openpi(|socket, _| {
        let _ = socket.send(Message::Binary(bytes(&chunk(&[1.0; 7], &[1, 7])).into()));
        let _ = socket.get_mut().shutdown(std::net::Shutdown::Both);
    });
    for _ in 0..3 {
        assert_eq!(ask(&mut policy).unwrap(), [[1.0; 7]]);
        std::thread::sleep(Duration::from_millis(50));
    }
}
