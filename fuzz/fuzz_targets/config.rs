#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llm_layers_fuzz::laws::config(bytes));
