//! Makes Rust of the contract, without `protoc`.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let contract = protox::compile(["chat.proto"], ["proto"])?;
    // For those who ask what is served, and for the test that compares it with what xAI's own client has.
    let described = prost::Message::encode_to_vec(&contract);
    fs::write(Path::new(&env::var("OUT_DIR")?).join("chat.bin"), described)?;
    tonic_prost_build::configure().compile_fds(contract)?;
    Ok(())
}
