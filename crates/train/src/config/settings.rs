//! One definition per setting: name, type, default, range and text stand together, and the parser, the
//! error messages and the printed table of settings all read that one definition.

use std::fmt;

/// The numbers a setting accepts. Both ends are included unless `above` says otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Lowest accepted number.
    pub min: f64,
    /// Highest accepted number; infinite when there is no upper end.
    pub max: f64,
    /// True when `min` itself is refused ("greater than").
    pub above: bool,
}

impl Range {
    /// `min` and everything greater.
    pub const fn at_least(min: f64) -> Self {
        Self { min, max: f64::INFINITY, above: false }
    }

    /// Strictly greater than `min`.
    pub const fn above(min: f64) -> Self {
        Self { min, max: f64::INFINITY, above: true }
    }

    /// From `min` to `max`, both included.
    pub const fn between(min: f64, max: f64) -> Self {
        Self { min, max, above: false }
    }

    /// Whether `x` is accepted. NaN never is.
    pub fn contains(&self, x: f64) -> bool {
        x <= self.max && if self.above { x > self.min } else { x >= self.min }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An end that only the machine's integers set is none for a person.
        match (self.above, self.max < i64::MAX as f64) {
            (true, false) => write!(f, "greater than {}", self.min),
            (false, false) => write!(f, "{} or more", self.min),
            (true, true) => write!(f, "greater than {}, at most {}", self.min, self.max),
            (false, true) => write!(f, "{} to {}", self.min, self.max),
        }
    }
}

/// What a setting may hold beyond its type.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// A number in this range.
    In(Range),
    /// One word out of this list.
    OneOf(fn() -> Vec<String>),
}

/// The type of a setting, as a person would say it.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number, 0 or more.
    Whole,
    /// Any finite number; a whole number is accepted too.
    Real,
    /// Text in quotes.
    Text,
    /// A list of texts.
    TextList,
    /// A section with its own settings.
    Table(fn() -> Vec<Field>),
    /// A section whose keys belong to somebody else (an algorithm's preset, a model's shape).
    Open,
}

impl Kind {
    /// Words for "expected …".
    pub fn words(&self) -> &'static str {
        match self {
            Kind::Bool => "true or false",
            Kind::Whole => "a whole number",
            Kind::Real => "a number",
            Kind::Text => "text in quotes",
            Kind::TextList => "a list of texts",
            Kind::Table(_) | Kind::Open => "a section",
        }
    }
}

/// One setting, described.
#[derive(Clone, Debug)]
pub struct Field {
    /// Key in the TOML section.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Whether the key may be absent without taking a default (an optional stage or limit).
    pub optional: bool,
    /// Default as it would be written in TOML; `none` for an absent optional; empty for sections.
    pub default: String,
    /// Range or list of accepted words.
    pub check: Option<Check>,
    /// What it is, with unit and source.
    pub doc: &'static str,
}

/// A section: a struct whose fields are described.
pub trait Section {
    /// Its settings, in the order they are documented.
    fn fields() -> Vec<Field>;
}

/// A type a setting can have.
pub trait Setting {
    /// How the value is written.
    const KIND: Kind;
    /// Whether the key may be absent.
    const OPTIONAL: bool = false;
    /// The value as it would be written in TOML, for the table of defaults.
    fn shown(&self) -> String;
}

macro_rules! plain_setting {
    ($($ty:ty => $kind:expr),* $(,)?) => {$(
        impl Setting for $ty {
            const KIND: Kind = $kind;
            fn shown(&self) -> String { format!("{self:?}") }
        }
    )*};
}
plain_setting!(bool => Kind::Bool, usize => Kind::Whole, u64 => Kind::Whole, f64 => Kind::Real,
               String => Kind::Text, Vec<String> => Kind::TextList);

impl Setting for toml::Table {
    const KIND: Kind = Kind::Open;
    fn shown(&self) -> String {
        String::new()
    }
}

impl<T: Setting> Setting for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;
    fn shown(&self) -> String {
        self.as_ref().map_or_else(|| "none".into(), Setting::shown)
    }
}

/// Defines a section: the struct, its defaults, its serde form, and the [`Field`] list.
///
/// `/// doc` then `pub name: Type = default;` or `pub name: Type = default, check;`.
macro_rules! settings {
    ($(#[doc = $sdoc:literal])+ pub struct $name:ident {
        $( $(#[doc = $fdoc:literal])+ pub $field:ident : $ty:ty = $default:expr $(, $check:expr)? ; )*
    }) => {
        $(#[doc = $sdoc])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $( $(#[doc = $fdoc])+ pub $field: $ty, )* }

        impl Default for $name {
            fn default() -> Self { Self { $( $field: $default, )* } }
        }

        impl $crate::config::settings::Section for $name {
            fn fields() -> Vec<$crate::config::settings::Field> {
                use $crate::config::settings::{Check, Field, Setting};
                let defaults = Self::default();
                vec![ $( Field {
                    name: stringify!($field),
                    kind: <$ty as Setting>::KIND,
                    optional: <$ty as Setting>::OPTIONAL,
                    default: defaults.$field.shown(),
                    check: None::<Check>$(.or(Some($check)))?,
                    doc: concat!($($fdoc, "\n"),+),
                }, )* ]
            }
        }

        impl $crate::config::settings::Setting for $name {
            const KIND: $crate::config::settings::Kind =
                $crate::config::settings::Kind::Table(<$name as $crate::config::settings::Section>::fields);
            fn shown(&self) -> String { String::new() }
        }
    };
}
pub(crate) use settings;
