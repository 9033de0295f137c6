//! Bytes lent instead of copied.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes of somebody else's memory, kept alive and unchanged for as long as this exists. A clone is one more borrower.
#[derive(Clone)]
pub struct Lent {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Lent {
    /// `range` of the bytes of `owner`; `None` when there are not so many.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        let fits = (*owner).as_ref().get(range.clone()).is_some();
        fits.then_some(Self { owner, range })
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // The range was checked against this owner. One that gives other bytes later gives none here.
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes)", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_outside_is_not_lent() {
        let owner = Arc::new(vec![1u8, 2, 3]);
        assert_eq!(&*Lent::new(owner.clone(), 1..3).unwrap(), [2, 3]);
        assert!(Lent::new(owner.clone(), 1..4).is_none());
        assert_eq!(Arc::strong_count(&owner), 1, "what is not lent is not held");
    }
}
