//! Addresses of repositories. One that is accepted is written as text that reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use repo::blob::Location;

fuzz_target!(|text: &str| {
    let Ok(location) = text.parse::<Location>() else {
        return;
    };
    if !matches!(location, Location::Directory(_)) {
        let again: Location = location.to_string().parse().expect("own text");
        assert_eq!(again, location);
    }
});
