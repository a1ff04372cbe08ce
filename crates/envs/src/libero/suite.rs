//! The suites.

/// A suite of tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    /// For example `libero_spatial`.
    pub name: &'static str,
    /// Number of tasks.
    pub tasks: usize,
    /// Control steps until an episode ends, without the idle ones.
    pub max_steps: usize,
}

/// All suites, in the benchmark's order.
pub const SUITES: [Suite; 5] = [
    Suite { name: "libero_spatial", tasks: 10, max_steps: 220 },
    Suite { name: "libero_object", tasks: 10, max_steps: 280 },
    Suite { name: "libero_goal", tasks: 10, max_steps: 300 },
    Suite { name: "libero_10", tasks: 10, max_steps: 520 },
    Suite { name: "libero_90", tasks: 90, max_steps: 400 },
];

/// The suite of a name.
pub fn suite(name: &str) -> Option<&'static Suite> {
    SUITES.iter().find(|suite| suite.name == name)
}
