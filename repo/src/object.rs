//! Objects: byte streams of any length, stored as one content or as a list of pieces.

mod difference;
mod hashes;
mod list;
mod load;
mod reader;
mod stored;
mod table;
mod text;

pub use difference::DifferingPieces;
pub use list::{LIST_PIECE_LEN, ListBuilder, ListEntry, parse_list};
pub use load::LoadedList;
pub use reader::ObjectReader;
pub(crate) use stored::LIST_PREFIX;
pub use stored::StoredList;
pub use table::{BlockAddressTable, ParentUnfit, TableBuilder, TableEntry};
pub(crate) use text::ListText;
