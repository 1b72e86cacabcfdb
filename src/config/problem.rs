use std::{fmt, path::PathBuf};

/// One thing that is wrong with a configuration. Shows no value: any of them may be a key in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The entry, such as `providers.openai.base_url` or `keys[1].user`; empty for the file as a whole.
    pub entry: String,
    /// Where it stands in the file, from 1; `None` for a configuration that does not come from a text.
    pub line: Option<usize>,
    /// What is wrong, and where it can be said what would be right.
    pub what: String,
}

/// All that is wrong with a configuration, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
    file: Option<PathBuf>,
    /// What the configuration refers to, where so much of it could be read.
    refers_to: Vec<PathBuf>,
}

impl Problem {
    pub(crate) fn new(entry: impl Into<String>, what: impl fmt::Display) -> Self {
        Self { entry: entry.into(), line: None, what: what.to_string() }
    }
}

impl ConfigError {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| a.line.cmp(&b.line).then_with(|| a.entry.cmp(&b.entry)));
        problems.dedup();
        Self { problems, file: None, refers_to: Vec::new() }
    }

    pub(crate) fn unless_empty(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self::new(problems)) }
    }

    pub(crate) fn of_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }

    pub(crate) fn referring_to(mut self, files: Vec<PathBuf>) -> Self {
        self.refers_to = files;
        self
    }

    /// The files that it refers to: one that was missing may come.
    pub(crate) fn refers_to(&self) -> &[PathBuf] {
        &self.refers_to
    }

    /// Each problem.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl std::error::Error for ConfigError {}

/// A line for each problem.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "\n" })?;
            match (&self.file, problem.line) {
                (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
                (Some(file), None) => write!(f, "{}: ", file.display())?,
                (None, Some(line)) => write!(f, "line {line}: ")?,
                (None, None) => {}
            }
            match problem.entry.as_str() {
                "" => f.write_str(&problem.what)?,
                entry => write!(f, "{entry}: {}", problem.what)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        match self.entry.as_str() {
            "" => f.write_str(&self.what),
            entry => write!(f, "{entry}: {}", self.what),
        }
    }
}
