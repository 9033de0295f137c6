//! What can still be made out in the text of a list of which pieces are missing.

use serde::Deserialize;

use crate::id::ObjectId;
use crate::object::ListEntry;

/// Longest text of one entry, in bytes: three numbers and names of 75 characters, and room for fields to come.
const ENTRY_LEN_MAX: usize = 4096;

/// Finds the entries of a list in the parts of its text that are left. Each entry tells its own place, so none needs
/// those before it.
#[derive(Default)]
pub struct ListScan {
    /// What may be the beginning of an entry.
    rest: Vec<u8>,
    /// Something before `rest` was missing.
    is_torn: bool,
    any: bool,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "s")]
    start: Option<u64>,
    #[serde(rename = "l", default)]
    len: u64,
    #[serde(rename = "o")]
    object: String,
}

impl ListScan {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next part of the text and hands out the entries that end in it.
    pub fn take(&mut self, text: &[u8], mut each: impl FnMut(ListEntry)) {
        self.rest.extend_from_slice(text);
        let mut at = 0;
        while let Some(start) = find(&self.rest[at..], b"{\"").map(|found| at + found) {
            let Some(end) = find(&self.rest[start..], b"}").map(|found| start + found + 1) else {
                at = start;
                break;
            };
            at = match self.entry(&self.rest[start..end]) {
                Some(entry) => {
                    self.any = true;
                    each(entry);
                    end
                }
                None => start + 1,
            };
        }
        // The last byte may be the first of an opening pair.
        let keep = match find(&self.rest[at..], b"{\"") {
            Some(found) => at + found,
            None => self.rest.len().saturating_sub(1).max(at),
        };
        self.rest
            .drain(..keep.max(self.rest.len().saturating_sub(ENTRY_LEN_MAX)));
    }

    /// The next part of the text is missing.
    pub fn gap(&mut self) {
        self.rest.clear();
        self.is_torn = true;
    }

    fn entry(&self, text: &[u8]) -> Option<ListEntry> {
        let entry: Entry = serde_json::from_slice(text).ok()?;
        let object: ObjectId = entry.object.parse().ok()?;
        // Only the first entry of a list leaves its start out.
        let start = match entry.start {
            None if self.is_torn || self.any => return None,
            start => start.unwrap_or(0),
        };
        start.checked_add(entry.len)?;
        Some(ListEntry {
            start,
            len: entry.len,
            object,
        })
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::ListBuilder;

    fn list(count: u64) -> (Vec<ListEntry>, Vec<u8>) {
        let entries: Vec<_> = (0..count)
            .map(|i| ListEntry {
                start: i << 20,
                len: 1 << 20,
                object: format!("{i:032x}").parse().expect("valid"),
            })
            .collect();
        let (mut builder, mut text) = (ListBuilder::new(), Vec::new());
        let mut take = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        entries.iter().for_each(|e| builder.push(e, &mut take).expect("push"));
        builder.finish(&mut take).expect("finish");
        (entries, text)
    }

    proptest! {
        #[test]
        fn all_but_the_entries_that_were_hit_are_found(
            count in 1..60u64, piece in 1..700usize, lost in proptest::collection::btree_set(0..20usize, 0..5),
        ) {
            let (entries, text) = list(count);
            let (mut scan, mut found, mut at) = (ListScan::new(), Vec::new(), 0);
            let mut hit = Vec::new();
            for (number, part) in text.chunks(piece).enumerate() {
                if lost.contains(&number) {
                    scan.gap();
                    hit.push(at..at + part.len());
                } else {
                    scan.take(part, |entry| found.push(entry));
                }
                at += part.len();
            }
            let mut expect = Vec::new();
            let mut place = 0;
            for entry in entries {
                let name = entry.object.to_string();
                let start = place + text[place..].windows(2).position(|w| w == b"{\"").expect("an entry");
                let start = if place == 0 { find(&text, b"[{").expect("the first") + 1 } else { start };
                place = start + find(&text[start..], name.as_bytes()).expect("its name") + name.len() + 2;
                if !hit.iter().any(|gap| gap.start < place && start < gap.end) {
                    expect.push(entry);
                }
            }
            // The first entry has no start of its own; when something before it is missing it is not recognised.
            let first_is_torn = hit.iter().any(|gap| gap.start < find(&text, b"[{").expect("the first"));
            if first_is_torn && expect.first().is_some_and(|entry| entry.start == 0) {
                expect.remove(0);
            }
            prop_assert_eq!(found, expect);
        }

        #[test]
        fn any_bytes_are_taken(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8)) {
            let mut scan = ListScan::new();
            for part in parts {
                scan.take(&part, |_| {});
                prop_assert!(scan.rest.len() <= ENTRY_LEN_MAX);
            }
        }
    }
}
