//! Requests as they come, messages as they go: protocol buffers and the five bytes before each message of gRPC.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::Asked;

/// A number or a text of a request.
#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Text(String),
}

/// Reads the one message of a request: five bytes of a head, then fields. What is none is left out: a test that reads the
/// answer sees what is missing.
pub(super) fn parse(path: &str, body: &[u8]) -> Asked {
    let fields = fields(body.get(5..).unwrap_or_default());
    let text = |field: u64| match fields.get(&field) {
        Some(Value::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let number = |field: u64| match fields.get(&field) {
        Some(Value::Number(number)) => *number,
        _ => 0,
    };
    let (is_delta, is_driver) = (path.ends_with("Delta"), path.starts_with("/csi.v1."));
    let path = path.to_owned();
    match (is_driver, is_delta) {
        (false, false) => Asked {
            path,
            token: text(1),
            namespace: text(2),
            snapshot: text(3),
            base: None,
            starting_offset: number(4),
            max_results: number(5),
        },
        (false, true) => Asked {
            path,
            token: text(1),
            namespace: text(2),
            base: Some(text(3)),
            snapshot: text(4),
            starting_offset: number(5),
            max_results: number(6),
        },
        (true, false) => Asked {
            path,
            snapshot: text(1),
            starting_offset: number(2),
            max_results: number(3),
            ..Asked::default()
        },
        (true, true) => Asked {
            path,
            base: Some(text(1)),
            snapshot: text(2),
            starting_offset: number(3),
            max_results: number(4),
            ..Asked::default()
        },
    }
}

fn fields(mut bytes: &[u8]) -> HashMap<u64, Value> {
    let mut found = HashMap::new();
    while let Some(tag) = take_varint(&mut bytes) {
        let Some(number) = take_varint(&mut bytes) else {
            break;
        };
        let value = match tag & 7 {
            0 => Value::Number(number),
            2 => {
                let len = usize::try_from(number).unwrap_or(usize::MAX).min(bytes.len());
                let (text, rest) = bytes.split_at(len);
                bytes = rest;
                Value::Text(String::from_utf8_lossy(text).into_owned())
            }
            _ => break,
        };
        found.insert(tag >> 3, value);
    }
    found
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let len = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at(len);
    *bytes = rest;
    Some(
        number
            .iter()
            .rev()
            .fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)),
    )
}

/// A message with its head: not compressed, and its length.
pub(super) fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("a message of a test is small"));
    frame.extend_from_slice(message);
    frame.freeze()
}
