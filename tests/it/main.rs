//! Integration tests: the product as a whole, judged by `kopia` and by damage done on purpose.

mod bad_input;
mod crash;
mod devices;
mod golden;
mod kopia_compat;
mod tidy;
