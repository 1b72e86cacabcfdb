//! What the server is told, in the gateway's words.

use crate::chat::{Keys, Stack};
use llm_layers::{
    RequestContext,
    access::AccessLayer,
    alias::{AliasTable, Aliases},
    concurrency::ConcurrencyLimitLayer,
    fallback::{Chains, FallbackLayer},
    policies::{DepartmentPolicy, Policies, PolicyTable},
    price::{PriceBook, Prices},
    provider::{Echo, openai::OpenAiCompatible},
    providers::Providers,
    quota::{MemoryStore, QuotaLayer},
    timeout::CallTimeoutLayer,
};
use serde::Deserialize;
use std::{collections::BTreeMap, error::Error, path::Path, time::Duration};
use tower::{ServiceBuilder, util::BoxCloneSyncService};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    keys: Vec<Key>,
    providers: BTreeMap<String, Provider>,
    aliases: BTreeMap<String, String>,
    fallbacks: BTreeMap<String, Vec<String>>,
    departments: BTreeMap<String, DepartmentPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
    user: String,
    #[serde(default)]
    departments: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Provider {
    Echo,
    OpenAi { base_url: String, api_key: Option<String> },
}

impl Config {
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let Some(file) = file else {
            return Ok(Self {
                providers: BTreeMap::from([("echo".to_owned(), Provider::Echo)]),
                aliases: BTreeMap::from([("fast".to_owned(), "echo/echo".to_owned())]),
                ..Self::default()
            });
        };
        Ok(toml::from_str(&std::fs::read_to_string(file)?)?)
    }

    pub(crate) fn keys(&self) -> Keys {
        let entry = |key: &Key| {
            let context = RequestContext::new()
                .with_user_id(&*key.user)
                .with_departments(key.departments.iter().map(|d| &**d));
            (blake3::hash(key.key.as_bytes()), context)
        };
        (!self.keys.is_empty()).then(|| self.keys.iter().map(entry).collect())
    }

    pub(crate) fn stack(&self) -> Result<Stack, Box<dyn Error>> {
        let timeouts =
            CallTimeoutLayer::new().with_head(Duration::from_secs(2)).with_idle(Duration::from_secs(30));
        let mut providers = Providers::builder().each(move |_| timeouts);
        for (name, provider) in &self.providers {
            providers = match provider {
                Provider::Echo => providers.provider(name.as_str(), Echo::new()),
                Provider::OpenAi { base_url, api_key } => {
                    let mut leaf = OpenAiCompatible::hyper(base_url)?.with_provider_name(name.as_str());
                    if let Some(key) = api_key {
                        leaf = leaf.with_api_key(key)?;
                    }
                    providers.deployment(name.as_str(), leaf.into_deployment())
                }
            };
        }
        let providers = providers.build()?;
        let names = providers.names();
        let mut table = AliasTable::builder().providers(names.clone());
        for (alias, model) in &self.aliases {
            table = table.alias(alias.as_str(), model.as_str());
        }
        let aliases = Aliases::new(table.build()?);
        let mut chains = Chains::builder().providers(names.clone()).aliases(aliases.clone());
        for (model, targets) in &self.fallbacks {
            chains = chains.chain(model.as_str(), targets.iter().map(|target| &**target));
        }
        let mut policies = PolicyTable::new(DepartmentPolicy::default());
        for (department, policy) in &self.departments {
            policies = policies.with(department.as_str(), policy.clone());
        }
        let policies = Policies::new(policies);
        let stack = ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(256))
            .layer(llm_layers::alias::AliasLayer::new(aliases))
            .layer(
                FallbackLayer::new(chains.build()?)
                    .with_providers(names)
                    .with_deadline(Duration::from_secs(120)),
            )
            .layer(AccessLayer::new(policies.clone()))
            .layer(QuotaLayer::new(MemoryStore::new(), policies, Prices::new(PriceBook::new())))
            .service(providers);
        Ok(BoxCloneSyncService::new(stack))
    }
}
