//! Bench suites.
