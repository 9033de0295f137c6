//! Movers and command line.
