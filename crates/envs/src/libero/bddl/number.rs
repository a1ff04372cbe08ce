//! Numbers of task files: decimal ones, and for angles products and sums with `pi`.

use std::f64::consts::PI;

/// A decimal number. Infinities and NaN are none.
pub(super) fn decimal(word: &str) -> Option<f64> {
    let plain = word.bytes().all(|b| b.is_ascii_digit() || b"+-.e".contains(&b));
    word.parse().ok().filter(|x: &f64| plain && x.is_finite())
}

/// A sum of products, such as `-pi/2`, `3*pi/4`, `0.1` or `pi-0.2`; evaluated from left to right, as Python does.
pub(super) fn angle(word: &str) -> Option<f64> {
    let mut rest = Expression { text: word.as_bytes() };
    let value = rest.sum()?;
    (rest.text.is_empty() && value.is_finite()).then_some(value)
}

struct Expression<'a> {
    text: &'a [u8],
}

impl Expression<'_> {
    fn eat(&mut self, signs: &[u8]) -> Option<u8> {
        let first = *self.text.first()?;
        signs.contains(&first).then(|| {
            self.text = &self.text[1..];
            first
        })
    }

    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        while let Some(sign) = self.eat(b"+-") {
            let next = self.product()?;
            value = if sign == b'+' { value + next } else { value - next };
        }
        Some(value)
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        while let Some(sign) = self.eat(b"*/") {
            let next = self.factor()?;
            value = if sign == b'*' { value * next } else { value / next };
        }
        Some(value)
    }

    /// A number or `pi`, with any signs before it.
    fn factor(&mut self) -> Option<f64> {
        let mut negative = false;
        while let Some(sign) = self.eat(b"+-") {
            negative ^= sign == b'-';
        }
        let value = if let Some(rest) = self.text.strip_prefix(b"pi") {
            self.text = rest;
            PI
        } else {
            let length = self.number_length();
            let (number, rest) = self.text.split_at(length);
            self.text = rest;
            decimal(std::str::from_utf8(number).ok()?)?
        };
        Some(if negative { -value } else { value })
    }

    /// Digits, a point, more digits, and an exponent with its sign.
    fn number_length(&self) -> usize {
        let mut length = 0;
        while let Some(&byte) = self.text.get(length) {
            let exponent_sign = b"+-".contains(&byte) && length > 0 && self.text[length - 1] == b'e';
            if !(byte.is_ascii_digit() || b".e".contains(&byte) || exponent_sign) {
                break;
            }
            length += 1;
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_evaluated_as_python_does() {
        for (word, value) in [
            ("0", 0.0),
            ("pi", PI),
            ("-pi", -PI),
            ("pi/2", PI / 2.0),
            ("3*pi/4", 3.0 * PI / 4.0),
            ("-pi/2+0.1", -PI / 2.0 + 0.1),
            ("1e-3-2e+1", 1e-3 - 20.0),
            ("2*-pi", -2.0 * PI),
            ("3.141592653589793", PI),
            (".5", 0.5),
        ] {
            assert_eq!(angle(word), Some(value), "{word}");
        }
        for word in ["", "pi pi", "2pi", "pi/", "*2", "1/0", "inf", "nan", "tau", "1e", "1..2", "--", "9e999"]
        {
            assert_eq!(angle(word), None, "{word}");
        }
    }

    #[test]
    fn only_finite_decimals_are_numbers() {
        assert_eq!((decimal("-0.10"), decimal("1e2"), decimal("+3")), (Some(-0.1), Some(100.0), Some(3.0)));
        for word in ["inf", "nan", "1e999", "0x1", "pi", "", "infinity", "1_0"] {
            assert_eq!(decimal(word), None, "{word}");
        }
    }
}
