//! What a task file says.

/// One task. All names are lower-case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// Kind of scene, for example `libero_tabletop_manipulation`.
    pub problem: String,
    /// Instruction of the file, its words joined by blanks. The benchmark gives another one to policies, which comes
    /// from the file's name: [`crate::libero::suite::language`].
    pub language: String,
    /// Places on tables and in furniture, in the file's order.
    pub regions: Vec<Region>,
    /// Things that cannot be carried, by category.
    pub fixtures: Vec<Typed>,
    /// Things that can, by category.
    pub objects: Vec<Typed>,
    /// Names of what the task is about.
    pub obj_of_interest: Vec<String>,
    /// Facts at the start.
    pub init: Vec<Fact>,
    /// Facts at the end, all of them.
    pub goal: Vec<Fact>,
}

/// Things of one category.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// Category, for example `akita_black_bowl`.
    pub category: String,
    /// Their names, for example `akita_black_bowl_1`.
    pub names: Vec<String>,
}

/// A place.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Its name in the file.
    pub name: String,
    /// The table, floor or thing that it belongs to.
    pub target: String,
    /// Rectangles `[x0, y0, x1, y1]` in metres, in the frame of the scene's work space; none for places that are built
    /// into a thing.
    pub ranges: Vec<[f64; 4]>,
    /// Range of the angle about z of what is put there, in radians.
    pub yaw: [f64; 2],
    /// Colour of its mark, each in [0, 1]; hidden with alpha 0.
    pub rgba: [f64; 4],
}

impl Region {
    /// Angles unless the file says others.
    pub const YAW: [f64; 2] = [0.0, 0.0];
    /// Colour unless the file says another.
    pub const RGBA: [f64; 4] = [0.0, 0.0, 1.0, 0.0];

    /// The name that facts use: `TARGET_NAME`.
    pub fn key(&self) -> String {
        format!("{}_{}", self.target, self.name)
    }
}

/// A predicate and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// One of [`Fact::PREDICATES`].
    pub predicate: String,
    /// One thing, or a thing and a place or thing.
    pub args: Vec<String>,
}

impl Fact {
    /// Predicates and how many things each is about.
    pub const PREDICATES: [(&'static str, usize); 7] =
        [("on", 2), ("in", 2), ("open", 1), ("close", 1), ("turnon", 1), ("turnoff", 1), ("up", 1)];

    /// The predicate and its arguments, as task packs write them.
    pub fn words(&self) -> Vec<&str> {
        std::iter::once(&self.predicate).chain(&self.args).map(String::as_str).collect()
    }
}

impl Task {
    /// The region that facts call `key`.
    pub fn region(&self, key: &str) -> Option<&Region> {
        self.regions.iter().find(|region| region.key() == key)
    }

    /// Names of all fixtures and objects, in the file's order.
    pub fn things(&self) -> impl Iterator<Item = &str> {
        self.fixtures.iter().chain(&self.objects).flat_map(|typed| &typed.names).map(String::as_str)
    }
}
