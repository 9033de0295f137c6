//! Maintenance by us, with the real kopia as judge, neighbour and fellow maintainer.

mod epochs;
mod killed;
mod shared;
mod with_kopia;
