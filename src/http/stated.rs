use super::TIMEOUT;
use crate::{KbScope, RequestContext};
use http::{HeaderMap, HeaderName};
use std::{borrow::Cow, fmt, sync::Arc};

const TENANT: HeaderName = HeaderName::from_static("x-llm-tenant");
const USER: HeaderName = HeaderName::from_static("x-llm-user");
const DEPARTMENTS: HeaderName = HeaderName::from_static("x-llm-departments");
const KNOWLEDGE_BASES: HeaderName = HeaderName::from_static("x-llm-knowledge-bases");
const AGENT: HeaderName = HeaderName::from_static("x-llm-agent");
const TASK: HeaderName = HeaderName::from_static("x-llm-task");
const CONVERSATION: HeaderName = HeaderName::from_static("x-llm-conversation");

/// The headers by which an application that is trusted says for whom it asks.
///
/// | header | such as | |
/// |---|---|---|
/// | `x-llm-tenant` | `bank` | the end user's tenant, if the key has none; one of a tenant may say no other |
/// | `x-llm-user` | `ada` | the end user, in place of the key's |
/// | `x-llm-departments` | `research, ops` | which of the key's departments is charged; no others |
/// | `x-llm-knowledge-bases` | `handbook; acl=5f2c; version=7, wiki; acl=09ab` | what the prompt draws on, with a hash over the user's rights to it |
/// | `x-llm-agent` | `support-bot` | who acts for him, for the record |
/// | `x-llm-task` | `summary` | the kind of task, for the record |
/// | `x-llm-conversation` | `c-17` | the conversation |
///
/// Texts are UTF-8, and percent-encoded where they have a comma, a semicolon, a percent sign, or white space at an end.
pub const STATED: [HeaderName; 7] = [TENANT, USER, DEPARTMENTS, KNOWLEDGE_BASES, AGENT, TASK, CONVERSATION];

/// How each header begins that is read here.
const FAMILY: &str = "x-llm-";

/// What an application says of its user that cannot be taken, or in a header that nobody reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedError {
    header: HeaderName,
    what: &'static str,
}

impl StatedError {
    /// Which header it is.
    pub const fn header(&self) -> &HeaderName {
        &self.header
    }
}

impl std::error::Error for StatedError {}

impl fmt::Display for StatedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name that nobody knows may be of any length.
        write!(f, "the header {:.64} {}", self.header.as_str(), self.what)
    }
}

/// Longer is no name of anybody or anything.
const LONGEST: usize = 256;
/// As many departments, and as many knowledge bases, as one request may name.
const MOST: usize = 64;

/// Whether the sender says for whom he asks: only of one who is trusted may that be believed.
///
/// # Errors
///
/// A header `x-llm-…` that is neither one of [`STATED`] nor [`TIMEOUT`]: who has misspelt one, or takes one for granted, would be wrong about
/// whose answers he gets. A host that has such a header of its own removes it before.
///
/// ```
/// use http::HeaderMap;
/// use llm_layers::http::states_identity;
///
/// let mut headers = HeaderMap::new();
/// assert_eq!(states_identity(&headers), Ok(false));
/// headers.insert("x-llm-user", "ada".parse()?);
/// assert_eq!(states_identity(&headers), Ok(true));
/// headers.insert("x-llm-department", "research".parse()?);
/// assert_eq!(states_identity(&headers).unwrap_err().to_string(), "the header x-llm-department is not known");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn states_identity(headers: &HeaderMap) -> Result<bool, StatedError> {
    states_identity_beside(headers, &[TIMEOUT])
}

/// As [`states_identity`], where these are read beside.
pub(super) fn states_identity_beside(
    headers: &HeaderMap,
    others: &[HeaderName],
) -> Result<bool, StatedError> {
    let mut states = false;
    for name in headers.keys().filter(|name| name.as_str().starts_with(FAMILY)) {
        if STATED.contains(name) {
            states = true;
        } else if !others.contains(name) {
            return Err(StatedError { header: name.clone(), what: "is not known" });
        }
    }
    Ok(states)
}

/// Who is asking by the word of an application that is trusted, whose own context is `context`.
///
/// # Errors
///
/// A header that cannot be read, stands twice, or names a department that is not one of the application's, or another tenant than its own.
///
/// ```
/// use http::HeaderMap;
/// use llm_layers::{RequestContext, http::stated_context};
///
/// let application = RequestContext::new().with_user_id("portal").with_departments(["research", "ops"]);
/// let mut headers = HeaderMap::new();
/// headers.insert("x-llm-user", "ada".parse()?);
/// headers.insert("x-llm-departments", "research".parse()?);
/// headers.insert("x-llm-knowledge-bases", "handbook; acl=5f2c; version=7".parse()?);
///
/// let context = stated_context(&headers, &application)?;
/// assert_eq!((context.user_id(), context.department_ids().len()), (Some("ada"), 1));
/// assert_eq!(context.kbs()[0].acl_hash.as_deref(), Some("5f2c"));
///
/// headers.insert("x-llm-departments", "board".parse()?);
/// assert!(stated_context(&headers, &application).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn stated_context(headers: &HeaderMap, context: &RequestContext) -> Result<RequestContext, StatedError> {
    let mut stated = context.clone();
    if let Some(tenant) = one(headers, TENANT)? {
        if context.tenant_id().is_some_and(|own| own != tenant) {
            return Err(StatedError { header: TENANT, what: "names a tenant that is not this key's" });
        }
        stated = stated.with_tenant_id(tenant);
    }
    if let Some(user) = one(headers, USER)? {
        stated = stated.with_user_id(user);
    }
    if let Some(agent) = one(headers, AGENT)? {
        stated = stated.with_agent_name(agent);
    }
    if let Some(task) = one(headers, TASK)? {
        stated = stated.with_task_type(task);
    }
    if let Some(conversation) = one(headers, CONVERSATION)? {
        stated = stated.with_conversation_id(conversation);
    }
    if headers.contains_key(DEPARTMENTS) {
        let wrong = |what| StatedError { header: DEPARTMENTS, what };
        let mut departments = Vec::new();
        for item in items(headers, DEPARTMENTS)? {
            let name = text(item).ok_or(wrong(NOT_A_TEXT))?;
            let own = context.department_ids().iter().find(|own| ***own == *name);
            departments
                .push(Arc::clone(own.ok_or(wrong("names a department that is not one of this key's"))?));
        }
        stated = stated.with_departments(departments);
    }
    if headers.contains_key(KNOWLEDGE_BASES) {
        for item in items(headers, KNOWLEDGE_BASES)? {
            let kb = knowledge_base(item).map_err(|what| StatedError { header: KNOWLEDGE_BASES, what })?;
            if stated.kbs().iter().any(|other| other.id == kb.id) {
                return Err(StatedError { header: KNOWLEDGE_BASES, what: "names a knowledge base twice" });
            }
            stated = stated.with_kb(kb);
        }
    }
    Ok(stated)
}

const NOT_A_TEXT: &str = "is empty, too long, or not a text of UTF-8 without control characters";

fn knowledge_base(item: &str) -> Result<KbScope, &'static str> {
    let mut parts = item.split(';');
    let id = parts.next().and_then(text).ok_or(NOT_A_TEXT)?;
    let mut kb = KbScope::new(&*id);
    for part in parts {
        let (name, value) = part.split_once('=').ok_or("has a part that is not NAME=VALUE")?;
        let value = text(value).ok_or(NOT_A_TEXT)?;
        let twice = "has a part twice";
        kb = match name.trim() {
            "acl" if kb.acl_hash.is_some() => return Err(twice),
            "version" if kb.version.is_some() => return Err(twice),
            "acl" => kb.with_acl_hash(&*value),
            "version" => kb.with_version(&*value),
            _ => return Err("has a part that is neither acl nor version"),
        };
    }
    Ok(kb)
}

/// The text of a header that may stand only once.
fn one(headers: &HeaderMap, name: HeaderName) -> Result<Option<String>, StatedError> {
    let mut values = headers.get_all(&name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(StatedError { header: name, what: "stands twice" });
    }
    let text = std::str::from_utf8(value.as_bytes()).ok().and_then(text).map(Cow::into_owned);
    text.map(Some).ok_or(StatedError { header: name, what: NOT_A_TEXT })
}

/// The items of a header's lists, as many times as it stands.
fn items(headers: &HeaderMap, name: HeaderName) -> Result<Vec<&str>, StatedError> {
    let mut all = Vec::new();
    for value in headers.get_all(&name) {
        match std::str::from_utf8(value.as_bytes()) {
            Ok(list) => all.extend(list.split(',')),
            Err(_) => return Err(StatedError { header: name, what: NOT_A_TEXT }),
        }
    }
    match all.len() {
        0..=MOST => Ok(all),
        _ => Err(StatedError { header: name, what: "names too many" }),
    }
}

fn text(encoded: &str) -> Option<Cow<'_, str>> {
    let encoded = encoded.trim_matches([' ', '\t']);
    let text = match encoded.contains('%') {
        false => Cow::Borrowed(encoded),
        true => {
            let mut bytes = Vec::with_capacity(encoded.len());
            let mut rest = encoded.as_bytes().iter();
            while let Some(byte) = rest.next() {
                bytes.push(match byte {
                    b'%' => {
                        let mut digit = || char::from(*rest.next()?).to_digit(16);
                        u8::try_from(digit()? * 16 + digit()?).ok()?
                    }
                    byte => *byte,
                });
            }
            Cow::Owned(String::from_utf8(bytes).ok()?)
        }
    };
    let is_text = !text.trim().is_empty() && text.len() <= LONGEST && !text.contains(char::is_control);
    is_text.then_some(text)
}
