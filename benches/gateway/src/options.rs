//! The command line.

use crate::{
    Fallible,
    case::{CASES, Case},
    process::Setup,
};

const USAGE: &str = "\
usage: bench-gateway [OPTIONS]

  --short              a few seconds, for CI: fails on errors and on memory that grows; times mean nothing
  --case NAME          only this one; may be given again
  --rounds N           how often each case is run for each server, in turn (5)
  --requests N         how many questions in a round, instead of the case's own number
  --memory N           how many questions before memory is told (100000; 0 for not)
  --quota STORE        where the gateway counts: memory or sqlite (memory)
  --log FILTER         what the gateway logs, as RUST_LOG (its own default: a line for each request, into a file)
  --gateway-only       neither the floor nor the upstream alone
  --under COMMAND      runs the gateway by this command, such as a profiler";

pub(crate) struct Options {
    pub(crate) is_short: bool,
    pub(crate) cases: Vec<Case>,
    pub(crate) rounds: usize,
    pub(crate) requests: Option<usize>,
    pub(crate) memory: usize,
    pub(crate) gateway_only: bool,
    pub(crate) setup: Setup,
}

impl Options {
    /// `None` if nothing but the usage was asked for.
    pub(crate) fn read(told: &[&str]) -> Fallible<Option<Self>> {
        let mut options = Self {
            is_short: false,
            cases: Vec::new(),
            rounds: 5,
            requests: None,
            memory: 100_000,
            gateway_only: false,
            setup: Setup { cache_bytes: 8 << 20, quota: "memory".to_owned(), ..Setup::default() },
        };
        let mut told = told.iter();
        while let Some(name) = told.next() {
            let mut value = || told.next().copied().ok_or(format!("{name} needs a value"));
            match *name {
                "--help" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                "--short" => {
                    options.is_short = true;
                    // Full before half of the questions are asked: what grows then is something else.
                    options.setup.cache_bytes = 1 << 20;
                }
                "--gateway-only" => options.gateway_only = true,
                "--case" => {
                    let name = value()?;
                    let case = CASES.iter().find(|case| case.name == name);
                    options.cases.push(*case.ok_or_else(|| format!("there is no case {name}"))?);
                }
                "--rounds" => options.rounds = value()?.parse()?,
                "--requests" => options.requests = Some(value()?.parse()?),
                "--memory" => options.memory = value()?.parse()?,
                "--quota" => value()?.clone_into(&mut options.setup.quota),
                "--log" => options.setup.log = Some(value()?.to_owned()),
                "--under" => value()?.clone_into(&mut options.setup.under),
                unknown => return Err(format!("unknown argument {unknown}\n{USAGE}").into()),
            }
        }
        if options.cases.is_empty() {
            options.cases = CASES.to_vec();
        }
        Ok(Some(options))
    }
}
