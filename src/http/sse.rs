use crate::Error;
use bytes::{BufMut, Bytes, BytesMut};

/// What a good stream of events ends with.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// A comment that keeps a silent connection open; clients ignore it.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// Writes JSON as one server-sent event.
///
/// An event ends where a line does. Line breaks between the tokens of JSON mean nothing, and inside of its
/// strings there are none, so each becomes a space: one `data:` line, whatever the provider's taste.
pub fn write_event(json: &[u8], out: &mut BytesMut) {
    const AROUND: usize = b"data: \n\n".len();
    out.reserve(json.len() + AROUND);
    out.put_slice(b"data: ");
    let mut rest = json;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
        out.put_slice(&rest[..at]);
        out.put_u8(b' ');
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
    out.put_slice(b"\n\n");
}

/// The event that says that a stream broke. Nothing follows it, no [`DONE`] either.
pub fn error_event(error: &Error) -> Bytes {
    let mut event = BytesMut::new();
    write_event(&super::error_body(error), &mut event);
    event.freeze()
}
