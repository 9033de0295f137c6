//! Byte ranges of a volume.

use crate::geometry::{CHUNK_SIZE, ChunkIndex, align_down, align_up};
use std::fmt;

/// A half-open range of bytes: `offset` is in it, `offset + len` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What is known of the bytes of an extent without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// May be anything.
    Data,
    /// All zero, and somebody said so.
    Zero,
    /// Never written; reads as zero.
    Hole,
}

impl Extent {
    /// `len` bytes from `offset`; `None` when the end is past 2^64.
    pub const fn new(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(_) => Some(Self { offset, len }),
            None => None,
        }
    }

    /// From `start` up to, not including, `end`; empty when `end` is not past `start`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self {
            offset: start,
            len: end.saturating_sub(start),
        }
    }

    /// The byte behind the last one. Saturates, so that a forged extent stays comparable.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// No byte in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The length as a length in memory.
    ///
    /// # Panics
    /// When the extent is larger than the address space; never on a 64-bit machine.
    pub fn bytes(&self) -> usize {
        usize::try_from(self.len).expect("an extent handled in memory fits the address space")
    }

    /// Every byte of `inner` is in this extent. An empty `inner` is if its offset is inside or at the end.
    pub const fn contains(&self, inner: Extent) -> bool {
        self.offset <= inner.offset && inner.end() <= self.end()
    }

    /// The bytes that are also in `window`; `None` when there are none.
    pub fn clip(&self, window: Extent) -> Option<Extent> {
        let clipped = Extent::between(self.offset.max(window.offset), self.end().min(window.end()));
        (!clipped.is_empty()).then_some(clipped)
    }

    /// The whole multiples of `align` inside; `None` when there is none.
    pub fn align_inwards(&self, align: u64) -> Option<Extent> {
        let inner = Extent::between(align_up(self.offset, align)?, align_down(self.end(), align));
        (!inner.is_empty()).then_some(inner)
    }

    /// The smallest extent of whole multiples of `align` around this one; `None` when its end is past 2^64.
    pub fn align_outwards(&self, align: u64) -> Option<Extent> {
        Some(Extent::between(
            align_down(self.offset, align),
            align_up(self.end(), align)?,
        ))
    }

    /// The chunks that hold at least one of these bytes, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkIndex> + use<> {
        let first = self.offset / CHUNK_SIZE;
        let end = if self.is_empty() {
            first
        } else {
            self.end().div_ceil(CHUNK_SIZE)
        };
        (first..end).map(ChunkIndex::new)
    }

    /// This extent cut at every multiple of [`CHUNK_SIZE`], ascending.
    pub fn split_on_grid(&self) -> impl Iterator<Item = Extent> + use<> {
        let whole = *self;
        self.chunks().filter_map(move |chunk| {
            whole.clip(Extent {
                offset: chunk.offset(),
                len: CHUNK_SIZE,
            })
        })
    }
}

/// `offset+len`, as in `1048576+4096`.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

/// Merges neighbours of one kind that touch or overlap, and drops empty extents. `extents` are sorted by offset, and stay so.
pub fn coalesce(extents: &mut Vec<(Extent, ExtentKind)>) {
    debug_assert!(extents.is_sorted_by_key(|(extent, _)| extent.offset));
    extents.retain(|(extent, _)| !extent.is_empty());
    extents.dedup_by(|(next, next_kind), (last, last_kind)| {
        let merges = next_kind == last_kind && next.offset <= last.end();
        if merges {
            *last = Extent::between(last.offset, last.end().max(next.end()));
        }
        merges
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extents() -> impl Strategy<Value = Extent> {
        (0u64..64, 0u64..16).prop_map(|(offset, len)| Extent { offset, len })
    }

    fn bytes(extent: Extent) -> Vec<u64> {
        (extent.offset..extent.end()).collect()
    }

    #[test]
    fn an_extent_past_the_end_of_numbers_is_refused() {
        assert_eq!(Extent::new(u64::MAX, 1), None);
        assert_eq!(Extent::new(u64::MAX, 0).map(|e| e.end()), Some(u64::MAX));
        assert_eq!(
            Extent {
                offset: u64::MAX,
                len: 5
            }
            .end(),
            u64::MAX
        );
        assert_eq!(
            Extent {
                offset: u64::MAX - 3,
                len: 3
            }
            .align_outwards(8),
            None
        );
    }

    #[test]
    fn chunks_are_the_ones_touched() {
        let chunks = |offset, len| Extent { offset, len }.chunks().map(ChunkIndex::get).collect::<Vec<_>>();
        assert_eq!(chunks(0, 0), []);
        assert_eq!(chunks(CHUNK_SIZE - 1, 1), [0]);
        assert_eq!(chunks(CHUNK_SIZE - 1, 2), [0, 1]);
        assert_eq!(chunks(CHUNK_SIZE, CHUNK_SIZE), [1]);
    }

    #[test]
    fn a_split_covers_the_extent_without_gaps() {
        let whole = Extent {
            offset: CHUNK_SIZE - 7,
            len: 2 * CHUNK_SIZE,
        };
        let parts: Vec<_> = whole.split_on_grid().collect();
        assert_eq!(
            parts.iter().map(|p| p.len).collect::<Vec<_>>(),
            [7, CHUNK_SIZE, CHUNK_SIZE - 7]
        );
        assert!(parts.windows(2).all(|w| w[0].end() == w[1].offset));
    }

    proptest! {
        #[test]
        fn clip_is_the_common_bytes(a in extents(), b in extents()) {
            let common: Vec<u64> = bytes(a).into_iter().filter(|i| b.offset <= *i && *i < b.end()).collect();
            prop_assert_eq!(a.clip(b).map_or(vec![], bytes), common);
            prop_assert_eq!(a.clip(b), b.clip(a));
        }

        #[test]
        fn inwards_is_inside_and_outwards_is_outside(a in extents(), shift in 0u32..5) {
            let align = 1u64 << shift;
            let outer = a.align_outwards(align).unwrap();
            prop_assert!(outer.contains(a) && outer.len < a.len + 2 * align);
            if let Some(inner) = a.align_inwards(align) {
                prop_assert!(a.contains(inner) && inner.offset % align == 0 && inner.len % align == 0);
                prop_assert!(a.len - inner.len < 2 * align);
            } else {
                prop_assert!(a.len < 2 * align);
            }
        }

        #[test]
        fn coalesce_keeps_the_bytes_of_each_kind(list in prop::collection::vec((extents(), any::<bool>()), 0..12)) {
            let mut list: Vec<_> = list
                .into_iter()
                .map(|(e, data)| (e, if data { ExtentKind::Data } else { ExtentKind::Hole }))
                .collect();
            list.sort_by_key(|(e, _)| e.offset);
            let set = |list: &[(Extent, ExtentKind)], kind| {
                let mut all: Vec<u64> =
                    list.iter().filter(|(_, k)| *k == kind).flat_map(|(e, _)| bytes(*e)).collect();
                all.sort_unstable();
                all.dedup();
                all
            };
            let mut merged = list.clone();
            coalesce(&mut merged);
            for kind in [ExtentKind::Data, ExtentKind::Hole] {
                prop_assert_eq!(set(&list, kind), set(&merged, kind));
            }
            prop_assert!(merged.windows(2).all(|w| w[0].1 != w[1].1 || w[0].0.end() < w[1].0.offset));
        }
    }
}
