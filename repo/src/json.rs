//! JSON as Go's encoder writes it, so that equal documents become equal contents.

use serde::Serialize;

/// `value` as compact JSON with `<`, `>`, `&`, U+2028 and U+2029 escaped, as Go does.
pub(crate) fn to_vec(value: &impl Serialize) -> Vec<u8> {
    let plain = serde_json::to_string(value).expect("plain data becomes JSON");
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain.into_bytes();
    }
    let mut out = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        // Outside of strings none of these occurs in JSON.
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn html_characters_are_escaped_like_go() {
        assert_eq!(super::to_vec(&"a<b>&c\u{2028}"), br#""a\u003cb\u003e\u0026c\u2028""#);
        assert_eq!(super::to_vec(&"plain"), br#""plain""#);
    }
}
