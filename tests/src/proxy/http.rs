//! Heads and bodies of HTTP/1.1 messages, as far as a proxy has to understand them (RFC 9112).

use std::io::{self, BufRead, Read};

/// Longest head that is read. S3 keys are at most 1 KiB long, signed headers some hundred bytes each.
const HEAD_LEN_MAX: usize = 64 << 10;

/// Bytes handed on at a time.
pub(super) const PIECE: usize = 64 << 10;

/// First line and fields of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// `GET /bucket/key HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub(super) first: String,
    /// Names as they came, and values.
    pub(super) fields: Vec<(String, String)>,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// There is none, or it has this many bytes.
    Length(u64),
    /// In chunks, each with its length.
    Chunked,
    /// Until the connection ends.
    UntilClose,
}

impl Head {
    /// The next head; none when the connection ended before one.
    pub(super) fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut total = 0;
        let mut line = || -> io::Result<Option<String>> {
            let mut bytes = Vec::new();
            reader
                .by_ref()
                .take((HEAD_LEN_MAX - total + 1) as u64)
                .read_until(b'\n', &mut bytes)?;
            total += bytes.len();
            if total > HEAD_LEN_MAX {
                return Err(io::Error::other("head of a message is too long"));
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            let text = String::from_utf8(bytes).map_err(io::Error::other)?;
            Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
        };
        let Some(first) = line()? else {
            return Ok(None);
        };
        let mut fields = Vec::new();
        loop {
            let line = line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                return Ok(Some(Self { first, fields }));
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| io::Error::other(format!("`{line}` is no field")))?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Value of a field, by its name in lower case.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(have, _)| have.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The same with a body of this length.
    pub(super) fn with_length(&self, len: u64) -> Self {
        let framing = ["content-length", "transfer-encoding"];
        let other = |name: &str| !framing.iter().any(|framing| name.eq_ignore_ascii_case(framing));
        let mut fields: Vec<_> = self.fields.iter().filter(|(name, _)| other(name)).cloned().collect();
        fields.push(("content-length".to_owned(), len.to_string()));
        Self {
            first: self.first.clone(),
            fields,
        }
    }

    /// As sent.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// Second word of the first line of an answer.
    pub(super) fn status(&self) -> u16 {
        let word = self.first.split(' ').nth(1);
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// Body of a request with this head.
    pub(super) fn request_body(&self) -> io::Result<Body> {
        Ok(self.body()?.unwrap_or(Body::Length(0)))
    }

    /// Body of an answer with this head to a request with `method`.
    pub(super) fn answer_body(&self, method: &str) -> io::Result<Body> {
        if method == "HEAD" || matches!(self.status(), 100..200 | 204 | 304) {
            return Ok(Body::Length(0));
        }
        Ok(self.body()?.unwrap_or(Body::UntilClose))
    }

    fn body(&self) -> io::Result<Option<Body>> {
        if self
            .field("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            return Ok(Some(Body::Chunked));
        }
        let len = self.field("content-length").map(str::parse).transpose();
        Ok(len.map_err(io::Error::other)?.map(Body::Length))
    }
}

/// What of a body goes to the one who takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Chunks with their lengths: to be sent on.
    Kept,
    /// The bytes alone.
    Removed,
}

/// Reads a body and hands it to `sink` in pieces of at most [`PIECE`] bytes. Returns how many bytes it has without framing.
pub(super) fn pump(
    reader: &mut impl BufRead,
    body: Body,
    framing: Framing,
    sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    match body {
        Body::Length(len) => exactly(reader, len, sink),
        Body::UntilClose => {
            let mut total = 0;
            loop {
                let buf = reader.fill_buf()?;
                let len = buf.len().min(PIECE);
                if len == 0 {
                    return Ok(total);
                }
                sink(&buf[..len])?;
                reader.consume(len);
                total += len as u64;
            }
        }
        Body::Chunked => {
            let mut total = 0;
            loop {
                let line = chunk_line(reader, framing, sink)?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                let len = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
                if len == 0 {
                    break;
                }
                total += exactly(reader, len, sink)?;
                chunk_line(reader, framing, sink)?;
            }
            // Fields behind the last chunk, up to an empty line.
            while !chunk_line(reader, framing, sink)?.is_empty() {}
            Ok(total)
        }
    }
}

fn exactly(reader: &mut impl BufRead, len: u64, sink: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut left = len;
    while left > 0 {
        let buf = reader.fill_buf()?;
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len()).min(PIECE);
        if part == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sink(&buf[..part])?;
        reader.consume(part);
        left -= part as u64;
    }
    Ok(len)
}

/// A line between chunks, without its end.
fn chunk_line(
    reader: &mut impl BufRead,
    framing: Framing,
    sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<String> {
    const LINE_LEN_MAX: u64 = 4096;
    let mut bytes = Vec::new();
    reader.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut bytes)?;
    if !bytes.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if framing == Framing::Kept {
        sink(&bytes)?;
    }
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pumped(text: &str, body: Body, framing: Framing) -> io::Result<(u64, String)> {
        let mut reader = text.as_bytes();
        let mut out = Vec::new();
        let len = pump(&mut reader, body, framing, &mut |piece| {
            out.extend_from_slice(piece);
            Ok(())
        })?;
        Ok((len, String::from_utf8(out).unwrap()))
    }

    #[test]
    fn heads_are_read_and_written_the_same() {
        let text = "GET /b/k?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
        let mut reader = text.as_bytes();
        let head = Head::read(&mut reader).unwrap().unwrap();
        assert_eq!(head.field("content-length"), Some("3"));
        assert_eq!(head.request_body().unwrap(), Body::Length(3));
        assert_eq!([head.to_bytes(), b"abc".to_vec()].concat(), text.as_bytes());
        assert_eq!(reader, b"abc");
        assert_eq!(Head::read(&mut &b""[..]).unwrap(), None);
        assert!(Head::read(&mut &b"GET / HTTP/1.1\r\nHost"[..]).is_err());
        assert!(Head::read(&mut vec![b'x'; HEAD_LEN_MAX + 1].as_slice()).is_err());
    }

    #[test]
    fn answers_know_when_they_have_no_body() {
        let head = |first: &str, field: &str| {
            Head::read(&mut format!("HTTP/1.1 {first}\r\n{field}\r\n\r\n").as_bytes())
                .unwrap()
                .unwrap()
        };
        assert_eq!(
            head("200 OK", "Content-Length: 9").answer_body("HEAD").unwrap(),
            Body::Length(0)
        );
        assert_eq!(
            head("204 No Content", "A: b").answer_body("GET").unwrap(),
            Body::Length(0)
        );
        assert_eq!(head("200 OK", "A: b").answer_body("GET").unwrap(), Body::UntilClose);
        let chunked = head("200 OK", "Transfer-Encoding: chunked");
        assert_eq!(chunked.answer_body("GET").unwrap(), Body::Chunked);
        assert_eq!(chunked.with_length(5).answer_body("GET").unwrap(), Body::Length(5));
        assert!(head("200 OK", "Content-Length: x").answer_body("GET").is_err());
    }

    #[test]
    fn bodies_end_where_they_end() {
        let chunks = "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\nrest";
        assert_eq!(
            pumped(chunks, Body::Chunked, Framing::Removed).unwrap(),
            (5, "abcde".into())
        );
        let kept = pumped(chunks, Body::Chunked, Framing::Kept).unwrap();
        assert_eq!(kept, (5, chunks.strip_suffix("rest").unwrap().into()));
        assert_eq!(pumped("abc", Body::Length(2), Framing::Kept).unwrap(), (2, "ab".into()));
        assert_eq!(
            pumped("abc", Body::UntilClose, Framing::Kept).unwrap(),
            (3, "abc".into())
        );
        assert!(pumped("abc", Body::Length(4), Framing::Kept).is_err());
        assert!(pumped("5\r\nabc", Body::Chunked, Framing::Kept).is_err());
    }
}
