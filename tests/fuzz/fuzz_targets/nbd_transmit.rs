//! Request headers of every width: no panic, and what is accepted lies inside the export and within the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd::transmit::{Command, Decoded, Session, Style, parse_payload};

fuzz_target!(|data: &[u8]| {
    let Some((&first, mut input)) = data.split_first() else { return };
    let session = Session {
        style: [Style::Simple, Style::Structured, Style::Extended][usize::from(first % 3)],
        status: first & 16 != 0,
        size: 1 << 30,
        block_min: if first & 32 != 0 { 512 } else { 1 },
        writable: first & 64 != 0,
        fast_zero: first & 128 != 0,
        flags: 0,
    };
    loop {
        let payload = match session.decode(input) {
            Decoded::Incomplete => {
                assert!(input.len() < session.header_len());
                return;
            }
            Decoded::Disconnect | Decoded::Broken(_) => return,
            Decoded::Refused { drain, .. } => {
                assert!(drain <= 64 << 20);
                drain
            }
            Decoded::Request(request) => {
                assert!(request.payload <= 32 << 20);
                let listed = matches!(request.command, Command::BlockStatus { payload: true, .. });
                assert!(listed || request.extent.end() <= session.size);
                if let Some(bytes) = input.get(session.header_len()..).filter(|_| listed) {
                    let bytes = &bytes[..bytes.len().min(request.payload as usize)];
                    if let Ok(extent) = parse_payload(&session, request.extent.offset, bytes) {
                        assert!(extent.end() <= session.size && !extent.is_empty());
                    }
                }
                assert!(session.writable || !matches!(request.command, Command::Write | Command::Trim));
                request.payload
            }
        };
        let skip = session.header_len() + payload as usize;
        match input.get(skip..) {
            Some(rest) => input = rest,
            None => return,
        }
    }
});
