//! The providers of one configuration, with what is known of their deployments from before.

use super::BoxService;
use crate::{
    BoxError, Error, LlmRequest, LlmResponse,
    config::{
        BaseUrl, Kind, OutputMember,
        plan::{PlannedDeployment, PlannedProvider},
    },
    provider::Echo,
    providers::{CoolDown, Deployment, Health, Place, Providers},
    telemetry::{CaptureContent, Observer, TelemetryLayer},
    timeout::CallTimeoutLayer,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tower_service::Service;

/// Puts telemetry and time limits around a leaf, and makes a place of it.
pub(super) trait Wrap: Send + Sync {
    fn wrap(&self, leaf: Leaf, provider: &Arc<str>, timeouts: CallTimeoutLayer, health: Arc<Health>)
    -> Place;
}

/// A leaf. Our own are boxed once, with all that is around them.
pub(super) enum Leaf {
    Own(Deployment<BoxService>),
    Echo,
    #[cfg(feature = "hyper-client")]
    OpenAi(Box<Deployment<OpenAi>>),
    #[cfg(feature = "genai")]
    Genai(Box<Deployment<crate::provider::genai::Genai>>),
}

#[cfg(feature = "hyper-client")]
type OpenAi = crate::provider::openai::OpenAiCompatible<crate::provider::openai::HyperClient>;

pub(super) struct Around<O> {
    pub(super) observer: O,
    pub(super) capture: CaptureContent,
}

impl<O: Observer> Wrap for Around<O> {
    fn wrap(
        &self,
        leaf: Leaf,
        provider: &Arc<str>,
        timeouts: CallTimeoutLayer,
        health: Arc<Health>,
    ) -> Place {
        match leaf {
            Leaf::Own(leaf) => self.place(leaf, provider, timeouts, health),
            Leaf::Echo => self.place(Deployment::new(Echo::new()), provider, timeouts, health),
            #[cfg(feature = "hyper-client")]
            Leaf::OpenAi(leaf) => self.place(*leaf, provider, timeouts, health),
            #[cfg(feature = "genai")]
            Leaf::Genai(leaf) => self.place(*leaf, provider, timeouts, health),
        }
    }
}

impl<O: Observer> Around<O> {
    fn place<S>(
        &self,
        leaf: Deployment<S>,
        provider: &Arc<str>,
        timeouts: CallTimeoutLayer,
        health: Arc<Health>,
    ) -> Place
    where
        S: Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let telemetry = TelemetryLayer::at(self.observer.clone(), &leaf.endpoint(Arc::clone(provider)));
        leaf.into_place(&(telemetry.with_content(self.capture.clone()), timeouts), health)
    }
}

/// Leaves of the host's, by the names of their providers.
pub(super) type Leaves = BTreeMap<Arc<str>, Vec<Deployment<BoxService>>>;

pub(super) struct Deployments {
    #[cfg(feature = "hyper-client")]
    http: crate::provider::openai::HyperClient,
    leaves: Leaves,
    wrap: Box<dyn Wrap>,
    known: Mutex<HashMap<Identity, (Made, Place)>>,
}

/// What makes a deployment the same as before: then its calls in flight and its rest count on.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    provider: Arc<str>,
    kind: Kind,
    base_url: BaseUrl,
    /// Of the key, the proxy and the headers: a deployment that was refused with another key has not failed with this one.
    credentials: [u8; 32],
    /// Several may be the same.
    number: usize,
}

/// How its place was made, which is made anew where this has changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Made {
    timeouts: CallTimeoutLayer,
    trace_headers: bool,
    output_member: Option<OutputMember>,
    stream_usage: Option<bool>,
    returned_thoughts: Option<bool>,
}

impl Deployments {
    pub(super) fn new(leaves: Leaves, wrap: Box<dyn Wrap>) -> Self {
        Self {
            #[cfg(feature = "hyper-client")]
            http: crate::provider::openai::hyper_client(),
            leaves,
            wrap,
            known: Mutex::default(),
        }
    }

    /// Whether the host has a leaf for this provider.
    pub(super) fn has(&self, provider: &str) -> bool {
        self.leaves.contains_key(provider)
    }

    /// All providers. What is the same as before is the same place; what is gone is forgotten, but for the calls that it still has.
    pub(super) fn build(&self, planned: &[PlannedProvider]) -> Result<Providers, BoxError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = HashMap::<Identity, (Made, Place)>::new();
        let mut builder = Providers::builder();
        for provider in planned {
            let name = &provider.name;
            let all: Vec<(Identity, Source<'_>)> = match (self.leaves.get(name), provider.kind) {
                (Some(leaves), _) => leaves
                    .iter()
                    .map(|leaf| (Identity::of(name, Kind::Own, None), Source::Own(leaf)))
                    .collect(),
                (None, Kind::Echo) => vec![(Identity::of(name, Kind::Echo, None), Source::Echo)],
                (None, kind) => {
                    let each = provider.deployments.iter();
                    each.map(|one| (Identity::of(name, kind, Some(one)), Source::Server(kind, one))).collect()
                }
            };
            for (mut identity, source) in all {
                while next.contains_key(&identity) {
                    identity.number += 1;
                }
                let made = Made::of(provider, source);
                let place = match known.get(&identity) {
                    Some((before, place)) if *before == made => place.clone(),
                    before => {
                        let health = before.map(|(_, place)| Arc::clone(place.health()));
                        let health = health.unwrap_or_else(|| Arc::new(Health::new(CoolDown::default())));
                        self.wrap.wrap(self.leaf(name, source)?, name, provider.timeouts, health)
                    }
                };
                builder = builder.place(Arc::clone(name), place.clone());
                next.insert(identity, (made, place));
            }
        }
        let providers = builder.build()?;
        *known = next;
        Ok(providers)
    }

    fn leaf(&self, name: &Arc<str>, source: Source<'_>) -> Result<Leaf, BoxError> {
        let (kind, one) = match source {
            Source::Own(leaf) => return Ok(Leaf::Own(leaf.clone())),
            Source::Echo => return Ok(Leaf::Echo),
            Source::Server(kind, one) => (kind, one),
        };
        #[cfg(feature = "genai")]
        if let Some(dialect) = kind.dialect() {
            use crate::provider::{Proxy, genai::Genai};
            let mut leaf = Genai::new(dialect, &one.base_url.0)?.with_provider_name(Arc::clone(name));
            if let Some(proxy) = &one.proxy {
                leaf = leaf.with_proxy(&Proxy::new(proxy.reveal())?)?;
            }
            if let Some(key) = &one.api_key {
                leaf = leaf.with_api_key(key.reveal())?;
            }
            for (name, value) in &one.headers {
                leaf = leaf.with_header(name, value.reveal())?;
            }
            return Ok(Leaf::Genai(Box::new(leaf.into_deployment())));
        }
        #[cfg(feature = "hyper-client")]
        if kind == Kind::Openai {
            use crate::provider::{
                Proxy,
                openai::{OpenAiCompatible, hyper_client_through},
            };
            let http = match &one.proxy {
                Some(proxy) => hyper_client_through(&Proxy::new(proxy.reveal())?, None)?,
                None => self.http.clone(),
            };
            let mut leaf = OpenAiCompatible::new(http, &one.base_url.0)?.with_provider_name(Arc::clone(name));
            if let Some(key) = &one.api_key {
                leaf = leaf.with_api_key(key.reveal())?;
            }
            for (name, value) in &one.headers {
                leaf = leaf.with_header(name, value.reveal())?;
            }
            if let Some(member) = one.output_member {
                leaf = leaf.with_output_member(member.name());
            }
            if let Some(asks) = one.stream_usage {
                leaf = leaf.with_stream_usage(asks);
            }
            if let Some(returned) = one.returned_thoughts {
                leaf = leaf.with_returned_thoughts(returned);
            }
            #[cfg(feature = "otel")]
            if one.trace_headers {
                leaf = leaf.with_trace_headers();
            }
            return Ok(Leaf::OpenAi(Box::new(leaf.into_deployment())));
        }
        Err(format!("{}: nothing is compiled in for {kind:?} at {name}", one.base_url.shown()).into())
    }
}

/// Where a leaf comes from. It is made only if it is not there yet.
#[derive(Clone, Copy)]
enum Source<'a> {
    Own(&'a Deployment<BoxService>),
    Echo,
    Server(Kind, &'a PlannedDeployment),
}

impl Identity {
    fn of(provider: &Arc<str>, kind: Kind, one: Option<&PlannedDeployment>) -> Self {
        let mut hasher = blake3::Hasher::new();
        if let Some(one) = one {
            let headers = one.headers.iter().flat_map(|(name, value)| [&**name, value.reveal()]);
            for text in one.api_key.iter().chain(&one.proxy).map(|told| told.reveal()).chain(headers) {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
            hasher.update(&[u8::from(one.api_key.is_some()), u8::from(one.proxy.is_some())]);
        }
        Self {
            provider: Arc::clone(provider),
            kind,
            base_url: one.map(|one| one.base_url.clone()).unwrap_or_default(),
            credentials: *hasher.finalize().as_bytes(),
            number: 0,
        }
    }
}

impl Made {
    fn of(provider: &PlannedProvider, source: Source<'_>) -> Self {
        let one = match source {
            Source::Server(_, one) => Some(one),
            Source::Own(_) | Source::Echo => None,
        };
        Self {
            timeouts: provider.timeouts,
            trace_headers: one.is_some_and(|one| one.trace_headers),
            output_member: one.and_then(|one| one.output_member),
            stream_usage: one.and_then(|one| one.stream_usage),
            returned_thoughts: one.and_then(|one| one.returned_thoughts),
        }
    }
}
