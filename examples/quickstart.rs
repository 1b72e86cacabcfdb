//! A stack of your own: a real provider, and an echo for when it is down.
//!
//! ```sh
//! cargo run --example quickstart --features hyper-client                     # nobody listens: the echo answers
//! OPENAI_BASE_URL=https://api.openai.com/v1 OPENAI_API_KEY=… \
//!     cargo run --example quickstart --features hyper-client "Say hello."    # a real provider
//! ```

use llm_layers::{
    ChatBody, LlmRequest, ResponseBody, ServiceBuilderExt as _,
    alias::AliasTable,
    fallback::{Chains, FallbackLayer},
    provider::{Echo, openai::OpenAiCompatible},
    providers::Providers,
    timeout::CallTimeoutLayer,
};
use std::{env, io::Write as _, time::Duration};
use tower::{ServiceBuilder, ServiceExt as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("OPENAI_BASE_URL").unwrap_or_else(|_| "http://127.0.0.1:9/v1".into());
    let mut openai = OpenAiCompatible::hyper(url)?.with_provider_name("openai");
    if let Ok(key) = env::var("OPENAI_API_KEY") {
        openai = openai.with_api_key(key)?;
    }

    let providers = Providers::builder()
        .each(|_| {
            CallTimeoutLayer::new().with_head(Duration::from_secs(30)).with_idle(Duration::from_secs(20))
        })
        .deployment("openai", openai.into_deployment())
        .provider("echo", Echo::new())
        .build()?;
    let names = providers.names();
    let aliases =
        AliasTable::builder().alias("fast", "openai/gpt-4o-mini").providers(names.clone()).build()?;
    let chains =
        Chains::builder().chain("openai/gpt-4o-mini", ["echo/echo"]).providers(names.clone()).build()?;
    let stack = ServiceBuilder::new()
        .answer_concurrency_limit(64)
        .alias(aliases)
        .layer(FallbackLayer::new(chains).with_providers(names))
        .service(providers);

    let prompt = env::args().nth(1).unwrap_or_else(|| "Is anybody there?".into());
    let request = LlmRequest::new("fast", ChatBody::builder().user(prompt).streaming().build()?);
    let answer = stack.oneshot(request).await?;
    for failed in &answer.attempts {
        eprintln!("{} failed: {}", failed.model, failed.error);
    }
    eprintln!("{} answers:", answer.model);
    match answer.body {
        ResponseBody::Complete(completion) => println!("{}", completion.content()),
        ResponseBody::Stream(mut chunks) => {
            while let Some(chunk) = chunks.next().await {
                print!("{}", chunk?.content());
                std::io::stdout().flush()?;
            }
            println!();
            eprintln!("{:?}", chunks.summary().usage);
        }
    }
    Ok(())
}
