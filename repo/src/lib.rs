//! Kopia repository format.
