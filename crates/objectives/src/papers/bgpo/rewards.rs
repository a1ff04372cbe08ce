//! Rewards of the planning tasks: countdown and 4x4 sudoku.

/// What stands in the last pair of answer tags, trimmed.
pub fn last_answer(text: &str) -> Option<&str> {
    let start = text.rfind("<answer>")? + "<answer>".len();
    let rest = text.get(start..)?;
    Some(rest.get(..rest.find("</answer>")?)?.trim())
}

/// Sudoku: the share of the empty cells of `puzzle` ('0' is empty) that `answer` fills as in `solution`. The digits of
/// the answer are padded with 0 or cut to the puzzle's length; a puzzle without empty cells scores 0.
pub fn sudoku_reward(puzzle: &str, solution: &str, answer: &str) -> f64 {
    let digits = answer.chars().filter(char::is_ascii_digit).chain(std::iter::repeat('0'));
    let cells = puzzle.chars().zip(solution.chars()).zip(digits);
    let (mut empty, mut right) = (0.0, 0.0);
    for ((given, wanted), got) in cells.filter(|((given, _), _)| *given == '0') {
        empty += 1.0;
        right += f64::from(u8::from(given != got && got == wanted));
    }
    if empty > 0.0 { right / empty } else { 0.0 }
}

/// Countdown: 1 when the expression in the answer tags uses every number once and makes `target`, 0.1 when there is
/// another expression, 0 when there is none.
pub fn countdown_reward(text: &str, numbers: &[u64], target: f64) -> f64 {
    let Some(answer) = last_answer(text).filter(|answer| !answer.is_empty()) else { return 0.0 };
    let expression = answer.split('=').next().unwrap_or(answer);
    let mut used: Vec<u64> =
        expression.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let mut wanted = numbers.to_vec();
    used.sort_unstable();
    wanted.sort_unstable();
    match evaluate(expression) {
        Some(value) if used == wanted && (value - target).abs() < 1e-5 => 1.0,
        _ => 0.1,
    }
}

/// Value of an expression of numbers, + - * / and parentheses.
pub fn evaluate(expression: &str) -> Option<f64> {
    let text: Vec<char> = expression.chars().filter(|c| !c.is_whitespace()).collect();
    let mut parser = Parser { text: &text, at: 0, depth: 0 };
    let value = parser.sum()?;
    (parser.at == text.len() && value.is_finite()).then_some(value)
}

struct Parser<'a> {
    text: &'a [char],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn take(&mut self, wanted: &[char]) -> Option<char> {
        let c = self.text.get(self.at).copied().filter(|c| wanted.contains(c))?;
        self.at += 1;
        Some(c)
    }

    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        while let Some(sign) = self.take(&['+', '-']) {
            let next = self.product()?;
            value = if sign == '+' { value + next } else { value - next };
        }
        Some(value)
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        while let Some(sign) = self.take(&['*', '/']) {
            let next = self.factor()?;
            value = if sign == '*' { value * next } else { value / next };
        }
        Some(value)
    }

    fn factor(&mut self) -> Option<f64> {
        // A text of parentheses alone must not exhaust the stack.
        self.depth += 1;
        if self.depth > 100 {
            return None;
        }
        let value = if self.take(&['-']).is_some() {
            -self.factor()?
        } else if self.take(&['(']).is_some() {
            let inner = self.sum()?;
            self.take(&[')'])?;
            inner
        } else {
            let digits =
                self.text.get(self.at..)?.iter().take_while(|c| c.is_ascii_digit() || **c == '.').count();
            let number: String = self.text.get(self.at..self.at + digits)?.iter().collect();
            self.at += digits;
            number.parse().ok()?
        };
        self.depth -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn countdown() {
        let answer = |text: &str| countdown_reward(&format!("x <answer> {text} </answer>"), &[3, 5, 2], 4.0);
        assert_eq!(answer("(5 + 3) / 2"), 1.0);
        assert_eq!(answer("(5 + 3) / 2 = 4"), 1.0);
        assert_eq!(answer("5 - 3 + 2"), 1.0);
        assert_eq!(answer("3 + 5 + 2"), 0.1);
        assert_eq!(answer("4"), 0.1);
        assert_eq!(answer("5 + 3 / "), 0.1);
        assert_eq!(countdown_reward("(5 + 3) / 2", &[3, 5, 2], 4.0), 0.0);
        assert_eq!(evaluate("1/0"), None);
        assert_eq!(evaluate(&"(".repeat(100_000)), None);
        assert_eq!(evaluate("2*(1-4)-6/4"), Some(-7.5));
    }

    #[test]
    fn sudoku() {
        let (puzzle, solution) = ("1200", "1234");
        assert_eq!(sudoku_reward(puzzle, solution, "1234"), 1.0);
        assert_eq!(sudoku_reward(puzzle, solution, "12 3"), 0.5);
        assert_eq!(sudoku_reward(puzzle, solution, "12431111"), 0.0);
        assert_eq!(sudoku_reward(puzzle, solution, ""), 0.0);
        assert_eq!(sudoku_reward("1234", solution, "1234"), 0.0);
    }
}
