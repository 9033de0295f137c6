//! Integration tests: the product as a whole, judged by `kopia` and by damage done on purpose.

mod azure;
mod bad_input;
mod crash;
mod devices;
mod golden;
mod kopia_compat;
mod maintenance;
mod nbd;
mod neighbours;
mod object_store;
mod password;
mod storage_faults;
mod sync;
mod tidy;
mod trees;
mod verify;
