//! Rows of docs/failure-matrix.md, and the file that is made of them.

use std::fmt::Write as _;

/// What comes of one fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What kind of fault.
    pub section: &'static str,
    /// The fault.
    pub event: &'static str,
    /// What whoever asked has got.
    pub caller: String,
    /// What is in the record of usage.
    pub recorded: String,
    /// What their department is charged.
    pub charged: String,
    /// What is still reserved when it is over.
    pub reserved: String,
    /// How long after the fault has gone calls are answered again.
    pub recovery: &'static str,
}

/// A row as it was found, and what is wrong with it.
#[derive(Debug)]
pub struct Verdict {
    /// What was found.
    pub row: Row,
    /// What was not as it must be.
    pub problems: Vec<String>,
}

impl Row {
    /// Compares what was found with what must be, in the order of the columns.
    pub fn judge(self, expected: [&str; 4]) -> Verdict {
        let found = [&self.caller, &self.recorded, &self.charged, &self.reserved];
        let columns = ["the caller gets", "recorded", "charged", "reserved"];
        let problems =
            columns.iter().zip(found).zip(expected).filter(|((_, found), expected)| found != expected);
        let problems =
            problems.map(|((column, found), expected)| format!("{column}: {found}, and not: {expected}"));
        let problems = problems.collect();
        Verdict { row: self, problems }
    }

    /// The row as it stands in the file.
    pub fn line(&self) -> String {
        let Self { event, caller, recorded, charged, reserved, recovery, .. } = self;
        format!("| {event} | {caller} | {recorded} | {charged} | {reserved} | {recovery} |")
    }
}

impl Verdict {
    /// Adds what is wrong besides, if it is.
    #[must_use]
    pub fn and(mut self, is_right: bool, otherwise: impl Into<String>) -> Self {
        if !is_right {
            self.problems.push(otherwise.into());
        }
        self
    }
}

const HEAD: &str = "\
# What fails, and what comes of it

Made by `scripts/test --faults --write`, from what a real gateway did; each row is asserted in every run of the tests. The time limits of these gateways are short: 4 s for a head, 5 s for the first content, 4 s of silence,
10 s in all. What takes hours with yours takes seconds there.

*Recorded* is what the record of usage has of the call, *charged* what the counters of the department's limits have. A call that
has reached a provider is charged at least for its prompt, whatever the provider says afterwards. *Recovery* is the bound, from
the moment the fault is gone until calls are answered again, that is asserted; most take a small part of it.
";

/// The whole file.
pub fn file(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    let mut section = "";
    for row in rows {
        if row.section != section {
            section = row.section;
            let _ = write!(text, "\n## {section}\n\n");
            text += "| the fault | the caller gets | recorded | charged | stays reserved | recovery |\n";
            text += "|---|---|---|---|---|---|\n";
        }
        text += &row.line();
        text += "\n";
    }
    text
}
