use super::{
    check::{AliasError, AliasProblem, check},
    glob::Glob,
};
use crate::{ModelName, providers::ProviderNames};
use std::{
    borrow::Cow,
    collections::HashMap,
    fmt::{self, Write as _},
    sync::Arc,
};

/// What names mean: immutable, checked when it is built, exchanged as a whole.
///
/// An exact name goes before a glob, the glob with the longest literal text before others, and a tenant's own entries
/// before everybody's. What a name means is looked up again until it means nothing else, by exact names only: globs
/// are for what callers say, so that a catch-all does not swallow the targets of other entries. Where the table knows the
/// providers, the glob `*` is for names that none of them serves, and a bare name for which there is no entry means that
/// model of the only provider, if there is only one.
///
/// ```
/// use llm_layers::alias::AliasTable;
///
/// let table = AliasTable::builder()
///     .alias("fast", "openai/gpt-4o-mini")
///     .alias("gpt-*", "fast")
///     .sticky_split("trial", [("fast", 9), ("acme/new", 1)])
///     .for_tenant("lab")
///     .alias("fast", "local/small")
///     .build()?;
/// let resolve = |name: &str, tenant| table.resolve(&name.into(), tenant, Some("ada"));
/// assert_eq!(resolve("gpt-3.5", None), "openai/gpt-4o-mini");
/// assert_eq!(resolve("fast", Some("lab")), "local/small");
/// assert_eq!(resolve("trial", None), resolve("trial", None), "one user, one model");
/// assert_eq!(table.ends_for(&"trial".into(), None), ["acme/new", "openai/gpt-4o-mini"]);
///
/// let error = AliasTable::builder().alias("a", "b").alias("b", "a").build().unwrap_err();
/// assert!(!error.problems().is_empty(), "a circle");
/// # Ok::<(), llm_layers::alias::AliasError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct AliasTable {
    pub(super) everybody: Entries,
    pub(super) tenants: HashMap<Arc<str>, Entries>,
    pub(super) providers: Option<ProviderNames>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    /// Nobody outside chooses what is in it: what is won by a hash that no one can collide is lost on every call.
    pub(super) exact: HashMap<Arc<str>, Target, foldhash::fast::RandomState>,
    /// The narrowest first.
    pub(super) globs: Vec<(Glob, Target)>,
}

/// What one name means.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) choices: Vec<(ModelName, u32)>,
    sticky: bool,
}

/// Builds an [`AliasTable`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct AliasTableBuilder {
    tenant: Option<Arc<str>>,
    table: AliasTable,
    problems: Vec<AliasProblem>,
}

/// A name is looked up at most this often; [`check`] has seen that no chain is longer.
pub(super) const MAX_STEPS: usize = 32;

/// An explanation goes no deeper.
const MAX_EXPLAINED: usize = 8;

// ===== impl AliasTable =====

impl AliasTable {
    /// An empty table, to be filled.
    pub fn builder() -> AliasTableBuilder {
        AliasTableBuilder::default()
    }

    /// The canonical name of `model` for this tenant and user.
    pub fn resolve(&self, model: &ModelName, tenant: Option<&str>, user: Option<&str>) -> ModelName {
        self.walk(model, tenant, user, |_, _| {})
    }

    /// As [`resolve`](Self::resolve), telling each step.
    pub(super) fn walk(
        &self,
        model: &ModelName,
        tenant: Option<&str>,
        user: Option<&str>,
        mut step: impl FnMut(&ModelName, &ModelName),
    ) -> ModelName {
        let mut from = Cow::Borrowed(model);
        let mut target = self.lookup(model, tenant);
        loop {
            let mut name: &ModelName = &from;
            for _ in 0..MAX_STEPS {
                let Some(next) = target.map(|target| target.pick(name, user)).filter(|next| *next != name)
                else {
                    break;
                };
                step(name, next);
                name = next;
                target = self.lookup_exact(name, tenant);
            }
            let Some(providers) = &self.providers else { return name.clone() };
            let canonical = providers.canonical(name);
            if canonical == *name {
                return canonical;
            }
            step(name, &canonical);
            // The check has seen that nothing leads back here.
            target = self.lookup_exact(&canonical, tenant);
            if target.is_none() {
                return canonical;
            }
            from = Cow::Owned(canonical);
        }
    }

    /// All canonical names that `model` can come to, for whichever tenant, sorted.
    pub fn ends(&self, model: &ModelName) -> Vec<ModelName> {
        self.ends_of(model, self.tenants.keys().map(|tenant| Some(&**tenant)).chain([None]))
    }

    /// All canonical names that `model` can come to for one tenant, sorted.
    pub fn ends_for(&self, model: &ModelName, tenant: Option<&str>) -> Vec<ModelName> {
        self.ends_of(model, [tenant].into_iter())
    }

    fn ends_of<'t>(
        &self,
        model: &ModelName,
        tenants: impl Iterator<Item = Option<&'t str>>,
    ) -> Vec<ModelName> {
        let mut ends = Vec::new();
        for tenant in tenants {
            let (mut seen, mut next) = (Vec::new(), Vec::new());
            let mut name = model.clone();
            let mut target = self.lookup(&name, tenant);
            loop {
                let is_end = |choice: &ModelName| *choice == name;
                let choices = target.map_or(&[][..], |target| &target.choices);
                next.extend(
                    choices.iter().map(|(choice, _)| choice.clone()).filter(|choice| !is_end(choice)),
                );
                if target.is_none() || choices.iter().any(|(choice, _)| is_end(choice)) {
                    match self.led_on(&name, tenant) {
                        Some(canonical) => next.push(canonical),
                        None => ends.push(self.canonical(&name)),
                    }
                }
                next.retain(|name| !seen.contains(name));
                let Some(following) = next.pop() else { break };
                target = self.lookup_exact(&following, tenant);
                seen.push(following.clone());
                name = following;
            }
        }
        ends.sort();
        ends.dedup();
        ends
    }

    fn canonical(&self, name: &ModelName) -> ModelName {
        self.providers.as_ref().map_or_else(|| name.clone(), |providers| providers.canonical(name))
    }

    /// The canonical name of one at which entries end, if that is another one and leads on.
    pub(super) fn led_on(&self, name: &ModelName, tenant: Option<&str>) -> Option<ModelName> {
        let canonical = self.canonical(name);
        (canonical != *name && self.lookup_exact(&canonical, tenant).is_some()).then_some(canonical)
    }

    /// Which providers there are, if the table was told.
    pub const fn providers(&self) -> Option<&ProviderNames> {
        self.providers.as_ref()
    }

    /// The names that callers may use for everybody, globs left out, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.names_for(None)
    }

    /// The names that callers of one tenant may use, its own and everybody's, globs left out, sorted.
    pub fn names_for(&self, tenant: Option<&str>) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.entries(tenant).flat_map(|entries| entries.exact.keys()).map(|name| &**name).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// How `name` is resolved, a line for each step, for people.
    pub fn explain(&self, name: &str) -> String {
        self.explain_to(name, None)
    }

    /// How `name` is resolved for a tenant.
    pub fn explain_to(&self, name: &str, tenant: Option<&str>) -> String {
        let mut out = name.to_owned();
        let name = ModelName::from(name);
        match self.lookup(&name, tenant) {
            Some(target) => self.explain_into(&mut out, &name, target, tenant, 1),
            None => self.explain_end(&mut out, &name, tenant, 1),
        }
        out
    }

    /// What follows where no entry leads on from `name`, or it is an end of its own.
    fn explain_end(&self, out: &mut String, name: &ModelName, tenant: Option<&str>, depth: usize) {
        let Some(canonical) = self.led_on(name, tenant).filter(|_| depth <= MAX_EXPLAINED) else { return };
        let _ = write!(out, "\n{}-> {canonical}", "  ".repeat(depth));
        if let Some(target) = self.lookup_exact(&canonical, tenant) {
            self.explain_into(out, &canonical, target, tenant, depth + 1);
        }
    }

    fn explain_into(
        &self,
        out: &mut String,
        name: &ModelName,
        target: &Target,
        tenant: Option<&str>,
        depth: usize,
    ) {
        let total = target.total();
        for (choice, weight) in &target.choices {
            if choice == name {
                self.explain_end(out, name, tenant, depth);
                continue;
            }
            let indent = "  ".repeat(depth);
            out.push_str(&match target.choices.len() {
                1 => format!("\n{indent}-> {choice}"),
                _ => format!("\n{indent}-> {choice} ({weight} of {total})"),
            });
            // Ladders of splits would fill pages.
            match self.lookup_exact(choice, tenant) {
                Some(next) if depth < MAX_EXPLAINED => {
                    self.explain_into(out, choice, next, tenant, depth + 1);
                }
                Some(_) => {}
                None => self.explain_end(out, choice, tenant, depth + 1),
            }
        }
    }

    fn write_entries(
        &self,
        f: &mut fmt::Formatter<'_>,
        entries: &Entries,
        tenant: Option<&str>,
    ) -> fmt::Result {
        let mut names: Vec<_> = entries.exact.iter().map(|(name, target)| (&**name, target)).collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let globs = entries.globs.iter().map(|(glob, target)| (glob.as_str(), target));
        let depth = usize::from(tenant.is_some());
        names.into_iter().chain(globs).try_for_each(|(name, target)| {
            let mut text = format!("{}{name}", "  ".repeat(depth));
            self.explain_into(&mut text, &name.into(), target, tenant, depth + 1);
            writeln!(f, "{text}")
        })
    }

    /// What a name means that a caller says.
    fn lookup(&self, name: &str, tenant: Option<&str>) -> Option<&Target> {
        let is_served = || self.providers.as_ref().is_some_and(|names| names.provider_for(name).is_some());
        self.entries(tenant).find_map(|entries| {
            entries.exact.get(name).or_else(|| {
                let (glob, target) = entries.globs.iter().find(|(glob, _)| glob.matches(name))?;
                (glob.literals() > 0 || !is_served()).then_some(target)
            })
        })
    }

    /// What a name means that another one led to.
    pub(super) fn lookup_exact(&self, name: &str, tenant: Option<&str>) -> Option<&Target> {
        self.entries(tenant).find_map(|entries| entries.exact.get(name))
    }

    fn entries(&self, tenant: Option<&str>) -> impl Iterator<Item = &Entries> {
        let own = tenant.and_then(|tenant| self.tenants.get(tenant));
        own.into_iter().chain([&self.everybody])
    }
}

impl Target {
    fn total(&self) -> u64 {
        self.choices.iter().map(|(_, weight)| u64::from(*weight)).sum()
    }

    fn pick(&self, name: &str, user: Option<&str>) -> &ModelName {
        let (first, _) = &self.choices[0];
        if self.choices.len() == 1 {
            return first;
        }
        let mut point = match user.filter(|_| self.sticky) {
            Some(user) => stable_hash(&[name, user]) % self.total(),
            None => fastrand::u64(..self.total()),
        };
        for (model, weight) in &self.choices {
            match point.checked_sub(u64::from(*weight)) {
                Some(rest) => point = rest,
                None => return model,
            }
        }
        first
    }
}

/// FNV-1a, mixed: the same on every machine and in every release, which is what sticky means.
fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0xff])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8
}

// ===== impl AliasTableBuilder =====

impl AliasTableBuilder {
    /// `name`, which may be a glob, means `target`.
    pub fn alias(self, name: impl Into<Arc<str>>, target: impl Into<ModelName>) -> Self {
        self.entry(name.into(), Target { choices: vec![(target.into(), 1)], sticky: false })
    }

    /// `name` means one of `targets`, by chance, in proportion to their weights.
    pub fn split<M: Into<ModelName>>(
        self,
        name: impl Into<Arc<str>>,
        targets: impl IntoIterator<Item = (M, u32)>,
    ) -> Self {
        self.entry(name.into(), Target::of(targets, false))
    }

    /// As [`split`](Self::split), but the same user always gets the same target.
    pub fn sticky_split<M: Into<ModelName>>(
        self,
        name: impl Into<Arc<str>>,
        targets: impl IntoIterator<Item = (M, u32)>,
    ) -> Self {
        self.entry(name.into(), Target::of(targets, true))
    }

    /// Entries that follow are this tenant's own.
    pub fn for_tenant(mut self, tenant: impl Into<Arc<str>>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Entries that follow are everybody's again.
    pub fn for_everybody(mut self) -> Self {
        self.tenant = None;
        self
    }

    /// Tells which providers there are: bare names get the only one, and a target that leads to none is an
    /// error.
    pub fn providers(mut self, providers: ProviderNames) -> Self {
        self.table.providers = Some(providers);
        self
    }

    /// Checks the table.
    ///
    /// # Errors
    ///
    /// All that is wrong with it: cycles, entries that can never be used, targets that lead nowhere.
    pub fn build(mut self) -> Result<AliasTable, AliasError> {
        let tables = self.table.tenants.values_mut().chain([&mut self.table.everybody]);
        for entries in tables {
            entries.globs.sort_by(|(a, _), (b, _)| b.literals().cmp(&a.literals()).then_with(|| a.cmp(b)));
        }
        self.problems.extend(check(&self.table));
        AliasError::unless_empty(self.problems).map(|()| self.table)
    }

    fn entry(mut self, name: Arc<str>, target: Target) -> Self {
        if name.trim().is_empty()
            || target.total() == 0
            || target.choices.iter().any(|(m, _)| m.trim().is_empty())
        {
            self.problems.push(AliasProblem::Empty { name });
            return self;
        }
        let entries = match &self.tenant {
            Some(tenant) => self.table.tenants.entry(Arc::clone(tenant)).or_default(),
            None => &mut self.table.everybody,
        };
        let present = match Glob::new(&name) {
            Some(glob) => {
                let present = entries.globs.iter().any(|(other, _)| *other == glob);
                entries.globs.push((glob, target));
                present
            }
            None => entries.exact.insert(Arc::clone(&name), target).is_some(),
        };
        if present {
            self.problems.push(AliasProblem::Shadowed { name });
        }
        self
    }
}

impl Target {
    fn of<M: Into<ModelName>>(targets: impl IntoIterator<Item = (M, u32)>, sticky: bool) -> Self {
        let choices = targets.into_iter().map(|(model, weight)| (model.into(), weight));
        Self { choices: choices.filter(|(_, weight)| *weight > 0).collect(), sticky }
    }
}

/// Everybody's entries and then those of tenants: names, then patterns, with where they lead.
impl fmt::Display for AliasTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_entries(f, &self.everybody, None)?;
        let mut tenants: Vec<_> = self.tenants.iter().collect();
        tenants.sort_unstable_by_key(|(tenant, _)| *tenant);
        tenants.into_iter().try_for_each(|(tenant, own)| {
            writeln!(f, "for tenant {tenant}:")?;
            self.write_entries(f, own, Some(tenant))
        })
    }
}
