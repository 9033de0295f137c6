//! Sizes as people write them.

/// Units: 1024-based with `iB`, 1000-based without.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `512`, `4KiB`, `1MiB`, `1GB`; a rate may end in `/s`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size; write 512, 4KiB, 1MiB or 1GB");
    let plain = text.trim().trim_end_matches("/s");
    let (digits, unit) = match UNITS
        .iter()
        .find_map(|(name, unit)| Some((plain.strip_suffix(name)?, *unit)))
    {
        Some(found) => found,
        None => (plain.strip_suffix('B').unwrap_or(plain), 1),
    };
    let number: u64 = digits.trim().parse().map_err(|_| bad())?;
    number.checked_mul(unit).ok_or_else(bad)
}

/// `bytes` with a unit that leaves at most four digits before the point.
pub(crate) fn show_size(bytes: u64) -> String {
    let unit = UNITS[..4].iter().rev().find(|(_, unit)| bytes >= *unit);
    #[expect(clippy::cast_precision_loss, reason = "shown to one decimal")]
    match unit {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// `bytes` moved in `millis`, per second.
pub(crate) fn show_rate(bytes: u64, millis: u64) -> String {
    let rate = u128::from(bytes) * 1000 / u128::from(millis.max(1));
    format!("{}/s", show_size(u64::try_from(rate).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_both_kinds_of_units() {
        for (text, bytes) in [
            ("512", 512),
            ("4KiB", 4096),
            ("1 MiB", 1 << 20),
            ("1GB", 1_000_000_000),
            ("7B", 7),
            ("100MB/s", 100_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "x", "-1", "1.5GiB", "99999999999TiB", "KiB"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_print_with_one_decimal() {
        assert_eq!(show_size(512), "512 B");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(5 << 40), "5.0 TiB");
        assert_eq!(show_rate(2 << 20, 1000), "2.0 MiB/s");
    }
}
