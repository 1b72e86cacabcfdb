//! Rounds in turn, so that whatever else the machine does befalls all.

use crate::{
    Fallible,
    case::{Asked, CASES, Case, SMALL},
    load::{self, Outcome},
    options::Options,
    process::{Folder, Server},
    table,
};

/// How much more memory the second half of many requests may take, in KiB: nothing but noise.
const GROWTH: u64 = 4 << 10;

/// What a round of a case says of one server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// Microseconds of a request; none of the upstream alone.
    pub(crate) cpu: f64,
    /// Answers that were kept from earlier questions.
    kept: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) per_second: f64,
}

/// All rounds of a case.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) case: Case,
    pub(crate) direct: Vec<Round>,
    pub(crate) floor: Vec<Round>,
    pub(crate) gateway: Vec<Round>,
}

struct Servers {
    upstream: Server,
    floor: Server,
    gateway: Server,
}

pub(crate) async fn run(options: &Options) -> Fallible {
    let folder = Folder::new()?;
    let memory = if options.is_short { 6_000 } else { options.memory };
    let mut seen = Vec::new();
    if memory > 0 {
        // By servers that have done nothing else.
        let servers = Servers::start(options, &folder).await?;
        seen = servers.memory(memory).await?;
        servers.stop().await?;
    }
    let servers = Servers::start(options, &folder).await?;
    // Connections, caches and the allocators are as they will be.
    for case in options.cases.iter().filter(|_| !options.is_short) {
        for server in [&servers.floor, &servers.gateway] {
            whole(load::run(server.address, case, case.requests / 8).await?)?;
        }
    }
    let mut all = Vec::new();
    for case in &options.cases {
        let measured = servers.measure(case, options).await?;
        table::row(&measured, all.is_empty());
        all.push(measured);
    }
    table::ratios(&all);
    let after = [servers.gateway.rss()?, servers.floor.rss()?];
    table::memory(memory, &seen, after);
    servers.stop().await
}

fn whole(outcome: Outcome) -> Fallible<Outcome> {
    match outcome.errors {
        0 => Ok(outcome),
        errors => {
            Err(format!("{errors} errors, the first: {}", outcome.first_error.unwrap_or_default()).into())
        }
    }
}

impl Servers {
    async fn start(options: &Options, folder: &Folder) -> Fallible<Self> {
        let upstream = Server::upstream().await?;
        let floor = Server::floor(upstream.address).await?;
        let gateway = Server::gateway(upstream.address, folder, &options.setup).await?;
        Ok(Self { upstream, floor, gateway })
    }

    async fn stop(self) -> Fallible {
        let Self { upstream, floor, gateway } = self;
        gateway.stop().await?;
        floor.stop().await?;
        upstream.stop().await
    }

    async fn measure(&self, case: &Case, options: &Options) -> Fallible<Measured> {
        let mut measured =
            Measured { case: *case, direct: Vec::new(), floor: Vec::new(), gateway: Vec::new() };
        let (rounds, requests) = match options.is_short {
            true => (1, case.requests / 20),
            false => (options.rounds, options.requests.unwrap_or(case.requests)),
        };
        for _ in 0..rounds {
            if !options.gateway_only {
                measured.direct.push(round(&self.upstream, case, requests).await?);
                measured.floor.push(round(&self.floor, case, requests).await?);
            }
            let gateway = round(&self.gateway, case, requests).await?;
            if case.asked == Asked::Again && gateway.kept < requests {
                return Err(format!("only {} of {requests} answers were kept", gateway.kept).into());
            }
            measured.gateway.push(gateway);
        }
        Ok(measured)
    }

    /// Tells what the gateway has in memory while it answers ever other questions.
    async fn memory(&self, requests: usize) -> Fallible<Vec<u64>> {
        let case = CASES.iter().find(|case| case.name == SMALL).ok_or("no small case")?;
        let mut seen = Vec::new();
        for _ in 0..10 {
            whole(load::run(self.gateway.address, case, requests / 10).await?)?;
            seen.push(self.gateway.rss()?);
        }
        let (middle, end) = (seen[4], seen[9]);
        match end > middle + GROWTH {
            true => Err(format!("memory grows: {middle} KiB, later {end} KiB").into()),
            false => Ok(seen),
        }
    }
}

async fn round(server: &Server, case: &Case, requests: usize) -> Fallible<Round> {
    if case.asked == Asked::Again {
        // It is kept a moment after it was answered.
        whole(load::run(server.address, &Case { in_flight: 1, ..*case }, 50).await?)?;
    }
    let before = server.cpu()?;
    let outcome = whole(load::run(server.address, case, requests).await?)?;
    let cpu = (server.cpu()? - before).as_secs_f64() * 1e6 / requests as f64;
    Ok(Round {
        cpu,
        kept: outcome.kept,
        p50: outcome.permille(500),
        p99: outcome.permille(990),
        per_second: requests as f64 / outcome.took.as_secs_f64(),
    })
}
