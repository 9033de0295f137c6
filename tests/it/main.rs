//! Integration tests: the product as a whole, judged by `kopia` and by damage done on purpose.

mod attach;
mod azure;
mod bad_input;
mod cache;
mod cbt;
mod crash;
mod delta_restore;
mod devices;
mod golden;
mod hydrate;
mod increments;
mod kopia_compat;
mod lessons;
mod maintenance;
mod mount;
mod nbd;
mod neighbours;
mod object_store;
mod password;
mod serve;
mod storage_faults;
mod sync;
mod tidy;
mod trees;
mod verify;
mod wide;
