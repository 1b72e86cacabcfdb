//! What a ledger of usage says, as tables in the terminal and a chart of the cost of each day.
//!
//! `cargo run --example usage_report --features rusqlite -- usage.db [usage.svg]`. Without a file it makes one of its own, in a
//! directory for temporary files, with a fortnight of calls to nobody.

use llm_layers::{
    ChatBody, LlmRequest, RequestContext,
    price::{NanoUsd, Price, PriceBook, Prices, Rates},
    provider::Echo,
    usage::{
        Durability, GroupBy, LedgerReader, QueueOptions, SqliteLedger, UsageGroup, UsageLayer, UsageQuery,
        UsageTotals,
    },
};
use std::{
    error::Error,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};
use tower::{Layer, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let ledger = match args.next() {
        Some(path) => path,
        None => sample().await?,
    };
    let chart = args.next().unwrap_or_else(|| ledger.with_extension("svg"));
    let reader = LedgerReader::open(&ledger).await?;
    let query = UsageQuery::new();

    let departments = reader.department_sums(&query, &[]).await?;
    let departments = departments.iter().map(|sum| (name(sum.department.as_deref()), &sum.sums));
    print_table("department (a call counts for each of its own)", departments);
    let models = reader.totals_by(&query, &[GroupBy::Model]).await?;
    print_table("model", models.iter().map(|group| (key(group), &group.totals)));
    let days = reader.totals_by(&query, &[GroupBy::Day]).await?;
    print_table("day, UTC", days.iter().map(|group| (key(group), &group.totals)));
    let whole = reader.totals(&query).await?;
    print_table("all", [("every call once", &whole)]);

    std::fs::write(&chart, svg("Cost per day (UTC), in dollars", &days))?;
    println!("\nchart: {}", chart.display());
    Ok(())
}

fn key(group: &UsageGroup) -> &str {
    name(group.key.first().and_then(Option::as_deref))
}

fn name(name: Option<&str>) -> &str {
    name.unwrap_or("(none)")
}

fn print_table<'a>(title: &str, rows: impl IntoIterator<Item = (&'a str, &'a UsageTotals)>) {
    println!("\n{title:<48}{:>9}{:>14}{:>14}{:>16}{:>10}", "calls", "input", "output", "dollars", "unpriced");
    for (name, totals) in rows {
        // Names are other people's: what would move the cursor is not printed.
        let name: String =
            name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(46).collect();
        println!(
            "{name:<48}{:>9}{:>14}{:>14}{:>16}{:>10}",
            totals.calls,
            totals.input_tokens,
            totals.output_tokens,
            totals.cost.to_string(),
            totals.unpriced_calls
        );
    }
}

/// A bar for each group.
fn svg(title: &str, groups: &[UsageGroup]) -> String {
    const BAR: usize = 26;
    const WIDTH: usize = 480;
    let most = groups.iter().map(|group| group.totals.cost).max().unwrap_or(NanoUsd::ZERO).nanos().max(1);
    let height = 50 + BAR * groups.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"800\" height=\"{height}\" viewBox=\"0 0 800 {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (at, group) in groups.iter().enumerate() {
        let (top, totals) = (40 + BAR * at, &group.totals);
        // In 128 bits, so that no amount is too large to draw.
        let width = totals.cost.nanos().max(0) as i128 * WIDTH as i128 / i128::from(most);
        let unpriced = match totals.unpriced_calls {
            0 => String::new(),
            calls => format!(" + {calls} unpriced"),
        };
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{text}\">{}</text><rect x=\"110\" y=\"{top}\" width=\"{width}\" height=\"{}\" \
             fill=\"#4878a8\"/><text x=\"{}\" y=\"{text}\">{}{unpriced}</text>",
            escaped(key(group)),
            BAR - 6,
            118 + width,
            totals.cost,
            text = top + 15,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // No XML has these.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A ledger to look at.
async fn sample() -> Result<PathBuf, Box<dyn Error>> {
    let directory = std::env::temp_dir().join("llm-layers-usage-report");
    std::fs::create_dir_all(&directory)?;
    let path: &Path = &directory.join(format!("usage-{}.db", std::process::id()));
    let (sink, worker) = SqliteLedger::start(path, Durability::Kill, QueueOptions::default())?;
    let price = |input, output| Rates::per_million(input, output).map(Price::new);
    let book =
        PriceBook::of("sample", [("acme/large", price("3", "15")?), ("acme/small", price("0.2", "0.8")?)])?;
    let prices = Prices::new(book);
    for call in 0..14 * 40_u32 {
        let (day, hour) = (call / 40, call % 24);
        let ended = UNIX_EPOCH + Duration::from_secs(1_763_683_200 + u64::from(day * 24 + hour) * 3_600);
        let model = ["acme/small", "acme/large", "acme/small", "elsewhere/new"][(call * 7 % 13 % 4) as usize];
        let departments: &[&str] =
            [&["research"][..], &["sales", "research"], &["R&D <labs>"], &[]][(call % 4) as usize];
        let body =
            ChatBody::builder().user("word ".repeat((call * 37 % 400 + day * 20) as usize + 1)).build()?;
        let mut request = LlmRequest::new(model, body);
        request.context = RequestContext::new().with_departments(departments.iter().copied());
        let service = UsageLayer::new(sink.clone(), prices.clone()).with_clock(ended).layer(Echo::new());
        service.oneshot(request).await?;
    }
    worker.shutdown(Duration::from_secs(10)).await;
    Ok(path.to_owned())
}
