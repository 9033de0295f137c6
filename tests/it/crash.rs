//! Backups that end in the middle: the storage cut off after every single change, processes killed, cancelled runs.
//!
//! After each the repository opens, older snapshots are whole, no half snapshot is seen, and the next run succeeds.

mod cut;
mod killed;
