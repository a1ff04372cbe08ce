//! The mathematics of policy optimisation: advantages, surrogates, regularisers, reward shaping.
