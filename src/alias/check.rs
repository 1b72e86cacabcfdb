use super::table::{AliasTable, MAX_STEPS, Target};
use crate::ModelName;
use std::{collections::HashMap, fmt, sync::Arc};

/// All that is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasError {
    problems: Vec<AliasProblem>,
}

/// One thing that is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AliasProblem {
    /// A name leads back to itself.
    Cycle {
        /// The way round.
        path: Vec<ModelName>,
    },
    /// A name stands twice; one of them can never be used.
    Shadowed {
        /// The name.
        name: Arc<str>,
    },
    /// A name leads to no provider.
    Dangling {
        /// The name.
        name: ModelName,
        /// Where it ends.
        target: ModelName,
    },
    /// A name leads through too many others.
    TooLong {
        /// The name.
        name: ModelName,
    },
    /// The name or its target is empty, or all weights are zero.
    Empty {
        /// The name.
        name: Arc<str>,
    },
}

impl AliasError {
    pub(super) fn unless_empty(problems: Vec<AliasProblem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// Each problem.
    pub fn problems(&self) -> &[AliasProblem] {
        &self.problems
    }
}

impl std::error::Error for AliasError {}

impl fmt::Display for AliasError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl fmt::Display for AliasProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cycle { path } => {
                f.write_str("aliases lead in a circle: ")?;
                for (at, name) in path.iter().enumerate() {
                    write!(f, "{}{name}", if at == 0 { "" } else { " -> " })?;
                }
                Ok(())
            }
            Self::Shadowed { name } => write!(f, "alias {name} is defined twice"),
            Self::Dangling { name, target } => {
                write!(f, "alias {name} leads to {target}, which no provider serves")
            }
            Self::TooLong { name } => write!(f, "alias {name} leads through more than {MAX_STEPS} others"),
            Self::Empty { name } => {
                write!(f, "alias {name:?} has an empty name, an empty target or no weight")
            }
        }
    }
}

/// A chain is not followed further than this; it is far too long by then.
const DEEPEST: usize = 512;

/// Follows every name to every end, as each tenant would.
pub(super) fn check(table: &AliasTable) -> Vec<AliasProblem> {
    let mut problems = Vec::new();
    let mut tenants: Vec<&str> = table.tenants.keys().map(|tenant| &**tenant).collect();
    tenants.sort_unstable();
    for tenant in [None].into_iter().chain(tenants.into_iter().map(Some)) {
        let own = tenant.and_then(|tenant| table.tenants.get(tenant));
        let mut walk =
            Walk { table, tenant, steps: HashMap::new(), path: Vec::new(), problems: &mut problems };
        for entries in [&table.everybody].into_iter().chain(own) {
            let mut names: Vec<_> = entries.exact.keys().collect();
            names.sort_unstable();
            for name in names {
                walk.visit(&ModelName::from(Arc::clone(name)));
            }
            for (glob, target) in &entries.globs {
                // Any name may come in by a glob; the glob itself stands for all of them.
                walk.follow(&glob.as_str().into(), target);
            }
        }
    }
    let mut unique: Vec<AliasProblem> = Vec::new();
    problems.retain(|problem| {
        let new = !unique.contains(problem);
        unique.extend(new.then(|| problem.clone()));
        new
    });
    problems
}

struct Walk<'a> {
    table: &'a AliasTable,
    tenant: Option<&'a str>,
    /// How many steps lead from a name to its farthest end, once it was followed.
    steps: HashMap<ModelName, usize>,
    path: Vec<ModelName>,
    problems: &'a mut Vec<AliasProblem>,
}

impl Walk<'_> {
    fn visit(&mut self, name: &ModelName) -> usize {
        if let Some(start) = self.path.iter().position(|seen| seen == name) {
            let mut path = self.path[start..].to_vec();
            path.push(name.clone());
            self.problems.push(AliasProblem::Cycle { path });
            return 0;
        }
        if let Some(steps) = self.steps.get(name) {
            return *steps;
        }
        match self.table.lookup_exact(name, self.tenant) {
            Some(target) if self.path.len() < DEEPEST => {
                let steps = self.follow(name, target);
                self.steps.insert(name.clone(), steps);
                steps
            }
            _ => 0,
        }
    }

    fn follow(&mut self, name: &ModelName, target: &Target) -> usize {
        self.path.push(name.clone());
        let mut most = 0;
        for (choice, _) in &target.choices {
            // A name that means itself ends there.
            let ends = choice == name || self.table.lookup_exact(choice, self.tenant).is_none();
            let steps = match ends {
                true => usize::from(choice != name) + self.end(name, choice),
                false => 1 + self.visit(choice),
            };
            most = most.max(steps);
        }
        self.path.pop();
        if most > MAX_STEPS {
            self.problems.push(AliasProblem::TooLong { name: name.clone() });
        }
        most
    }

    /// How many steps lead on from where entries end.
    fn end(&mut self, name: &ModelName, target: &ModelName) -> usize {
        if let Some(canonical) = self.table.led_on(target, self.tenant) {
            self.path.extend((target != name).then(|| target.clone()));
            let steps = 1 + self.visit(&canonical);
            self.path.truncate(self.path.len() - usize::from(target != name));
            return steps;
        }
        let served = self.table.providers().is_none_or(|providers| providers.provider_for(target).is_some());
        if !served {
            self.problems.push(AliasProblem::Dangling { name: name.clone(), target: target.clone() });
        }
        0
    }
}
