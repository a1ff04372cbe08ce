//! A vision-language model behind an OpenAI-compatible endpoint as judge.

use std::io::Cursor;
use std::time::Duration;

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Judge, JudgeError, JudgeQuestion, Verdict};
use crate::flow::{Error, Result};

/// Answers beyond are not read.
const MAX_ANSWER: u64 = 1 << 20;
/// Longest pause between tries.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How much of a bad answer is quoted.
const QUOTED: usize = 200;

const SYSTEM: &str = "You check plans of a robot. You see a rendered picture of the scene as it would be after the plan was \
executed; it is made from a point cloud and may be rough. Decide whether the instruction would be fulfilled in this state. \
Answer with exactly one JSON object and nothing else: {\"accept\": true or false, \"reason\": \"one short sentence\"}.";

/// How the model is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlmOptions {
    /// Base address, for example `http://localhost:8000`; `/v1/chat/completions` is added. `https` needs a build with TLS.
    pub endpoint: String,
    /// Name of the model, as the server knows it.
    pub model: String,
    /// Name of the environment variable that holds the key; no key is sent if it is empty.
    #[serde(default)]
    pub key_variable: String,
    /// Seconds for one whole answer, 0.05 to 600.
    #[serde(default = "default_timeout")]
    pub timeout_secs: f64,
    /// Further tries after a failed one, 0 to 10.
    #[serde(default = "default_retries")]
    pub retries: usize,
    /// Pause before the second try, seconds, 0 to 30; it doubles with every further one.
    #[serde(default = "default_pause")]
    pub pause_secs: f64,
}

fn default_timeout() -> f64 {
    30.0
}
fn default_retries() -> usize {
    3
}
fn default_pause() -> f64 {
    0.5
}

impl VlmOptions {
    fn validate(&self) -> Result<()> {
        let bad = |setting, value: String, range| Err(Error::Setting { setting, value, range });
        if !(self.endpoint.starts_with("http://") || self.endpoint.starts_with("https://")) {
            return bad("endpoint", self.endpoint.clone(), "an address that begins with http:// or https://");
        }
        if !(0.05..=600.0).contains(&self.timeout_secs) {
            return bad("timeout_secs", self.timeout_secs.to_string(), "0.05 to 600 seconds");
        }
        if self.retries > 10 {
            return bad("retries", self.retries.to_string(), "0 to 10");
        }
        if !(0.0..=30.0).contains(&self.pause_secs) {
            return bad("pause_secs", self.pause_secs.to_string(), "0 to 30 seconds");
        }
        Ok(())
    }
}

/// Asks a vision-language model. Failed tries (no connection, no answer in time, status 429 or 5xx, an answer in another
/// form) are repeated with growing pauses; a refusal (other status) is not.
pub struct VlmJudge {
    options: VlmOptions,
    url: String,
    key: Option<String>,
    agent: ureq::Agent,
}

impl VlmJudge {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Setting`]: a number out of range, an address that is none, or a key variable that is not set.
    pub fn new(options: VlmOptions) -> Result<Self> {
        options.validate()?;
        let key = match options.key_variable.as_str() {
            "" => None,
            name => Some(std::env::var(name).map_err(|_| Error::Setting {
                setting: "key_variable",
                value: name.to_owned(),
                range: "the name of an environment variable that is set",
            })?),
        };
        let url = format!("{}/v1/chat/completions", options.endpoint.trim_end_matches('/'));
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(options.timeout_secs)))
            .http_status_as_error(false)
            .max_redirects(0)
            .build();
        Ok(Self { url, key, agent: config.into(), options })
    }

    fn request(&self, question: &JudgeQuestion<'_>) -> Result<String> {
        let mut png = Cursor::new(Vec::new());
        question
            .picture
            .rgb
            .write_to(&mut png, image::ImageFormat::Png)
            .map_err(|e| Error::Query { why: format!("the picture cannot be encoded: {e}") })?;
        let picture = base64::engine::general_purpose::STANDARD.encode(png.into_inner());
        let body = json!({
            "model": self.options.model,
            "temperature": 0,
            "max_tokens": 200,
            "messages": [
                { "role": "system", "content": SYSTEM },
                { "role": "user", "content": [
                    { "type": "text", "text": format!("Instruction: {}", question.instruction) },
                    { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{picture}") } },
                ] },
            ],
        });
        Ok(body.to_string())
    }

    /// One try.
    fn ask(&self, body: &str) -> std::result::Result<Answer, Failure> {
        let mut request = self.agent.post(&self.url).content_type("application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(MAX_ANSWER).lossy_utf8(true).read_to_string()?;
        if status != 200 {
            return Err(Failure::Status { status, body: quote(&text) });
        }
        parse(&text)
    }
}

/// The only form an answer may have.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    accept: bool,
    reason: String,
}

enum Failure {
    Timeout,
    Transport(String),
    Status { status: u16, body: String },
    Nonsense { why: String, answer: String },
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Timeout,
            ureq::Error::BodyExceedsLimit(limit) => {
                Self::Nonsense { why: format!("it is longer than {limit} bytes"), answer: String::new() }
            }
            other => Self::Transport(other.to_string()),
        }
    }
}

impl Failure {
    fn worth_another_try(&self) -> bool {
        !matches!(self, Self::Status { status, .. } if *status != 429 && *status < 500)
    }
}

/// The verdict in a chat completion: `choices[0].message.content` is one JSON object, alone or in one code fence.
fn parse(text: &str) -> std::result::Result<Answer, Failure> {
    let nonsense = |why: String| Failure::Nonsense { why, answer: quote(text) };
    let whole: Value = serde_json::from_str(text).map_err(|e| nonsense(e.to_string()))?;
    let content = whole.pointer("/choices/0/message/content").and_then(Value::as_str);
    let content = content.ok_or_else(|| nonsense("there is no choices[0].message.content".into()))?.trim();
    let inner = content
        .strip_prefix("```json")
        .or_else(|| content.strip_prefix("```"))
        .and_then(|rest| rest.strip_suffix("```"))
        .unwrap_or(content);
    serde_json::from_str(inner.trim())
        .map_err(|e| Failure::Nonsense { why: e.to_string(), answer: quote(content) })
}

fn quote(text: &str) -> String {
    text.chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Judge for VlmJudge {
    fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict> {
        let body = self.request(question)?;
        let mut pause = Duration::from_secs_f64(self.options.pause_secs);
        let mut tries = 0;
        loop {
            let failure = match self.ask(&body) {
                Ok(Answer { accept, reason }) => {
                    return Ok(Verdict { accept, score: f64::from(u8::from(accept)), reason });
                }
                Err(failure) => failure,
            };
            tries += 1;
            if tries <= self.options.retries && failure.worth_another_try() {
                std::thread::sleep(pause);
                pause = (pause * 2).min(MAX_PAUSE);
                continue;
            }
            return Err(Error::Judge(match failure {
                Failure::Timeout => JudgeError::Timeout { limit_secs: self.options.timeout_secs, tries },
                Failure::Transport(why) => JudgeError::Transport { url: self.url.clone(), why, tries },
                Failure::Status { status, body } => JudgeError::Status { status, body, tries },
                Failure::Nonsense { why, answer } => JudgeError::Nonsense { why, answer, tries },
            }));
        }
    }

    fn name(&self) -> &'static str {
        "vlm"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use efference_geometry::Isometry3;

    use super::*;
    use crate::flow::FinalPicture;
    use crate::flow::picture::tests::wall_and_square;

    /// What the server does with one request.
    #[derive(Clone)]
    enum Act {
        Hang,
        HangUp,
        Say(u16, String),
    }

    fn completion(content: &str) -> String {
        json!({ "choices": [{ "message": { "role": "assistant", "content": content } }] }).to_string()
    }

    /// What a server was asked, and the connections it keeps open.
    type Served = (Vec<Value>, Vec<TcpStream>);

    /// A server that goes through its acts, one per connection, and returns the bodies of the requests.
    fn serve(acts: Vec<Act>) -> (String, JoinHandle<Served>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut bodies = Vec::new();
            let mut hanging = Vec::new();
            for act in acts {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while reader.read_line(&mut line).unwrap() > 2 {
                    if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                bodies.push(serde_json::from_slice(&body).unwrap());
                match act {
                    Act::Hang => hanging.push(stream),
                    Act::HangUp => drop(stream),
                    Act::Say(status, text) => {
                        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", text.len());
                        write!(stream, "{head}connection: close\r\n\r\n{text}").unwrap();
                    }
                }
            }
            // Those that hang stay open until the test is over.
            (bodies, hanging)
        });
        (address, server)
    }

    fn judge(address: &str, retries: usize) -> VlmJudge {
        VlmJudge::new(VlmOptions {
            endpoint: address.into(),
            model: "looker".into(),
            key_variable: String::new(),
            timeout_secs: 0.3,
            retries,
            pause_secs: 0.01,
        })
        .unwrap()
    }

    fn ask(judge: &mut VlmJudge) -> Result<Verdict> {
        let (query, mask) = wall_and_square();
        let motion = Isometry3::translation(0.1, 0.0, 0.0);
        let picture: FinalPicture = crate::flow::draw_final(&query, &mask, &motion).unwrap();
        judge.judge(&JudgeQuestion {
            instruction: "move the square to the right",
            picture: &picture,
            camera: &query.camera,
            motion: &motion,
        })
    }

    #[test]
    fn it_asks_again_after_silence_nonsense_and_errors_until_the_answer_is_right() {
        let (address, server) = serve(vec![
            Act::Hang,
            Act::HangUp,
            Act::Say(500, "boom".into()),
            Act::Say(429, "slow down".into()),
            Act::Say(200, "<html>".into()),
            Act::Say(200, completion("Yes, looks good!")),
            Act::Say(200, completion(r#"{"accept": "maybe", "reason": "?"}"#)),
            Act::Say(200, completion(r#"{"accept": false, "reason": "it hangs in the air"}"#)),
        ]);
        let verdict = ask(&mut judge(&address, 9)).unwrap();
        assert_eq!(verdict, Verdict { accept: false, score: 0.0, reason: "it hangs in the air".into() });
        let (bodies, _) = server.join().unwrap();
        assert_eq!(bodies.len(), 8);
        let text = bodies[0].pointer("/messages/1/content/0/text").unwrap().as_str().unwrap();
        assert!(text.contains("move the square to the right"));
        let url = bodies[7].pointer("/messages/1/content/1/image_url/url").unwrap().as_str().unwrap();
        let png = base64::engine::general_purpose::STANDARD
            .decode(url.strip_prefix("data:image/png;base64,").unwrap())
            .unwrap();
        let picture = image::load_from_memory(&png).unwrap();
        assert_eq!((picture.width(), picture.height()), (32, 32));
    }

    #[test]
    fn acceptance_in_a_fence_counts_and_extra_words_do_not() {
        let good = "```json\n{\"accept\": true, \"reason\": \"in the holder\"}\n```";
        let (address, server) = serve(vec![Act::Say(200, completion(good))]);
        assert!(ask(&mut judge(&address, 0)).unwrap().accept);
        server.join().unwrap();
        for bad in [
            r#"{"accept": true}"#,
            r#"{"accept": true, "reason": "x", "also": 1}"#,
            r#"Sure: {"accept": true, "reason": "x"}"#,
            r#"{"accept": true, "reason": "x"} and so on"#,
            "",
        ] {
            assert!(matches!(parse(&completion(bad)), Err(Failure::Nonsense { .. })), "{bad}");
        }
    }

    #[test]
    fn each_way_to_fail_is_an_error_of_its_own_and_never_a_verdict() {
        let fail = |acts: Vec<Act>, retries: usize| {
            let (address, server) = serve(acts);
            let Error::Judge(error) = ask(&mut judge(&address, retries)).unwrap_err() else { panic!() };
            server.join().unwrap();
            error
        };
        let silent = fail(vec![Act::Hang, Act::Hang], 1);
        assert!(matches!(silent, JudgeError::Timeout { tries: 2, .. }), "{silent}");
        let nonsense = fail(vec![Act::Say(200, completion("no idea"))], 0);
        assert!(
            matches!(&nonsense, JudgeError::Nonsense { answer, .. } if answer == "no idea"),
            "{nonsense}"
        );
        let server = fail(vec![Act::Say(503, "busy".into()), Act::Say(503, "busy".into())], 1);
        assert!(matches!(server, JudgeError::Status { status: 503, tries: 2, .. }), "{server}");
        // A refusal is not repeated: a second connection would hang this test.
        let refused = fail(vec![Act::Say(401, "no key".into())], 5);
        assert!(matches!(refused, JudgeError::Status { status: 401, tries: 1, .. }), "{refused}");
        // Nobody listens there any more.
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let Error::Judge(error) = ask(&mut judge(&format!("http://{closed}"), 0)).unwrap_err() else {
            panic!()
        };
        assert!(matches!(error, JudgeError::Transport { .. } | JudgeError::Timeout { .. }), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let options = judge("http://localhost:1", 0).options;
        for (bad, name) in [
            (VlmOptions { endpoint: "localhost".into(), ..options.clone() }, "endpoint"),
            (VlmOptions { timeout_secs: f64::NAN, ..options.clone() }, "timeout_secs"),
            (VlmOptions { retries: 99, ..options.clone() }, "retries"),
            (VlmOptions { pause_secs: -1.0, ..options.clone() }, "pause_secs"),
            (VlmOptions { key_variable: "NO_SUCH_VARIABLE_1".into(), ..options.clone() }, "key_variable"),
        ] {
            let error = VlmJudge::new(bad).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
