//! What departments may do: their limits, and the models that they may use.
//!
//! [`Policies`] is one table for [`quota`](crate::quota) and [`access`](crate::access), which read it with one atomic load
//! per call. It may be exchanged while it is used: by [`store`](Policies::store), or by a [`PolicySource`] that is
//! [followed](Policies::follow) in the background, such as a table that somebody edits.
//!
//! ```
//! use llm_layers::policies::{DepartmentPolicy, Policies, PolicyTable};
//!
//! // As it stands in a file of JSON or TOML. Money is dollars, in text.
//! let research: DepartmentPolicy =
//!     serde_json::from_str(r#"{ "day_tokens": 1000000, "month_cost": "250", "models": ["openai/*"] }"#)?;
//! let policies = Policies::new(PolicyTable::new(DepartmentPolicy::default()).with("research", research));
//!
//! let table = policies.load();
//! assert!(table.of("research").allows("openai/gpt-4o-mini"));
//! assert!(!table.of("research").allows("anthropic/claude-sonnet-4-5"));
//! // Who has no entry has the table's default: here no limits, and every model.
//! assert!(table.of("operations").limits.is_unlimited());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "rusqlite")]
pub use crate::quota::sqlite::{BadPolicies, BadPolicy, SqlitePolicies};

use crate::{
    BoxError,
    alias::Glob,
    caught::{caught, contained},
    forward::forward,
    price::NanoUsd,
    providers::ProviderNames,
    quota::Limits,
    store::Told,
};
use arc_swap::{ArcSwap, Guard};
use foldhash::fast::RandomState;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// A table that may be exchanged while it is used. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Policies(Arc<ArcSwap<PolicyTable>>);

/// The policies of all departments, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyTable {
    departments: HashMap<Arc<str>, DepartmentPolicy, RandomState>,
    otherwise: DepartmentPolicy,
}

/// What one department may do.
///
/// Read by serde from `{ day_requests, month_requests, day_tokens, month_tokens, day_cost, month_cost, models }`, each
/// of which may be left out; costs are dollars as text, and what it does not know it refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DepartmentPolicy {
    /// How much it may use up.
    pub limits: Limits,
    /// The models that it may use; `None` is all of them, and an empty list none.
    pub models: Option<AllowList>,
}

/// Models by their canonical names, `provider/model`, or by patterns in which `*` stands for any text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    names: HashSet<Box<str>, RandomState>,
    globs: Vec<Glob>,
}

/// Where policies are read from, again and again.
///
/// ```
/// use llm_layers::{BoxError, policies::{DepartmentPolicy, Policies, PolicySource, PolicyTable}};
/// use std::{collections::HashMap, fs, path::PathBuf, time::Duration};
///
/// /// A file of JSON: policies by the names of departments.
/// struct JsonFile {
///     path: PathBuf,
///     last: String,
/// }
///
/// impl PolicySource for JsonFile {
///     fn read(&mut self) -> Result<Option<PolicyTable>, BoxError> {
///         let text = fs::read_to_string(&self.path)?;
///         if text == self.last {
///             return Ok(None);
///         }
///         // Half of a file is an error, and the table stays as it was.
///         let departments: HashMap<String, DepartmentPolicy> = serde_json::from_str(&text)?;
///         self.last = text;
///         let table = PolicyTable::default();
///         Ok(Some(departments.into_iter().fold(table, |table, (name, policy)| table.with(name, policy))))
///     }
/// }
///
/// # let path = std::env::temp_dir().join(format!("llm-layers-doc-source-{}.json", std::process::id()));
/// fs::write(&path, r#"{ "research": { "day_tokens": 1000000, "models": ["openai/*"] } }"#)?;
/// let policies = Policies::default();
/// let source = JsonFile { path: path.clone(), last: String::new() };
/// let follower = policies.follow(source, Duration::from_secs(1), |error| eprintln!("still the old ones: {error}"))?;
/// assert_eq!(policies.load().of("research").limits.day_tokens, Some(1_000_000));
/// # drop(follower);
/// # fs::remove_file(path)?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub trait PolicySource: Send + 'static {
    /// The table as it is now, whole and consistent; `None` if it has not changed since it was last asked. May
    /// block.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is wrong; the last good table stays. A panic is such an error, too.
    fn read(&mut self) -> Result<Option<PolicyTable>, BoxError>;
}

forward! {
    PolicySource for [Box] {} {
        fn read(&mut self) -> Result<Option<PolicyTable>, BoxError>;
    }
}

const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// Reads a [`PolicySource`] on a thread of its own, until it is dropped.
#[derive(Debug)]
#[must_use = "policies are followed until this is dropped"]
pub struct Follower {
    _stop: mpsc::Sender<()>,
}

// ===== impl Policies =====

impl Policies {
    /// Starts with `table`.
    pub fn new(table: PolicyTable) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(table)))
    }

    /// Calls that come from now on are under `table`; those in flight keep what they were admitted by.
    pub fn store(&self, table: PolicyTable) {
        self.0.store(Arc::new(table));
    }

    /// The table of this moment.
    pub fn load(&self) -> Arc<PolicyTable> {
        self.0.load_full()
    }

    /// The table of this moment, for as long as one looks at it.
    pub(crate) fn peek(&self) -> Guard<Arc<PolicyTable>> {
        self.0.load()
    }

    /// Reads `source` now, and then `every` so often, a hundred times in a second at most. `on_error` is told why it cannot be read, of each cause once until it can.
    ///
    /// # Errors
    ///
    /// The first read fails, or no thread can be started.
    pub fn follow(
        &self,
        mut source: impl PolicySource,
        every: Duration,
        on_error: impl Fn(BoxError) + Send + 'static,
    ) -> Result<Follower, BoxError> {
        // On the thread, a panic would leave nobody who reads again.
        let mut read = move || caught("the source of the policies", || source.read())?;
        if let Some(table) = read()? {
            self.store(table);
        }
        let policies = self.clone();
        let (stop, stopped) = mpsc::channel();
        let every = every.max(LEAST_PAUSE);
        let run = move || {
            let told = Told::default();
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                match read() {
                    Ok(table) => {
                        told.forget();
                        if let Some(table) = table {
                            policies.store(table);
                        }
                    }
                    Err(error) if told.is_new(&error.to_string()) => contained(|| on_error(error)),
                    Err(_) => {}
                }
            }
        };
        let spawned: io::Result<_> = thread::Builder::new().name("llm-policies".to_owned()).spawn(run);
        spawned?;
        Ok(Follower { _stop: stop })
    }
}

impl From<PolicyTable> for Policies {
    fn from(table: PolicyTable) -> Self {
        Self::new(table)
    }
}

// ===== impl PolicyTable =====

impl PolicyTable {
    /// Only a policy for departments without an entry.
    pub fn new(otherwise: DepartmentPolicy) -> Self {
        Self { departments: HashMap::default(), otherwise }
    }

    /// Sets the policy of a department.
    #[must_use]
    pub fn with(mut self, department: impl Into<Arc<str>>, policy: DepartmentPolicy) -> Self {
        self.departments.insert(department.into(), policy);
        self
    }

    /// The policy of a department, its own or the one for those that have none.
    pub fn of(&self, department: &str) -> &DepartmentPolicy {
        self.departments.get(department).unwrap_or(&self.otherwise)
    }

    /// The departments that have a policy of their own, in no order.
    pub fn departments(&self) -> impl Iterator<Item = (&Arc<str>, &DepartmentPolicy)> {
        self.departments.iter()
    }

    /// The policy of all others.
    pub const fn otherwise(&self) -> &DepartmentPolicy {
        &self.otherwise
    }

    /// Whether any department is limited: then something has to enforce it.
    pub fn has_limits(&self) -> bool {
        let mut all = self.departments.values().chain([&self.otherwise]);
        all.any(|policy| !policy.limits.is_unlimited())
    }

    /// Whether any department may not use every model: then something has to enforce it.
    pub fn has_allow_lists(&self) -> bool {
        self.departments.values().chain([&self.otherwise]).any(|policy| policy.models.is_some())
    }
}

// ===== impl DepartmentPolicy and AllowList =====

impl DepartmentPolicy {
    /// Every model, within `limits`.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, models: None }
    }

    /// Only these models.
    #[must_use]
    pub fn with_models(mut self, models: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.models = Some(models.into_iter().collect());
        self
    }

    /// Whether it may use this model, by its canonical name.
    pub fn allows(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.allows(model))
    }

    /// As [`allows`](Self::allows), where these are the providers: with only one, a name without a provider is of it, on the list
    /// as in the call.
    pub(crate) fn allows_at(&self, providers: &ProviderNames, model: &str) -> bool {
        let Some(models) = &self.models else { return true };
        let is_under_other_name = |only| match model.split_once('/') {
            Some((provider, bare)) => provider == only && !bare.contains('/') && models.names.contains(bare),
            None => models.allows(&format!("{only}/{model}")),
        };
        models.allows(model) || providers.only().is_some_and(is_under_other_name)
    }
}

impl AllowList {
    /// Whether this model is on it.
    pub fn allows(&self, model: &str) -> bool {
        self.names.contains(model) || self.globs.iter().any(|glob| glob.matches(model))
    }
}

impl<M: AsRef<str>> FromIterator<M> for AllowList {
    fn from_iter<I: IntoIterator<Item = M>>(models: I) -> Self {
        let mut list = Self::default();
        for model in models {
            match Glob::new(model.as_ref()) {
                Some(glob) => list.globs.push(glob),
                None => drop(list.names.insert(model.as_ref().into())),
            }
        }
        list
    }
}

impl<'de> Deserialize<'de> for DepartmentPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename = "DepartmentPolicy")]
        struct Raw {
            day_requests: Option<u64>,
            month_requests: Option<u64>,
            day_tokens: Option<u64>,
            month_tokens: Option<u64>,
            day_cost: Option<String>,
            month_cost: Option<String>,
            models: Option<Vec<String>>,
        }
        let raw = Raw::deserialize(deserializer)?;
        let money = |name: &str, text: Option<String>| -> Result<Option<NanoUsd>, D::Error> {
            let parse = |text: String| text.parse().map_err(|e| D::Error::custom(format!("{name}: {e}")));
            text.map(parse).transpose()
        };
        if let Some(models) = &raw.models
            && models.iter().any(|model| model.trim().is_empty())
        {
            return Err(D::Error::custom("models: a name is empty"));
        }
        let mut limits = Limits::new();
        limits.day_requests = raw.day_requests;
        limits.month_requests = raw.month_requests;
        limits.day_tokens = raw.day_tokens;
        limits.month_tokens = raw.month_tokens;
        limits.day_cost = money("day_cost", raw.day_cost)?;
        limits.month_cost = money("month_cost", raw.month_cost)?;
        Ok(Self { limits, models: raw.models.map(|models| models.into_iter().collect()) })
    }
}
