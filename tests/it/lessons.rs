//! The table of incidents in `tests/LESSONS.md`: complete, and every test it names is there.

use std::fs;
use std::path::Path;

/// Incidents in the table.
const ROWS: usize = 22;

/// What stands in the last column where there is no test, with the reason behind it.
const NO_TEST: &str = "no test here: ";

#[test]
fn every_incident_has_tests_that_exist_or_a_reason() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = tests.parent().unwrap();
    let text = fs::read_to_string(tests.join("LESSONS.md")).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.get(1).is_some_and(|cell| cell.parse::<usize>().is_ok()))
        .collect();
    assert_eq!(rows.len(), ROWS);
    for (at, row) in rows.iter().enumerate() {
        let ["", number, incident, reason, named, ""] = row[..] else {
            panic!("not four columns: {row:?}")
        };
        assert_eq!(number.parse(), Ok(at + 1), "{incident}");
        assert!(!incident.is_empty() && !reason.is_empty(), "row {number}");
        if named.strip_prefix(NO_TEST).is_some_and(|why| !why.is_empty()) {
            continue;
        }
        for name in named.split(", ") {
            let name = name.trim_matches('`');
            let (file, function) = name
                .split_once("::")
                .unwrap_or_else(|| panic!("row {number}: {name:?} is not file::function"));
            let source = fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("row {number}: {file}: {e}"));
            assert!(source.contains(&format!("fn {function}(")), "row {number}: no {name}");
        }
    }
}
