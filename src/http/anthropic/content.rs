//! What messages say: texts, images, documents, calls of tools and their results.

use super::{
    answer::{SIGNATURE, is_text},
    pieces::{List, joined, members, mistyped, paragraphs, required, string, unsupported},
};
use crate::{Error, InvalidReason, chat::Translated, json};
use std::borrow::Cow;

pub(super) fn message(
    path: &str,
    message: &[u8],
    list: &mut List,
    notes: &mut Translated,
) -> Result<(), Error> {
    let at = |member: &str| format!("{path}.{member}");
    let [role, content] = members(path, message, ["role", "content"])?;
    let content = required(path, content, "content")?;
    match (role.and_then(json::string).as_deref(), content.first()) {
        (Some(role @ ("user" | "assistant" | "system")), Some(b'"')) => {
            list.item(format!(r#"{{"role":"{role}","content":"#).as_bytes(), content);
        }
        (Some("user"), Some(b'[')) => from_user(&at("content"), content, list)?,
        (Some("assistant"), Some(b'[')) => from_assistant(&at("content"), content, list, notes)?,
        (Some("system"), Some(b'[')) => {
            list.item(br#"{"role":"system","content":"#, &text_of(&at("content"), content)?);
        }
        (Some("user" | "assistant" | "system"), _) => {
            return Err(mistyped(&at("content"), "a string or an array"));
        }
        (_, _) => return Err(mistyped(&at("role"), "\"user\" or \"assistant\"")),
    }
    Ok(())
}

/// Results of tools are messages of their own, and come first: nothing may stand between them and the calls.
fn from_user(path: &str, blocks: &[u8], list: &mut List) -> Result<(), Error> {
    let mut parts = Vec::new();
    for (at, block) in json::items(blocks).enumerate() {
        let path = format!("{path}[{at}]");
        let block = Block::read(&path, block)?;
        if block.kind.as_deref() == Some("tool_result") {
            let id = string(&path, block.tool_use_id, "tool_use_id")?;
            let content = match block.content {
                Some(text @ [b'"', ..]) => text.to_vec(),
                Some(blocks @ [b'[', ..]) => {
                    let mut texts = Vec::new();
                    for (at, block) in json::items(blocks).enumerate() {
                        let path = format!("{path}.content[{at}]");
                        let block = Block::read(&path, block)?;
                        // Only texts can be a tool's message; what else there is goes along with the user's.
                        match block.kind.as_deref() {
                            Some("text") => texts.push(string(&path, block.text, "text")?),
                            _ => part(&path, &block, &mut parts)?,
                        }
                    }
                    paragraphs(texts.into_iter())
                }
                Some(b"null") | None => br#""""#.to_vec(),
                Some(_) => return Err(mistyped(&format!("{path}.content"), "a string or an array")),
            };
            list.item(&[br#"{"role":"tool","tool_call_id":"#, id, br#","content":"#].concat(), &content);
        } else {
            part(&path, &block, &mut parts)?;
        }
    }
    if !parts.is_empty() {
        list.item(br#"{"role":"user","content":"#, &content_of(&parts));
    }
    Ok(())
}

/// A part of what a user says.
enum Part<'a> {
    /// A string, as JSON.
    Text(Cow<'a, [u8]>),
    /// What an object begins with, and the value that it ends with.
    Other(Cow<'static, [u8]>, Vec<u8>),
}

/// One string where there are only texts: many providers take no array for them.
fn content_of(parts: &[Part<'_>]) -> Vec<u8> {
    let texts = parts.iter().map_while(|part| match part {
        Part::Text(text) => Some(&**text),
        Part::Other(..) => None,
    });
    if texts.clone().count() == parts.len() {
        return paragraphs(texts);
    }
    let mut list = List::default();
    for part in parts {
        match part {
            Part::Text(text) => list.item(br#"{"type":"text","text":"#, text),
            Part::Other(head, value) => list.item(head, value),
        }
    }
    list.finish()
}

fn part<'a>(path: &str, block: &Block<'a>, parts: &mut Vec<Part<'a>>) -> Result<(), Error> {
    match block.kind.as_deref() {
        Some("text") => parts.push(Part::Text(string(path, block.text, "text")?.into())),
        Some("image") => {
            let Source::Url(mut url) = source(path, block)? else {
                return Err(unsupported(&format!("{path}.source.type")));
            };
            url.push(b'}');
            parts.push(Part::Other(br#"{"type":"image_url","image_url":{"url":"#[..].into(), url));
        }
        Some("document") => {
            let [cites] = members(path, block.citations.unwrap_or_default(), ["enabled"])?;
            if cites == Some(b"true") {
                return Err(unsupported(&format!("{path}.citations")));
            }
            let told = |value: Option<&'a [u8]>| value.filter(|value| is_text(value));
            let context = told(block.context);
            let mut data = match source(path, block)? {
                Source::Text(text) => {
                    let told = [told(block.title), context, Some(text)];
                    parts.push(Part::Text(paragraphs(told.into_iter().flatten()).into()));
                    return Ok(());
                }
                Source::Url(url) if url.starts_with(br#""data:"#) => url,
                _ => return Err(unsupported(&format!("{path}.source.type"))),
            };
            if let Some(context) = context {
                parts.push(Part::Text(context.into()));
            }
            let title = told(block.title).unwrap_or(br#""document.pdf""#);
            let file = [br#"{"type":"file","file":{"filename":"#, title, br#","file_data":"#].concat();
            data.push(b'}');
            parts.push(Part::Other(file.into(), data));
        }
        Some(_) => return Err(unsupported(&format!("{path}.type"))),
        None => return Err(Error::invalid(format!("{path}.type"), InvalidReason::Missing)),
    }
    Ok(())
}

/// Where an image or a document is, as JSON.
enum Source<'a> {
    Url(Vec<u8>),
    /// It is this text.
    Text(&'a [u8]),
    /// Only Anthropic can look it up.
    Other,
}

fn source<'a>(path: &str, block: &Block<'a>) -> Result<Source<'a>, Error> {
    let source = required(path, block.source, "source")?;
    let path = format!("{path}.source");
    let [kind, media, data, url] = members(&path, source, ["type", "media_type", "data", "url"])?;
    Ok(match kind.and_then(json::string).as_deref() {
        Some("base64") => {
            let (media, data) = (string(&path, media, "media_type")?, string(&path, data, "data")?);
            Source::Url(joined(&[br#""data:""#, media, br#"";base64,""#, data]))
        }
        Some("url") => Source::Url(string(&path, url, "url")?.to_vec()),
        Some("text") => Source::Text(string(&path, data, "data")?),
        _ => Source::Other,
    })
}

fn from_assistant(path: &str, blocks: &[u8], list: &mut List, notes: &mut Translated) -> Result<(), Error> {
    let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), List::default());
    for (at, block) in json::items(blocks).enumerate() {
        let path = format!("{path}[{at}]");
        let block = Block::read(&path, block)?;
        match block.kind.as_deref() {
            Some("text") => texts.push(string(&path, block.text, "text")?),
            Some("tool_use") => {
                let (id, name) = (string(&path, block.id, "id")?, string(&path, block.name, "name")?);
                let name = notes.tool_names.shortened(name);
                let input = block.input.unwrap_or(b"{}");
                let arguments = json::quoted(&String::from_utf8_lossy(input));
                let call = [
                    br#"{"id":"#,
                    id,
                    br#","type":"function","function":{"name":"#,
                    &name,
                    br#","arguments":"#,
                ];
                calls.item(&call.concat(), &[&arguments[..], b"}"].concat());
            }
            Some("thinking") => match block.signature.and_then(json::string) {
                // Signed for a provider that may not be the next one.
                Some(signature) if !signature.is_empty() && signature != SIGNATURE => {}
                // Given out here.
                _ => thoughts.extend(block.thinking.filter(|thinking| is_text(thinking))),
            },
            Some("redacted_thinking") => {}
            Some(_) => return Err(unsupported(&format!("{path}.type"))),
            None => return Err(Error::invalid(format!("{path}.type"), InvalidReason::Missing)),
        }
    }
    let text = if texts.is_empty() { b"null".to_vec() } else { joined(&texts) };
    let mut head = br#"{"role":"assistant","#.to_vec();
    if !thoughts.is_empty() {
        notes.dispensable.thoughts = true;
        head.extend([br#""reasoning_content":"#, &joined(&thoughts)[..], b","].concat());
    }
    head.extend_from_slice(br#""content":"#);
    if calls.is_empty() {
        let text = if texts.is_empty() { br#""""#.to_vec() } else { text };
        list.item(&head, &text);
    } else {
        list.item(&[&head[..], &text, br#","tool_calls":"#].concat(), &calls.finish());
    }
    Ok(())
}

/// A text, or the texts of an array of blocks, as what a message's content may be.
pub(super) fn text_of(path: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    match value.first() {
        Some(b'"') => Ok(value.to_vec()),
        Some(b'[') => {
            let mut texts = Vec::new();
            for (at, block) in json::items(value).enumerate() {
                let path = format!("{path}[{at}]");
                let block = Block::read(&path, block)?;
                if block.kind.as_deref() != Some("text") {
                    return Err(unsupported(&format!("{path}.type")));
                }
                texts.push(string(&path, block.text, "text")?);
            }
            Ok(paragraphs(texts.into_iter()))
        }
        _ => Err(mistyped(path, "a string or an array")),
    }
}

/// Names each member once.
macro_rules! block {
    ($($member:ident),* $(,)?) => {
        /// What is read of a block, of whatever type it is.
        struct Block<'a> {
            kind: Option<Cow<'a, str>>,
            $($member: Option<&'a [u8]>,)*
        }

        impl<'a> Block<'a> {
            fn read(path: &str, block: &'a [u8]) -> Result<Self, Error> {
                let [kind, $($member),*] = members(path, block, ["type", $(stringify!($member)),*])?;
                Ok(Self { kind: kind.and_then(json::string), $($member),* })
            }
        }
    };
}

block! {
    text, source, title, context, citations, tool_use_id, content, id, name, input, thinking, signature,
}
