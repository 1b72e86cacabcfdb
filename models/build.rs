//! Says that the library is built for its models.

#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rustc-cfg=shuttle");
    // The library's other features are none of this package's.
    println!("cargo::rustc-check-cfg=cfg(feature, values(any()))");
    println!("cargo::rerun-if-changed=build.rs");
}
