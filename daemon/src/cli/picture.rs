//! A picture of a volume: which parts of it are meant, in lines of cells.

use blockio::Extent;

use super::size::show_size;

/// Cells of a picture: 16 lines of 64.
const CELLS: u64 = 1024;
const CELLS_PER_LINE: usize = 64;

/// The lines that show how much of each part of a volume of `size` bytes is in `extents`, and the size of a cell.
pub(crate) fn picture(size: u64, extents: impl Iterator<Item = Extent>) -> (String, String) {
    let cell = size.div_ceil(CELLS).max(1);
    let mut filled = vec![0u64; usize::try_from(size.div_ceil(cell)).unwrap_or(0)];
    for extent in extents {
        let mut at = extent.offset;
        while at < extent.end() {
            let i = at / cell;
            let end = ((i + 1) * cell).min(extent.end());
            filled[usize::try_from(i).expect("below the cell count")] += end - at;
            at = end;
        }
    }
    let glyph = |bytes: &u64| match u128::from(*bytes) * 4 / u128::from(cell) {
        0 if *bytes == 0 => '·',
        0 | 1 => '░',
        2 => '▒',
        3 => '▓',
        _ => '█',
    };
    let cells: Vec<char> = filled.iter().map(glyph).collect();
    let lines = cells
        .chunks(CELLS_PER_LINE)
        .map(|line| line.iter().collect::<String>() + "\n")
        .collect();
    (lines, show_size(cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_how_much_of_it_is_meant() {
        let extents = [(0, 4096), (5120, 1024), (8192, 1), (12_288, 3072)];
        let extents = extents.map(|(offset, len)| Extent { offset, len });
        let (lines, cell) = picture(4 << 20, extents.into_iter());
        assert_eq!(cell, "4.0 KiB");
        assert!(lines.starts_with("█░░▓····"), "{lines}");
        assert_eq!(lines.lines().count(), 16);
        assert_eq!(picture(0, std::iter::empty()).0, "");
    }
}
