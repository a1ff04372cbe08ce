//! Text to nested lists of words.

use super::MAX_DEPTH;
use super::error::{Place, Wrong};

/// A word or a bracketed list.
#[derive(Debug)]
pub(super) enum Node {
    Word { text: String, place: Place },
    List { items: Vec<Node>, place: Place, end: Place },
}

impl Node {
    pub fn place(&self) -> Place {
        match self {
            Self::Word { place, .. } | Self::List { place, .. } => *place,
        }
    }

    /// For error messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Word { text, .. } => quoted(text),
            Self::List { items, .. } => match items.first() {
                Some(Self::Word { text, .. }) => format!("the list `({} ..)`", shortened(text)),
                Some(Self::List { .. }) => "a list of lists".to_owned(),
                None => "an empty list".to_owned(),
            },
        }
    }
}

pub(super) fn quoted(word: &str) -> String {
    format!("`{}`", shortened(word))
}

/// Words of damaged files can be long.
fn shortened(word: &str) -> String {
    match word.char_indices().nth(60) {
        Some((end, _)) => format!("{}..", &word[..end]),
        None => word.to_owned(),
    }
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Open,
    Close,
    Word(&'a str),
}

/// Cuts a text into brackets and words, and knows where it is.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
    place: Place,
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip(&mut self, c: char) {
        self.at += c.len_utf8();
        if c == '\n' {
            self.place = Place { line: self.place.line + 1, column: 1 };
        } else {
            self.place.column += 1;
        }
    }

    /// The next token and where it begins; `None` at the end of the text.
    fn next(&mut self) -> Option<(Token<'a>, Place)> {
        let mut comment = false;
        loop {
            let c = self.peek()?;
            comment = (comment || c == ';') && c != '\n';
            if !comment && !c.is_whitespace() {
                break;
            }
            self.skip(c);
        }
        let (start, place) = (self.at, self.place);
        let first = self.peek()?;
        self.skip(first);
        let token = match first {
            '(' => Token::Open,
            ')' => Token::Close,
            _ => {
                while let Some(c) = self.peek().filter(|c| !c.is_whitespace() && !"();".contains(*c)) {
                    self.skip(c);
                }
                Token::Word(&self.text[start..self.at])
            }
        };
        Some((token, place))
    }
}

/// The one expression that a text holds.
pub(super) fn read(text: &str) -> Result<Node, Wrong> {
    let mut lexer = Lexer { text, at: 0, place: Place { line: 1, column: 1 } };
    // Lists that are still open.
    let mut open: Vec<(Vec<Node>, Place)> = Vec::new();
    let mut whole = None;
    while let Some((token, place)) = lexer.next() {
        if whole.is_some() {
            let found = match token {
                Token::Open => "`(`".to_owned(),
                Token::Close => "`)`".to_owned(),
                Token::Word(word) => quoted(word),
            };
            return Err(Wrong::new(place, "the end of the file after the task", found));
        }
        let node = match token {
            Token::Open if open.len() == MAX_DEPTH => {
                let expected = format!("at most {MAX_DEPTH} nested brackets");
                return Err(Wrong::new(place, expected, "one more `(`"));
            }
            Token::Open => {
                open.push((Vec::new(), place));
                continue;
            }
            Token::Close => match open.pop() {
                Some((items, start)) => Node::List { items, place: start, end: place },
                None => return Err(Wrong::new(place, "`(define`", "`)`")),
            },
            Token::Word(word) => Node::Word { text: word.to_lowercase(), place },
        };
        match (open.last_mut(), node) {
            (Some((items, _)), node) => items.push(node),
            (None, node @ Node::List { .. }) => whole = Some(node),
            (None, node @ Node::Word { .. }) => return Err(Wrong::new(place, "`(define`", node.describe())),
        }
    }
    match (open.pop(), whole) {
        (Some((_, start)), _) => {
            let expected = format!("a `)` for the `(` of {start}");
            Err(Wrong::new(lexer.place, expected, "the end of the file"))
        }
        (None, Some(whole)) => Ok(whole),
        (None, None) => Err(Wrong::new(lexer.place, "`(define`", "the end of the file")),
    }
}
