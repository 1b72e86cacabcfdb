use super::edge::{Edits, finish_reason, tool_calls};
use crate::{ChunkStream, Completion, ResponseBody, StreamChunk, json};
use bytes::Bytes;

/// A whole answer as the chunks of a stream, the terminal one included, for a caller who asked for one.
///
/// Each choice is one delta with all that its message has, known or not, and a chunk with its finish
/// reason; then comes the usage.
pub fn into_chunks(completion: &Completion) -> Vec<StreamChunk> {
    let data = completion.data();
    let mut envelope = br#"{"object":"chat.completion.chunk","#.to_vec();
    let mut once = Vec::new();
    for (name, value) in json::members(data) {
        match json::string(name).as_deref() {
            Some("object" | "choices" | "usage") => {}
            Some("id" | "created" | "model") => write_member(name, value, &mut envelope),
            _ => write_member(name, value, &mut once),
        }
    }
    let chunk = |once: &[u8], parts: &[&[u8]]| {
        StreamChunk::parse([&envelope, once, &parts.concat()].concat()).expect("made of a valid answer")
    };

    let mut chunks = Vec::new();
    let choices = json::items(json::member(data, "choices").unwrap_or_default());
    for (at, choice) in choices.enumerate() {
        let (mut index, mut others) = (at.to_string().into_bytes(), Vec::new());
        let mut delta = Bytes::from_static(b"{}");
        for (name, value) in json::members(choice) {
            match json::string(name).as_deref() {
                Some("index") if value != b"null" => index = value.to_vec(),
                Some("index" | "finish_reason") => {}
                Some("message") => delta = self::delta(&data.slice_ref(value)),
                _ => write_member(name, value, &mut others),
            }
        }
        let head: &[&[u8]] = &[br#""choices":[{"index":"#, &index, b","];
        chunks.push(chunk(
            &std::mem::take(&mut once),
            &[&head.concat(), &others, br#""delta":"#, &delta, br#","finish_reason":null}]}"#],
        ));
        let reason = finish_reason(choice);
        chunks.push(chunk(b"", &[&head.concat(), br#""delta":{},"finish_reason":"#, reason, b"}]}"]));
    }
    if let (Some(_), Some(usage)) = (completion.usage(), json::member(data, "usage")) {
        chunks.push(chunk(b"", &[br#""choices":[],"usage":"#, usage, b"}"]));
    }
    chunks.push(StreamChunk::end());
    chunks
}

/// An answer as a stream, whichever shape it has.
///
/// ```
/// use llm_layers::{Completion, TokenUsage, http::into_stream};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// let whole = Completion::text("Hello", TokenUsage::new(3, 1));
/// let first = into_stream(whole.into()).next().await.expect("a chunk")?;
/// assert_eq!(first.content(), "Hello");
/// # Ok(())
/// # }
/// ```
pub fn into_stream(body: ResponseBody) -> ChunkStream {
    match body {
        ResponseBody::Stream(chunks) => chunks,
        ResponseBody::Complete(completion) => {
            let chunks = into_chunks(&completion).into_iter().map(Ok);
            ChunkStream::new(futures_util::stream::iter(chunks))
        }
    }
}

/// A message as the only delta of its choice.
fn delta(message: &Bytes) -> Bytes {
    if message.first() != Some(&b'{') {
        return Bytes::from_static(b"{}");
    }
    let mut edits = Edits::new(message);
    edits.require(message, &[("role", br#""assistant""#)]);
    for (at, call) in json::items(tool_calls(message)).enumerate() {
        edits.require(call, &[("index", at.to_string().as_bytes())]);
    }
    edits.apply(message)
}

fn write_member(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for part in [name, b":", value, b","] {
        out.extend_from_slice(part);
    }
}
