//! Maintenance in virtual time, on a store in memory.

mod cut;
mod histories;
mod hooked;
mod margins;
mod refusals;
mod upkeep;
mod walks;
mod world;

use super::*;
