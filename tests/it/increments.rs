//! Increments: chains judged by kopia, lists that lie, backups that are interrupted, and the rungs of the ladder.

mod chain;
mod ladder;
mod lies;
mod resume;
