//! Objects: byte streams of any length, stored as one content or as a list of pieces.

mod list;
mod reader;
mod table;

pub use list::{LIST_PIECE_LEN, ListBuilder, ListEntry, parse_list};
pub use reader::ObjectReader;
pub use table::{BlockAddressTable, TableBuilder, TableEntry};
