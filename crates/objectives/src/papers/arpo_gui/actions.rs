//! What a UI-TARS agent writes, and what the desktop is told to do.
//!
//! A response is `Thought: ...` and `Action: name(key='value', ...)`, several actions parted by blank lines.
//! Positions are pixels of the resized screenshot; the desktop gets statements of pyautogui with pixels of the
//! screen. Whatever cannot be read ends the episode with a format reward of -1.

use std::collections::BTreeMap;

use serde::Serialize;

/// An action with its arguments; boxes as `[x1, y1, x2, y2]` in fractions of the screen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Action {
    /// `click`, `type`, ...
    pub action_type: String,
    /// Arguments by name.
    pub action_inputs: BTreeMap<String, String>,
    /// The thought of the response.
    pub thought: Option<String>,
}

/// A response, read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parsed {
    /// Whether it could be read.
    pub ok: bool,
    /// Its actions; none if it could not.
    pub parsed: Vec<Action>,
    /// Statements for the desktop, or one of `DONE`, `WAIT`, `FAIL`.
    pub env_actions: Vec<String>,
    /// 0, or -1 if it could not be read.
    pub format_reward: f64,
}

/// Sizes and habits of the agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UiTars {
    /// Width and height of the screen in pixels.
    pub screen: [f64; 2],
    /// Width and height of the screenshot as the model sees it.
    pub resized: [f64; 2],
    /// Type by pasting from the clipboard.
    pub clipboard: bool,
    /// Count `press` as unreadable, which an undefined variable in the authors' code amounts to.
    pub press_fails: bool,
}

impl UiTars {
    /// Reads a response.
    pub fn parse(&self, response: &str) -> Parsed {
        let read = || {
            let parsed = self.actions(response)?;
            let env_actions = self.statements(&parsed)?;
            Some(Parsed { ok: true, parsed, env_actions, format_reward: 0.0 })
        };
        read().unwrap_or_else(|| Parsed {
            ok: false,
            parsed: Vec::new(),
            env_actions: vec!["DONE".into()],
            format_reward: -1.0,
        })
    }

    fn actions(&self, response: &str) -> Option<Vec<Action>> {
        let text = response.trim();
        let thought = thought(text);
        let (_, calls) = text.rsplit_once("Action:")?;
        calls
            .split("\n\n")
            .map(|call| {
                let call = rewrap(&rewrap(call, "type(content='"), "finished(content='");
                let (name, arguments) = parse_call(call.replace('\n', "\\n").trim_start())?;
                let mut action_inputs = BTreeMap::new();
                for (key, value) in arguments {
                    let value = value.trim_start();
                    if value.is_empty() {
                        continue;
                    }
                    let is_box = key.contains("start_box") || key.contains("end_box");
                    let value = if is_box { self.fractions(value)? } else { value.to_string() };
                    action_inputs.insert(key, value);
                }
                Some(Action { action_type: name, action_inputs, thought: thought.clone() })
            })
            .collect()
    }

    /// `(x,y)` in pixels of the resized screenshot as a list of four fractions.
    fn fractions(&self, value: &str) -> Option<String> {
        let bare = value.replace(['(', ')'], "");
        let pixels = bare.split(',').map(|x| x.trim().parse::<f64>().ok()).collect::<Option<Vec<f64>>>()?;
        let mut fractions: Vec<f64> =
            pixels.iter().enumerate().map(|(i, x)| x / self.resized[i % 2]).collect();
        if let [x, y] = fractions[..] {
            fractions = vec![x, y, x, y];
        }
        let list: Vec<String> = fractions.iter().map(|&x| float_text(x)).collect();
        Some(format!("[{}]", list.join(", ")))
    }

    fn statements(&self, actions: &[Action]) -> Option<Vec<String>> {
        let mut out = Vec::with_capacity(actions.len());
        for action in actions {
            let ends = match action.action_type.as_str() {
                "finished" => Some("DONE"),
                "wait" => Some("WAIT"),
                "error_env" | "call_user" => Some("FAIL"),
                _ => None,
            };
            if let Some(end) = ends {
                return Some(vec![end.into()]);
            }
            out.push(self.statement(action)?.trim().to_string());
        }
        Some(out)
    }

    fn statement(&self, action: &Action) -> Option<String> {
        let argument = |key: &str| action.action_inputs.get(key).map(String::as_str);
        let key = |other: &str| argument("key").or_else(|| argument(other)).unwrap_or_default();
        Some(match action.action_type.as_str() {
            "click" | "left_single" => {
                format!("pyautogui.click({}, button='left')", self.place(argument("start_box")?)?)
            }
            "left_double" => {
                format!("pyautogui.doubleClick({}, button='left')", self.place(argument("start_box")?)?)
            }
            "right_single" => {
                format!("pyautogui.click({}, button='right')", self.place(argument("start_box")?)?)
            }
            "hover" => format!("pyautogui.moveTo({})", self.place(argument("start_box")?)?),
            "drag" | "select" => match (argument("start_box"), argument("end_box")) {
                (Some(start), Some(end)) => {
                    let (start, end) = (self.place(start)?, self.place(end)?);
                    format!("pyautogui.moveTo({start})\n\npyautogui.dragTo({end}, duration=1.0)")
                }
                _ => String::new(),
            },
            "hotkey" => {
                let keys: Vec<String> = arrow(key("hotkey"))
                    .split_whitespace()
                    .map(|key| quoted(if key == "space" { " " } else { key }))
                    .collect();
                if keys.is_empty() { String::new() } else { format!("pyautogui.hotkey({})", keys.join(", ")) }
            }
            "press" if self.press_fails => return None,
            "press" => match arrow(key("press")) {
                "" => String::new(),
                "space" => "pyautogui.press(' ')".into(),
                key => format!("pyautogui.press({})", quoted(key)),
            },
            "keyup" => format!("pyautogui.keyUp({})", quoted(argument("key").unwrap_or_default())),
            "keydown" => format!("pyautogui.keyDown({})", quoted(argument("key").unwrap_or_default())),
            "type" => self.typing(argument("content").unwrap_or_default()),
            "scroll" => {
                let at = match argument("start_box") {
                    Some(place) => {
                        let [x, y] = self.position(place)?;
                        format!(", x={}, y={}", float_text(x), float_text(y))
                    }
                    None => String::new(),
                };
                let direction = argument("direction").unwrap_or_default().to_lowercase();
                match (direction.contains("up"), direction.contains("down")) {
                    (true, _) => format!("pyautogui.scroll(5{at})"),
                    (_, true) => format!("pyautogui.scroll(-5{at})"),
                    _ => String::new(),
                }
            }
            other => format!("# Unrecognized action type: {other}"),
        })
    }

    fn typing(&self, content: &str) -> String {
        if content.is_empty() {
            return String::new();
        }
        let content = escape_quotes(content);
        let enter = content.ends_with('\n') || content.ends_with("\\n");
        let text = if enter {
            content.trim_end_matches(['\\', 'n']).trim_end_matches('\n')
        } else {
            content.as_str()
        };
        let write = if self.clipboard {
            format!("import pyperclip\npyperclip.copy('{text}')\npyautogui.hotkey('ctrl', 'v')")
        } else {
            format!("pyautogui.write('{text}', interval=0.1)")
        };
        let enter = if enter { "\npyautogui.press('enter')" } else { "" };
        format!("{write}\ntime.sleep(0.5)\n{enter}")
    }

    /// The centre of a box in pixels of the screen, rounded to three decimals.
    fn position(&self, fractions: &str) -> Option<[f64; 2]> {
        let inner = fractions.strip_prefix('[')?.strip_suffix(']')?;
        let numbers = inner.split(',').map(|x| x.trim().parse::<f64>().ok()).collect::<Option<Vec<f64>>>()?;
        let [x1, y1, x2, y2] = numbers[..] else { return None };
        let round = |x: f64| format!("{x:.3}").parse::<f64>().ok();
        Some([round((x1 + x2) / 2.0 * self.screen[0])?, round((y1 + y2) / 2.0 * self.screen[1])?])
    }

    fn place(&self, fractions: &str) -> Option<String> {
        self.position(fractions).map(|[x, y]| format!("{}, {}", float_text(x), float_text(y)))
    }
}

/// Marks positions for the history, `start_box='(x,y)'` to `start_box='<|box_start|>(x,y)<|box_end|>'`; one with a
/// space behind its comma stays as it is.
pub fn add_box_tokens(response: &str) -> String {
    let mut parts = response.split("Action: ");
    let (Some(head), true) = (parts.next(), response.contains("start_box=")) else { return response.into() };
    let actions: Vec<String> = parts.map(|action| mark_boxes(action.trim())).collect();
    if actions.is_empty() { response.into() } else { format!("{head}Action: {}", actions.join("\n\n")) }
}

fn mark_boxes(action: &str) -> String {
    let mut out = String::with_capacity(action.len() + 32);
    let mut rest = action;
    while let Some(at) = rest.find("_box='(") {
        let open = at + "_box='".len();
        let named = rest[..at].ends_with("start") || rest[..at].ends_with("end");
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let place = rest[open + 1..].find(")'").map(|close| &rest[open..open + 1 + close + 1]);
        match place {
            Some(place)
                if named
                    && place[1..place.len() - 1]
                        .split_once(',')
                        .is_some_and(|(x, y)| digits(x) && digits(y)) =>
            {
                out.push_str(&rest[..open]);
                out.extend(["<|box_start|>", place, "<|box_end|>"]);
                rest = &rest[open + place.len()..];
            }
            _ => {
                out.push_str(&rest[..=open]);
                rest = &rest[open + 1..];
            }
        }
    }
    out + rest
}

/// What stands between the thought's mark and the first `Action:` behind it.
fn thought(text: &str) -> Option<String> {
    let mark = if text.starts_with("Reflection:") || text.starts_with("Action_Summary:") {
        "Action_Summary: "
    } else {
        "Thought: "
    };
    let (_, rest) = text.split_once(mark)?;
    let second = rest.char_indices().nth(1).map_or(rest.len(), |(i, _)| i);
    let end = rest[second..].find("Action:").map_or(rest.len(), |at| second + at);
    (!rest.is_empty()).then(|| rest[..end].trim().to_string())
}

/// `open` + content + `')` anywhere in a call becomes a call of that content alone, with its quotes escaped.
fn rewrap(call: &str, open: &str) -> String {
    if !call.contains(&open[..open.len() - 2]) {
        return call.into();
    }
    let (mut content, mut rest) = (String::new(), call);
    while let Some(at) = rest.find(open) {
        let inner = &rest[at + open.len()..];
        match inner.find("')") {
            Some(end) if !inner[..end].contains('\n') => {
                content.push_str(&rest[..at]);
                content.push_str(&inner[..end]);
                rest = &inner[end + 2..];
            }
            _ => {
                content.push_str(&rest[..at + open.len()]);
                rest = inner;
            }
        }
    }
    content.push_str(rest);
    format!("{open}{}')", escape_quotes(&content))
}

/// A backslash before every single quote that has none.
fn escape_quotes(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    let mut before = ' ';
    for c in text.chars() {
        if c == '\'' && before != '\\' {
            out.push('\\');
        }
        out.push(c);
        before = c;
    }
    out
}

fn arrow(key: &str) -> &str {
    match key {
        "arrowleft" => "left",
        "arrowright" => "right",
        "arrowup" => "up",
        "arrowdown" => "down",
        other => other,
    }
}

/// `name(key='text', ...)`: the name behind the last dot and the arguments with names. `None` when it is no such
/// call, a named argument is no text, or a name occurs twice.
fn parse_call(call: &str) -> Option<(String, Vec<(String, String)>)> {
    let (path, mut rest) = call.split_once('(')?;
    let identifier = |s: &str| {
        !s.is_empty()
            && !s.starts_with(|c: char| c.is_ascii_digit())
            && s.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    if !path.split('.').all(|part| identifier(part.trim())) {
        return None;
    }
    let name = path.rsplit('.').next()?.trim().to_string();
    let mut arguments: Vec<(String, String)> = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(')') {
            return after.trim().is_empty().then_some((name, arguments));
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"_.+-".contains(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        match after.strip_prefix('=') {
            Some(value) if identifier(word) => {
                let (text, after) = parse_text(value.trim_start())?;
                if arguments.iter().any(|(key, _)| key == word) {
                    return None;
                }
                arguments.push((word.into(), text));
                rest = after;
            }
            Some(_) => return None,
            // An argument without a name is ignored, but not behind one with a name.
            None if !arguments.is_empty() => return None,
            None if word.is_empty() => (_, rest) = parse_text(after)?,
            None => rest = after,
        }
        rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with(')') => {}
            None => return None,
        }
    }
}

/// A text in single or double quotes, unescaped, and what follows it.
fn parse_text(source: &str) -> Option<(String, &str)> {
    let quote = source.chars().next().filter(|c| "'\"".contains(*c))?;
    let mut out = String::new();
    let mut chars = source.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            c if c == quote => return Some((out, &source[i + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                c @ ('\\' | '\'' | '"') => out.push(c),
                other => out.extend(['\\', other]),
            },
            c => out.push(c),
        }
    }
    None
}

/// A text as Python's `repr` writes it: single quotes unless only they occur in it.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A number as Python writes it: the shortest decimal that is exact, with an exponent below 1e-4 and from 1e16 on.
fn float_text(x: f64) -> String {
    let size = x.abs();
    if x.is_nan() || size.is_infinite() || size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const AGENT: UiTars =
        UiTars { screen: [1920.0, 1080.0], resized: [1932.0, 1092.0], clipboard: false, press_fails: true };

    fn done(action: &str) -> Vec<String> {
        AGENT.parse(&format!("Thought: t\nAction: {action}")).env_actions
    }

    #[test]
    fn numbers_and_texts_as_python_writes_them() {
        assert_eq!(float_text(5e-5), "5e-05");
        assert_eq!(float_text(1e16), "1e+16");
        assert_eq!(float_text(0.0001), "0.0001");
        assert_eq!(float_text(3.0), "3.0");
        assert_eq!(quoted("a'b"), "\"a'b\"");
    }

    #[test]
    fn odd_actions() {
        assert_eq!(done("hotkey(key='ctrl space')"), ["pyautogui.hotkey('ctrl', ' ')"]);
        assert_eq!(done("scroll(direction='left')"), [""]);
        assert_eq!(done("press(key='a')"), ["DONE"]);
        let agent = UiTars { press_fails: false, ..AGENT };
        assert_eq!(agent.parse("Action: press(key='arrowup')").env_actions, ["pyautogui.press('up')"]);
        assert_eq!(done("click(start_box='(1,2)', start_box='(1,2)')"), ["DONE"]);
        assert_eq!(done("click(start_box=(1,2))"), ["DONE"]);
        assert_eq!(done("click()"), ["DONE"]);
        assert_eq!(
            done("type(content='say 'hi' now')"),
            ["pyautogui.write('say \\'hi\\' now', interval=0.1)\ntime.sleep(0.5)"]
        );
        assert_eq!(done("click(start_box='(1,2)')\n\nwait()"), ["WAIT"]);
    }

    proptest! {
        #[test]
        fn nothing_that_is_written_panics(
            text in "(Thought: |Action:|click|type\\(content='|\\(|\\)|'|,|=|\\\\|\n|é|1){0,20}",
        ) {
            let parsed = AGENT.parse(&text);
            prop_assert_eq!(parsed.ok, parsed.format_reward == 0.0);
            add_box_tokens(&text);
        }

        #[test]
        fn clicks_land_where_they_were_seen(x in 0u32..1932, y in 0u32..1092) {
            let action = format!("Action: click(start_box='({x},{y})')");
            let marked = add_box_tokens(&action);
            let expected = format!("<|box_start|>({x},{y})<|box_end|>");
            prop_assert!(marked.contains(&expected));
            prop_assert_eq!(add_box_tokens(&marked), marked.clone());
            let statement = AGENT.parse(&action).env_actions.remove(0);
            let inner = statement.strip_prefix("pyautogui.click(").unwrap();
            let seen: f64 = inner.split(',').next().unwrap().parse().unwrap();
            prop_assert!((seen - f64::from(x) / 1932.0 * 1920.0).abs() <= 0.0005 + 1e-9);
        }
    }
}
